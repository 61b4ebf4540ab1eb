"""Formulas over band names, such as `(nir - red) / (nir + red)`: parsed once, checked, and computed on arrays or tensors."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from pipeline.errors import Refused

LONGEST, DEEPEST = 1000, 50
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[[Any], Any]] = {"abs": operator.abs, "sqrt": lambda value: value**0.5}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A formula of numbers, names, `+ - * / **`, `sqrt`, `abs`, and, where it is a condition, `< <= > >=`, `and`, `or`, `not`.

    Nothing else is in it, so a stranger's formula can do no harm.

    >>> Expression.parse("(nir - red) / (nir + red)").names
    ('nir', 'red')
    >>> Expression.parse("(nir - red) / (nir + red)")({"nir": 0.75, "red": 0.25})
    0.5
    """

    text: str
    names: tuple[str, ...]  # in the order of the alphabet, in lower case

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Raises Refused, saying what of it is not understood."""
        names = {node.id.lower() for node in ast.walk(_tree(text)) if isinstance(node, ast.Name)} - FUNCTIONS.keys()
        if not names:
            raise Refused(f"formula {text!r}: names no band")
        formula = cls(text, tuple(sorted(names)))
        try:
            with np.errstate(all="ignore"):
                formula({name: np.ones(1) for name in names})
        except ArithmeticError:  # of its own numbers: 1 / 0
            raise Refused(f"formula {text!r}: its numbers cannot be computed") from None
        return formula

    @property
    def is_condition(self) -> bool:
        """Whether it is true or false of a pixel, not a number."""
        return _is_condition(_tree(self.text))

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Its value where each name has the value, array or tensor that `values` gives it. Names are in lower case."""
        return _compute(_tree(self.text), values)


def _tree(text: str) -> ast.expr:
    if not isinstance(text, str) or len(text) > LONGEST:
        raise Refused(f"formula {str(text)[:80]!r}: must be text of at most {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        _check(tree, text, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Refused(f"formula {text[:80]!r}: is no formula such as (nir - red) / (nir + red)") from None
    return tree


def _check(node: ast.expr, text: str, depth: int) -> None:
    """Refuse all that is not on the list, and numbers where conditions belong."""
    inner: list[ast.expr] = []
    match node:
        case _ if depth > DEEPEST:
            raise Refused(f"formula {text[:80]!r}: is nested too deep")
        case ast.Constant(value=bool()):
            raise Refused(f"formula {text[:80]!r}: {ast.unparse(node)} is no number")
        case ast.Constant(value=int() | float()) | ast.Name():
            pass
        case ast.BinOp(op=op) if type(op) in BINARY:
            inner = [node.left, node.right]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            inner = [node.operand]
        case ast.Call(func=ast.Name(id=name), args=[_], keywords=[]) if name.lower() in FUNCTIONS:
            inner = node.args
        case ast.Compare(ops=ops) if all(type(op) in COMPARISONS for op in ops):
            inner = [node.left, *node.comparators]
        case ast.BoolOp():
            _check_conditions(node.values, text, depth)
            return
        case ast.UnaryOp(op=ast.Not()):
            _check_conditions([node.operand], text, depth)
            return
        case _:
            what = ast.unparse(node)[:40]
            raise Refused(f"formula {text[:80]!r}: {what!r} is not understood; there are + - * / **, abs, sqrt, < > and or not")
    for part in inner:
        if _is_condition(part):
            raise Refused(f"formula {text[:80]!r}: {ast.unparse(part)[:40]!r} is true or false, where a number belongs")
        _check(part, text, depth + 1)


def _check_conditions(parts: list[ast.expr], text: str, depth: int) -> None:
    for part in parts:
        if not _is_condition(part):
            raise Refused(f"formula {text[:80]!r}: {ast.unparse(part)[:40]!r} is a number, where a condition belongs")
        _check(part, text, depth + 1)


def _is_condition(node: ast.expr) -> bool:
    return isinstance(node, ast.Compare | ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def _compute(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return values[name.lower()]
        case ast.BinOp():
            return BINARY[type(node.op)](_compute(node.left, values), _compute(node.right, values))
        case ast.UnaryOp(op=ast.Not()):
            return _compute(node.operand, values) == 0
        case ast.UnaryOp():
            inner = _compute(node.operand, values)
            return -inner if isinstance(node.op, ast.USub) else inner
        case ast.Call(func=ast.Name(id=name)):
            return FUNCTIONS[name.lower()](_compute(node.args[0], values))
        case ast.Compare():
            sides = [_compute(side, values) for side in (node.left, *node.comparators)]
            told = [COMPARISONS[type(op)](one, other) for op, one, other in zip(node.ops, sides, sides[1:], strict=False)]
            return reduce(operator.and_, told)
        case ast.BoolOp():
            told = [_compute(part, values) for part in node.values]
            return reduce(operator.and_ if isinstance(node.op, ast.And) else operator.or_, told)
    raise AssertionError(node)  # _check lets nothing else through

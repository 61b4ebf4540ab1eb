"""Formulas over band names: what they compute, and what is refused."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from pipeline.errors import Refused
from pipeline.imagery import expressions
from pipeline.imagery.expressions import Expression


def test_the_examples_hold():
    assert doctest.testmod(expressions).failed == 0


@pytest.mark.parametrize(
    "text", ["(NIR - red) / (nir + RED)", "2.5 * (nir - red) / (nir + 6*red - 7.5*blue + 1)", "sqrt(abs(-nir)) ** 2 - +red"]
)
def test_a_formula_computes_what_python_does(text: str):
    values = dict(zip(("nir", "red", "blue"), np.random.default_rng(1).uniform(0.1, 1, (3, 4, 5)), strict=True))
    expected = eval(text.lower(), {"sqrt": np.sqrt, "abs": np.abs}, values)
    assert np.allclose(Expression.parse(text)(values), expected, rtol=1e-12)
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    assert np.allclose(Expression.parse(text)(tensors).numpy(), expected, rtol=1e-12)


def test_a_condition_computes_what_python_does():
    condition = Expression.parse("0.2 <= ndvi < 0.6 and not red > 0.5 or blue > 0.9")
    assert condition.is_condition and condition.names == ("blue", "ndvi", "red")
    rng = np.random.default_rng(2)
    ndvi, red, blue = rng.uniform(0, 1, (3, 1000))
    expected = (ndvi >= 0.2) & (ndvi < 0.6) & ~(red > 0.5) | (blue > 0.9)
    assert (condition({"ndvi": ndvi, "red": red, "blue": blue}) == expected).all()
    assert 0 < expected.sum() < 1000


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("__import__('os').system('x')", "not understood"), ("nir.real", "not understood"), ("nir[0]", "not understood"),
        ("exec(nir)", "not understood"), ("lambda: nir", "not understood"), ("nir if red else 1", "not understood"),
        ("nir == red", "not understood"), ("'a' + nir", "not understood"), ("nir + True", "no number"), ("1 + 2", "names no band"),
        ("", "no formula"), ("nir +", "no formula"), ("nir and red", "a number, where"), ("(nir > 1) + 1", "true or false"),
        ("(" * 300 + "nir" + ")" * 300, "formula"), ("nir" + " + nir" * 100, "too deep"), ("n" * 2000, "at most"),
        ("abs(nir, red)", "not understood"), ("nir // red", "not understood"), ("~nir", "not understood"),
        ("nir + 1 / 0", "cannot be computed"), ("nir + 9 ** 9 ** 9", "cannot be computed"),
    ],
)  # fmt: skip
def test_all_else_is_refused_in_one_line(text: str, word: str):
    with pytest.raises(Refused, match=word) as refused:
        Expression.parse(text)
    assert "\n" not in str(refused.value)

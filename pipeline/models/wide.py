"""Wide activations of an OpenVINO network in parts of their channels: the same network, faster on a CPU.

oneDNN slows down where a convolution's weights do not fit in a core's L2. A 1 x 1 convolution then goes over the whole image
once for every few of its output channels, and writes some bytes of each pixel each time. With the 2048 channels of a ResNet
in four parts, on a CPU with AMX (2 MiB of L2, one stream, tile of 2224 x 4352 px), fcn_resnet50 takes 983 ns a px, not 1488,
in bf16, and 600, not 660, in int8; without AMX it is as fast as before (tests/benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

WIDE, PART = 1024, 512  # channels: what has more than the first is cut in parts of the second
CHANNELWISE = ("Add", "FakeQuantize", "Multiply", "Relu")  # operations that do not mix channels
OF_CONSTANTS = ("Convert", "FakeQuantize", "Multiply", "Subtract")  # what makes weights of 8 bits

Parts = list[Any]  # of an operation's output, in the order of their channels; all that is typed Any is OpenVINO's


def in_parts(model: Any, quantised: bool) -> None:
    """Rewrite a model, in place: 1 x 1 convolutions with more than WIDE output channels give parts, what is done channel by
    channel keeps them, and convolutions after that add up what each part gives. All else takes them joined.

    In a quantised model 1 x 1 convolutions do, too: to add up what is then cut to 8 bits goes through fp32.
    """
    from openvino import opset13 as opset

    parts: dict[str, Parts] = {}  # by the operation's name
    whole: dict[str, Any] = {}

    def joined(source: Any) -> Any:
        name = source.get_node().get_friendly_name()
        cut = parts.get(name, [source])
        if len(cut) > 1 and name not in whole:
            whole[name] = opset.concat(cut, 1).output(0)
        return whole.get(name, cut[0])

    for op in model.get_ordered_ops():
        kind, sources = op.get_type_name(), [given.get_source_output() for given in op.inputs()]
        inputs = [parts.get(source.get_node().get_friendly_name(), [source]) for source in sources]
        made: Parts = []
        if kind == "Convolution" and _is_constant(op.input_value(1)):
            made = _convolution(op, [joined(sources[0])] if quantised and _is_pointwise(op) else inputs[0])
        elif kind in CHANNELWISE:
            made = _channelwise(op, inputs)
        if made:
            parts[op.get_friendly_name()] = made
        else:
            for given, source in zip(op.inputs(), sources, strict=True):
                given.replace_source_output(joined(source))
    model.validate_nodes_and_infer_types()


def _convolution(op: Any, given: Parts) -> Parts:
    """What takes the place of a convolution with constant weights; nothing where it may stay."""
    from openvino import opset13 as opset

    weights = op.input_value(1)
    channels = weights.get_shape()[0]
    cut = channels > WIDE and _is_pointwise(op)
    if len(given) == 1 and not cut:
        return []
    columns = _slices(map(_channels, given))
    rows = _slices(min(PART, channels - start) for start in range(0, channels, PART)) if cut else [slice(None)]
    return [
        reduce(opset.add, [_like(op, [x, _cut(weights, outs, ins)]) for x, ins in zip(given, columns, strict=True)]).output(0)
        for outs in rows
    ]


def _channelwise(op: Any, inputs: Sequence[Parts]) -> Parts:
    """The same operation on each part of its inputs, of which others are constants; nothing where it may stay, or must."""
    cut = [parts for parts in inputs if len(parts) > 1]
    if not cut or any(list(map(_channels, parts)) != list(map(_channels, cut[0])) for parts in cut):
        return []
    if not all(len(parts) > 1 or _is_constant(parts[0]) for parts in inputs):
        return []
    return [
        _like(op, [parts[number] if len(parts) > 1 else _cut(parts[0], slice(None), span) for parts in inputs]).output(0)
        for number, span in enumerate(_slices(map(_channels, cut[0])))
    ]


def _is_pointwise(op: Any) -> bool:
    return set(op.input_value(1).get_shape()[2:]) == {1}


def _channels(output: Any) -> int:
    return output.get_partial_shape()[1].get_length()


def _slices(lengths: Iterable[int]) -> list[slice]:
    return [slice(*ends) for ends in pairwise(accumulate(lengths, initial=0))]


def _is_constant(output: Any) -> bool:
    """Whether an output is made of constants alone, each of four axes, or one value."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return len(node.get_output_shape(0)) in (0, 4)
    return node.get_type_name() in OF_CONSTANTS and all(_is_constant(given.get_source_output()) for given in node.inputs())


def _cut(output: Any, first: slice, second: slice) -> Any:
    """Constants, cut along their first two axes; those of length 1 are for all."""
    from openvino import opset13 as opset

    node = output.get_node()
    if node.get_type_name() == "Constant":
        wanted = [span if length > 1 else slice(None) for span, length in zip((first, second), node.data.shape, strict=False)]
        return opset.constant(np.array(node.data[*wanted], order="C")).output(0)
    return _like(node, [_cut(given.get_source_output(), first, second) for given in node.inputs()]).output(0)


def _like(op: Any, inputs: Sequence[Any]) -> Any:
    """The same operation on other inputs."""
    from openvino.utils.node_factory import NodeFactory

    return NodeFactory("opset13").create(op.get_type_name(), list(inputs), op.get_attributes())

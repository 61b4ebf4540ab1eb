"""What there is to choose from: each architecture with its size, its reach and its work, as `jobs/train_model.py --list` prints it.

Measuring all takes minutes, so it is kept in zoo.json, which `tests/benchmarks/bench_zoo.py --write` makes anew.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.networks import ARCHITECTURES, build_network
from pipeline.models.program import Coarse
from pipeline.models.receptive import find_reach

BANDS, CLASSES = 3, 21  # red, green, blue and Pascal VOC's classes, for which most papers give their numbers
SIDE = 1024  # px: a multiple of every stride
KEPT = Path(__file__).with_name("zoo.json")
HEADINGS = ("name", "parameters", "stride", "field", "exact halo", "GFLOP/Mpx", "--argument", "what it is")
NOTE = f"""
For {BANDS} bands, {CLASSES} classes and the default arguments; lengths in px.
field: side of the input window that a block of stride x stride output pixels can depend on: the block, and the exact halo on either side.
GFLOP/Mpx: of a forward pass on {SIDE} px square, without the last enlargement of the logits; a multiplication with addition is 2 FLOP.
Attention takes more for each pixel of a larger tile."""


class Measured(NamedTuple):
    """Of a network with its default arguments: `exact_halo` in px, or None and `why_not`."""

    parameters: int
    stride: int
    exact_halo: int | None
    why_not: str | None
    gflop_per_megapixel: float

    @property
    def receptive_field(self) -> int | None:
        """Side in px of the input window that an aligned block of stride x stride output pixels can depend on."""
        return None if self.exact_halo is None else 2 * self.exact_halo + self.stride


class Member(NamedTuple):
    """An architecture: what it is in a sentence, the arguments it takes with their defaults, and what was measured of it."""

    name: str
    sentence: str
    arguments: dict[str, Any]
    measured: Measured


def members() -> list[Member]:
    """All architectures, by name. Nothing is built or imported for it."""
    kept = json.loads(KEPT.read_text())
    return [Member(name, _sentence(build), own_arguments(build), Measured(**kept[name])) for name, build in sorted(ARCHITECTURES.items())]


def measure(name: str) -> Measured:
    """Build a network and measure it: seconds, for a network that looks far minutes."""
    network = build_network(name, BANDS, CLASSES)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Measured(parameters, *find_reach(network, BANDS), gflop_per_megapixel=gflop_per_megapixel(network, BANDS))


def gflop_per_megapixel(network: torch.nn.Module, bands: int) -> float:
    """10^9 floating-point operations for each 10^6 px of input, a multiply-add being two; the network is moved to the meta device."""
    program = Coarse(network).to("meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        program(torch.empty(1, bands, SIDE, SIDE, device="meta"))
    return round(counter.get_total_flops() / 1e9 / (SIDE**2 / 1e6), 3)


def own_arguments(build: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that are the architecture's own, with their defaults."""
    taken = inspect.signature(build).parameters.values()
    return {item.name: item.default for item in taken if item.name not in ("bands", "classes")}


def table() -> list[str]:
    """The zoo, a line a network, in columns, and what the columns mean."""
    rows = [HEADINGS, *(_row(member) for member in members())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (1, 2, 3, 5)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return [*lines, NOTE]


def _row(member: Member) -> tuple[str, ...]:
    known = member.measured
    return (
        member.name,
        f"{known.parameters / 1e6:.2f} M",
        str(known.stride),
        "all" if known.receptive_field is None else str(known.receptive_field),
        f"none: {known.why_not}" if known.exact_halo is None else str(known.exact_halo),
        f"{known.gflop_per_megapixel:.3g}" if known.gflop_per_megapixel < 100 else f"{known.gflop_per_megapixel:.0f}",
        " ".join(f"{name}={json.dumps(default)}" for name, default in member.arguments.items()),
        member.sentence,
    )


def _sentence(build: Callable[..., Any]) -> str:
    described = build.func if isinstance(build, partial) else build
    return (inspect.getdoc(described) or "").splitlines()[0]

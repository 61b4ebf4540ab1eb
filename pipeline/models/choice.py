"""Which engine and precision are the fastest on this device among those that keep near enough to fp32."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from pipeline.errors import Refused
from pipeline.geometry.pyramid import nodata_of
from pipeline.geometry.windows import Window, ceil_to
from pipeline.imagery import storage
from pipeline.imagery.reader import Pixels
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Bundle, differing_pixels
from pipeline.models.engine import Engine, Execution, Scaling, computes_in_bf16, describe_device, processor_name, program_inputs, threads
from pipeline.models.forward import ENGINES, missing, quantised
from pipeline.models.layers import LAYERS
from pipeline.models.program import PRECISIONS

DIFFERING = 0.005  # the share of classes, or of values, that speed may cost, against fp32
TRIAL_PX = 512  # a CPU's rate at this size holds for larger tiles, with the settings of `allocator`
TRIAL_PAYS_S = 60.0  # of work by PyTorch's own engine; less is done before a trial would end
SHORT_S = 20.0  # of work, with speeds remembered; less is done before an engine is built
GAIN = {"eager": 1.0, "openvino": 1.03, "compiled": 1.06}  # by which an engine that is built must be faster; the last takes one shape only


class Sample(NamedTuple):
    """A window of a scene, to try engines on."""

    pixels: Pixels
    scaling: Scaling


@dataclass(frozen=True)
class Choice:
    """What was chosen, the share of classes (or values) that differ from fp32 on the samples, and why, in a line."""

    execution: Execution
    differing: float
    why: str

    def keep(self, path: Place) -> None:
        """Put an int8 network that was made for this choice where later runs find it, unless another run was first."""
        if isinstance(self.execution.network, bytes):
            storage.create(path, self.execution.network)


REFERENCE = Choice(Execution(), 0.0, "fp32 by eager: the reference")


class Trial:
    """What can run a bundle on a device in the precision that was asked for, and what is measured of it, each once.

    `samples` show what the scenes are like; two of three calibrate int8, the others judge. `kept` is the int8 network that
    there is already; where there is none, one is made. `work_px` is what a stream has to do.
    Speeds are measured once for a bundle, a device and versions, and remembered in the user's cache.
    Raises Refused for a precision that this machine does not have.
    """

    def __init__(
        self, bundle: Bundle, device: str, asked: str, samples: Sequence[Sample], *, work_px: float, kept: Place | None = None,
        threads: int = 1,
    ):  # fmt: skip
        _check_asked(asked, device)
        self.bundle, self.device, self.asked, self.work_px, self.threads = bundle, device, asked, work_px, threads
        self.kept = str(kept) if kept and storage.is_file(kept) else None
        self.judging = [_selftest(bundle), *samples[::3]]
        self.calibrating = [sample for number, sample in enumerate(samples) if number % 3] or samples
        self._engines: dict[Execution, Engine] = {}
        self._outputs: dict[str, list[np.ndarray]] = {}
        self._rates: dict[str, float] = {}
        self._unable: list[str] = []  # why engines were passed over
        versions = [torch.__version__, *(_version(name) for name in ("openvino", "nncf", "tilewright"))]
        about = [bundle.model_id, describe_device(device), processor_name(), *versions]
        self._file = storage.cache_folder() / "speeds" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.json"

    @property
    def plain(self) -> Execution:
        """PyTorch's own engine, in what was asked for or else in what the device computes fastest: nothing has to be built."""
        return Execution("eager", self.asked if self.asked not in ("auto", "int8") else native_precision(self.device))

    def pays(self) -> bool:
        """Whether there is so much work that building and measuring other engines is worth its time."""
        if self.asked in ("fp32", "int8"):
            return self.asked == "int8"
        return self.work_px > self.expected_speed(self.plain) * (SHORT_S if self.remembered() else TRIAL_PAYS_S)

    def choose(self, others: bool) -> Choice:
        """The fastest that is near enough to fp32, or that was asked for; without `others` PyTorch's own engine, if it is.

        Raises Refused where int8 was asked for and differs too much.
        """
        if self.asked == "fp32":
            return REFERENCE
        free = self.asked in ("auto", "int8")
        candidates = self._candidates() if others else [self.plain]
        possible = [engine for engine in ENGINES if self.device == "cpu" or engine != "openvino"]
        lacks = sorted({lack for engine in possible if others and (lack := missing(engine, self.device))})
        shares = {precision: self.differing(precision) for precision in {candidate.precision for candidate in candidates}}
        fitting = [one for one in candidates if not free or shares[one.precision] <= DIFFERING]
        if self.asked == "int8" and not fitting:
            raise Refused(
                f"--precision int8: {shares['int8']:.2%} of the {self.bundle.predicted} differ from fp32 on windows of the scene, at most"
                f" {DIFFERING:.1%} may: use --precision auto"
            )
        if self.asked == "auto" and self.plain not in fitting:
            fitting.append(Execution())  # fp32 always fits
        rates = {one: self.speed(one) for one in fitting} if len(fitting) > 1 else {fitting[0]: 0.0}
        best = max(fitting, key=lambda one: rates[one] / GAIN[one.engine])
        return Choice(
            best,
            shares.get(best.precision, 0.0),
            "; ".join([_why(best, rates, shares, others, self.bundle.predicted), *lacks, *self._unable]),
        )

    def _candidates(self) -> list[Execution]:
        engines = () if self.asked == "int8" else ENGINES
        found = [Execution(engine, self.plain.precision) for engine in engines if not missing(engine, self.device)]
        if self.asked in ("auto", "int8") and not missing("openvino", self.device):
            try:
                found.append(self._int8)
            except Refused as error:  # it cannot be converted
                if self.asked == "int8":
                    raise
                self._unable.append(str(error))
        return found

    @cached_property
    def _int8(self) -> Execution:
        """By the int8 network that is kept, or by a new one."""
        if self.kept:
            return Execution("openvino", "int8", self.kept)
        inputs = (program_inputs([sample.pixels], sample.scaling, 1) for sample in self.calibrating)
        with threads(self.threads):
            return Execution("openvino", "int8", quantised(self.bundle, inputs))

    def remembered(self) -> dict[str, float]:
        """Pixels a second by precision and engine, as measured before."""
        try:
            return storage.read_json(self._file) or {}
        except Refused:
            return {}

    def differing(self, precision: str) -> float:
        """The share of classes, or of values, that differ from fp32, over the judging samples and the bundle's self-test."""
        pairs = list(zip(self._inferred(precision), self._inferred("fp32"), strict=True))
        differing = sum(int(differing_pixels(*pair, self.bundle.target).sum()) for pair in pairs)
        return differing / sum(one.size for one, _ in pairs)

    def expected_speed(self, execution: Execution) -> float:
        """Pixels a second of one stream, remembered or else as the samples went: near enough to see what is worth a trial."""
        remembered = self.remembered().get(f"{execution.precision} {execution.engine}")
        if remembered is None:
            self._inferred(execution.precision)
        return remembered or self._rates[execution.precision] / self.threads

    def _inferred(self, precision: str) -> list[np.ndarray]:
        """The mask, or the values, of the judging samples in a precision, by the engine that needs no building."""
        if precision not in self._outputs:
            engine = self._engine(self._int8 if precision == "int8" else Execution("eager", precision))
            with threads(self.threads):
                began = time.perf_counter()
                self._outputs[precision] = [_pixels(engine, sample) for sample in self.judging]
            pixels = sum(layers.size for layers in self._outputs[precision])
            self._rates[precision] = pixels / (time.perf_counter() - began)
        return self._outputs[precision]

    def _engine(self, execution: Execution) -> Engine:
        if execution not in self._engines:
            self._engines[execution] = Engine(self.bundle, self.device, execution)
        return self._engines[execution]

    def speed(self, execution: Execution) -> float:
        """Pixels a second of one stream, remembered from before or measured now: the best of three passes; 0: it cannot."""
        name, known = f"{execution.precision} {execution.engine}", self.remembered()
        if name not in known:
            stride = self.bundle.reach.stride
            side = ceil_to(TRIAL_PX, stride)
            bands = len(self.bundle.bands)
            blank = Sample(Pixels(np.zeros((bands, side, side), np.uint8), None), Scaling((1.0,) * bands, (0.0,) * bands))
            try:
                engine = self._engine(execution)
            except Refused as error:  # it cannot be converted, or fails the self-test, which the engine that needs no building has passed
                self._unable.append(f"{name}: {error}")
                return 0.0
            with threads(1):
                known[name] = side * side / min(_seconds(engine, blank) for _ in range(3))
            storage.replace_json(self._file, self.remembered() | known)
        return known[name]


def _why(best: Execution, rates: dict[Execution, float], shares: dict[str, float], worth: bool, predicted: str) -> str:
    reasons = [f"{share:.2%} of {predicted} differ from fp32 in {name}" for name, share in sorted(shares.items()) if name != "fp32"]
    if len(rates) > 1:
        others = sorted(rates.items(), key=lambda item: -item[1])
        reasons.append("MPix/s a stream: " + ", ".join(f"{one.precision} {one.engine} {rate / 1e6:.3g}" for one, rate in others))
    elif not worth:
        reasons.append("too little work to try others")
    return f"{best.precision} by {best.engine}: " + "; ".join(reasons)


def check_precision(asked: str) -> None:
    """Raise Refused for a precision that there is not."""
    if asked != "auto" and asked not in PRECISIONS:
        raise Refused(f"--precision {asked}: unknown; use auto, {', '.join(PRECISIONS)}")


def _check_asked(asked: str, device: str) -> None:
    check_precision(asked)
    if asked == "fp16" and device == "cpu":
        raise Refused("--precision fp16: is for GPUs, a CPU is 8 times slower in it than in bf16: use auto or bf16")
    if asked == "int8" and (lack := missing("openvino", device)):
        raise Refused(f"--precision int8: {lack}")


def native_precision(device: str) -> str:
    """The precision that a device computes fastest in without a network of its own."""
    return "bf16" if computes_in_bf16(device) else "fp16" if device == "cuda" else "fp32"


def _selftest(bundle: Bundle) -> Sample:
    input_BCHW, _ = bundle.selftest()
    return Sample(Pixels(input_BCHW[0].numpy(), None), Scaling.of_physical(bundle.bands))


def _pixels(engine: Engine, sample: Sample) -> np.ndarray:
    _, height, width = sample.pixels.values_CHW.shape
    layers_1HW = engine([sample.pixels], [Window(0, 0, height, width)], sample.scaling, 1)[0]
    dtype = LAYERS[engine.layers[0]].dtype
    return np.full((1, height, width), nodata_of(dtype), dtype) if layers_1HW is None else layers_1HW


def _seconds(engine: Engine, sample: Sample) -> float:
    began = time.perf_counter()
    _pixels(engine, sample)
    return time.perf_counter() - began


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""

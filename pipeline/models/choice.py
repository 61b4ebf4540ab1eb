"""Which engine and precision are the fastest on this device among those that keep near enough to fp32."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import Refused
from pipeline.geometry.pyramid import nodata_of
from pipeline.geometry.windows import Window, ceil_to
from pipeline.imagery import storage
from pipeline.imagery.reader import Pixels
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Bundle, differing_pixels
from pipeline.models.checked import made
from pipeline.models.engine import Engine, Execution, Scaling, computes_in_bf16, describe_device, processor_name, program_inputs, threads
from pipeline.models.forward import ENGINES, missing, quantised
from pipeline.models.layers import LAYERS
from pipeline.models.program import PRECISIONS
from pipeline.software import software

DIFFERING = 0.005  # the share of classes, or of values, that speed may cost, against fp32
PASS_S, TRIAL_PX = 2.5, (2048, 1024, 512)  # the largest tile of which a pass is no longer; some engines are slower in large tiles
JOB = {"eager": 1.5, "openvino": 1.5, "compiled": 1.6}  # of a pixel's work, with overlap and the end of a run; the last takes one shape
BUILD_S = {"eager": 0.0, "openvino": 3.0, "compiled": 10.0}  # to begin with an engine
QUANTISING_S, QUANTISING_PX = 3.0, 4e6  # to make an int8 network, until it is known: so long, and as PyTorch takes for so many pixels
PASSES = 3  # that are timed; in the first two PyTorch may take memory
TRIAL_S = 2.0  # to begin with measuring
# How much faster than PyTorch's own an engine may be, until it is known: the most that was seen, so that none is passed over.
GUESS = {"eager": 1.0, "openvino": 2.2, "compiled": 1.4}
GUESS_INT8 = 3.5
INT8 = Execution("openvino", "int8")


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


@dataclass(frozen=True)
class Known:
    """What was measured of a bundle on a device: pixels a second of one stream by precision and engine, in tiles of `side` px;
    and the seconds that an int8 network took to make."""

    speeds: dict[str, float] = field(default_factory=dict)
    side: int | None = None
    quantising_s: float | None = None


class Trial:
    """What can run a bundle on a device in the precision that was asked for, and what is measured of it, each once.

    `samples` gives windows that show what the scenes are like; two of three calibrate int8, the others judge. `kept` is the int8
    network that there is already; where there is none, one is made. `work_px` is what a stream has to do.
    Speeds are measured once for a bundle, a device and versions, and remembered in the user's cache.
    Raises Refused for a precision that this machine does not have.
    """

    def __init__(
        self, bundle: Bundle, device: str, asked: str, samples: Callable[[], Sequence[Sample]], *, work_px: float,
        kept: Place | None = None, threads: int = 1,
    ):  # fmt: skip
        _check_asked(asked, device)
        self.bundle, self.device, self.asked, self.work_px, self.threads = bundle, device, asked, work_px, threads
        self._int8_network: str | bytes | None = str(kept) if kept and storage.is_file(kept) else None
        self._take_samples = samples
        self._engines: dict[Execution, Engine] = {}
        self._outputs: dict[str, list[np.ndarray]] = {}
        self._rates: dict[str, float] = {}  # with which outputs were made
        self._unable: list[str] = []  # why engines were passed over
        versions = [software().get(name, "") for name in ("torch", "openvino", "nncf", "tilewright")]
        about = [bundle.model_id, describe_device(device), processor_name(), *versions]
        self._file = storage.cache_folder() / "speeds" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.json"
        self._known = self._remembered()

    @property
    def plain(self) -> Execution:
        """PyTorch's own engine, in what was asked for or else in what the device computes fastest: nothing has to be built."""
        return Execution("eager", self.asked if self.asked not in ("auto", "int8") else native_precision(self.device))

    def choose(self) -> Choice:
        """What ends first, built, tried and measured, that is near enough to fp32 or was asked for.

        Raises Refused where int8 was asked for and differs too much.
        """
        choice = self._choose(build=True)
        assert choice
        return choice

    def choose_at_once(self) -> Choice | None:
        """The same where nothing has to be built or measured for it; else None."""
        return self._choose(build=False)

    def _choose(self, build: bool) -> Choice | None:
        if self.asked == "fp32":
            return REFERENCE
        candidates = self._candidates()
        while True:
            best = min(candidates, key=self.seconds) if len(candidates) > 1 else candidates[0]
            if not build and (self._must_be_made(best) or self._must_be_measured(best, candidates)):
                return None
            if not self._fits(best):
                candidates.remove(best)
                if best == self.plain:
                    candidates.append(Execution())  # fp32 always fits
            elif not self._must_be_measured(best, candidates):
                return self._chosen(best, candidates)
            else:
                self.speed(self.plain)
                if not self.speed(best):
                    candidates.remove(best)

    def _candidates(self) -> list[Execution]:
        if self.asked == "int8":
            return [INT8]
        found = [Execution(engine, self.plain.precision) for engine in ENGINES]
        return [one for one in (*found, *[INT8] * (self.asked == "auto")) if not missing(one.engine, self.device)]

    def _must_be_made(self, one: Execution) -> bool:
        return one == INT8 and not self._int8_network

    def _must_be_measured(self, one: Execution, candidates: Sequence[Execution]) -> bool:
        return one.engine != "eager" and len(candidates) > 1 and _name(one) not in self._known.speeds

    def _fits(self, one: Execution) -> bool:
        """Whether it is near enough to fp32, or was asked for. Raises Refused where int8 was asked for, and is not."""
        if self.asked not in ("auto", "int8"):
            return True
        try:
            share = self.differing(one.precision)
        except Refused as error:  # it cannot be converted
            if self.asked == "int8":
                raise
            self._unable.append(str(error))
            return False
        if self.asked == "int8" and share > DIFFERING:
            raise Refused(
                f"--precision int8: {share:.2%} of the {self.bundle.predicted} differ from fp32 on windows of the scene, at most"
                f" {DIFFERING:.1%} may: use --precision auto"
            )
        return share <= DIFFERING

    def _chosen(self, best: Execution, candidates: Sequence[Execution]) -> Choice:
        judged = {precision: self.differing(precision) for precision in {best.precision, *self._outputs} - {"fp32"}}
        reasons = [f"{share:.2%} of {self.bundle.predicted} differ from fp32 in {precision}" for precision, share in sorted(judged.items())]
        speeds = sorted(self._known.speeds.items(), key=lambda item: -item[1])
        if len(candidates) > 1 and speeds:
            reasons.append("MPix/s a stream: " + ", ".join(f"{name} {speed / 1e6:.3g}" for name, speed in speeds))
        if any(self._rate(one) > self._rate(best) for one in candidates if len(candidates) > 1):
            reasons.append("too little work to build what may be faster")
        reasons += [*sorted(self._lacks(best)), *self._unable]
        return Choice(self._built(best), judged.get(best.precision, 0.0), f"{best.precision} by {best.engine}: {'; '.join(reasons)}")

    def _lacks(self, best: Execution) -> set[str]:
        """What is not installed and may be faster."""
        if best == INT8:
            return set()
        lacks = {engine: missing(engine, self.device) for engine in ENGINES if self.device == "cpu" or engine != "openvino"}
        ends = self.seconds(best)
        return {lack for engine, lack in lacks.items() if lack and self.seconds(Execution(engine, self.plain.precision)) < ends}

    def seconds(self, one: Execution) -> float:
        """What a stream takes for its work, as far as is known or was guessed, and to begin with it."""
        seconds = self.work_px * JOB[one.engine] / self._rate(one) + BUILD_S[one.engine]
        if self._must_be_made(one):
            seconds += self._known.quantising_s or QUANTISING_S + QUANTISING_PX / self._rate(self.plain)
        if one.engine != "eager" and _name(one) not in self._known.speeds:
            seconds += TRIAL_S + (PASSES + 1) * self._side**2 / self._rate(self.plain)
        return seconds

    def _rate(self, one: Execution) -> float:
        """Pixels a second of one stream, measured or else guessed."""
        known = self._known.speeds.get(_name(one))
        if known is not None:
            return known
        if one.engine == "eager":
            return self._rate_on_samples(one)
        return self._rate(self.plain) * (GUESS_INT8 if one == INT8 else GUESS[one.engine])

    def _rate_on_samples(self, one: Execution) -> float:
        """The same on the judging samples, in which nothing has to be built: near enough to see what is worth a trial."""
        self._inferred(one.precision)
        return self._rates[one.precision] / self.threads

    def differing(self, precision: str) -> float:
        """The share of classes, or of values, that differ from fp32, over the judging samples and the bundle's self-test."""
        if precision == "fp32":
            return 0.0
        pairs = list(zip(self._inferred(precision), self._inferred("fp32"), strict=True))
        differing = sum(int(differing_pixels(*pair, self.bundle.target).sum()) for pair in pairs)
        return differing / sum(one.size for one, _ in pairs)

    def _inferred(self, precision: str) -> list[np.ndarray]:
        """The mask, or the values, of the judging samples in a precision, by the engine that needs no building."""
        if precision not in self._outputs:
            engine, samples = self._engine(INT8 if precision == "int8" else Execution("eager", precision)), self._judging
            with threads(self.threads):
                began = time.perf_counter()
                self._outputs[precision] = [_pixels(engine, sample) for sample in samples]
            pixels = sum(layers.size for layers in self._outputs[precision])
            self._rates[precision] = pixels / (time.perf_counter() - began)
        return self._outputs[precision]

    def speed(self, one: Execution) -> float:
        """Pixels a second of one stream, remembered from before or measured now: the best of a few passes; 0: it cannot."""
        if _name(one) not in self._known.speeds:
            side = self._side
            bands = len(self.bundle.bands)
            blank = Sample(Pixels(np.zeros((bands, side, side), np.uint8), None), Scaling((1.0,) * bands, (0.0,) * bands))
            try:
                engine = self._engine(one)
            except Refused as error:  # it cannot be converted, or fails the self-test, which the engine that needs no building has passed
                self._unable.append(f"{_name(one)}: {error}")
                return 0.0
            with threads(1):
                speed = side * side / min(_seconds(engine, blank) for _ in range(PASSES))
            self._remember(side=side, speeds={_name(one): speed})
        return self._known.speeds[_name(one)]

    @cached_property
    def _side(self) -> int:
        """Of the tile that speeds are measured with, px."""
        rate = self._rate(self.plain)
        side = self._known.side or next((side for side in TRIAL_PX if side * side <= PASS_S * rate), TRIAL_PX[-1])
        return ceil_to(side, self.bundle.reach.stride)

    @cached_property
    def _samples(self) -> Sequence[Sample]:
        return self._take_samples()

    @cached_property
    def _judging(self) -> list[Sample]:
        return [_selftest(self.bundle), *self._samples[::3]]

    def _quantised(self) -> bytes:
        """An int8 network."""
        calibrating = [sample for number, sample in enumerate(self._samples) if number % 3] or self._samples
        inputs = (program_inputs([sample.pixels], sample.scaling, 1) for sample in calibrating)
        began = time.perf_counter()
        with threads(self.threads):
            network = quantised(self.bundle, inputs)
        self._remember(quantising_s=time.perf_counter() - began)
        return network

    def _built(self, one: Execution) -> Execution:
        if one != INT8:
            return one
        self._int8_network = self._int8_network or self._quantised()
        return replace(one, network=self._int8_network)

    def _engine(self, one: Execution) -> Engine:
        if one not in self._engines:
            self._engines[one] = Engine(self.bundle, self.device, self._built(one))
        return self._engines[one]

    def _remembered(self) -> Known:
        """What was measured before; nothing where its file is damaged, or another version's."""
        try:
            found = made(Known, storage.read_json(self._file) or {})
        except (Refused, TypeError):
            return Known()
        numbers = [number for number in (found.side, found.quantising_s, *found.speeds.values()) if number is not None]
        return found if all(number > 0 for number in numbers) else Known()

    def _remember(self, speeds: Mapping[str, float] = {}, **more: Any) -> None:
        """Add to what is known, with what another run has measured meanwhile."""
        before = self._remembered()
        self._known = replace(before, speeds={**before.speeds, **speeds}, **more)
        storage.replace_json(self._file, asdict(self._known))


def _name(one: Execution) -> str:
    return f"{one.precision} {one.engine}"


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

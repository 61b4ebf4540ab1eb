"""One batch in, class ids (or values) out: the network on its device, from a file's numbers to one byte, or one float, a pixel."""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.raster import SceneBand
from pipeline.imagery.reader import Pixels
from pipeline.models.bundle import Bundle, differing_share
from pipeline.models.class_ids import around, class_ids, upsampled
from pipeline.models.forward import ANY_SHAPE, Forward, build_forward
from pipeline.models.program import as_raw

SHAPES_KEPT = 4  # compiled programs, of the last tile shapes

Results = list[np.ndarray | None]


@dataclass(frozen=True)
class Scaling:
    """Raw value times `factor` plus `shift`, a band each: a file's scale and offset and a model's mean and std in one."""

    factor: tuple[float, ...]
    shift: tuple[float, ...]

    @classmethod
    def of(cls, found: Sequence[SceneBand], wanted: Sequence[Band]) -> Scaling:
        pairs = list(zip(found, wanted, strict=True))
        return cls(
            tuple(file.scale / band.std for file, band in pairs),
            tuple((file.offset - band.mean) / band.std for file, band in pairs),
        )

    @classmethod
    def of_physical(cls, bands: Sequence[Band]) -> Scaling:
        """Of values that are in physical units already."""
        return cls(tuple(1 / band.std for band in bands), tuple(-band.mean / band.std for band in bands))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and shift, each 1 x C x 1 x 1, fp32."""
        return torch.tensor(self.factor).reshape(1, -1, 1, 1), torch.tensor(self.shift).reshape(1, -1, 1, 1)


@dataclass(frozen=True)
class Execution:
    """How a network is run: by which engine, in which precision; `network` is the file of a quantised one (int8), or its bytes."""

    engine: str = "eager"
    precision: str = "fp32"
    network: str | bytes | None = field(default=None, repr=False)


class Engine:
    """A bundle's network, resident on a device. Results do not depend on a batch's size or on what else is in it.

    `layers` lists what is wanted of: mask (class ids), confidence (0..100), probabilities (0..100, one a class), uint8; of a
    bundle with a target it is value, float32 in the target's unit. By default it is mask or value.
    For one thread at a time. `batch` is the largest batch that ran: less than was asked for after running out of memory.
    """

    def __init__(self, bundle: Bundle, device: str, execution: Execution, layers: Sequence[str] = ()):
        self.device, self.execution = torch.device(device), execution
        self.layers = tuple(layers) or (bundle.layer,)
        self.batch = 0
        self._limit: int | None = None
        self._bundle = bundle
        self._forwards: OrderedDict[tuple[object, ...], Forward] = OrderedDict()
        self._uploads = torch.cuda.Stream() if self.device.type == "cuda" else None
        if self.device.type == "cuda":
            _compute_exactly()
        engine = "eager" if execution.engine == "compiled" else execution.engine  # which would compile for the self-test's shape
        forward = build_forward(bundle, self.device.type, engine, execution.precision, execution.network)
        if execution.precision != "int8":  # what int8 differs by is measured when it is chosen, on the self-test too
            check_device(bundle, device, execution.precision, forward)
        if engine == execution.engine:
            self._forwards[()] = forward

    def __call__(self, batch: Sequence[Pixels], cores: Sequence[Window], scaling: Scaling, size: int) -> Results:
        """Infer tiles of one shape; the batch is padded to `size`, so that the network sees one shape only.

        Returns for each tile the layers of its core (a window counted from the tile's corner), L x h x w, or None
        where the network gave a value that is not finite. Raises Unreadable, naming --tile, where one tile does not
        fit in memory; a larger batch is halved, and stays so.
        """
        return self.begin(batch, cores, scaling, size)()

    @torch.inference_mode()
    def begin(self, batch: Sequence[Pixels], cores: Sequence[Window], scaling: Scaling, size: int) -> Callable[[], Results]:
        """As a call, but returns a function that waits for the results: on a GPU the caller goes on meanwhile."""
        size = min(size, self._limit or size)
        pending: list[Callable[[], np.ndarray | None]] = []
        for start in range(0, len(batch), size):
            try:
                pending += self._begin(batch[start : start + size], cores[start : start + size], scaling, size)
                self.batch = max(self.batch, size)
                continue
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
            if size == 1:
                height, width = batch[0].values_CHW.shape[1:]
                raise Unreadable(f"a tile of {height} x {width} px does not fit in the memory of {self.device}: choose a smaller --tile")
            self._limit = self.batch = size // 2
            rest = self.begin(batch[start:], cores[start:], scaling, size // 2)
            return lambda: [finish() for finish in pending] + rest()
        return lambda: [finish() for finish in pending]

    def _begin(
        self, batch: Sequence[Pixels], cores: Sequence[Window], scaling: Scaling, size: int
    ) -> list[Callable[[], np.ndarray | None]]:
        inputs = self._upload(batch, scaling, size)
        logits_BKhw = self._forward(inputs[0])(*inputs)
        height, width = batch[0].values_CHW.shape[1:]
        return [self._layers(logits_Khw, core, height, width) for logits_Khw, core in zip(logits_BKhw, cores, strict=False)]

    def _forward(self, raw_BCHW: torch.Tensor) -> Forward:
        """The program for a shape and dtype; most engines have one that takes them all."""
        key = () if self.execution.engine in ANY_SHAPE else (*raw_BCHW.shape, raw_BCHW.dtype)
        if key not in self._forwards:
            if len(self._forwards) >= SHAPES_KEPT:
                self._forwards.popitem(last=False)
            how = self.execution
            self._forwards[key] = build_forward(self._bundle, self.device.type, how.engine, how.precision, how.network)
        self._forwards.move_to_end(key)
        return self._forwards[key]

    def _upload(self, batch: Sequence[Pixels], scaling: Scaling, size: int) -> list[torch.Tensor]:
        """The inputs of the program on the device; on a GPU from pinned memory, beside the kernels of the batch before."""
        inputs = program_inputs(batch, scaling, size, pinned=self._uploads is not None)
        if self._uploads is None:
            return inputs
        with torch.cuda.stream(self._uploads):
            there = [tensor.to(self.device, non_blocking=True) for tensor in inputs]
        torch.cuda.current_stream().wait_stream(self._uploads)
        for tensor in there:
            tensor.record_stream(torch.cuda.current_stream())
        return there

    def _layers(self, logits_Khw: torch.Tensor, core: Window, height: int, width: int) -> Callable[[], np.ndarray | None]:
        checked = around(logits_Khw, core, height, width)
        if self.layers == ("mask",):
            layers_LHW = class_ids(logits_Khw, core, height, width)[None]
        elif target := self._bundle.target:
            checked = layers_LHW = target.values(upsampled(logits_Khw[None], height, width)[0][:, *core.slices()])
        else:
            layers_LHW = self._all_layers(upsampled(logits_Khw[None], height, width)[0][:, *core.slices()])
        sum_1 = checked.sum(dtype=torch.float32)

        def finite() -> bool:
            return bool(torch.isfinite(sum_1)) or bool(torch.isfinite(checked).all())  # the sum alone may overflow

        if self.device.type == "cpu":
            result = layers_LHW.numpy() if finite() else None  # not later: OpenVINO puts the next batch's logits in the same place
            return lambda: result
        here_LHW = torch.empty(layers_LHW.shape, dtype=layers_LHW.dtype, pin_memory=True)
        here_LHW.copy_(layers_LHW, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def finish() -> np.ndarray | None:
            done.synchronize()
            return here_LHW.numpy() if finite() else None

        return finish

    def _all_layers(self, logits_KHW: torch.Tensor) -> torch.Tensor:
        ids_HW = logits_KHW.max(dim=0).indices.to(torch.uint8)
        percent_KHW = (logits_KHW.float().softmax(dim=0) * 100).round().to(torch.uint8)
        planes = {"mask": ids_HW[None], "confidence": percent_KHW.amax(dim=0)[None], "probabilities": percent_KHW}
        return torch.cat([planes[layer] for layer in self.layers])


def program_inputs(batch: Sequence[Pixels], scaling: Scaling, size: int, *, pinned: bool = False) -> list[torch.Tensor]:
    """What a program takes, on the CPU: raw_BCHW, valid_BCHW, factor_1C11, shift_1C11; what `size` has more than the batch is 0."""
    shape_BCHW = (size, *batch[0].values_CHW.shape)
    raw_BCHW = torch.zeros(shape_BCHW, dtype=as_raw(batch[0].values_CHW[:0]).dtype, pin_memory=pinned)
    valid_BCHW = torch.ones(shape_BCHW, dtype=torch.uint8, pin_memory=pinned)
    for raw_CHW, valid_CHW, pixels in zip(raw_BCHW, valid_BCHW, batch, strict=False):
        raw_CHW.copy_(as_raw(pixels.values_CHW))
        if pixels.valid_CHW is not None:
            valid_CHW.copy_(torch.from_numpy(pixels.valid_CHW))
    return [raw_BCHW, valid_BCHW, *scaling.tensors()]


@torch.inference_mode()
def check_device(bundle: Bundle, device: str, precision: str, forward: Forward) -> None:
    """Run the bundle's self-test. Raises Refused where this device's answer is too far from the stored one."""
    allowed = bundle.tolerance["bf16" if precision == "fp16" else precision]
    input_BCHW, expected_BKHW = bundle.selftest()
    inputs = [input_BCHW, torch.ones_like(input_BCHW, dtype=torch.uint8), *Scaling.of_physical(bundle.bands).tensors()]
    logits_BKhw = forward(*(tensor.to(device) for tensor in inputs))
    logits_BKHW = upsampled(logits_BKhw, *input_BCHW.shape[-2:]).float().cpu()
    off = float((logits_BKHW - expected_BKHW).abs().max())
    differing = differing_share(logits_BKHW, expected_BKHW)
    if not (off <= allowed.logits and differing <= allowed.differing):
        raise Refused(
            f"{bundle.path}: self-test failed on {describe_device(device)} in {precision}: logits off by {off:.3g}"
            f" (allowed {allowed.logits:.3g}), {differing:.2%} of {bundle.predicted} differ (allowed {allowed.differing:.2%})"
        )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch computes with `count` threads, and as before when the block ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compute_exactly() -> None:
    """Set cuDNN, for this process, to compute fp32 in fp32 (its default is TF32: 10 bits of mantissa) and the same twice."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def choose_device() -> str:
    """cuda where torch sees a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def computes_in_bf16(device: str) -> bool:
    """Whether the device has instructions for bf16; without them it is slower than fp32."""
    return torch.cuda.is_bf16_supported() if device == "cuda" else bool(_cpu_flags() & {"amx_bf16", "avx512_bf16"})


def describe_device(device: str) -> str:
    """The kind of device on which results are the same byte for byte: a GPU's model, a CPU's instruction set."""
    if device == "cuda":
        return f"cuda {torch.cuda.get_device_name()}"
    extensions = [flag for flag in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni") if flag in _cpu_flags()]
    return " ".join(["cpu", platform.machine(), torch.backends.cpu.get_cpu_capability(), *extensions])


def processor_name() -> str:
    """The CPU's name, as the system says it."""
    return _cpu_info("model name") or platform.processor()


def _cpu_flags() -> set[str]:
    return set(_cpu_info("flags").split())


def _cpu_info(field: str) -> str:
    """What Linux says of the first CPU; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

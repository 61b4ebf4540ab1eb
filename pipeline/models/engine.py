"""One batch in, class ids out: the network on its device, from raw values to one byte a pixel."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.raster import SceneBand
from pipeline.imagery.reader import Pixels
from pipeline.models.bundle import Bundle, differing_share
from pipeline.models.precision import in_precision

AUTO_DIFFERING = 0.005  # the share of classes that `auto` may trade for speed, against fp32 on the self-test


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


class Engine:
    """A bundle's network, resident on a device. Results do not depend on a batch's size or on what else is in it.

    `layers` lists what is wanted of: mask (class ids), confidence (0..100), probabilities (0..100, one a class).
    """

    def __init__(self, bundle: Bundle, device: str, precision: str, layers: Sequence[str] = ("mask",)):
        self.device = torch.device(device)
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.layers = tuple(layers)
        if self.device.type == "cuda":
            _compute_exactly()
        self.network = in_precision(bundle.network(), precision).to(self.device)
        self._check(bundle, precision)

    @torch.inference_mode()
    def __call__(self, batch: Sequence[Pixels], cores: Sequence[Window], scaling: Scaling, size: int) -> list[np.ndarray | None]:
        """Infer tiles of one shape; the batch is padded to `size`, so that the network sees one shape only.

        Returns for each tile the layers of its core (a window counted from the tile's corner), uint8 L x h x w, or None
        where the network gave a value that is not finite. Raises Unreadable, naming --tile, where one tile does not
        fit in memory; a larger batch is halved.
        """
        try:
            logits_BKHW = self.logits(batch, scaling, size)
            return [self._layers(logits_KHW, core) for logits_KHW, core in zip(logits_BKHW[: len(batch)], cores, strict=True)]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        if size == 1:
            height, width = batch[0].values_CHW.shape[1:]
            raise Unreadable(f"a tile of {height} x {width} px does not fit in the memory of {self.device}: choose a smaller --tile")
        half = size // 2
        return [
            layers
            for start in range(0, len(batch), half)
            for layers in self(batch[start : start + half], cores[start : start + half], scaling, half)
        ]

    def logits(self, batch: Sequence[Pixels], scaling: Scaling, size: int) -> torch.Tensor:
        """Normalise on the device, missing values as their band's mean, and run the network: logits_BKHW."""
        first = batch[0].values_CHW
        raw_BCHW = torch.zeros((size, *first.shape), dtype=torch.from_numpy(first[:0]).dtype)
        for slot, pixels in zip(raw_BCHW, batch, strict=False):
            slot.copy_(torch.from_numpy(pixels.values_CHW))
        batch_BCHW = raw_BCHW.to(self.device).float()
        batch_BCHW *= torch.tensor(scaling.factor, device=self.device).reshape(1, -1, 1, 1)
        batch_BCHW += torch.tensor(scaling.shift, device=self.device).reshape(1, -1, 1, 1)
        for slot, pixels in zip(batch_BCHW, batch, strict=False):
            if pixels.valid_CHW is not None:
                slot *= torch.from_numpy(pixels.valid_CHW).to(self.device)
        batch_BCHW = batch_BCHW.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.network(batch_BCHW)

    def _layers(self, logits_KHW: torch.Tensor, core: Window) -> np.ndarray | None:
        logits_KHW = logits_KHW[:, *core.slices()]
        if not torch.isfinite(logits_KHW.sum(dtype=torch.float32)) and not torch.isfinite(logits_KHW).all():
            return None  # the sum alone may overflow
        ids_HW = logits_KHW.max(dim=0).indices.to(torch.uint8)  # on a CPU 5 times faster than argmax(0)
        if self.layers == ("mask",):
            return ids_HW[None].cpu().numpy()
        percent_KHW = (logits_KHW.float().softmax(dim=0) * 100).round().to(torch.uint8)
        planes = {"mask": ids_HW[None], "confidence": percent_KHW.amax(dim=0)[None], "probabilities": percent_KHW}
        return torch.cat([planes[layer] for layer in self.layers]).cpu().numpy()

    @torch.inference_mode()
    def _check(self, bundle: Bundle, precision: str) -> None:
        """Run the bundle's self-test. Raises Refused where this device's answer is too far from the stored one."""
        input_BCHW, expected_BKHW = bundle.selftest()
        allowed = bundle.tolerance[precision]
        unit = Scaling(tuple(1 / band.std for band in bundle.bands), tuple(-band.mean / band.std for band in bundle.bands))
        logits_BKHW = self.logits([Pixels(tile.numpy(), None) for tile in input_BCHW], unit, 1).float().cpu()
        off = float((logits_BKHW - expected_BKHW).abs().max())
        differing = differing_share(logits_BKHW, expected_BKHW)
        if not (off <= allowed.logits and differing <= allowed.differing):
            raise Refused(
                f"{bundle.path}: self-test failed on {describe_device(self.device.type)} in {precision}: logits off by {off:.3g}"
                f" (allowed {allowed.logits:.3g}), {differing:.2%} of classes differ (allowed {allowed.differing:.2%})"
            )


def _compute_exactly() -> None:
    """Set cuDNN, for this process, to compute fp32 in fp32 (its default is TF32: 10 bits of mantissa) and the same twice."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def layer_count(layers: Sequence[str], classes: int) -> int:
    """How many bytes a pixel has: a band each for mask and confidence, one a class for probabilities."""
    return sum(classes if layer == "probabilities" else 1 for layer in layers)


def choose_device() -> str:
    """cuda where torch sees a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(asked: str, device: str, bundle: Bundle) -> str:
    """Resolve `auto`: bf16 where the device computes in it and the self-test's classes allow it, else fp32."""
    if asked != "auto":
        return asked
    native = torch.cuda.is_bf16_supported() if device == "cuda" else bool(_cpu_flags() & {"amx_bf16", "avx512_bf16"})
    return "bf16" if native and bundle.tolerance["bf16"].differing <= AUTO_DIFFERING else "fp32"


def describe_device(device: str) -> str:
    """The kind of device on which results are the same byte for byte: a GPU's model, a CPU's instruction set."""
    if device == "cuda":
        return f"cuda {torch.cuda.get_device_name()}"
    extensions = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in _cpu_flags()]
    return " ".join(["cpu", platform.machine(), torch.backends.cpu.get_cpu_capability(), *extensions])


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

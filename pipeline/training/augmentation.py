"""Change training windows at random, image and mask together, whatever the number of bands."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from pipeline.errors import Refused
from pipeline.training.unknown import unknown

BLUR_SIGMA = (0.1, 2.0)  # px


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training window; nothing by default. Values are normalised, so 0 is a band's mean.

    `turn`: any of the eight orientations of a square (of an oblong, the four that keep its shape); `flip`: left to right;
    `rotate`: by up to so many degrees; `scale`: enlarged by a factor between two; `brightness`, `contrast`: by up to so many
    standard deviations, and by a factor of up to 1 + that; `blur`: the chance of a Gaussian blur; `noise`: of up to that
    standard deviation; `band_dropout`: the chance that a band holds nothing.
    """

    turn: bool = False
    flip: bool = False
    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    band_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("rotate", 0 <= self.rotate <= 180),
            ("scale", len(self.scale) == 2 and 0.1 <= self.scale[0] <= self.scale[-1] <= 10),
            ("brightness", 0 <= self.brightness <= 10),
            ("contrast", 0 <= self.contrast <= 10),
            ("blur", 0 <= self.blur <= 1),
            ("noise", 0 <= self.noise <= 10),
            ("band_dropout", 0 <= self.band_dropout < 1),
        ):
            if not allowed:
                raise Refused(f"--augment {name}={getattr(self, name)}: out of range")

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """From words such as `turn,rotate=10,scale=0.5:2,noise=0.05`; `none` is nothing. Raises Refused for others."""
        known = {item.name: item for item in fields(cls)}
        found: dict[str, Any] = {}
        for word in filter(None, text.replace("none", "").split(",")):
            name, _, value = word.strip().replace("-", "_").partition("=")
            if name not in known or (name in ("turn", "flip")) == bool(value):
                raise Refused(f"--augment {word}: there are turn, flip, and with a value {', '.join(list(known)[2:])}")
            try:
                found[name] = True if not value else tuple(map(float, value.split(":"))) if name == "scale" else float(value)
            except ValueError:
                raise Refused(f"--augment {word}: {value} is not a number") from None
        scale = found.get("scale")
        if scale and len(scale) == 1:
            found["scale"] = (min(1.0, *scale), max(1.0, *scale))
        return cls(**found)

    def zoom(self) -> float:
        """A factor to enlarge by, drawn evenly on a logarithmic scale."""
        low, high = self.scale
        return low if low == high else math.exp(math.log(low) + float(torch.rand(())) * math.log(high / low))

    def __call__(self, image_CHW: torch.Tensor, labels_HW: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A normalised image, fp32, and its class ids or numbers, changed alike and resized to `size`; drawn from torch's generator.

        What a rotation brings in from outside is the bands' mean in the image and unknown (255, or NaN) in the labels. Labels are
        taken from the nearest pixel, numbers too: none is mixed with its neighbours or with what is unknown.
        """
        image, mask = tv_tensors.Image(image_CHW), tv_tensors.Mask(labels_HW[None])
        for step in self._steps(size, unknown(labels_HW)):
            image, mask = step(image, mask)
        return self._on_values(image.as_subclass(torch.Tensor)), mask[0].as_subclass(torch.Tensor)

    def _steps(self, size: tuple[int, int], outside: float) -> list[v2.Transform]:
        steps: list[v2.Transform] = [v2.Resize(size, antialias=True)] if self.scale != (1.0, 1.0) else []
        if self.rotate:
            filled = {tv_tensors.Image: 0.0, tv_tensors.Mask: outside}
            steps.append(v2.RandomRotation(self.rotate, interpolation=InterpolationMode.BILINEAR, fill=filled))
        if self.flip or self.turn:
            steps.append(v2.RandomHorizontalFlip())
        if self.turn:
            steps += [v2.RandomVerticalFlip(), *([_Transposed()] if size[0] == size[1] else [])]
        if self.blur:
            steps.append(v2.RandomApply([v2.GaussianBlur(9, BLUR_SIGMA)], p=self.blur))
        return steps

    def _on_values(self, image_CHW: torch.Tensor) -> torch.Tensor:
        """torchvision's colour jitter knows one or three bands in 0..1; these are any number of normalised ones."""
        if self.contrast:
            factor = 1 + self.contrast * float(torch.rand(()))
            factor = factor if torch.rand(()) < 0.5 else 1 / factor
            mean_C11 = image_CHW.mean(dim=(1, 2), keepdim=True)
            image_CHW = (image_CHW - mean_C11) * factor + mean_C11
        if self.brightness:
            image_CHW = image_CHW + self.brightness * (2 * float(torch.rand(())) - 1)
        if self.noise:
            image_CHW = v2.functional.gaussian_noise(image_CHW, 0.0, max(self.noise * float(torch.rand(())), 1e-6), clip=False)
        if self.band_dropout:
            kept_C = torch.rand(len(image_CHW)) >= self.band_dropout
            image_CHW = image_CHW * kept_C[:, None, None] if kept_C.any() else image_CHW
        return image_CHW


class _Transposed(v2.Transform):
    """Rows become columns, in half of the calls: with both flips, the eight orientations of a square."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"turned": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return tv_tensors.wrap(inpt.transpose(-1, -2), like=inpt) if params["turned"] else inpt

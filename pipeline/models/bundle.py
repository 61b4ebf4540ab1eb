"""A model on disk: weights, architecture, bands, classes, provenance and self-test, and nothing that executes.

A bundle is a folder, or one zip of it, with `model.json`, `weights.safetensors` and `selftest.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import nn

from pipeline.errors import Refused
from pipeline.geometry.pyramid import NODATA
from pipeline.imagery import storage
from pipeline.imagery.bands import Band
from pipeline.imagery.storage import Place, Remote
from pipeline.models.checked import fits, made
from pipeline.models.container import LARGEST_WEIGHTS, SELFTEST, WEIGHTS, file_size, read_file, read_tensors
from pipeline.models.footprint import activation_bytes_per_pixel
from pipeline.models.networks import build_network
from pipeline.models.program import Coarse, in_precision
from pipeline.models.receptive import Reach, find_reach

SCHEMA_VERSION = 1
INEXACT_HALO = 128  # px: what a network that can never be exact gets, rounded up to its stride
SELFTEST_SIZE = 64  # px, or two strides
FILES = {"model.json", WEIGHTS, SELFTEST}
LONGEST_NAME, MOST_BANDS = 1000, 4096
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")  # a name, never a path
COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")
PREDICTING_FIELDS = ("architecture", "arguments", "bands", "classes", "halo", "target")
FAR = 0.05  # in standard deviations of a target: a value that is further off counts as another one


@dataclass(frozen=True)
class ClassEntry:
    """A class: `id` is its value in the mask and its place in the logits; `color` is #RRGGBB."""

    id: int
    name: str
    color: str


@dataclass(frozen=True)
class Target:
    """What a regression network predicts, a number a pixel: `mean` plus `std` times its one output, in `unit` ("" where it has
    none). `low` to `high` is where most values lie, for pictures."""

    name: str
    unit: str
    mean: float
    std: float
    low: float
    high: float

    def values(self, output: torch.Tensor) -> torch.Tensor:
        """What the network's output means, fp32, in the unit."""
        return self.mean + self.std * output.float()


@dataclass(frozen=True)
class Tolerance:
    """How far a device may stray from the stored fp32 logits on the self-test: in logits, and in share of pixels that differ."""

    logits: float
    differing: float


@dataclass(frozen=True)
class Bundle:
    """What is known of a model. `halo` is what `--halo auto` means; `reach` says what is exact, or why nothing is.

    It has classes, or, where it predicts a number a pixel, a `target` and none.
    """

    architecture: str
    arguments: dict[str, Any]
    bands: tuple[Band, ...]
    classes: tuple[ClassEntry, ...]
    reach: Reach
    halo: int
    activation_bytes_per_pixel: int
    tolerance: dict[str, Tolerance]
    target: Target | None = None
    resolution_m: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    path: str = ""
    local: str = ""  # where it lies on this machine: `path`, or a copy of what that names in a bucket
    model_id: str = ""
    weight_bytes: int = 0

    @property
    def outputs(self) -> int:
        """Channels of the logits: one a class, or one for a target."""
        return len(self.classes) or 1

    @property
    def layer(self) -> str:
        """The name of what it gives for each pixel: mask (class ids) or value."""
        return "value" if self.target else "mask"

    @property
    def predicted(self) -> str:
        """What a person calls it."""
        return "values" if self.target else "classes"

    def network(self) -> nn.Module:
        """The network with the bundle's weights, in eval mode, fp32, on the CPU."""
        weights = read_tensors(Path(self.local), WEIGHTS)
        check_shapes(self, {name: tensor.shape for name, tensor in weights.items()})
        network = build_network(self.architecture, len(self.bands), self.outputs, **self.arguments)
        network.load_state_dict(weights)
        return network

    def selftest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A physical input, 1 x C x H x W fp32, and the logits, 1 x K x H x W fp32, that it gave where the bundle was made."""
        tensors = read_tensors(Path(self.local), SELFTEST)
        input_BCHW, logits_BKHW = (tensors.get(name, torch.empty(0)) for name in ("input_BCHW", "logits_BKHW"))
        size = tuple(input_BCHW.shape[-2:])
        if (tuple(input_BCHW.shape), tuple(logits_BKHW.shape)) != ((1, len(self.bands), *size), (1, self.outputs, *size)):
            raise Refused(f"{self.path}: {SELFTEST} is no self-test of {len(self.bands)} bands and {self.outputs} outputs")
        return input_BCHW.float(), logits_BKHW.float()

    def notes_on(self, resolution_m: float | None) -> list[str]:
        """What a person should know before they use this model on a scene of that resolution."""
        if self.resolution_m is None or resolution_m is None or 0.67 < resolution_m / self.resolution_m < 1.5:
            return []
        return [f"pixels of {resolution_m:.3g} m, while the model was trained on {self.resolution_m:.3g} m: expect poor results"]

    @property
    def class_table(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.classes]

    @property
    def colours(self) -> dict[int, tuple[int, int, int]]:
        """The colour of each class, as red, green and blue in 0..255."""
        return {entry.id: tuple(bytes.fromhex(entry.color[1:])) for entry in self.classes}  # type: ignore[misc]


def save_bundle(
    folder: Place, network: nn.Module, *, architecture: str, arguments: Mapping[str, Any], bands: Sequence[Band],
    classes: Sequence[ClassEntry] | Target, sample_CHW: torch.Tensor, halo: int | None = None, reach: Reach | None = None, **about: Any,
) -> Bundle:  # fmt: skip
    """Write a bundle, of classes or in their place of a target, and return it as loaded back.

    `sample_CHW` is physical fp32 input, at least two strides high and wide, of which the self-test keeps a corner.
    `halo` is the measured one; without it the exact halo is used. `reach` is found where it is not known yet. `about` is
    resolution_m, metrics, provenance and licences. Raises Refused where the folder holds a bundle already.
    """
    if storage.is_file(folder / "model.json"):
        raise Refused(f"{folder}: holds a bundle already; choose another --output or remove it")
    network = network.eval().float().cpu()
    reach = reach or find_reach(network, len(bands))
    fallback = -(-INEXACT_HALO // reach.stride) * reach.stride
    size = max(SELFTEST_SIZE, 2 * reach.stride)
    input_BCHW = sample_CHW[None, :, :size, :size].float().contiguous()
    logits_BKHW, tolerance = _measure_tolerance(network, normalise(input_BCHW, bands))
    files = {
        "weights.safetensors": save_tensors({name: tensor.contiguous() for name, tensor in network.state_dict().items()}),
        "selftest.safetensors": save_tensors({"input_BCHW": input_BCHW, "logits_BKHW": logits_BKHW}),
    }
    description = {
        "schema_version": SCHEMA_VERSION,
        "architecture": architecture,
        "arguments": dict(arguments),
        "bands": [asdict(band) for band in bands],
        "scaling": "physical units: a file's values after its own scale and offset; then (value - mean) / std",
        "nodata": {"mask": NODATA, "input": "a missing value holds its band's mean"},
        **({"classes": [], "target": asdict(classes)} if isinstance(classes, Target) else {"classes": [asdict(item) for item in classes]}),
        "reach": reach._asdict(),
        "halo": halo if halo is not None else fallback if reach.exact_halo is None else reach.exact_halo,
        "activation_bytes_per_pixel": activation_bytes_per_pixel(Coarse(network), len(bands)),
        "tolerance": {name: asdict(allowed) for name, allowed in tolerance.items()},
        **about,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    for name, content in files.items():
        finished = storage.temporary(folder, name)
        finished.write_bytes(content)
        storage.publish(finished, folder / name)
    storage.replace_json(folder / "model.json", description)
    return load_bundle(folder)


def load_bundle(place: str | Place) -> Bundle:
    """Read a bundle's description and check the hash of every file. Raises Refused in one line that names what is wrong."""
    path = storage.place_of(place)
    local = _copied(path) if isinstance(path, Remote) else path
    try:
        description = json.loads(read_file(local, "model.json"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path}: model.json is not valid JSON ({error})") from None
    if not isinstance(description, dict):
        raise Refused(f"{path}: model.json does not describe a bundle")
    if description.get("schema_version") != SCHEMA_VERSION:
        raise Refused(f"{path}: bundle schema version {description.get('schema_version')!r}, this Tilewright reads {SCHEMA_VERSION}")
    listed = description.get("files", {})
    if not fits(listed, dict[str, str]) or not all(map(FILE_NAME.fullmatch, listed)):
        raise Refused(f"{path}: model.json must list files by name, each with its SHA-256")
    for name, expected in listed.items():
        found = hashlib.sha256(read_file(local, name)).hexdigest()
        if found != expected:
            raise Refused(f"{path}: {name} has SHA-256 {found[:12]}..., model.json says {expected[:12]}...: copy the bundle again")
    if not {WEIGHTS, SELFTEST} <= set(listed):
        raise Refused(f"{path}: model.json must list weights.safetensors and selftest.safetensors with their SHA-256")
    known = {entry.name for entry in fields(Bundle)} - {"path", "local", "model_id", "weight_bytes"}
    try:
        about = {
            "path": str(path), "local": str(local), "model_id": _model_id(description), "weight_bytes": file_size(local, WEIGHTS),
            "bands": [made(Band, band) for band in description["bands"]],
            "classes": [made(ClassEntry, entry) for entry in description["classes"]],
            "target": made(Target, description["target"]) if description.get("target") else None,
            "reach": made(Reach, description["reach"]),
            "tolerance": {name: made(Tolerance, allowed) for name, allowed in description["tolerance"].items()},
        }  # fmt: skip
        bundle = made(Bundle, {key: value for key, value in description.items() if key in known} | about)
    except (KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path}: model.json lacks or misspells a field: {error}") from None
    _check(bundle)
    return bundle


def normalise(physical_BCHW: torch.Tensor, bands: Sequence[Band]) -> torch.Tensor:
    """(value - mean) / std of each band, fp32."""
    mean = torch.tensor([band.mean for band in bands]).reshape(1, -1, 1, 1)
    std = torch.tensor([band.std for band in bands]).reshape(1, -1, 1, 1)
    return (physical_BCHW - mean) / std


def differing_share(logits_BKHW: torch.Tensor, reference_BKHW: torch.Tensor) -> float:
    """The share of pixels whose class differs, or of a single output the share whose value is more than FAR off."""
    if logits_BKHW.shape[1] == 1:
        return float(((logits_BKHW - reference_BKHW).abs() > FAR).float().mean())
    return float((logits_BKHW.argmax(1) != reference_BKHW.argmax(1)).float().mean())


def differing_pixels(layers_LHW: np.ndarray, reference_LHW: np.ndarray, target: Target | None) -> np.ndarray:
    """Which pixels of a mask, or of values, differ as `differing_share` counts them, bool; nodata is like nodata alone."""
    if target is None:
        return layers_LHW != reference_LHW
    near = np.abs(layers_LHW.astype(np.float64) - reference_LHW) <= FAR * target.std
    return ~(near | (np.isnan(layers_LHW) & np.isnan(reference_LHW)))


@torch.inference_mode()
def _measure_tolerance(network: nn.Module, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, dict[str, Tolerance]]:
    """The fp32 logits, and what each precision may differ from them: fp32 by rounding, bf16 by twice what it does here."""
    logits_BKHW = network(batch_BCHW).contiguous()
    halved_BKHW = in_precision(network, "bf16")(batch_BCHW.bfloat16()).float()
    scale = max(1.0, float(logits_BKHW.abs().max()))
    differing = differing_share(halved_BKHW, logits_BKHW)
    drift = float((halved_BKHW - logits_BKHW).abs().max())
    return logits_BKHW, {
        "fp32": Tolerance(1e-3 * scale, 1.0),  # logits this near leave every class but those of ties
        "bf16": Tolerance(max(2 * drift, 0.02 * scale), max(2 * differing, 0.005)),
    }


def check_shapes(bundle: Bundle, shapes: Mapping[str, torch.Size]) -> None:
    """Raise Refused where the weights are not those of the architecture, before it takes any memory."""
    try:
        with torch.device("meta"):
            wanted = build_network(bundle.architecture, len(bundle.bands), bundle.outputs, **bundle.arguments).state_dict()
    except RuntimeError as error:
        if "meta" in str(error):
            return  # a SegFormer, whose size no argument changes
        raise Refused(f"{bundle.path}: {bundle.architecture} cannot be made with these arguments: {error}") from None
    differing = [name for name in sorted(wanted.keys() | shapes.keys()) if name not in wanted or shapes.get(name) != wanted[name].shape]
    if differing:
        name = differing[0]
        needs, has = (tuple(of[name]) if name in of else "missing" for of in ({key: one.shape for key, one in wanted.items()}, shapes))
        raise Refused(
            f"{bundle.path}: the weights are not those of {bundle.architecture}: {len(differing)} tensors differ, {name[:80]}"
            f" among them, which is {has} in the file and {needs} in the network"
        )


def is_name(text: str) -> bool:
    """Whether it can be the name of a class or a band: not too long, and no half characters, which no file holds."""
    return len(text) <= LONGEST_NAME and text.encode(errors="ignore").decode() == text


def _model_id(description: dict[str, Any]) -> str:
    """SHA-256 of the weights and of the fields that change a prediction: metrics may be added later."""
    content = {name: description[name] for name in PREDICTING_FIELDS if name != "target" or name in description}
    content |= {"weights": description["files"]["weights.safetensors"]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(bundle: Bundle) -> None:
    path, count, target = bundle.path, len(bundle.classes), bundle.target
    if target and (count or target.std <= 0 or not target.low < target.high):
        raise Refused(f"{path}: a target needs a standard deviation above 0 and low below high, and no classes beside it")
    if [entry.id for entry in bundle.classes] != list(range(count)) or not (1 <= count <= NODATA or target):
        raise Refused(f"{path}: class ids must be 0 to {count - 1} in order, at most {NODATA} classes")
    if not all(COLOUR.fullmatch(entry.color) for entry in bundle.classes):
        raise Refused(f"{path}: class colours must be #RRGGBB")
    names = [*(entry.name for entry in bundle.classes), *(band.name for band in bundle.bands)]
    names += [target.name, target.unit] if target else []
    if not all(map(is_name, names)):
        raise Refused(f"{path}: names of classes, bands and target must be text of at most {LONGEST_NAME} characters")
    if any(band.std <= 0 for band in bundle.bands) or not 1 <= len(bundle.bands) <= MOST_BANDS:
        raise Refused(f"{path}: needs 1 to {MOST_BANDS} bands, each with a standard deviation above 0")
    if bundle.reach.stride < 1 or not 0 <= bundle.activation_bytes_per_pixel < 2**40:
        raise Refused(f"{path}: the stride must be at least 1 px, and the memory of a pixel's activations be in reason")
    if bundle.halo % bundle.reach.stride or bundle.halo < 0:
        raise Refused(f"{path}: halo {bundle.halo} px is not a multiple of the stride {bundle.reach.stride} px")


def _copied(place: Remote) -> Path:
    """A local copy of a bundle in a bucket, kept in the user's cache by the version of its files. Raises Refused."""
    try:
        names = {place.name} if storage.is_file(place) else storage.names(place) & FILES
        if not names:
            raise Refused(f"{place}: no such bundle")
        folder = place.parent if place.name in names else place
        largest = max(storage.size(folder / name) for name in names)
        if largest > LARGEST_WEIGHTS:
            raise Refused(f"{place}: has {largest:,} bytes, at most {LARGEST_WEIGHTS:,} are read")
        versions = json.dumps([str(place), *sorted((name, storage.version(folder / name)) for name in names)])
        kept = storage.cache_folder() / "bundles" / hashlib.sha256(versions.encode()).hexdigest()[:16]
        with storage.in_turn(kept.with_suffix(".lock")):  # the workers of a node start together, and one of them fetches
            if not kept.exists():
                with tempfile.TemporaryDirectory(dir=kept.parent) as made, storage.all_here([folder / name for name in names]) as copies:
                    for name, copy in zip(names, copies, strict=True):
                        shutil.copyfile(copy, Path(made, name))
                    with suppress(OSError):  # a machine that shares the folder, and no locks, was first
                        os.rename(made, kept)
    except OSError as error:
        raise Refused(str(error)) from None
    return kept / place.name if place.name in names else kept

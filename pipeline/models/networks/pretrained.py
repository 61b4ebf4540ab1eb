"""Pretrained encoders: their weights from a file, for any number of bands, and how fast they go on learning."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.models.bundle import load_bundle

State = Mapping[str, torch.Tensor]
WRAPPINGS = ("state_dict", "model_state_dict", "model")  # under which training programs save a network among other things
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # torchvision's own files have names from before 0.3
OPTIONAL = "classifier."  # VGG's and AlexNet's fully connected layers, which many files of their encoders lack
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


class Loaded(NamedTuple):
    """What was loaded: from where, how many tensors, and for how many bands the file's first convolution was made."""

    source: str
    tensors: int
    bands: int


def encoder_of(network: nn.Module) -> nn.Module | None:
    """The part of a network that pretrained weights are for; None where it has none."""
    encoder = getattr(network, "encoder", None)
    return encoder if isinstance(encoder, nn.Module) else None


def load_encoder(network: nn.Module, place: str | Path) -> Loaded:
    """Load, in place, the weights of a network's encoder from a file or URI.

    `place` is a .pth or .pt (read without executing anything), a .safetensors, or a bundle, of a torchvision classifier, of any
    network with that encoder, or of this project's. Names are matched from where the most of them fit; fully connected
    layers fit convolutions of as many weights. The first convolution is adapted to the network's bands by `for_bands`.
    Raises Refused, with the network as it was, where a tensor of the encoder is missing or has another shape.
    """
    encoder = encoder_of(network)
    if encoder is None:
        raise Refused(f"{place}: {type(network).__name__} has no encoder that pretrained weights could be for")
    wanted = encoder.state_dict()
    found = _beginning_alike({OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in _read(place).items()}, wanted)
    first = next(f"{path}.weight".lstrip(".") for path, module in encoder.named_modules() if isinstance(module, nn.Conv2d))
    bands = found[first].shape[1] if first in found and found[first].ndim == 4 else 0
    if bands:
        found[first] = for_bands(found[first], wanted[first].shape[1])
    required = [name for name in wanted if not name.endswith("num_batches_tracked")]
    fitting = {name: found[name].reshape(wanted[name].shape) for name in required if name in found and _fits(found[name], wanted[name])}
    missing = [name for name in required if name not in fitting and (name in found or not name.startswith(OPTIONAL))]
    if missing:
        has = f"{tuple(found[missing[0]].shape)} in it" if missing[0] in found else "not in it"
        raise Refused(
            f"{place}: {len(fitting)} of the {len(required)} tensors of the encoder match; the first that does not is {missing[0]},"
            f" {tuple(wanted[missing[0]].shape)}, which is {has}: are these weights of another architecture?"
        )
    encoder.load_state_dict(fitting, strict=False)
    return Loaded(str(place), len(fitting), bands)


def for_bands(weight_OCHW: torch.Tensor, bands: int) -> torch.Tensor:
    """A first convolution's filters, made for C bands (3: red, green, blue), as filters for `bands` bands.

    The first C bands keep theirs, in order; each further band, or every one where there are fewer than C, gets their mean; all
    are scaled by C / bands. So where all bands hold the same value, the activations are what they were. timm (`adapt_input_conv`)
    and segmentation-models-pytorch (`patch_first_conv`) scale likewise; they repeat red, green, blue instead of the mean,
    whose meaning does not depend on how many bands come before, and sum them for one band, which is the same as here.
    """
    given = weight_OCHW.shape[1]
    if given == bands:
        return weight_OCHW
    mean_O1HW = weight_OCHW.mean(dim=1, keepdim=True)
    kept = [weight_OCHW] if bands > given else []
    filters = torch.cat([*kept, mean_O1HW.expand(-1, bands - given * len(kept), -1, -1)], dim=1)
    return filters * (given / bands)


def parameter_groups(network: nn.Module, learning_rate: float, encoder_factor: float, weight_decay: float) -> list[dict[str, Any]]:
    """What an optimiser takes: the encoder at `learning_rate * encoder_factor`, the rest at `learning_rate`.

    Each in two groups, since norms and biases do not decay; `name` says which. A factor of 0 freezes the encoder: its parameters
    get no gradient and are in no group, and its BatchNorms keep their statistics, since each goes into eval mode
    at the beginning of its own forward pass, whatever `network.train()` has set. Not to be undone: build the network anew.
    """
    encoder = encoder_of(network)
    if encoder_factor != 1 and encoder is None:
        raise Refused(f"{type(network).__name__} has no encoder that could learn more slowly than the rest: leave the factor at 1")
    encoder_parameters = {id(parameter) for parameter in encoder.parameters()} if encoder is not None else set()
    undecayed = {id(parameter) for module in network.modules() if isinstance(module, NORMS) for parameter in module.parameters()}
    if encoder_factor == 0 and encoder is not None:
        _freeze(encoder)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = id(parameter) not in undecayed and not name.endswith("bias")
            groups.setdefault((id(parameter) in encoder_parameters, decays), []).append(parameter)
    return [
        {
            "name": f"{'encoder' if of_encoder else 'rest'}{'' if decays else ', norms and biases'}",
            "params": parameters,
            "lr": learning_rate * (encoder_factor if of_encoder else 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (of_encoder, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def _freeze(encoder: nn.Module) -> None:
    encoder.requires_grad_(False)
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_keep_statistics)


def _keep_statistics(norm: nn.Module, _: object) -> None:
    norm.eval()


def _fits(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether shapes agree, or a fully connected layer is this convolution: its inputs are channels x rows x columns."""
    linear = tensor.ndim == 2 and wanted.ndim == 4 and tensor.shape == (wanted.shape[0], wanted[0].numel())
    return linear or tensor.shape == wanted.shape


def _beginning_alike(state: State, wanted: State) -> dict[str, torch.Tensor]:
    """The tensors under that beginning of their names, such as `encoder.`, under which most of the wanted names are; without it."""
    alike: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            alike[".".join([*parts[:depth], ""]) if depth else ""] += ".".join(parts[depth:]) in wanted
    beginning = max(alike, key=lambda one: (alike[one], -len(one)), default="")
    return {name.removeprefix(beginning): tensor for name, tensor in state.items() if name.startswith(beginning)}


def _read(place: str | Path) -> dict[str, torch.Tensor]:
    path = storage.place_of(place)
    try:
        if path.suffix == ".zip" or storage.is_folder(path):
            return load_bundle(path).network().state_dict()
        with storage.here(path) as file:
            content: Any = load_file(file) if path.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Refused(f"{path}: there is no such file") from None
    except Refused:
        raise
    except Exception as error:  # whatever unpickling meets in a file that holds something else
        raise Refused(f"{path}: cannot be read as weights: {str(error).splitlines()[0][:200]}") from None
    for wrapping in WRAPPINGS:
        if isinstance(content, dict) and isinstance(content.get(wrapping), dict):
            content = content[wrapping]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise Refused(f"{path}: holds no tensors by name")
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}

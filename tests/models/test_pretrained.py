"""Pretrained encoders: files as torchvision, segmentation-models-pytorch and this project write them, and who learns how fast."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from pipeline.errors import Refused
from pipeline.models.networks import build_network
from pipeline.models.networks.pretrained import encoder_of, for_bands, load_encoder, parameter_groups
from tests.conftest import MakeBundle


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision's own: a classifier's state."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def features_of_resnet18(path: Path, batch_BCHW: torch.Tensor) -> torch.Tensor:
    theirs = torchvision.models.resnet18(weights=None).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        batch_BCHW = getattr(theirs, name)(batch_BCHW)
    return batch_BCHW


def test_a_classifiers_weights_give_its_features(resnet18: Path):
    network = build_network("unet_resnet18", 3, 2)
    loaded = load_encoder(network, resnet18)
    assert (loaded.source, loaded.tensors, loaded.bands) == (str(resnet18), 100, 3)
    batch_BCHW = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network.encoder(batch_BCHW)[-1], features_of_resnet18(resnet18, batch_BCHW))


@pytest.mark.parametrize("bands", [1, 2, 4, 6])
def test_where_all_bands_are_the_same_features_are_those_of_a_grey_picture(resnet18: Path, bands: int):
    network = build_network("unet_resnet18", bands, 2)
    load_encoder(network, f"file://{resnet18}")
    grey_B1HW = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        ours, theirs = (
            network.encoder(grey_B1HW.expand(-1, bands, -1, -1))[-1],
            features_of_resnet18(resnet18, grey_B1HW.expand(-1, 3, -1, -1)),
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_filters_for_more_bands_keep_the_colours_and_give_their_mean_to_the_rest():
    filters = torch.randn(8, 3, 7, 7)
    adapted = for_bands(filters, 5)
    torch.testing.assert_close(adapted[:, :3], filters * 0.6)
    torch.testing.assert_close(adapted[:, 3], filters.mean(1) * 0.6)
    torch.testing.assert_close(for_bands(filters, 1)[:, 0], filters.sum(1))  # as timm and segmentation-models-pytorch
    assert for_bands(filters, 3) is filters


@pytest.mark.parametrize("wrapped", [False, True])
def test_any_network_with_that_encoder_will_do(tmp_path: Path, wrapped: bool):
    smp = pytest.importorskip("segmentation_models_pytorch")
    theirs = smp.FPN("resnet18", encoder_weights=None)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()} if wrapped else theirs.state_dict()
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "fpn.pt")
    network = build_network("deeplabv3plus_resnet18", 3, 2)
    load_encoder(network, tmp_path / "fpn.pt")
    assert torch.equal(network.encoder.layer4[1].conv2.weight, theirs.encoder.layer4[1].conv2.weight)


def test_safetensors_and_bundles(make_bundle: MakeBundle, tmp_path: Path):
    bundle = make_bundle("unet", width=4, depth=2)
    theirs = bundle.network()
    save_file(theirs.state_dict(), tmp_path / "unet.safetensors")
    for place in (bundle.path, tmp_path / "unet.safetensors"):
        network = build_network("unet", 3, 9, width=4, depth=2)  # other classes
        head = network.head.weight.clone()
        load_encoder(network, place)
        assert torch.equal(network.down[1][3].weight, theirs.down[1][3].weight) and torch.equal(network.head.weight, head)


def test_fully_connected_layers_become_convolutions(tmp_path: Path):
    """A classifier of 7 x 7 maps gives, for one picture of 224 px, what the convolutions give at its centre."""
    network = build_network("fcn8s_vgg16", 3, 2, width=2, hidden=8)
    theirs = nn.Module()
    theirs.features = copy.deepcopy(network.encoder.features).apply(
        lambda layer: layer.reset_parameters() if hasattr(layer, "weight") else None
    )
    theirs.classifier = nn.Sequential(
        nn.Linear(16 * 49, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    assert load_encoder(network, tmp_path / "vgg.pth").tensors == 30
    batch_BCHW = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs.classifier[:5](theirs.features(batch_BCHW).flatten(1))
        torch.testing.assert_close(network.encoder(batch_BCHW)[-1][..., 3, 3], expected)
    del theirs.classifier
    torch.save(theirs.state_dict(), tmp_path / "features.pth")
    assert load_encoder(network, tmp_path / "features.pth").tensors == 26


@pytest.mark.parametrize(
    ("architecture", "classifier"),
    [
        ("segnet", "vgg16_bn"),
        ("fcn8s_vgg16", "vgg16"),
        ("fcn32s_alexnet", "alexnet"),
        ("unet_densenet121", "densenet121"),
        ("unet_vgg16_bn", "vgg16_bn"),
        ("deeplabv3plus_mobilenet_v2", "mobilenet_v2"),
        ("lraspp_mobilenet_v3_large", "mobilenet_v3_large"),
        ("fcn_resnet50", "resnet50"),
    ],
)
def test_every_encoder_has_torchvisions_names_and_shapes(architecture: str, classifier: str, tmp_path: Path):
    """Without weights, since some have 134 million."""
    from pipeline.models.networks import pretrained

    with torch.device("meta"):
        encoder = encoder_of(build_network(architecture, 3, 2))
        state = torchvision.models.__dict__[classifier](weights=None).state_dict()
    wanted = encoder.state_dict()
    if classifier.startswith("densenet"):  # as the names in torchvision's own files are
        state = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for name, value in state.items()}
    state = {pretrained.OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    found = pretrained._beginning_alike(state, wanted)
    assert all(name in found and pretrained._fits(found[name], tensor) for name, tensor in wanted.items())


def test_what_does_not_fit_is_refused_in_one_line(resnet18: Path, make_bundle: MakeBundle, tmp_path: Path):
    network = build_network("unet_resnet34", 3, 2)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(
        Refused, match=r"resnet18\.pth: 100 of the 180 tensors .* first that does not is layer1\.2\.conv1\.weight, .* not in it"
    ):
        load_encoder(network, resnet18)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(Refused, match=r"of the encoder match; the first that does not is down"):
        load_encoder(build_network("unet", 3, 2, width=8, depth=2), make_bundle("unet", width=4, depth=2).path)
    with pytest.raises(Refused, match="has no encoder"):
        load_encoder(build_network("identity", 1, 2), resnet18)
    with pytest.raises(Refused, match="no such file"):
        load_encoder(network, tmp_path / "nowhere.pth")
    with pytest.raises(Refused, match="https:// is not supported"):
        load_encoder(network, "https://host/resnet18.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(Refused, match=r"text\.pth: cannot be read as weights"):
        load_encoder(network, tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(Refused, match="holds no tensors by name"):
        load_encoder(network, tmp_path / "list.pth")


def test_a_file_that_would_execute_something_is_refused(tmp_path: Path):
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("harm",)

    torch.save({"weight": Harm()}, tmp_path / "harm.pth")
    with pytest.raises(Refused, match="cannot be read as weights"):
        load_encoder(build_network("unet", 3, 2, width=2, depth=1), tmp_path / "harm.pth")


def test_rates_and_decay_by_group():
    network = build_network("unet", 3, 2, width=4, depth=2)
    groups = parameter_groups(network, 0.01, 0.1, 0.05)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("encoder", 0.001, 0.05), ("encoder, norms and biases", 0.001, 0.0), ("rest", 0.01, 0.05), ("rest, norms and biases", 0.01, 0.0),
    ]  # fmt: skip
    together = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(together) == sorted(map(id, network.parameters()))
    assert all(parameter.ndim == 4 for group in groups if group["weight_decay"] for parameter in group["params"])
    torch.optim.AdamW(groups)


def test_a_frozen_encoder_stays_as_it_is_in_training():
    torch.manual_seed(0)
    network = build_network("unet", 3, 2, width=4, depth=2)
    groups = parameter_groups(network, 0.1, 0.0, 0.01)
    assert {group["name"] for group in groups} == {"rest", "rest, norms and biases"}
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(groups)
    for _ in range(2):
        network.train()
        functional.cross_entropy(network(torch.randn(2, 3, 16, 16) + 5), torch.randint(0, 2, (2, 16, 16))).backward()
        optimizer.step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("down", "bottom")), name
    copy.deepcopy(network)


def test_a_network_without_an_encoder_has_one_rate():
    network = build_network("logistic_regression", 3, 2)
    assert encoder_of(network) is None
    assert [group["name"] for group in parameter_groups(network, 0.1, 1.0, 0.01)] == ["rest", "rest, norms and biases"]
    with pytest.raises(Refused, match="no encoder"):
        parameter_groups(network, 0.1, 0.5, 0.01)

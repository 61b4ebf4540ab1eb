"""One batch in, class ids out: results do not depend on the batch, and a device that answers wrongly is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.raster import SceneBand
from pipeline.imagery.reader import Pixels
from pipeline.models.bundle import Bundle
from pipeline.models.engine import Engine, Execution, Scaling, describe_device
from pipeline.models.footprint import activation_bytes_per_pixel
from pipeline.models.forward import missing
from pipeline.models.layers import layer_count
from pipeline.models.networks import ARCHITECTURES, build_network
from pipeline.models.program import Program, in_precision
from tests.toys import HEIGHT, smooth_noise

WHOLE = Window(0, 0, 64, 72)
UNIT = Scaling((1 / 50,) * 3, (-128 / 50,) * 3)


def tiles(count: int, dtype: str = "uint8") -> list[Pixels]:
    return [Pixels(smooth_noise(seed, (3, 64, 72)).astype(dtype), None) for seed in range(count)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_tile_has_one_result_whatever_it_travels_with(unet: Bundle, precision: str, size: int):
    engine = Engine(unet, "cpu", Execution(precision=precision))
    alone = [engine([tile], [WHOLE], UNIT, 1)[0] for tile in tiles(5)]
    together = []
    for start in range(0, 5, size):
        group = tiles(5)[start : start + size]
        together += engine(group, [WHOLE] * len(group), UNIT, size)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_raw_dtypes_give_the_same_classes(unet: Bundle, dtype: str):
    engine = Engine(unet, "cpu", Execution())
    np.testing.assert_array_equal(engine(tiles(1, dtype), [WHOLE], UNIT, 1)[0], engine(tiles(1), [WHOLE], UNIT, 1)[0])


def test_scale_and_offset_of_the_file_come_before_mean_and_std():
    file = SceneBand("a", "a.tif", 1, "uint16", None, scale=0.0001, offset=-0.1, masked=False, warped=False, categorical=False)
    scaling = Scaling.of([file], [Band("a", mean=0.2, std=0.05)])
    raw = 3000
    assert raw * scaling.factor[0] + scaling.shift[0] == pytest.approx((raw * 0.0001 - 0.1 - 0.2) / 0.05)


def test_missing_values_hold_the_mean(unet: Bundle):
    engine = Engine(unet, "cpu", Execution())
    values_CHW = smooth_noise(1, (3, 64, 72))
    valid_CHW = np.ones(values_CHW.shape, bool)
    valid_CHW[:, 20:30, 20:40] = False
    at_mean = np.where(valid_CHW, values_CHW, 128).astype(np.uint8)
    blanked = np.where(valid_CHW, values_CHW, 0).astype(np.uint8)
    np.testing.assert_array_equal(
        engine([Pixels(blanked, valid_CHW)], [WHOLE], UNIT, 1)[0], engine([Pixels(at_mean, None)], [WHOLE], UNIT, 1)[0]
    )


def test_the_core_is_cropped(unet: Bundle):
    engine = Engine(unet, "cpu", Execution())
    core = Window(8, 16, 24, 40)
    np.testing.assert_array_equal(engine(tiles(1), [core], UNIT, 1)[0], engine(tiles(1), [WHOLE], UNIT, 1)[0][:, 8:32, 16:56])


def test_a_device_that_answers_wrongly_is_refused(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    honest = Program.forward
    monkeypatch.setattr(Program, "forward", lambda *arguments: honest(*arguments) + torch.arange(5).reshape(1, 5, 1, 1))
    with pytest.raises(Refused, match=r"self-test failed on cpu .* in fp32"):
        Engine(unet, "cpu", Execution())


def test_values_are_the_coarse_outputs_at_the_images_size_in_the_targets_unit(make_bundle):
    deeplab = make_bundle("deeplabv3_mobilenet_v3_large", bands=3, target=HEIGHT)
    engine, core = Engine(deeplab, "cpu", Execution()), Window(16, 8, 40, 56)
    found_LHW = engine(tiles(1), [core], UNIT, 1)[0]
    with torch.inference_mode():
        output_HW = deeplab.network()((torch.from_numpy(tiles(1)[0].values_CHW).float() - 128)[None] / 50)[0, 0]
    assert found_LHW.dtype == np.float32 and engine.layers == ("value",)
    np.testing.assert_allclose(found_LHW[0], (14.3 + 7.1 * output_HW)[16:56, 8:64].numpy(), atol=1e-3 * 7.1)
    assert np.ptp(found_LHW) > 1


@pytest.mark.parametrize("engine", ["eager", "openvino"])
@pytest.mark.parametrize("name", ["unet", "regression"])
def test_a_result_is_that_of_its_own_batch_whatever_was_begun_since(name: str, engine: str, request: pytest.FixtureRequest):
    """OpenVINO puts the logits of every batch into the same memory."""
    if missing(engine, "cpu"):
        pytest.skip(missing(engine, "cpu"))
    runs = Engine(request.getfixturevalue(name), "cpu", Execution(engine, "fp32"))
    good, other = tiles(2, "float32")
    bad = Pixels(np.where(np.arange(72) == 30, np.inf, good.values_CHW).astype(np.float32), None)
    alone = [runs([tile], [WHOLE], UNIT, 1)[0] for tile in (good, other)]
    finishing = [runs.begin([tile], [WHOLE], UNIT, 1) for tile in (good, bad, other)]
    (first,), (none,), (last,) = [finish() for finish in finishing]
    assert none is None, "what is not finite is not hidden by the batch after it"
    np.testing.assert_array_equal(first, alone[0])
    np.testing.assert_array_equal(last, alone[1])


def test_layers():
    assert layer_count(("mask",), 7) == 1 and layer_count(("mask", "confidence", "probabilities"), 7) == 9
    assert describe_device("cpu").startswith("cpu ")


def test_folding_keeps_the_logits_and_removes_every_batchnorm(unet: Bundle):
    network = unet.network()
    folded = in_precision(network, "bf16")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())  # the original is left alone
    with torch.inference_mode():
        batch_BCHW = torch.randn(1, 3, 64, 64)
        np.testing.assert_allclose(folded.float()(batch_BCHW).numpy(), network(batch_BCHW).numpy(), atol=1.0)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_takes_any_bands_and_gives_logits_of_the_inputs_size(architecture: str):
    network = build_network(architecture, bands=5, classes=4)
    with torch.inference_mode():
        assert network(torch.zeros(1, 5, 64, 96)).shape == (1, 4, 64, 96)
    assert "aux_classifier" not in dict(network.named_modules())


def test_unknown_architectures_and_arguments_are_refused():
    with pytest.raises(Refused, match="no architecture 'nope'; there are deeplabv3"):
        build_network("nope", 3, 2)
    with pytest.raises(Refused, match="unet does not take these arguments"):
        build_network("unet", 3, 2, hidden=4)
    with pytest.raises(Refused, match="depth in 1"):
        build_network("unet", 3, 2, depth=9)


def test_the_footprint_is_what_a_chain_of_layers_holds():
    """Two buffers of 16 channels live at once: the input of a convolution and its output, fp32; nothing else."""
    chain = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)))
    assert activation_bytes_per_pixel(chain, 16) == 2 * 16 * 4

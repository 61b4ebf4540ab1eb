"""Each engine runs the same program: eager, compiled, and OpenVINO in fp32, bf16 and int8."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import Refused
from pipeline.geometry.windows import Window
from pipeline.imagery.reader import Pixels
from pipeline.models import forward
from pipeline.models.bundle import Bundle
from pipeline.models.engine import Engine, Execution, Scaling
from tests.toys import smooth_noise

UNIT = Scaling((1 / 50,) * 3, (-128 / 50,) * 3)
WHOLE = Window(0, 0, 128, 160)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pixels(seed: int, dtype: str = "uint8") -> Pixels:
    values_CHW = smooth_noise(seed, (3, 128, 160)).astype(dtype)
    valid_CHW = np.ones(values_CHW.shape, bool)
    valid_CHW[:, 30:40, 50:70] = False
    return Pixels(values_CHW, valid_CHW)


def classes(bundle: Bundle, execution: Execution, tiles: list[Pixels], size: int = 1) -> np.ndarray:
    engine = Engine(bundle, "cpu", execution)
    return np.stack([ids for ids in engine(tiles, [WHOLE] * len(tiles), UNIT, size) if ids is not None])


def quantised(bundle: Bundle) -> bytes:
    valid_BCHW = torch.ones(1, 3, 128, 160, dtype=torch.uint8)
    raws = (torch.from_numpy(pixels(seed).values_CHW)[None].float() for seed in range(4))
    return forward.quantised(bundle, ((raw_BCHW, valid_BCHW, *UNIT.tensors()) for raw_BCHW in raws))


@pytest.mark.parametrize(
    ("engine", "precision", "allowed"),
    [
        ("openvino", "fp32", 0.001),
        ("openvino", "bf16", 0.03),
        ("openvino", "int8", 0.1),
        ("compiled", "fp32", 0.001),
        ("compiled", "bf16", 0.03),
    ],
)
def test_an_engine_gives_the_classes_of_eager_fp32(unet: Bundle, engine: str, precision: str, allowed: float):
    if engine == "openvino":
        pytest.importorskip("nncf")
    elif not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    tiles = [pixels(seed) for seed in range(3)]
    network = quantised(unet) if precision == "int8" else None
    found = classes(unet, Execution(engine, precision, network), tiles)
    assert (found != classes(unet, Execution(), tiles)).mean() <= allowed
    np.testing.assert_array_equal(classes(unet, Execution(engine, precision, network), tiles), found)  # an engine made anew gives the same


def test_openvino_takes_every_dtype_and_any_shape(unet: Bundle):
    pytest.importorskip("nncf")
    engine = Engine(unet, "cpu", Execution("openvino", "fp32"))
    expected = engine([pixels(1)], [WHOLE], UNIT, 1)[0]
    for dtype in ("uint16", "int16", "float32", "float64"):
        np.testing.assert_array_equal(engine([pixels(1, dtype)], [WHOLE], UNIT, 1)[0], expected)
    small = Pixels(smooth_noise(3, (3, 64, 64)), None)
    assert engine([small], [Window(0, 0, 64, 64)], UNIT, 1)[0].shape == (1, 64, 64)


def test_an_int8_network_is_the_same_twice_and_from_its_file(unet: Bundle, tmp_path: Path):
    """But for names that OpenVINO counts through in a process."""
    pytest.importorskip("nncf")
    one, other = quantised(unet), quantised(unet)
    weights = [zipfile.ZipFile(io.BytesIO(network)).read("network.bin") for network in (one, other)]
    assert weights[0] == weights[1]
    file = tmp_path / "int8.zip"
    file.write_bytes(one)
    masks = [classes(unet, Execution("openvino", "int8", network), [pixels(5)]) for network in (one, other, str(file))]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_a_network_is_converted_once_for_all_its_data_sets(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("nncf")
    forward.build_forward(unet, "cpu", "openvino", "bf16")
    monkeypatch.setattr(forward, "_convert", lambda _: pytest.fail("it was converted before"))
    assert quantised(unet)


@pytest.mark.parametrize("architecture", ["identity", "logistic_regression"])
def test_int8_of_a_network_with_hardly_a_convolution(make_bundle, architecture: str):
    pytest.importorskip("nncf")
    bundle = make_bundle(architecture, bands=3, classes=5)
    model = forward._convert(bundle)
    assert len(set(forward._in_bf16(model, bundle)) & {op.get_friendly_name() for op in model.get_ordered_ops()}) <= 4
    found = classes(bundle, Execution("openvino", "int8", quantised(bundle)), [pixels(2)])
    assert (found != classes(bundle, Execution(), [pixels(2)])).mean() <= 0.05


def test_sums_with_what_is_not_in_int8_are_not_cut_to_8_bits(make_bundle):
    """Of a residual network: those of its first blocks, up to the first with a convolution in int8."""
    pytest.importorskip("nncf")
    bundle = make_bundle("fcn_resnet50", bands=3, classes=5)
    model = forward._convert(bundle)
    kept = set(forward._in_bf16(model, bundle))
    sums = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_friendly_name().startswith("__module.network/aten::add")]
    assert len(sums) == 16  # blocks
    first = sum(name in kept for name in sums)
    assert 0 < first < 8 and kept.issuperset(sums[:first])


def test_usage_statistics_of_openvino_are_off(monkeypatch: pytest.MonkeyPatch):
    import os

    monkeypatch.delenv("CI", raising=False)
    with forward._quietly():
        assert os.environ["CI"] == "true"
    assert "CI" not in os.environ


def test_what_this_machine_lacks_is_named(unet: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert forward.missing("compiled", "cuda") == "no Python.h (install python3-dev): nothing is compiled"
    (tmp_path / "Python.h").touch()
    assert forward.missing("compiled", "cpu") is None and forward.missing("compiled", "cuda") is None
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert forward.missing("compiled", "cpu") == "no C++ compiler (install g++): nothing is compiled"
    assert forward.missing("compiled", "cuda") == "no C compiler (install gcc): nothing is compiled"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "OpenVINO is not installed" in str(forward.missing("openvino", "cpu"))
    assert forward.missing("eager", "cpu") is None
    with pytest.raises(Refused, match="planned for the engine openvino"):
        forward.build_forward(unet, "cpu", "openvino", "int8")


def test_what_openvino_cannot_convert_is_refused_in_one_line(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    openvino = pytest.importorskip("openvino")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("\n  No conversion rule found for aten::max_unpool2d\nand much more")

    monkeypatch.setattr(openvino, "convert_model", fails)
    with pytest.raises(Refused, match=r"^OpenVINO cannot convert unet: No conversion rule found for aten::max_unpool2d$"):
        Engine(unet, "cpu", Execution("openvino", "fp32"))

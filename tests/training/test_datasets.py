"""Labels on the scene's grid, blocks that never share a pixel, and statistics of the training block alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from pipeline.errors import Refused
from pipeline.geometry.windows import Span
from pipeline.imagery.bands import Band
from pipeline.models.bundle import ClassEntry
from pipeline.training import datasets
from pipeline.training.classes import LabelClass
from pipeline.training.datasets import LABELS, Split, measure_bands, open_labelled

CLASSES = (LabelClass(ClassEntry(0, "wet", "#0000FF"), (1, 7)), LabelClass(ClassEntry(1, "dry", "#FFFF00"), (4,)))
HEIGHT, WIDTH = 90, 130
GRID = Affine(30.0, 0.0, 301905.0, 0.0, -30.0, 4154085.0)
NODATA = 65535


def write(
    path: Path, values_CHW: np.ndarray, crs: str, transform: Affine, nodata: float | None = None, names: tuple[str, ...] = ()
) -> Path:
    count, height, width = values_CHW.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=values_CHW.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
    ) as dataset:
        dataset.write(values_CHW)
        for number, name in enumerate(names, 1):
            dataset.set_band_description(number, name)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two uint16 bands whose values differ in every column, with a hole in the second and no labels of its own."""
    random = np.random.default_rng(1)
    values = random.integers(100, 200, (2, HEIGHT, WIDTH), dtype=np.uint16) + np.arange(WIDTH, dtype=np.uint16) * 10
    values[1, 20:30, 40:50] = NODATA
    return write(tmp_path / "scene.tif", values, "EPSG:32612", GRID, NODATA, ("red", "nir"))


LABEL_GRIDS = {  # both leave the scene's right and lower edge bare
    "EPSG:26912": Affine(31.53, 0, 301903.3, 0, -31.52, 4154086.5),  # another datum
    "EPSG:4326": Affine(0.0003, 0, -113.2419, 0, -0.00026, 37.5134),  # turned against the scene's grid
}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Random labels on another grid and CRS."""
    return write_labels(tmp_path, "EPSG:26912")


def write_labels(folder: Path, crs: str) -> Path:
    values = np.random.default_rng(2).choice(np.array([1, 4, 5, 7, 255], np.uint8), (1, 80, 110))
    return write(folder / "labels.tif", values, crs, LABEL_GRIDS[crs], 255)


def nearest_labels(scene: Path, labels: Path) -> np.ndarray:
    """The label value under each pixel's centre, by coordinates alone; 255 outside the label raster."""
    with rasterio.open(scene) as grid, rasterio.open(labels) as source:
        rows, cols = np.mgrid[: grid.height, : grid.width]
        x, y = grid.transform * (cols.ravel() + 0.5, rows.ravel() + 0.5)
        placed = ~source.transform * tuple(map(np.array, transform_points(grid.crs, source.crs, x, y)))
        col, row = (np.floor(axis).astype(int).reshape(rows.shape) for axis in placed)
        inside = (row >= 0) & (row < source.height) & (col >= 0) & (col < source.width)
        return np.where(inside, source.read(1)[row.clip(0, source.height - 1), col.clip(0, source.width - 1)], 255)


@pytest.mark.parametrize("crs", LABEL_GRIDS)
def test_labels_are_the_nearest_on_the_scenes_grid(tmp_path: Path, scene: Path, crs: str) -> None:
    labels = write_labels(tmp_path, crs)
    block = open_labelled(str(scene), str(labels), CLASSES).read(Span(0, WIDTH))
    values = nearest_labels(scene, labels)
    expected = np.where(np.isin(values, (1, 7)), 0, np.where(values == 4, 1, 255))
    expected[20:30, 40:50] = 255  # a band is missing there
    assert (block.labels_HW == expected).all()
    assert set(np.unique(block.labels_HW)) == {0, 1, 255}


@pytest.mark.parametrize("crs", LABEL_GRIDS)
def test_a_block_read_alone_is_that_part_of_the_whole(tmp_path: Path, scene: Path, crs: str) -> None:
    labels = write_labels(tmp_path, crs)
    labelled = open_labelled(str(scene), str(labels), CLASSES)
    whole, part = labelled.read(Span(0, WIDTH)), labelled.read(Span(37, 71))
    assert part.window == (0, 37, HEIGHT, 34)
    for name in ("physical_CHW", "valid_CHW", "labels_HW"):
        assert (getattr(part, name) == getattr(whole, name)[..., 37:71]).all()


def test_physical_values_follow_the_files_scale_and_offset(scene: Path, labels: Path) -> None:
    with rasterio.open(scene, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5, 2.0), (-3.0, 0.0)
        raw_CHW = dataset.read()
    block = open_labelled(str(scene), str(labels), CLASSES).read(Span(0, WIDTH))
    assert (block.valid_CHW == (raw_CHW != NODATA)).all()
    np.testing.assert_allclose(block.physical_CHW[0], raw_CHW[0] * 0.5 - 3, rtol=1e-6)
    assert (block.physical_CHW[1][raw_CHW[1] == NODATA] == 0).all()


def test_context_is_read_but_its_labels_are_not(scene: Path, labels: Path) -> None:
    labelled = open_labelled(str(scene), str(labels), CLASSES)
    whole, block = labelled.read(Span(0, WIDTH)), labelled.read(Span(41, 60), context=16, stride=8)
    assert block.window == (0, 24, 96, 56)  # 25 to 76 in columns, whole strides
    assert (block.physical_CHW[:, :HEIGHT] == whole.physical_CHW[:, :, 24:80]).all()
    assert not block.valid_CHW[:, HEIGHT:].any()
    assert (block.labels_HW[:HEIGHT, 17:36] == whole.labels_HW[:, 41:60]).all()
    block.labels_HW[:HEIGHT, 17:36] = 255
    assert (block.labels_HW == 255).all()


def test_statistics_come_from_the_training_block_only(scene: Path, labels: Path) -> None:
    with rasterio.open(scene) as dataset:
        raw_CHW = dataset.read(masked=True)
    labelled = open_labelled(str(scene), str(labels), CLASSES)
    before = measure_bands(labelled.read(Span(0, 60)), labelled.bands)
    for band, plane in zip(before, raw_CHW[:, :, :60], strict=True):
        known = plane.compressed().astype(float)
        assert band.mean == pytest.approx(known.mean(), rel=1e-5) and band.std == pytest.approx(known.std(), rel=1e-5)
        assert band.range == pytest.approx(np.percentile(known, (0.1, 99.9)), rel=1e-5)
    with rasterio.open(scene, "r+") as dataset:  # whatever is elsewhere
        changed = dataset.read()
        changed[:, :, 60:] = 9_999
        dataset.write(changed)
    again = open_labelled(str(scene), str(labels), CLASSES)
    assert measure_bands(again.read(Span(0, 60)), again.bands) == before


def test_normalised_blocks_hold_the_mean_where_a_value_is_missing(scene: Path, labels: Path) -> None:
    labelled = open_labelled(str(scene), str(labels), CLASSES)
    block = labelled.read(Span(0, WIDTH))
    image_CHW = block.normalised(measure_bands(block, labelled.bands)).numpy()
    assert (image_CHW[~block.valid_CHW] == 0).all()
    for plane, valid in zip(image_CHW, block.valid_CHW, strict=True):
        assert plane[valid].mean() == pytest.approx(0, abs=1e-4) and plane[valid].std() == pytest.approx(1, abs=1e-4)


def test_bands_are_chosen_by_name_and_in_order(scene: Path, labels: Path) -> None:
    assert [band.name for band in open_labelled(str(scene), str(labels), CLASSES).bands] == ["red", "nir"]
    chosen = open_labelled(str(scene), str(labels), CLASSES, ["NIR"])
    assert [band.name for band in chosen.bands] == ["nir"]
    both, one = (item.read(Span(0, 30)) for item in (open_labelled(str(scene), str(labels), CLASSES), chosen))
    assert (one.physical_CHW[0] == both.physical_CHW[1]).all()
    with pytest.raises(Refused, match="no band swir; there are red, nir"):
        open_labelled(str(scene), str(labels), CLASSES, ["swir"])


def test_a_file_without_names_gets_numbers(tmp_path: Path, labels: Path) -> None:
    values = np.ones((2, HEIGHT, WIDTH), np.uint8)
    plain = write(tmp_path / "plain.tif", values, "EPSG:32612", GRID)
    assert [band.name for band in open_labelled(str(plain), str(labels), CLASSES).bands] == ["band_1", "band_2"]


def test_a_stac_item_tells_names_and_scaling(tmp_path: Path, scene: Path, labels: Path) -> None:
    said = [{"name": "B4", "eo:common_name": "red", "raster:scale": 0.1}, {"name": "B5", "eo:common_name": "nir08"}]
    assets = {"image": {"href": scene.name, "roles": ["data"], "bands": said}, "truth": {"href": labels.name, "roles": ["labels"]}}
    item = tmp_path / "item.json"
    item.write_text(json.dumps({"type": "Feature", "id": "one", "properties": {}, "assets": assets}))
    labelled = open_labelled(str(item), str(labels), CLASSES)
    assert labelled.bands == (Band("B4", common_name="red"), Band("B5", common_name="nir08"))
    assert labelled.scene.bands[0].scale == 0.1


@pytest.mark.parametrize("value", [100, NODATA])
def test_a_band_that_says_nothing_is_refused(tmp_path: Path, labels: Path, value: int) -> None:
    flat = write(tmp_path / "flat.tif", np.full((1, HEIGHT, WIDTH), value, np.uint16), "EPSG:32612", GRID, NODATA, ("red",))
    labelled = open_labelled(str(flat), str(labels), CLASSES)
    with pytest.raises(Refused, match=r"band red holds .* leave it out"):
        measure_bands(labelled.read(Span(0, WIDTH)), labelled.bands)


def test_a_block_that_does_not_fit_in_memory_is_refused(scene: Path, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "memory_allotted", lambda: 100_000)
    with pytest.raises(Refused, match="choose fewer"):
        open_labelled(str(scene), str(labels), CLASSES).read(Span(0, WIDTH))


def test_several_scenes_or_missing_files_are_refused(tmp_path: Path, scene: Path, labels: Path) -> None:
    with pytest.raises(Refused, match="holds 2 scenes"):
        open_labelled(str(tmp_path), str(labels), CLASSES)
    with pytest.raises(Refused, match=r"nowhere\.tif: no such file"):
        open_labelled(str(scene), str(tmp_path / "nowhere.tif"), CLASSES)


@pytest.mark.parametrize("seed", range(20))
def test_every_split_keeps_the_gap(seed: int) -> None:
    """X: no column within `gap` of a training column is held out; the held-out blocks share no column."""
    random = np.random.default_rng(seed)
    width, gap = int(random.integers(50, 300)), int(random.integers(0, 40))
    first, second = sorted(random.choice(width - 1, 2, replace=False).tolist())
    spans = [Span(first, int(random.integers(first, second)) + 1), Span(second, int(random.integers(second, width)) + 1)]
    random.shuffle(spans)  # type: ignore[arg-type]
    try:
        split = Split.around(*spans, width=width, gap=gap)
    except Refused:
        held = {column for span in spans for column in range(span.start - gap, span.stop + gap)}
        assert held >= set(range(width))
        return
    assert (split.validation, split.test) == tuple(spans)
    near = set(range(split.train.start - gap, split.train.stop + gap))
    assert split.train.length > 0 and set(range(*split.train)) <= set(range(width))
    assert not near & {column for span in spans for column in range(*span)}


@pytest.mark.parametrize(
    ("validation", "test", "train", "message"),
    [
        (Span(50, 60), Span(80, 101), None, r"--test-columns 80:101: the scene has columns 0:100"),
        (Span(60, 60), Span(80, 100), None, r"--validation-columns 60:60"),
        (Span(50, 81), Span(80, 100), None, r"overlap --test-columns"),
        (Span(0, 50), Span(50, 100), None, r"hold out fewer"),
        (Span(50, 60), Span(80, 100), Span(0, 43), r"--train-columns 0:43: .* lie 0:42"),
        (Span(50, 60), Span(80, 100), Span(10, 10), r"--train-columns 10:10"),
    ],
)
def test_a_split_that_cannot_be_is_refused(validation: Span, test: Span, train: Span | None, message: str) -> None:
    with pytest.raises(Refused, match=message):
        Split.around(validation, test, width=100, gap=8, train=train)


def test_the_labels_are_a_band_that_no_scene_has(scene: Path, labels: Path) -> None:
    labelled = open_labelled(str(scene), str(labels), CLASSES)
    assert [band.name for band in labelled.scene.bands] == ["red", "nir", LABELS]
    assert labelled.scene.bands[-1].categorical and labelled.scene.bands[-1].warped

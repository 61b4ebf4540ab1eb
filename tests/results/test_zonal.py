"""Each place counts once, and pixels on a border for the share inside: against shapely, numpy and a single scene."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from rasterio.transform import Affine, from_origin

from pipeline.errors import Refused, Unreadable
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.expressions import Expression
from pipeline.imagery.parcels import Parcels, read_parcels
from pipeline.imagery.raster import open_scene
from pipeline.results import coverage, zonal
from pipeline.results.seen import SeenScene
from pipeline.results.weighted import STATISTICS
from pipeline.results.zonal import KNOWN, OUTSIDE, UNKNOWN, Coverages, ParcelStatistics, parcel_statistics
from tests.toys import write_scene

GEOD = pyproj.Geod(ellps="WGS84")
NDVI = {"ndvi": Expression.parse("(nir - red) / (nir + red)")}
UTM = from_origin(500_000, 5_000_000, 10, 10)
SCALE, OFFSET = 0.0001, -0.1


def seen(
    folder: Path, name: str, mask_HW: np.ndarray | None, *, bands_CHW: np.ndarray | None = None, confidence_HW: np.ndarray | None = None,
    transform: Affine = UTM, crs: str = "EPSG:32633", at: tuple[int, int] = (0, 0), indices: dict[str, Expression] | None = None,
    profile: dict[str, Any] | None = None,
) -> SeenScene:  # fmt: skip
    """A scene of red and nir whose mask begins at the row and column `at`."""
    height, width = (mask_HW if mask_HW is not None else bands_CHW[0]).shape
    if bands_CHW is None:
        bands_CHW = np.full((2, height + at[0], width + at[1]), 1000)
    place: dict[str, Any] = {"transform": transform, "crs": crs, **(profile or {})}
    path = write_scene(folder / f"{name}.tif", bands_CHW.astype(np.uint16), nodata=0, descriptions=["red", "nir"], **place)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (SCALE, SCALE), (OFFSET, OFFSET)
    place["transform"] = transform * Affine.translation(at[1], at[0])
    made = {}
    for layer, values in (("mask", mask_HW), ("confidence", confidence_HW)):
        made[layer] = (
            None if values is None else write_scene(folder / f"{name}-{layer}.tif", values[None].astype(np.uint8), nodata=255, **place)
        )
    scene = open_scene(find_sources([str(folder / f"{name}.tif")])[0], [Band("red"), Band("nir")])
    return SeenScene(scene, made["mask"], made["confidence"], NDVI if indices is None else indices)


def parcels_of(folder: Path, polygons: list[Any], crs: Any = "EPSG:32633") -> Parcels:
    path = folder / "parcels.parquet"
    geopandas.GeoDataFrame({"id": [f"{number:04d}" for number in range(len(polygons))]}, geometry=polygons, crs=crs).to_parquet(path)
    return read_parcels(path)


def in_pixels(*polygons: Any, transform: Affine = UTM) -> list[Any]:
    """Polygons in (col, row) on the ground."""
    return [shapely.transform(polygon, lambda xy: np.column_stack(transform * (xy[:, 0], xy[:, 1]))) for polygon in polygons]


def random_mask(height: int, width: int, classes: int = 3, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    mask_HW = random.integers(0, classes, (height, width)).astype(np.uint8)
    mask_HW[random.random((height, width)) < 0.1] = 255
    return mask_HW


def random_bands(height: int, width: int, seed: int = 2) -> np.ndarray:
    random = np.random.default_rng(seed)
    bands_CHW = random.integers(1200, 9000, (2, height, width))
    bands_CHW[0][random.random((height, width)) < 0.05] = 0
    return bands_CHW


FIELD = shapely.Polygon([(3.3, 4.1), (25.7, 2.2), (22.1, 27.9), (12.5, 20.0), (5.2, 26.6)])
SHAPES = [
    FIELD,
    shapely.box(1, 1, 4, 5),
    shapely.box(12.25, 11.5, 12.5, 11.75),
    shapely.Point(18, 12).buffer(5) - shapely.Point(18, 12).buffer(2),
]


def exact(mask_HW: np.ndarray, polygon: Any, classes: int) -> np.ndarray:
    """Pixels of each class, by shapely."""
    col, row = np.meshgrid(np.arange(mask_HW.shape[1]), np.arange(mask_HW.shape[0]))
    share_HW = shapely.area(shapely.intersection(shapely.box(col, row, col + 1, row + 1), polygon))
    return np.array([share_HW[mask_HW == number].sum() for number in range(classes)])


GRIDS = {
    "UTM": (UTM, "EPSG:32633"),
    "rotated": (Affine(8.1, 3.2, 500_000, 2.9, -8.4, 5_000_000), "EPSG:32633"),
    "south up": (Affine(10, 0, 500_000, 0, 10, 5_000_000), "EPSG:32633"),
    "degrees": (from_origin(15, 60, 1e-4, 5e-5), "EPSG:4326"),
    "web Mercator": (from_origin(1.6e6, 8.4e6, 10, 10), "EPSG:3857"),
    "Lambert": (from_origin(4.3e6, 3.1e6, 10, 10), "EPSG:3035"),
    "degrees past the antimeridian": (from_origin(179.999, 60, 1e-4, 5e-5), "EPSG:4326"),
}


@pytest.mark.parametrize("transform,crs", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("parcels_crs", ["its own", "EPSG:4326"])
def test_pixels_and_areas_are_exact_on_every_grid(tmp_path: Path, transform: Affine, crs: str, parcels_crs: str):
    mask_HW = random_mask(30, 31)
    polygons = in_pixels(*SHAPES, transform=transform)
    if parcels_crs != "its own":
        way = pyproj.Transformer.from_crs(crs, parcels_crs, always_xy=True)
        polygons = [shapely.transform(polygon, way.transform, interleaved=False) for polygon in polygons]
    parcels = parcels_of(tmp_path, polygons, crs if parcels_crs == "its own" else parcels_crs)
    found = parcel_statistics(Coverages(parcels), [seen(tmp_path, "scene", mask_HW, transform=transform, crs=crs)], 3)
    for number, polygon in enumerate(SHAPES):
        assert found.pixels_PK[number] == pytest.approx(exact(mask_HW, polygon, 3), abs=3e-3)
    parts = found.pixels_PK / np.array([shapely.area(shape) for shape in SHAPES])[:, None] * parcels.area_m2[:, None]
    assert found.area_m2_PK == pytest.approx(parts, rel=1e-3), "law 7"
    assert found.valid_share_P == pytest.approx(parts.sum(axis=1) / parcels.area_m2, rel=1e-3)


def test_indices_are_those_of_exactextract_and_numpy(tmp_path: Path):
    mask_HW, bands_CHW = random_mask(30, 31), random_bands(30, 31)
    parcels = parcels_of(tmp_path, in_pixels(*SHAPES))
    found = parcel_statistics(Coverages(parcels), [seen(tmp_path, "scene", mask_HW, bands_CHW=bands_CHW)], 3)
    red, nir = bands_CHW * SCALE + OFFSET
    ndvi_HW = np.where((bands_CHW > 0).all(axis=0) & (mask_HW != 255), (nir - red) / (nir + red), np.nan)
    source = NumPyRasterSource(ndvi_HW, 0, -30, 31, 0)
    asked = ["mean", "stdev", "min", *(f"quantile(q={q})" for q in (0.1, 0.25, 0.5, 0.75, 0.9)), "max"]
    for number, polygon in enumerate(SHAPES):
        upright = shapely.transform(polygon, lambda xy: xy * (1, -1))
        feature = {"type": "Feature", "geometry": shapely.geometry.mapping(upright), "properties": {}}
        told = exact_extract(source, feature, asked)[0]["properties"]
        wanted = [told[name] for name in ("mean", "stdev", "min", *(f"quantile_{q}" for q in (10, 25, 50, 75, 90)), "max")]
        assert found.indices["ndvi"][number] == pytest.approx(wanted, rel=1e-5, nan_ok=True)
    whole = ndvi_HW[1:5, 1:4].ravel()
    whole = whole[np.isfinite(whole)]
    by_hand = [whole.mean(), whole.std(), whole.min(), *np.quantile(whole, (0.1, 0.25, 0.5, 0.75, 0.9)), whole.max()]
    assert found.indices["ndvi"][1] == pytest.approx(by_hand, rel=1e-6)


def test_confidence_is_summed_over_the_covered_part(tmp_path: Path):
    mask_HW, confidence_HW = np.array([[0, 0, 1, 255]]), np.array([[80, 40, 90, 99]])
    parcels = parcels_of(tmp_path, in_pixels(shapely.box(0.5, 0, 4, 1)))
    found = parcel_statistics(Coverages(parcels), [seen(tmp_path, "scene", mask_HW, confidence_HW=confidence_HW)], 2)
    assert found.pixels_PK.tolist() == [[1.5, 1]] and found.confidence_PK.tolist() == [[80, 90]]
    assert found.valid_share_P[0] == pytest.approx(2.5 / 3.5, rel=1e-3)


def test_too_few_valid_pixels_are_unknown_and_none_in_a_scene_outside(tmp_path: Path):
    mask_HW = np.zeros((20, 20))
    mask_HW[:, 10:] = 255
    boxes = [
        shapely.box(8, 5, 12, 6),
        shapely.box(8, 5, 13, 6),
        shapely.box(12, 2, 15, 3),
        shapely.box(-9, 0, -1, 3),
        shapely.box(20, 0, 25, 5),
    ]
    found = parcel_statistics(Coverages(parcels_of(tmp_path, in_pixels(*boxes))), [seen(tmp_path, "scene", mask_HW)], 2, 0.45)
    assert found.state_P.tolist() == [KNOWN, UNKNOWN, UNKNOWN, OUTSIDE, OUTSIDE]
    assert found.scene_P.tolist() == [0, 0, 0, -1, -1]
    assert found.valid_share_P == pytest.approx([0.5, 0.4, 0, 0, 0], abs=1e-3)
    assert np.isnan(found.indices["ndvi"][2:]).all() and not found.pixels_PK[2:].any()
    none = parcel_statistics(Coverages(parcels_of(tmp_path, in_pixels(*boxes))), [], 2)
    assert none.state_P.tolist() == [OUTSIDE] * 5 and none.pixels_PK.shape == (5, 2) and none.indices == {}


def test_the_scene_with_the_largest_valid_area_tells_and_of_equal_ones_the_first(tmp_path: Path):
    one, other = np.zeros((20, 20)), np.ones((20, 20))
    one[:, 12:] = 255
    other[10:] = 255
    scenes = [seen(tmp_path, "one", one), seen(tmp_path, "other", other)]
    boxes = [shapely.box(2, 2, 6, 6), shapely.box(8, 2, 18, 6), shapely.box(4, 8, 8, 14), shapely.box(14, 14, 18, 18)]
    coverages = Coverages(parcels_of(tmp_path, in_pixels(*boxes)))
    found = parcel_statistics(coverages, scenes, 2)
    assert found.scene_P.tolist() == [0, 1, 0, 0] and found.state_P.tolist() == [KNOWN, KNOWN, KNOWN, UNKNOWN]
    assert found.pixels_PK.tolist() == [[16, 0], [0, 40], [24, 0], [0, 0]], "nothing is counted twice"
    assert parcel_statistics(coverages, scenes[::-1], 2).scene_P.tolist() == [0, 0, 1, 0]


def test_a_parcel_cut_by_the_border_of_two_scenes_is_as_in_one(tmp_path: Path):
    mask_HW, bands_CHW = random_mask(30, 40), random_bands(30, 40)
    confidence_HW = np.random.default_rng(5).integers(0, 101, (30, 40))
    parcels = parcels_of(tmp_path, in_pixels(*SHAPES, shapely.box(-3, 10, 45, 14), shapely.box(19, 3, 21.5, 5)))

    def part(name: str, cols: slice) -> SeenScene:
        return seen(
            tmp_path, name, mask_HW[:, cols], bands_CHW=bands_CHW[:, :, cols], confidence_HW=confidence_HW[:, cols],
            transform=UTM * Affine.translation(cols.start, 0),
        )  # fmt: skip

    whole = parcel_statistics(Coverages(parcels), [part("whole", slice(0, 40))], 3)
    for left, right in (((0, 20), (20, 40)), ((0, 25), (15, 40)), ((0, 40), (10, 30))):
        parts = parcel_statistics(Coverages(parcels), [part("left", slice(*left)), part("right", slice(*right))], 3)
        assert_same(parts, whole)
        assert (parts.area_m2_PK.sum(axis=1) <= parcels.area_m2 * 1.001).all()


def assert_same(found: ParcelStatistics, wanted: ParcelStatistics, index_tolerance: float = 1e-6) -> None:
    assert np.array_equal(found.state_P, wanted.state_P)
    for name in ("pixels_PK", "area_m2_PK", "confidence_PK", "valid_share_P"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-6, abs=1e-6)
    assert found.indices["ndvi"] == pytest.approx(wanted.indices["ndvi"], abs=index_tolerance, nan_ok=True)


@pytest.mark.parametrize("cell,most", [(8, 10**6), (8, 100), (8, 600)])
def test_a_parcel_may_be_larger_than_any_window_and_than_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cell: int, most: int):
    """Streamed percentiles are not interpolated between neighbours, which in so few pixels lie up to 0.03 apart."""
    mask_HW, bands_CHW = random_mask(40, 50), random_bands(40, 50)
    scene = seen(tmp_path, "scene", mask_HW, bands_CHW=bands_CHW, confidence_HW=mask_HW)
    parcels = parcels_of(tmp_path, in_pixels(*SHAPES, shapely.box(0.5, 0.5, 49.5, 39), shapely.box(3, 30, 5, 33)))
    wanted = parcel_statistics(Coverages(parcels), [scene], 3)
    monkeypatch.setattr(coverage, "CELL", cell)
    for module in (coverage, zonal):
        monkeypatch.setattr(module, "MOST_PIXELS", most)
    found = parcel_statistics(Coverages(parcels), [scene], 3)
    assert_same(found, wanted, 1e-6 if most == 10**6 else 0.03)


def test_scenes_of_two_utm_zones_say_what_one_says(tmp_path: Path):
    """Classes and NDVI follow the place on the ground; the seam is crossed by parcels of 216 px. Stated: valid areas within 0.1 % of each
    parcel, by class within 4 % of it (pixels lie elsewhere), the mean index within 0.005; totals within 0.02 %, by class 0.2 %."""
    px, size = 10.0, 800

    def scene(name: str, epsg: int, west_lon: float, north_lat: float, cols: int) -> SeenScene:
        way = pyproj.Transformer.from_crs("EPSG:4326", epsg, always_xy=True)
        x, y = way.transform(west_lon, north_lat)
        transform = from_origin(round(x, -1), round(y, -1), px, px)
        col, row = np.meshgrid(np.arange(cols) + 0.5, np.arange(size) + 0.5)
        lon, lat = way.transform(*(transform * (col, row)), direction="INVERSE")
        mask_HW = (np.sin(lon * 900) + np.cos(lat * 1300) > 0).astype(int)
        red = 2000 + 500 * np.sin(lon * 700)
        return seen(tmp_path, name, mask_HW, bands_CHW=np.stack([red, np.full_like(red, 6000)]), transform=transform, crs=f"EPSG:{epsg}")

    corner = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32632", always_xy=True).transform(11.99, 50.0)
    random = np.random.default_rng(6)
    middle = np.array(corner) + random.uniform((500, -4500), (7000, -500), (300, 2))
    fields = [shapely.affinity.rotate(shapely.box(x - 90, y - 60, x + 90, y + 60), angle) for (x, y), angle in
              zip(middle, random.uniform(0, 90, 300), strict=True)]  # fmt: skip
    parcels = parcels_of(tmp_path, fields, "EPSG:32632")
    coverages = Coverages(parcels)
    single = parcel_statistics(coverages, [scene("single", 32632, 11.98, 50.012, 1000)], 2)
    both = [scene("west", 32632, 11.98, 50.012, 500), scene("east", 32633, 12.042, 50.02, 800)]
    found = parcel_statistics(coverages, both, 2)
    assert (single.state_P == KNOWN).all() and (found.state_P == KNOWN).all()
    assert set(found.scene_P.tolist()) == {0, 1}
    held_SP = np.stack([coverages.on(each.scene.grid).held_P for each in both])
    assert (~held_SP.any(axis=0)).sum() >= 1, "some lie in neither as a whole"
    assert np.abs(found.area_m2_PK.sum(axis=1) / parcels.area_m2 - 1).max() < 1e-3
    assert np.abs((found.area_m2_PK - single.area_m2_PK) / parcels.area_m2[:, None]).max() < 0.04
    assert np.abs(found.indices["ndvi"][:, 0] - single.indices["ndvi"][:, 0]).max() < 0.005
    assert found.area_m2_PK.sum() == pytest.approx(single.area_m2_PK.sum(), rel=2e-4)
    assert found.area_m2_PK.sum(axis=0) == pytest.approx(single.area_m2_PK.sum(axis=0), rel=2e-3)


def test_a_mask_may_lie_on_a_part_of_the_scene(tmp_path: Path):
    mask_HW, bands_CHW = random_mask(40, 40), random_bands(40, 40)
    parcels = parcels_of(tmp_path, in_pixels(*SHAPES))
    hidden_HW = np.full_like(mask_HW, 255)
    hidden_HW[5:30, 8:33] = mask_HW[5:30, 8:33]
    wanted = parcel_statistics(Coverages(parcels), [seen(tmp_path, "all", hidden_HW, bands_CHW=bands_CHW)], 3)
    found = parcel_statistics(Coverages(parcels), [seen(tmp_path, "part", mask_HW[5:30, 8:33], bands_CHW=bands_CHW, at=(5, 8))], 3)
    assert found.pixels_PK == pytest.approx(wanted.pixels_PK, abs=1e-6)
    assert found.indices["ndvi"] == pytest.approx(wanted.indices["ndvi"], rel=1e-6, nan_ok=True)


def test_without_a_mask_the_bands_say_what_is_valid(tmp_path: Path):
    bands_CHW = random_bands(30, 31)
    valid_HW = (bands_CHW > 0).all(axis=0)
    parcels = parcels_of(tmp_path, in_pixels(*SHAPES))
    found = parcel_statistics(Coverages(parcels), [seen(tmp_path, "bands", None, bands_CHW=bands_CHW)], 0)
    wanted = parcel_statistics(Coverages(parcels), [seen(tmp_path, "mask", np.where(valid_HW, 0, 255), bands_CHW=bands_CHW)], 1)
    assert found.pixels_PK.shape == (4, 0) and found.confidence_PK is None
    assert found.valid_share_P == pytest.approx(wanted.valid_share_P) and found.indices["ndvi"] == pytest.approx(wanted.indices["ndvi"])


def test_coverage_is_computed_once_for_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    coverages, made = Coverages(parcels_of(tmp_path, in_pixels(*SHAPES))), []
    monkeypatch.setattr(zonal, "Coverage", counted(zonal.Coverage, made))
    for date in range(3):
        parcel_statistics(coverages, [seen(tmp_path, f"{date}", random_mask(30, 31, seed=date))], 3)
    assert len(made) == 1


def counted(kind: Callable[..., Any], made: list[Any]) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        made.append(arguments)
        return kind(*arguments)

    return make


def test_what_does_not_fit_is_refused(tmp_path: Path):
    coverages = Coverages(parcels_of(tmp_path, in_pixels(*SHAPES)))
    scene = seen(tmp_path, "scene", random_mask(30, 31))
    other = seen(tmp_path, "other", random_mask(30, 31), transform=from_origin(500_003, 5_000_000, 10, 10))
    with pytest.raises(Refused, match=r"lies on another grid than .*scene.tif"):
        parcel_statistics(coverages, [SeenScene(scene.scene, other.mask)], 3)
    with pytest.raises(Refused, match="lies on another grid than its mask"):
        parcel_statistics(coverages, [SeenScene(scene.scene, scene.mask, other.mask)], 3)
    with pytest.raises(Refused, match="no such file"):
        parcel_statistics(coverages, [SeenScene(scene.scene, tmp_path / "nowhere.tif")], 3)
    nowhere = seen(tmp_path, "nowhere", random_mask(30, 31), crs=None)
    with pytest.raises(Refused, match="has no place on the ground"):
        parcel_statistics(coverages, [nowhere], 3)
    scene.mask.write_bytes(scene.mask.read_bytes()[:600])
    with pytest.raises((Unreadable, Refused)):
        parcel_statistics(coverages, [scene], 3)


def test_the_statistics_have_their_names():
    assert STATISTICS == ("mean", "std", "minimum", "p10", "p25", "median", "p75", "p90", "maximum")


def test_memory_follows_the_window_and_not_the_scene_or_the_parcel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nine times the pixels, under one parcel of all of them and under fields: what grows is a kilobyte a window, to find its pixels."""
    monkeypatch.setattr(coverage, "CELL", 64)
    for module in (coverage, zonal):
        monkeypatch.setattr(module, "MOST_PIXELS", 64 * 64)
    peaks = []
    for size in (192, 576):
        blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64}
        scene = seen(tmp_path, f"{size}", np.ones((size, size)), bands_CHW=random_bands(size, size), profile=blocks)
        lattice = [shapely.box(x, y, x + 17.5, y + 18.5) for x in range(0, size, 96) for y in range(0, size, size // 8)]
        parcels = parcels_of(tmp_path, in_pixels(shapely.box(0.5, 0.5, size - 0.5, size - 0.5), *lattice))
        coverages = Coverages(parcels)
        tracemalloc.start()
        found = parcel_statistics(coverages, [scene], 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.pixels_PK[0, 1] == pytest.approx((size - 1) ** 2) and (found.state_P == KNOWN).all()
    assert peaks[1] < 1.6 * peaks[0], peaks

"""A pixel belongs to a region if its centre does, against pyproj and shapely, in every CRS and on every grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from pipeline.errors import Refused
from pipeline.geometry.windows import BLOCK, Window, snap_outward
from pipeline.imagery.raster import Grid, Scene
from pipeline.imagery.region import Area, Region, region_of

UTM = from_origin(301905, 4154085, 30, 30)
GEOSTATIONARY = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +datum=WGS84"
TOLERANCE_PX = 1e-6


def scene_at(transform: Affine = UTM, crs: str | None = "EPSG:32612", height: int = 700, width: int = 900) -> Scene:
    """A scene of which only the grid matters."""
    grid = Grid(height, width, tuple(transform)[:6], CRS.from_user_input(crs).to_wkt() if crs else None)
    return Scene("scene", "scene.tif", None, "v", grid, (), (512, 512), 30.0 if crs else None)


SCENES = {
    "UTM": scene_at(),
    "south up": scene_at(Affine(30, 0, 301905, 0, 30, 4154085)),
    "rotated": scene_at(Affine(26, 11, 301905, 9, -28, 4154085)),
    "longitude and latitude": scene_at(from_origin(-113.3, 37.6, 0.0004, 0.0003), "EPSG:4326"),
    "web Mercator": scene_at(from_origin(-12612000, 4520000, 40, 40), "EPSG:3857"),
    "Lambert": scene_at(from_origin(-1_480_000, 1_690_000, 30, 30), "EPSG:5070"),
}


def centres(scene: Scene, crs: Any) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel's centre in another CRS."""
    col, row = np.meshgrid(np.arange(scene.grid.width) + 0.5, np.arange(scene.grid.height) + 0.5)
    return pyproj.Transformer.from_crs(scene.grid.crs, crs, always_xy=True).transform(*(scene.grid.affine * (col, row)))


def mask_of(scene: Scene, region: Region | None) -> np.ndarray:
    """The region as bool H x W over the scene."""
    mask_HW = np.zeros((scene.grid.height, scene.grid.width), bool)
    if region:
        inside_HW = region.inside(region.window)
        mask_HW[region.window.slices()] = True if inside_HW is None else inside_HW
    return mask_HW


def shape_in(scene: Scene, crs: str, seed: int = 1) -> shapely.Polygon:
    """A star with a hole, somewhere in the scene, in the coordinates of `crs`; nothing of it lies on pixels' centres."""
    chance = np.random.default_rng(seed)
    turns = np.sort(chance.uniform(0, 2 * np.pi, 40))
    reach = chance.uniform(0.15, 0.6, 40)
    col = scene.grid.width * (0.45 + reach * np.cos(turns))
    row = scene.grid.height * (0.55 + reach * np.sin(turns))
    x, y = pyproj.Transformer.from_crs(scene.grid.crs, crs, always_xy=True).transform(*(scene.grid.affine * (col, row)))
    star = shapely.make_valid(shapely.Polygon(np.column_stack([x, y])))
    return star.difference(star.centroid.buffer(0.1 * star.area**0.5))


def check_against_centres(scene: Scene, region: Region | None, shape: shapely.Geometry, crs: str) -> int:
    """Assert that the region is the pixels with their centre in `shape`, save within a millionth of a pixel of its edge."""
    x, y = centres(scene, crs)
    expected_HW, got_HW = shapely.contains_xy(shape, x, y), mask_of(scene, region)
    pixel = min(np.hypot(np.diff(x[:2, 0]), np.diff(y[:2, 0]))[0], np.hypot(np.diff(x[0, :2]), np.diff(y[0, :2]))[0])
    for row, col in np.argwhere(expected_HW != got_HW):
        assert shape.boundary.distance(shapely.Point(x[row, col], y[row, col])) < TOLERANCE_PX * pixel
    return int(got_HW.sum())


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32612", "EPSG:26911", "EPSG:5070"])
def test_a_pixel_belongs_if_its_centre_does(tmp_path: Path, scene: Scene, crs: str):
    shape = shape_in(scene, crs)
    geopandas.GeoSeries([shape], crs=crs).to_file(tmp_path / "aoi.gpkg")
    region = region_of(scene, Area.from_file(tmp_path / "aoi.gpkg"))
    belonging = check_against_centres(scene, region, shape, crs)
    assert 0.1 < belonging / (700 * 900) < 0.9


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_a_box_is_its_longitudes_and_latitudes(scene: Scene):
    """Edges follow parallels and meridians, which bend on the scene's grid."""
    lon, lat = centres(scene, "EPSG:4326")
    west, east = np.quantile(lon, [0.27, 0.81])
    south, north = np.quantile(lat, [0.19, 0.66])
    region = region_of(scene, Area.from_bbox(west, south, east, north))
    expected_HW = (lon > west) & (lon < east) & (lat > south) & (lat < north)
    near = np.minimum.reduce([np.abs(lon - west), np.abs(lon - east), np.abs(lat - south), np.abs(lat - north)])
    step = min(np.abs(np.diff(lat, axis=0)).max(), np.abs(np.diff(lon, axis=1)).max())
    disagreeing = expected_HW != mask_of(scene, region)
    assert (near[disagreeing] < TOLERANCE_PX * step).all() and 0.1 < expected_HW.mean() < 0.9


def test_the_bend_of_an_edge_over_a_wide_scene_is_followed():
    """100 km: the parallel bends by 180 m, the chords of its 512 pieces by less than a thousandth of a metre."""
    scene = scene_at(from_origin(300000, 5_600_000, 100, 100), "EPSG:32633", height=1000, width=1000)
    _, lat = centres(scene, "EPSG:4326")
    south, north = np.quantile(lat, [0.4, 0.6])
    mask_HW = mask_of(scene, region_of(scene, Area.from_bbox(-20.0, south, 60.0, north)))
    expected_HW = (lat > south) & (lat < north)
    assert np.array_equal(mask_HW, expected_HW)
    first, last = expected_HW[:, 0].argmax(), expected_HW[:, -1].argmax()
    assert abs(int(first) - int(last)) > 5, "no straight line would do"


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (UTM, "EPSG:32612"),
        (from_origin(560000, 7_500_000, 300, 300), "EPSG:32660"),
        (from_origin(-3e6, 3e6, 1e4, 1e4), "EPSG:3413"),
        (from_origin(-3e6, 3e6, 1e4, 1e4), "EPSG:3031"),
        (from_origin(-180, 90, 0.4, 0.25), "EPSG:4326"),
        (from_origin(-2_000_000, 2_000_000, 4000, 4000), "EPSG:3035"),
        (from_origin(1e6, 3e6, 3000, 3000), GEOSTATIONARY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_box_as_large_as_the_world_is_the_whole_scene(transform: Affine, crs: str):
    """Far from a scene its CRS may have no coordinates; that is no reason to miss the scene."""
    scene = scene_at(transform, crs, height=600, width=600)
    box = (-179, -80, 179, 80) if crs == GEOSTATIONARY else (-180, -90, 180, 90)
    assert mask_of(scene, region_of(scene, Area.from_bbox(*box))).all()


@pytest.mark.parametrize(("box", "east"), [((179, 60, 180, 80), True), ((-180, 60, -179.5, 80), False)])
def test_boxes_on_either_side_of_the_antimeridian(box: tuple[float, float, float, float], east: bool):
    scene = scene_at(from_origin(560000, 7_500_000, 300, 300), "EPSG:32660", height=600, width=600)
    lon, _ = centres(scene, "EPSG:4326")
    expected_HW = (lon > 179) if east else (lon > -180) & (lon < -179.5)
    assert np.array_equal(mask_of(scene, region_of(scene, Area.from_bbox(*box))), expected_HW) and expected_HW.any()


def test_a_grid_of_longitudes_past_180_meets_boxes_east_of_there():
    scene = scene_at(from_origin(170, 10, 0.1, 0.1), "EPSG:4326", height=100, width=200)
    west = mask_of(scene, region_of(scene, Area.from_bbox(-180, 0, -175, 10)))
    assert west[:, 100:150].all() and west.sum() == 100 * 50
    everything = mask_of(scene, region_of(scene, Area.from_bbox(-180, -90, 180, 90)))
    assert everything.all(), "no seam at 180 degrees"


def test_a_wedge_at_the_pole():
    scene = scene_at(from_origin(-3e6, 3e6, 1e4, 1e4), "EPSG:3413", height=600, width=600)
    lon, lat = centres(scene, "EPSG:4326")
    mask_HW = mask_of(scene, region_of(scene, Area.from_bbox(-60.5, 75, 170, 90)))
    assert np.array_equal(mask_HW, (lon > -60.5) & (lon < 170) & (lat > 75))


def test_an_area_that_reaches_where_there_are_no_coordinates_is_refused():
    scene = scene_at(from_origin(-5.4e6, 5.4e6, 2e4, 2e4), GEOSTATIONARY, height=540, width=540)
    with pytest.raises(Refused, match="reaches where the scene's CRS has no coordinates: choose a smaller one"):
        region_of(scene, Area.from_bbox(-180, -90, 180, 90))
    assert mask_of(scene, region_of(scene, Area.from_bbox(-20, -20, 30, 30))).any()


# ---- windows


def test_the_window_is_the_bounding_box_snapped_outward(tmp_path: Path):
    scene = scene_at(height=3000, width=2700)
    for seed in range(20):
        chance = np.random.default_rng(seed)
        left, top = chance.uniform(-200, 2500, 2)
        right, bottom = left + chance.uniform(1, 900), top + chance.uniform(1, 900)
        corners = [scene.grid.affine * corner for corner in ((left, top), (right, top), (right, bottom), (left, bottom))]
        geopandas.GeoSeries([shapely.Polygon(corners)], crs="EPSG:32612").to_file(tmp_path / f"{seed}.gpkg")
        region = region_of(scene, Area.from_file(tmp_path / f"{seed}.gpkg"))
        mask_HW = mask_of(scene, region)
        rows, cols = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        if not rows.size:
            continue
        tight = Window(int(rows[0]), int(cols[0]), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
        least = snap_outward(tight, 3000, 2700)
        assert region.window.intersection(least) == least
        assert region.window.row % BLOCK == region.window.col % BLOCK == 0
        assert snap_outward(region.window, 3000, 2700) == region.window, "clipped to the scene"
        assert region.window.height <= least.height + BLOCK and region.window.width <= least.width + BLOCK


def test_inside_of_a_window_is_a_slice_of_the_whole(tmp_path: Path):
    scene = SCENES["rotated"]
    geopandas.GeoSeries([shape_in(scene, "EPSG:4326")], crs="EPSG:4326").to_file(tmp_path / "aoi.gpkg")
    region = region_of(scene, Area.from_file(tmp_path / "aoi.gpkg"))
    whole_HW, chance = region.inside(scene.grid.window), np.random.default_rng(2)
    for _ in range(40):
        row, col = int(chance.integers(0, 700)), int(chance.integers(0, 900))
        window = Window(row, col, int(chance.integers(1, 701 - row)), int(chance.integers(1, 901 - col)))
        assert np.array_equal(region.inside(window), whole_HW[window.slices()])


def test_without_an_area_all_of_the_scene_belongs():
    scene = scene_at(crs=None)
    region = region_of(scene, None)
    assert region == Region(Window(0, 0, 700, 900)) and region.inside(region.window) is None


@pytest.mark.parametrize("box", [(10, 40, 20, 50), (-113.9, 37.4, -113.8, 37.5), (-114, 40, -112, 41)])
def test_an_area_outside_the_scene_is_none(box: tuple[float, float, float, float]):
    assert region_of(SCENES["UTM"], Area.from_bbox(*box)) is None


def test_an_area_that_touches_the_scene_from_outside_is_none(tmp_path: Path):
    geopandas.GeoSeries([shapely.box(301005, 4134000, 301905, 4150000)], crs="EPSG:32612").to_file(tmp_path / "beside.gpkg")
    assert region_of(SCENES["UTM"], Area.from_file(tmp_path / "beside.gpkg")) is None


# ---- files


def frame(**columns: Any) -> geopandas.GeoDataFrame:
    """Two polygons, one with a hole, and a line, in longitude and latitude."""
    hole = shapely.box(-113.2, 37.4, -113.1, 37.5).difference(shapely.box(-113.17, 37.43, -113.13, 37.47))
    return geopandas.GeoDataFrame(
        columns or {"name": ["a", "b"]}, geometry=[hole, shapely.box(-113.15, 37.35, -113.05, 37.45)], crs="EPSG:4326"
    )


@pytest.mark.parametrize("name", ["aoi.geojson", "aoi.gpkg", "aoi.shp", "aoi.fgb", "aoi.parquet"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32612"])
def test_every_vector_format_gives_the_same_region(tmp_path: Path, name: str, crs: str):
    placed = frame().to_crs(crs)
    if name.endswith("parquet"):
        placed.to_parquet(tmp_path / name)
    else:
        placed.to_file(tmp_path / name)
    scene = SCENES["UTM"]
    region = region_of(scene, Area.from_file(tmp_path / name))
    if name.endswith("geojson"):  # written with 15 digits at most
        expected_HW = shapely.contains_xy(shapely.union_all(placed.geometry.to_numpy()), *centres(scene, crs))
        assert (mask_of(scene, region) != expected_HW).sum() <= 2
    else:
        assert check_against_centres(scene, region, shapely.union_all(placed.geometry.to_numpy()), crs) > 10_000


def test_an_invalid_polygon_is_mended_and_lines_are_left_out(tmp_path: Path):
    bow_tie = shapely.Polygon([(-113.2, 37.4), (-113.1, 37.5), (-113.1, 37.4), (-113.2, 37.5)])
    spike = shapely.GeometryCollection([shapely.box(-113.05, 37.4, -113.0, 37.45), shapely.LineString([(-113.3, 37.3), (-113.0, 37.6)])])
    shapes = geopandas.GeoSeries(
        [bow_tie, spike, shapely.LineString([(-113.2, 37.2), (-113.0, 37.6)]), None, shapely.Polygon()], crs="EPSG:4326"
    )
    shapes.to_file(tmp_path / "aoi.gpkg")
    region = region_of(SCENES["UTM"], Area.from_file(tmp_path / "aoi.gpkg"))
    expected = shapely.union_all([shapely.make_valid(bow_tie), spike.geoms[0]])
    assert check_against_centres(SCENES["UTM"], region, expected, "EPSG:4326") > 1000


def test_the_label_tells_areas_apart_by_content_and_not_by_path(tmp_path: Path):
    frame().to_file(tmp_path / "a.gpkg")
    (tmp_path / "b").mkdir()
    frame(crop=[1, 2]).iloc[::-1].to_file(tmp_path / "b" / "other name.gpkg")
    moved = frame()
    moved.geometry = moved.geometry.translate(0.001)
    moved.to_file(tmp_path / "c.gpkg")
    frame().to_crs("EPSG:32612").to_file(tmp_path / "d.gpkg")
    same, other, shifted, placed = (Area.from_file(tmp_path / name).label for name in ("a.gpkg", "b/other name.gpkg", "c.gpkg", "d.gpkg"))
    assert same == other and len({same, shifted, placed}) == 3
    assert str(tmp_path) not in same
    assert Area.from_bbox(1, 2, 3, 4).label == Area.from_bbox(1.0, 2, 3, 4).label != Area.from_bbox(1, 2, 3, 4.000001).label


def test_unusable_files_are_refused_in_one_line(tmp_path: Path):
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        frame().set_crs(None, allow_override=True).to_file(tmp_path / "nocrs.gpkg")
    frame().to_file(tmp_path / "noprj.shp")
    (tmp_path / "noprj.prj").unlink()
    frame().iloc[:0].to_file(tmp_path / "empty.gpkg")
    geopandas.GeoSeries([shapely.Point(1, 2)], crs="EPSG:4326").to_file(tmp_path / "points.gpkg")
    (tmp_path / "text.geojson").write_text("no polygons here")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    messages = {
        "nocrs.gpkg": r"declares no CRS: assign it \(ogr2ogr -a_srs\)",
        "noprj.shp": r"declares no CRS: assign it \(ogr2ogr -a_srs\)",
        "empty.gpkg": "holds no polygons",
        "points.gpkg": "holds no polygons",
        "text.geojson": "cannot be read as a vector file",
        "table.csv": "cannot be read as a vector file",
        "broken.parquet": "cannot be read as a vector file",
        "gone.gpkg": "no such file",
    }
    for name, message in messages.items():
        with pytest.raises(Refused, match=rf"{tmp_path / name}: {message}") as refused:
            Area.from_file(tmp_path / name)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "box", [(2, 0, 1, 1), (0, 1, 1, 0), (0, 0, 0, 1), (-181, 0, 0, 1), (0, 0, 1, 91), (float("nan"), 0, 1, 1)], ids=str
)
def test_a_box_that_is_none_is_refused(box: tuple[float, float, float, float]):
    with pytest.raises(Refused, match="need west < east and south < north, in degrees"):
        Area.from_bbox(*box)


def test_no_area_can_be_placed_on_a_scene_without_a_place():
    with pytest.raises(Refused, match=r"scene.tif: has no CRS, .*\(gdal_edit.py -a_srs\)"):
        region_of(scene_at(crs=None), Area.from_bbox(0, 0, 1, 1))
    with pytest.raises(Refused, match=r"scene.tif: no --bbox or --aoi can be placed on its CRS"):
        region_of(scene_at(crs='LOCAL_CS["drawing",UNIT["metre",1]]'), Area.from_bbox(0, 0, 1, 1))


def test_coordinates_that_are_no_numbers(tmp_path: Path):
    for odd in (float("nan"), float("inf")):
        polygon = shapely.Polygon([(0, 0), (1, 0), (odd, 1), (0, 1)])
        geopandas.GeoDataFrame(geometry=[polygon], crs="EPSG:4326").to_parquet(tmp_path / "a.parquet")
        with pytest.raises(Refused, match="holds coordinates that are no numbers"):
            Area.from_file(tmp_path / "a.parquet")

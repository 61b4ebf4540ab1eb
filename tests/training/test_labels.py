"""Labels lie on the image's grid, whatever they were made as: rasters on any grid, colours, palettes, polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from shapely import contains_xy
from shapely.affinity import rotate
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import Asset, BandEntry, Source
from pipeline.models.bundle import ClassEntry
from pipeline.training.classes import ClassTable, LabelClass, table_of
from pipeline.training.labels import PolygonLabels, RasterLabels, ignored_outside, open_labels
from tests.toys import PROJECT, UTM, write_scene

HEIGHT, WIDTH = 60, 80
WHOLE = Window(0, 0, HEIGHT, WIDTH)
PARTS = [Window(0, 0, 17, 80), Window(17, 0, 43, 31), Window(17, 31, 43, 49)]
GRID = UTM["transform"]
RANDOM_HW = np.random.default_rng(3).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
TABLE = table_of([0, 1, 2, 3], coloured=False)
RGB = [(132, 41, 246), (226, 169, 41), (60, 16, 152), (0, 0, 0)]
COLOURS = [red << 16 | green << 8 | blue for red, green, blue in RGB]
RGB_TABLE = ClassTable(tuple(LabelClass(ClassEntry(id, f"{id}", "#000000"), (value,)) for id, value in enumerate(COLOURS)), (), True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "image.tif", np.ones((1, HEIGHT, WIDTH), np.uint8))


def opened(image: Path, labels: Path, column: str | None = None) -> RasterLabels | PolygonLabels:
    source = Source(str(image), image.stem, None, (Asset(image, (BandEntry(("image",)),)),))
    return open_labels(source, labels, [Band("image")], column)[1]


def ids(image: Path, labels: Path, table: ClassTable = TABLE, column: str | None = None) -> np.ndarray:
    """Of the whole image; and the same in parts, which is asserted."""
    found = opened(image, labels, column)
    whole_HW = found.ids(WHOLE, table)
    for part in PARTS:
        assert (found.ids(part, table) == whole_HW[part.slices()]).all()
    assert whole_HW.dtype == np.uint8
    return whole_HW


# --- rasters


@pytest.mark.parametrize("suffix", [".tif", ".png", ".PNG", ".tiff"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_mask_of_the_images_size_needs_no_crs(tmp_path: Path, image: Path, suffix: str, dtype: str) -> None:
    mask = tmp_path / f"mask{suffix}"
    Image.fromarray(RANDOM_HW.astype(dtype)).save(mask)
    assert (ids(image, mask) == RANDOM_HW).all()
    assert opened(image, mask).values() == {0, 1, 2, 3}


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "float32", "float64"])
def test_whole_numbers_in_any_dtype_are_classes(tmp_path: Path, image: Path, dtype: str) -> None:
    mask = write_scene(tmp_path / "mask.tif", RANDOM_HW[None].astype(dtype))
    assert (ids(image, mask) == RANDOM_HW).all()


def test_wide_ids_stay_apart(tmp_path: Path, image: Path) -> None:
    values_HW = np.where(RANDOM_HW > 1, 65_534, 65_535).astype(np.uint16)
    mask = write_scene(tmp_path / "mask.tif", values_HW[None])
    assert (ids(image, mask, table_of([65_534, 65_535], False)) == (RANDOM_HW <= 1)).all()


@pytest.mark.parametrize(
    ("value", "dtype", "shown"), [(1.5, "float32", "1.5"), (20_000_001, "int32", "20000000"), (-(2**25), "int32", "-33554432")]
)
def test_values_that_cannot_be_told_apart_are_refused(tmp_path: Path, image: Path, value: float, dtype: str, shown: str) -> None:
    """Fractions would be cut off, and float32 merges whole numbers above 2 ** 24."""
    values = RANDOM_HW[None].astype(dtype)
    values[0, 40, 50] = value
    mask = write_scene(tmp_path / "mask.tif", values)
    with pytest.raises(Refused, match=rf"mask\.tif: holds {shown}: labels are whole numbers"):
        opened(image, mask).values()
    with pytest.raises(Refused, match=rf"mask\.tif: holds {shown}"):
        opened(image, mask).ids(Window(40, 50, 1, 1), TABLE)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("int16", -9999), ("float32", float("nan")), ("uint8", 0)])
def test_nodata_is_ignored(tmp_path: Path, image: Path, dtype: str, nodata: float) -> None:
    values_HW = RANDOM_HW.astype(dtype)
    values_HW[10:20, 5:9] = nodata
    mask = write_scene(tmp_path / "mask.tif", values_HW[None], nodata=nodata)
    expected_HW = np.where((np.isnan(values_HW) if nodata != nodata else values_HW == nodata), 255, RANDOM_HW)
    assert (ids(image, mask) == expected_HW).all()
    assert nodata not in opened(image, mask).values()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_classes_however_they_are_stored(tmp_path: Path, image: Path, mode: str) -> None:
    if mode == "P":
        drawn = Image.fromarray(RANDOM_HW, mode="P")
        drawn.putpalette([part for colour in RGB for part in colour])
    else:
        rgb_HWC = np.array(RGB, np.uint8)[RANDOM_HW]
        alpha_HW1 = np.where(RANDOM_HW == 3, 0, 255)[..., None].astype(np.uint8)
        drawn = Image.fromarray(rgb_HWC if mode == "RGB" else np.concatenate([rgb_HWC, alpha_HW1], axis=2))
    drawn.save(tmp_path / "mask.png")
    expected_HW = np.where((RANDOM_HW == 3) & (mode == "RGBA"), 255, RANDOM_HW)  # what is transparent has no class
    assert opened(image, tmp_path / "mask.png").values() == {COLOURS[value] for value in np.unique(expected_HW) if value < 255}
    assert (ids(image, tmp_path / "mask.png", RGB_TABLE) == expected_HW).all()


def test_a_palettes_indices_are_values_where_the_table_lists_values(tmp_path: Path, image: Path) -> None:
    drawn = Image.fromarray(RANDOM_HW, mode="P")
    drawn.putpalette([part for colour in RGB for part in colour])
    drawn.save(tmp_path / "mask.png")
    assert (ids(image, tmp_path / "mask.png") == RANDOM_HW).all()


def test_a_palette_of_16_bits(tmp_path: Path, image: Path) -> None:
    mask = write_scene(tmp_path / "mask.tif", RANDOM_HW[None].astype(np.uint16) * 300)
    with rasterio.open(mask, "r+") as dataset:
        dataset.write_colormap(1, {index * 300: (*colour, 255) for index, colour in enumerate(RGB)})
    assert (ids(image, mask, RGB_TABLE) == RANDOM_HW).all()


def test_masks_and_tables_of_different_kinds_are_refused(tmp_path: Path, image: Path) -> None:
    Image.fromarray(np.array(RGB, np.uint8)[RANDOM_HW]).save(tmp_path / "colours.png")
    Image.fromarray(RANDOM_HW).save(tmp_path / "values.png")
    with pytest.raises(Refused, match=r"colours\.png: is a mask in colours; the class table lists values"):
        opened(image, tmp_path / "colours.png").ids(WHOLE, TABLE)
    with pytest.raises(Refused, match=r"values\.png: is a mask of values, not of colours"):
        opened(image, tmp_path / "values.png").ids(WHOLE, RGB_TABLE)


@pytest.mark.parametrize(("count", "dtype"), [(2, "uint8"), (3, "uint16"), (5, "uint8")])
def test_a_mask_of_many_bands_is_refused_not_read_in_part(tmp_path: Path, image: Path, count: int, dtype: str) -> None:
    mask = write_scene(tmp_path / "mask.tif", np.stack([RANDOM_HW] * count).astype(dtype))
    with pytest.raises(Refused, match=rf"mask\.tif: has {count} bands of {dtype}"):
        opened(image, mask)


def test_without_a_crs_sizes_must_agree(tmp_path: Path, image: Path) -> None:
    Image.fromarray(RANDOM_HW[:-1]).save(tmp_path / "mask.png")
    with pytest.raises(Refused, match=r"mask\.png: is 59 x 80 px, its image .*image\.tif 60 x 80 px"):
        opened(image, tmp_path / "mask.png")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_a_truncated_mask_is_an_error_that_names_it(tmp_path: Path, image: Path, suffix: str, share: float) -> None:
    """GDAL's quick way through a PNG returns what was in memory."""
    mask = tmp_path / f"mask.{suffix}"
    noisy_HW = np.random.default_rng(0).integers(0, 200, (HEIGHT, WIDTH)).astype(np.uint8)
    Image.fromarray(noisy_HW).save(mask)
    content = mask.read_bytes()
    mask.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((Refused, Unreadable), match=rf"mask\.{suffix}"):
        opened(image, mask).values()


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_what_is_no_raster_and_no_polygons_is_refused(tmp_path: Path, image: Path, content: bytes) -> None:
    for name in ("mask.png", "fields.gpkg", "fields.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refused, match=rf"{name}: cannot be"):
            opened(image, tmp_path / name)


# both leave the right and lower edge of the image bare
OTHER_GRIDS = {
    "EPSG:26912": Affine(31.53, 0, 301903.3, 0, -31.52, 4154086.5),
    "EPSG:4326": Affine(0.0003, 0, -113.2419, 0, -0.00026, 37.5134),
}


def nearest(image: Path, labels: Path, outside: int) -> np.ndarray:
    """The label value under each pixel's centre, by coordinates alone."""
    with rasterio.open(image) as grid, rasterio.open(labels) as source:
        rows, cols = np.mgrid[: grid.height, : grid.width]
        x, y = grid.transform * (cols.ravel() + 0.5, rows.ravel() + 0.5)
        placed = ~source.transform * tuple(map(np.array, transform_points(grid.crs, source.crs, x, y)))
        col, row = (np.floor(axis).astype(int).reshape(rows.shape) for axis in placed)
        inside = (row >= 0) & (row < source.height) & (col >= 0) & (col < source.width)
        return np.where(inside, source.read(1)[row.clip(0, source.height - 1), col.clip(0, source.width - 1)], outside)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("nodata", [None, 3])
@pytest.mark.parametrize("crs", OTHER_GRIDS)
def test_a_label_raster_on_another_grid_gives_the_nearest_label(
    tmp_path: Path, image: Path, crs: str, nodata: int | None, dtype: str
) -> None:
    mask = write_scene(tmp_path / "mask.tif", RANDOM_HW[None, :50, :70].astype(dtype), crs=crs, transform=OTHER_GRIDS[crs], nodata=nodata)
    expected_HW = nearest(image, mask, 255)
    expected_HW[expected_HW == nodata] = 255
    assert (ids(image, mask) == expected_HW).all() and 255 in expected_HW


def test_the_demos_labels_lie_where_its_scene_does() -> None:
    """NLCD, at 31.53 m on another datum, under the Landsat scene."""
    image, labels = (PROJECT / "jobs" / "demo" / "zion" / name for name in ("landsat_b2.tif", "nlcd.tif"))
    part = Window(200, 300, 150, 200)
    found_HW = opened(image, labels).ids(part, table_of(range(1, 9), False))
    expected_HW = nearest(image, labels, 255)[part.slices()].astype(int)
    assert (found_HW == np.where(expected_HW == 255, 255, expected_HW - 1)).all() and len(np.unique(found_HW)) > 2


# --- polygons


def on_map(col: float, row: float) -> tuple[float, float]:
    return GRID * (col, row)


def rectangle(top: float, left: float, bottom: float, right: float) -> Polygon:
    return box(*on_map(left, bottom), *on_map(right, top))


def written(
    path: Path, shapes: list[BaseGeometry | None], crs: str | None = "EPSG:32612", to: str | None = None, **columns: list[object]
) -> Path:
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs)
    frame = frame.to_crs(to) if to else frame
    frame.to_parquet(path) if path.suffix.endswith("parquet") else frame.to_file(path)
    return path


def drawn(shapes: list[BaseGeometry], values: list[int], elsewhere: int = 255) -> np.ndarray:
    """Pixel by pixel: the class of the last shape that holds the centre."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y = GRID * (cols, rows)
    ids_HW = np.full((HEIGHT, WIDTH), elsewhere, np.uint8)
    for shape, value in zip(shapes, values, strict=True):
        ids_HW[contains_xy(shape, x, y)] = value
    return ids_HW


def blobs(seed: int, count: int = 6) -> list[Polygon]:
    """Polygons of every shape and size, some partly outside of the image."""
    random = np.random.default_rng(seed)
    return [
        rotate(rectangle(top, left, top + tall, left + wide), angle)
        for top, left, tall, wide, angle in zip(
            random.uniform(-20, 60, count),
            random.uniform(-20, 80, count),
            *random.uniform(3, 40, (2, count)),
            random.uniform(0, 90, count),
            strict=True,
        )
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["fields.gpkg", "fields.geojson", "fields.parquet", "fields.shp"])
def test_a_pixel_belongs_to_the_last_polygon_that_holds_its_centre(tmp_path: Path, image: Path, name: str, seed: int) -> None:
    shapes, values = blobs(seed), [0, 1, 2, 3, 0, 1]
    if name.endswith("geojson"):  # always in degrees
        shapes = list(geopandas.GeoSeries(shapes, crs="EPSG:32612").to_crs(4326).to_crs(32612))
    fields = written(tmp_path / name, blobs(seed), to="EPSG:4326" if name.endswith("geojson") else None, **{"class": values})
    expected_HW = drawn(shapes, values)
    assert (ids(image, fields) == expected_HW).all() and len(np.unique(expected_HW)) > 2


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:26912", "EPSG:5070"])
def test_polygons_in_another_crs(tmp_path: Path, image: Path, crs: str) -> None:
    values = [0, 1, 2, 3, 0, 1]
    fields = written(tmp_path / "fields.gpkg", blobs(5), to=crs, **{"class": values})
    expected_HW = drawn(list(geopandas.read_file(fields).to_crs(32612).geometry), values)
    assert (ids(image, fields) == expected_HW).all() and len(np.unique(expected_HW)) > 2


def test_what_lies_in_no_polygon_is_ignored_or_the_class_for_that(tmp_path: Path, image: Path) -> None:
    fields = written(tmp_path / "f.gpkg", [rectangle(10, 10, 20, 20)], **{"class": [1]})
    assert (ids(image, fields) == drawn([rectangle(10, 10, 20, 20)], [1])).all()
    water, rest = TABLE.classes[1], TABLE.classes[0]
    table = ClassTable((type(rest)(rest.entry, (), elsewhere=True), water))
    assert (ids(image, fields, table) == drawn([rectangle(10, 10, 20, 20)], [1], elsewhere=0)).all()


def test_text_numbers_and_missing_classes(tmp_path: Path, image: Path) -> None:
    shapes = [rectangle(0, 0, 10, 10), rectangle(10, 10, 20, 20), rectangle(30, 30, 50, 50)]
    named = written(tmp_path / "f.gpkg", shapes, kind=["lake", "Feld ä", None], id=[1, 2, 3])
    assert opened(image, named, "kind").values() == {"lake", "Feld ä"}
    assert (ids(image, named, table_of(["lake", "Feld ä"], False), "kind") == drawn(shapes[:2], [1, 0])).all()
    gaps = written(tmp_path / "g.geojson", shapes, kind=[1, None, 3])  # read as 1.0, NaN, 3.0
    assert opened(image, gaps, "kind").values() == {1, 3}


def test_multipolygons_holes_and_missing_shapes(tmp_path: Path, image: Path) -> None:
    ring = rectangle(30, 30, 50, 60).difference(rectangle(35, 35, 45, 45))
    several = MultiPolygon([rectangle(0, 0, 10, 10), rectangle(2, 20, 8, 30)])
    fields = written(tmp_path / "f.gpkg", [several, ring, None, Polygon()], **{"class": [1, 2, 3, 3]})
    assert (ids(image, fields) == drawn([several, ring], [1, 2])).all()


def test_invalid_polygons_are_mended_and_label_only_their_inside(tmp_path: Path, image: Path) -> None:
    """A bow tie is its two triangles; a spike and a polygon without an area, which a rasteriser draws as lines, are nothing."""
    bow = Polygon([on_map(*corner) for corner in ((0, 0), (20, 20), (20, 0), (0, 20))])
    triangles = MultiPolygon(
        [Polygon([on_map(*c) for c in three]) for three in (((0, 0), (10, 10), (0, 20)), ((20, 0), (20, 20), (10, 10)))]
    )
    spiked = Polygon([on_map(*corner) for corner in ((30, 0), (50, 0), (50, 10), (50, 40), (50, 10), (30, 10))])
    flat = Polygon([on_map(*corner) for corner in ((0, 50.5), (40, 50.5), (20, 50.5))])
    fields = written(tmp_path / "f.gpkg", [bow, spiked, flat], **{"class": [1, 2, 3]})
    found_HW = ids(image, fields)
    expected_HW = drawn([triangles, rectangle(0, 30, 10, 50)], [1, 2])
    edge_HW = np.eye(HEIGHT, WIDTH, dtype=bool) | np.eye(HEIGHT, WIDTH, dtype=bool)[:, ::-1]  # centres on the diagonals are anybody's
    edge_HW |= np.fliplr(np.eye(HEIGHT, WIDTH, k=60, dtype=bool))
    assert (found_HW == expected_HW)[~edge_HW].all() and 3 not in found_HW


def test_points_and_lines_are_no_polygons(tmp_path: Path, image: Path) -> None:
    mixed: list[BaseGeometry | None] = [Point(on_map(5, 5)), LineString([on_map(0, 3), on_map(70, 3)]), rectangle(10, 10, 20, 20)]
    assert (ids(image, written(tmp_path / "f.geojson", mixed, to="EPSG:4326", **{"class": [1, 1, 2]})) != 1).all()
    with pytest.raises(Refused, match=r"p\.gpkg: holds no polygons with a class"):
        opened(image, written(tmp_path / "p.gpkg", mixed[:1], **{"class": [1]}))


def test_polygons_around_the_world_are_where_they_are(tmp_path: Path, image: Path) -> None:
    """UTM is not defined that far; a country or the globe must not vanish, nor fold back."""
    globe = box(-180, -90, 180, 90)
    fields = written(tmp_path / "f.gpkg", [globe, box(-113.235, 37.40, -113.2, 37.51)], "EPSG:4326", **{"class": [1, 2]})
    near = geopandas.GeoSeries([box(-113.235, 37.40, -113.2, 37.51)], crs=4326).to_crs(32612)[0]
    expected_HW = drawn([near], [2], elsewhere=1)
    assert (ids(image, fields) == expected_HW).all() and len(np.unique(expected_HW)) == 2


def test_polygons_that_meet_no_pixel_label_nothing(tmp_path: Path, image: Path) -> None:
    fields = written(tmp_path / "f.gpkg", [rectangle(500, 500, 600, 600)], **{"class": [1]})
    assert (ids(image, fields) == 255).all() and opened(image, fields).values() == {1}


def test_an_unknown_class_is_an_error_that_names_file_and_value(tmp_path: Path, image: Path) -> None:
    fields = written(tmp_path / "f.gpkg", [rectangle(0, 0, 9, 9)], **{"class": ["forst"]})
    with pytest.raises(Refused, match=r"f\.gpkg: holds 'forst'"):
        ids(image, fields)


@pytest.mark.parametrize(
    ("shapes", "crs", "columns", "column", "message"),
    [
        ([], "EPSG:32612", {"class": []}, None, "holds no polygons"),
        ([Point(0, 0)], "EPSG:32612", {"kind": [1], "id": [2]}, None, "no column called class; there are kind, id: name one"),
        ([Point(0, 0)], "EPSG:32612", {"kind": [1]}, "type", "no column type; there are kind"),
        ([rectangle(0, 0, 9, 9)], None, {"class": [1]}, None, r"must both have a CRS; .*f\.gpkg has none"),
        ([rectangle(0, 0, 9, 9)], "EPSG:32612", {"class": [None]}, None, "holds no polygons with a class in class"),
    ],
)
def test_polygons_that_cannot_label_are_refused(
    tmp_path: Path, image: Path, shapes: list[BaseGeometry | None], crs: str, columns: dict[str, Any], column: str, message: str
) -> None:
    with pytest.raises(Refused, match=rf"f\.gpkg: .*{message}"):
        opened(image, written(tmp_path / "f.gpkg", shapes, crs, **columns), column)


def test_other_tables_are_refused(tmp_path: Path, image: Path) -> None:
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    (tmp_path / "table.csv").write_text("class,area\nlake,3\n")
    with pytest.raises(Refused, match=r"empty\.geojson: holds no polygons"):
        opened(image, tmp_path / "empty.geojson")
    with pytest.raises(Refused, match=r"table\.csv: is a table without polygons"):
        opened(image, tmp_path / "table.csv")


def test_polygons_need_a_placed_image(tmp_path: Path) -> None:
    Image.fromarray(RANDOM_HW).save(tmp_path / "photo.png")
    fields = written(tmp_path / "f.gpkg", [rectangle(0, 0, 9, 9)], **{"class": [1]})
    with pytest.raises(Refused, match=r"must both have a CRS; .*photo\.png has none"):
        opened(tmp_path / "photo.png", fields)


# --- areas


@pytest.mark.parametrize("seed", range(20))
def test_only_own_areas_that_are_never_excluded_keep_their_labels(seed: int) -> None:
    """Against a set of pixels."""
    random = np.random.default_rng(seed)

    def some() -> list[Window]:
        return [Window(*random.integers(0, 30, 2).tolist(), *random.integers(1, 20, 2).tolist()) for _ in range(int(random.integers(0, 4)))]

    own, never, window = some(), some(), Window(*random.integers(0, 20, 2).tolist(), 16, 19)
    ids_HW = np.ones((16, 19), np.uint8)
    assert ignored_outside(ids_HW, window, own, never) is ids_HW

    def inside(areas: list[Window], row: int, col: int) -> bool:
        return any(row in range(*area.rows) and col in range(*area.cols) for area in areas)

    for (row, col), found in np.ndenumerate(ids_HW):
        row, col = row + window.row, col + window.col
        assert found == (1 if inside(own, row, col) and not inside(never, row, col) else 255)

"""Parcels of strangers: every format and country opens, ids and areas are right, nothing is dropped or repaired in silence."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pandas as pd
import pyproj
import pytest
import shapely
from shapely import box

from pipeline.errors import Refused
from pipeline.imagery.parcels import Parcels, read_parcels
from pipeline.imagery.vectors import read_polygon_layer
from tests.toys import SHARED

GEOD = pyproj.Geod(ellps="WGS84")
FIBOA = SHARED / "data" / "fiboa-parcels" / "tests" / "data-files" / "convert"
BOWTIE = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])


def write(path: Path, geometry: list[Any], crs: Any = "EPSG:32633", **columns: list[Any]) -> Path:
    frame = geopandas.GeoDataFrame(columns, geometry=geometry, crs=crs)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path)
    return path


def squares(count: int, side: float = 50.0) -> list[shapely.Polygon]:
    return [box(500_000 + side * n, 5_000_000, 500_000 + side * (n + 1), 5_000_000 + side) for n in range(count)]


class Country(NamedTuple):
    """What is known of a file: its EPSG code (0: it has none), the id column if it must be said, and the file's own areas.

    `ratio` is ours to theirs of the median parcel: those of a projected plane differ by the scale of the projection, declared ones
    are rounded.
    """

    file: str
    epsg: int
    column: str | None = None
    area: str | None = None
    unit_m2: float = 1e4
    ratio: tuple[float, float] = (0.9990, 1.0010)
    repaired: int = 0


COUNTRIES = [
    Country("at/inspire_schlaege_2025-1_polygon.gpkg.zip", 31287, None, "SL_FLAECHE_BRUTTO_HA"),
    Country("be_vlg/Landbouwgebruikspercelen_2023_-_Definitief_(extractie_28-03-2024)_GPKG.zip", 31370, None, "GRAF_OPP"),
    Country("br_ba_lem/LEM_dataset.zip", 4326),
    Country("ch/lwb_nutzungsflaechen_v2_0_lv95.gpkg", 2056, "identifikator_be", "flaeche_m2", 1),
    Country("dk/Marker_2026.zip", 25832, "fid", "IMK_areal", ratio=(1, 1.004)),
    Country("ec_lv/LV_2021.zip", 3059, None, "SHAPE.AREA", 1),
    Country("ec_ro/RO_ny.zip", 32635, "fid", "AREA_HA", 1),
    Country("ec_si/SI_2021.zip", 3794, None, "AREA", 1),
    Country("es_cat/Cultius_DUN2023_GPKG.zip", 25831, "fid", "ha"),
    Country("fi/LandUse.ExistingLandUse.GSAAAgriculturalParcel.gpkg", 3067, "TUNNUS", "PINTA_ALA"),
    Country("hr/land_parcels.gpkg", 3765, None, "area", 1),
    Country("ie/GSAA_2024.zip", 4258),
    Country("jecam/BD_JECAM_CIRAD_2023_feb.shp", 4326, None, "Area_ha"),
    Country("lt/LT_2024.zip", 3035, None, "field_size", ratio=(1, 1.009)),
    Country("nl/brpgewaspercelen_definitief_2023.gpkg", 28992),
    Country("pt/Continente.gpkg", 3763, "CUL_ID", "Shape_Area", 1),
    Country("us_usda_cropland/NationalCSB_2017-2024_rev23.zip", 5070, None, "Shape_Area", 1, repaired=4),
]


@pytest.mark.skipif(not FIBOA.is_dir(), reason=f"{FIBOA} is not here")
@pytest.mark.parametrize("country", COUNTRIES, ids=lambda country: country.file.split("/")[0])
def test_the_parcels_of_each_country_open(country: Country):
    path = FIBOA / country.file
    parcels = read_parcels(path, country.column)
    assert len(parcels) == 100 and (np.sort(parcels.ids) == parcels.ids).all() and shapely.is_valid(parcels.polygons).all()
    assert pyproj.CRS(parcels.crs).to_epsg(min_confidence=20) == country.epsg
    note = f"{country.repaired} invalid polygons were repaired"
    assert [text.startswith(note) for text in parcels.notes] == [True] * bool(country.repaired)
    assert np.abs(parcels.area_m2 / geodesic_m2(parcels) - 1).max() < 1e-3
    if country.area:
        told = pd.Series(column(path, country.area, country), column(path, "fid", country))
        same_order = pd.Series(parcels.area_m2, index=parcels.ids).loc[[str(value) for value in ids(path, country)]]
        ratio = same_order.to_numpy() / (told.astype(float).to_numpy() * country.unit_m2)
        assert country.ratio[0] < np.median(ratio) < country.ratio[1]


def column(path: Path, name: str, country: Country) -> np.ndarray:
    return np.asarray(read_polygon_layer(path, lambda columns, fid: name, country.column)[0])


def ids(path: Path, country: Country) -> list[Any]:
    """The ids in the order of the file."""
    known = country.column or next(name for name in ("id", "ID", "Id", "INSPIRE_ID", "REF_ID", "PARCEL_ID", "localId", "field_id", "CSBID")
                                   if name in names_of(path))  # fmt: skip
    values = column(path, known, country)
    return [int(value) if isinstance(value, float) else value for value in values.tolist()]


def names_of(path: Path) -> list[str]:
    seen: list[str] = []
    read_polygon_layer(path, lambda columns, fid: seen.extend([*columns, fid]) or "fid")
    return seen


def geodesic_m2(parcels: Parcels) -> np.ndarray:
    to_globe = pyproj.Transformer.from_crs(parcels.crs, "EPSG:4326", always_xy=True).transform
    on_globe = shapely.transform(parcels.polygons, to_globe, interleaved=False)
    return np.array([abs(GEOD.geometry_area_perimeter(polygon)[0]) for polygon in shapely.orient_polygons(on_globe)])


@pytest.mark.skipif(not FIBOA.is_dir(), reason=f"{FIBOA} is not here")
def test_every_file_of_parcels_is_in_that_list():
    held = {str(path.relative_to(FIBOA)) for path in FIBOA.rglob("*") if path.suffix in (".zip", ".gpkg", ".shp", ".parquet", ".geojson")}
    assert held == {country.file for country in COUNTRIES}


@pytest.mark.skipif(not FIBOA.is_dir(), reason=f"{FIBOA} is not here")
def test_of_several_layers_the_one_with_the_column_is_taken_or_all_are_named():
    with pytest.raises(Refused, match=r"several layers with polygons \(Culturas_Aveiro, OcupacoesSolo_Aveiro\): take one out"):
        read_parcels(FIBOA / "pt" / "Continente.gpkg")
    assert read_parcels(FIBOA / "pt" / "Continente.gpkg", "CUL_ID").ids[0] == "161657"


@pytest.mark.skipif(not (SHARED / "data" / "eolearn-slovenia").is_dir(), reason="eolearn-slovenia is not here")
def test_real_files_without_an_id_column_are_taken_by_fid():
    lulc = SHARED / "data" / "eolearn-slovenia" / "example_data" / "TestEOPatch" / "vector_timeless" / "LULC.gpkg"
    with pytest.raises(Refused, match=r"no id column that is known: name it .*or fid for the number of the feature; its columns: index"):
        read_parcels(lulc)
    assert len(read_parcels(lulc, "fid")) == 88
    for site in ("france", "latvia"):
        path = SHARED / "data" / "worldcereal" / "notebooks" / "UN_handbook" / "resources" / f"test_site_{site}.gpkg"
        assert read_parcels(path, "fid").ids.tolist() == ["1"]
    french = read_parcels(lulc.parents[2] / "import-gpkg-test.gpkg")
    assert len(french) == 193 and french.ids[0] == "215"


FORMATS = ["parcels.parquet", "parcels.gpkg", "parcels.geojson", "parcels.shp", "parcels.fgb"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_parcels_are_the_same_in_every_format_and_order(tmp_path: Path, name: str):
    random = np.random.default_rng(3)
    polygons = [shapely.affinity.rotate(square, angle) for square, angle in zip(squares(12), random.uniform(0, 90, 12), strict=True)]
    first = read_parcels(write(tmp_path / "first.parquet", polygons, id=list(range(12))))
    order = random.permutation(12)
    shuffled = [shapely.reverse(polygons[number]) for number in order]
    again = read_parcels(write(tmp_path / name, shuffled, id=order.tolist()))
    assert again.parcels_id == first.parcels_id and again.ids.tolist() == sorted(map(str, range(12)))
    assert shapely.equals_exact(again.polygons, first.polygons, 1e-6, normalize=True).all()
    moved = [shapely.affinity.translate(polygons[0], 0.01), *polygons[1:]]
    assert read_parcels(write(tmp_path / f"moved-{name}", moved, id=list(range(12)))).parcels_id != first.parcels_id
    renamed = read_parcels(write(tmp_path / f"renamed-{name}", polygons, id=[*range(11), 99]))
    assert renamed.parcels_id != first.parcels_id


@pytest.mark.parametrize("name", ["parcels.parquet", "parcels.gpkg"])
def test_a_zip_may_hold_the_file_in_a_folder(tmp_path: Path, name: str):
    write(tmp_path / name, squares(3), id=["c", "a", "b"])
    with zipfile.ZipFile(tmp_path / "parcels.zip", "w") as archive:
        archive.write(tmp_path / name, f"some folder/{name}")
        archive.writestr("some folder/readme.txt", "hello")
    assert read_parcels(tmp_path / "parcels.zip").ids.tolist() == ["a", "b", "c"]
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for copy in ("a", "b"):
            archive.write(tmp_path / name, f"{copy}/{name}")
    with pytest.raises(Refused, match=r"holds 2 files with features \(a/parcels.*give a zip with one"):
        read_parcels(tmp_path / "two.zip")


def test_ids_are_text_and_whole_numbers_have_no_point(tmp_path: Path):
    assert read_parcels(write(tmp_path / "a.parquet", squares(3), id=[10.0, 9.0, 100.0])).ids.tolist() == ["10", "100", "9"]
    assert read_parcels(write(tmp_path / "b.parquet", squares(3), id=["ü", "Z", "a"])).ids.tolist() == ["Z", "a", "ü"]
    assert read_parcels(write(tmp_path / "c.parquet", squares(2), id=[1.5, 2.0])).ids.tolist() == ["1.5", "2.0"]
    assert read_parcels(write(tmp_path / "d.parquet", squares(2), other=[1, 2]), "fid").ids.tolist() == ["0", "1"]
    assert read_parcels(write(tmp_path / "e.parquet", squares(2), fid=["x", "y"]), "fid").ids.tolist() == ["x", "y"]


def test_an_id_column_is_never_guessed(tmp_path: Path):
    path = write(tmp_path / "a.parquet", squares(2), parcel_id=[1, 2], FIELD_ID=[3, 4], code=[5, 6])
    with pytest.raises(Refused, match="parcel_id and FIELD_ID may hold the parcels' ids: choose one"):
        read_parcels(path)
    assert read_parcels(path, "FIELD_ID").ids.tolist() == ["3", "4"]
    with pytest.raises(Refused, match=r"has no column crop .*its columns: parcel_id, FIELD_ID, code$"):
        read_parcels(path, "crop")
    assert read_parcels(write(tmp_path / "b.parquet", squares(2), ID=[7, 8], parcel_id=[1, 2])).ids.tolist() == ["7", "8"], (
        "fiboa's is first"
    )


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match=r"2 rows repeat the id of another polygon \(b, b\): choose a column of unique ids"):
        read_parcels(write(tmp_path / "a.parquet", squares(4), id=["b", "b", "a", "b"]))
    with pytest.raises(Refused, match="2 of 3 features have no id"):
        read_parcels(write(tmp_path / "b.parquet", squares(3), id=["b", None, " "]))
    with pytest.raises(Refused, match="1 of 2 features have no id"):
        read_parcels(write(tmp_path / "c.parquet", squares(2), id=[1, None]))
    with pytest.raises(Refused, match="declares no CRS: assign it"):
        read_parcels(write(tmp_path / "d.parquet", squares(2), crs=None, id=[1, 2]))
    with pytest.raises(Refused, match="no such file"):
        read_parcels(tmp_path / "nowhere.gpkg")
    with pytest.raises(Refused, match="holds no polygons"):
        read_parcels(write(tmp_path / "e.parquet", [shapely.Point(1, 2)], id=[1]))
    with pytest.raises(Refused, match="neither numbers nor text"):
        read_parcels(write(tmp_path / "f.parquet", squares(1), id=[pd.Timestamp("2020-01-01")]))


def test_a_parcel_that_is_listed_twice_is_one(tmp_path: Path):
    """As in a table of parcels joined with their crops."""
    one, other = squares(2)
    parcels = read_parcels(write(tmp_path / "a.parquet", [one, other, shapely.reverse(one)], id=["a", "b", "a"]))
    assert parcels.ids.tolist() == ["a", "b"] and parcels.notes == ("1 rows repeat a parcel, its polygon included, and were dropped (a)",)


def test_what_is_repaired_or_dropped_is_named(tmp_path: Path):
    mixed = shapely.GeometryCollection([squares(1)[0], shapely.Point(0, 0)])
    line, gone, empty = shapely.LineString([(0, 0), (1, 1)]), None, shapely.Polygon()
    parcels = read_parcels(write(tmp_path / "a.parquet", [BOWTIE, mixed, line, gone, empty], id=list("abcde")))
    assert parcels.ids.tolist() == ["a", "b"]
    assert parcels.notes == (
        "2 features have no geometry and were dropped (d, e)",
        "1 features are points or lines and were dropped (c)",
        "1 invalid polygons were repaired (a)",
    )
    assert shapely.area(parcels.polygons).tolist() == [2, 2500]


def test_heights_do_not_matter(tmp_path: Path):
    flat = read_parcels(write(tmp_path / "flat.parquet", squares(2), id=[1, 2]))
    high = read_parcels(write(tmp_path / "high.parquet", shapely.force_3d(squares(2), 7.0).tolist(), id=[1, 2]))
    assert high.parcels_id == flat.parcels_id and not shapely.has_z(high.polygons).any()

"""Sentinel-2 as three catalogues list it: the same reflectance from each, its offset applied once."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.imagery.sentinel2 import as_listed, is_sentinel2, offset_of, processed, product_of


def item(name: str = "S2B_33TVM_20230415_0_L2A", assets: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    known = {"datetime": "2023-04-15T10:00:00Z", "constellation": "sentinel-2", **properties}
    return {"type": "Feature", "id": name, "properties": known, "assets": assets or {}}


def earth_search(**properties: Any) -> dict[str, Any]:
    """As Earth Search v1 lists a scene: COG and JPEG 2000, common names for keys, -0.1 for an offset whether applied or not."""
    bands = [{"name": "red", "common_name": "red"}]
    raster = [{"scale": 0.0001, "offset": -0.1, "nodata": 0, "spatial_resolution": 10}]
    return item(assets={
        "red": {"href": "B04.tif", "roles": ["data", "reflectance"], "eo:bands": bands, "raster:bands": raster},
        "red-jp2": {"href": "B04.jp2", "roles": ["data", "reflectance"], "eo:bands": bands, "raster:bands": raster},
        "visual": {"href": "TCI.tif", "roles": ["visual"], "eo:bands": [{"name": name} for name in ("red", "green", "blue")]},
        "rededge1": {"href": "B05.tif", "roles": ["data"], "eo:bands": [{"name": "rededge1", "common_name": "rededge"}]},
        "scl": {"href": "SCL.tif", "roles": ["data"], "raster:bands": [{"nodata": 0, "spatial_resolution": 20}]},
    }, **properties)  # fmt: skip


def planetary_computer(**properties: Any) -> dict[str, Any]:
    """As the Planetary Computer does: ESA's names, no scale and no offset at all, a picture of three bands among the data."""
    return item(assets={
        "B04": {"href": "B04_10m.tif", "roles": ["data"], "eo:bands": [{"name": "B04", "common_name": "red"}], "gsd": 10},
        "B11": {"href": "B11_20m.tif", "roles": ["data"], "eo:bands": [{"name": "B11", "common_name": "swir16"}], "gsd": 20},
        "visual": {"href": "TCI_10m.tif", "roles": ["data"], "eo:bands": [{"name": name} for name in ("B04", "B03", "B02")]},
        "SCL": {"href": "SCL_20m.tif", "roles": ["data"]},
    }, **properties)  # fmt: skip


def copernicus(**properties: Any) -> dict[str, Any]:
    """As the Copernicus Data Space does, in STAC 1.1: a band at each of its resolutions."""
    return item("S2B_MSIL2A_20230415T100029_N0509_R122_T33TVM_20230415T120000", assets={
        f"B04_{side}m": {"href": f"R{side}m/T33TVM_B04_{side}m.jp2", "roles": ["data"], "bands": [{"name": "B04", "eo:common_name": "red"}]}
        for side in (60, 20, 10)
    } | {"SCL_20m": {"href": "SCL_20m.jp2", "roles": ["data"]}}, **properties)  # fmt: skip


@pytest.mark.parametrize("listed", [earth_search, planetary_computer, copernicus])
def test_each_band_is_there_once_in_its_finest_file(listed: Any):
    assets = as_listed(listed(**{"s2:processing_baseline": "05.09"}))["assets"]
    assert assets["B04"]["href"] in ("B04.tif", "B04_10m.tif", "R10m/T33TVM_B04_10m.jp2")
    assert assets["B04"]["bands"] == [{"name": "B04", "common_name": "red", "scale": 1e-4, "offset": -0.1, "nodata": 0}]
    assert not {"visual", "red-jp2", "B04_20m"} & assets.keys() and any(key.upper().startswith("SCL") for key in assets)


@pytest.mark.parametrize(
    ("properties", "offset"),
    [
        ({"s2:processing_baseline": "02.12"}, 0.0),
        ({"s2:processing_baseline": "03.01", "datetime": "2022-06-01T00:00:00Z"}, 0.0),
        ({"s2:processing_baseline": "04.00"}, -0.1),
        ({"processing:version": "05.11"}, -0.1),
        ({"s2:processing_baseline": "05.00", "datetime": "2018-06-01T00:00:00Z"}, -0.1),  # processed again
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, 0.0),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False}, -0.1),
        ({"sentinel:processing_baseline": "04.00", "sentinel:boa_offset_applied": True}, 0.0),
        ({"datetime": "2022-01-24T10:00:00Z"}, 0.0),
        ({"datetime": "2022-01-26T10:00:00Z"}, -0.1),
    ],
)
def test_the_offset_is_applied_once(properties: dict[str, Any], offset: float):
    assert offset_of(item(**properties)) == offset
    (band,) = as_listed(earth_search(**properties))["assets"]["B04"]["bands"]
    assert band["offset"] == offset, "whatever the catalogue says of the band"


def test_the_baseline_is_in_the_products_name_where_nothing_else_says_it():
    assert offset_of(item("S2A_MSIL2A_20180601T100031_N0500_R122_T33TVM_20230901T120000", datetime="2018-06-01T10:00:31Z")) == -0.1
    assert offset_of(item("S2A_MSIL2A_20180601T100031_N0208_R122_T33TVM_20180601T120000", datetime="2018-06-01T10:00:31Z")) == 0.0


def test_other_items_stay_as_they_are():
    other = item(constellation="landsat", platform="landsat-8")
    assert not is_sentinel2(other) and as_listed(other) is other and product_of(other) is None


def test_products_of_one_sight_share_a_name_and_the_last_processing_sorts_last():
    first = item("S2A_33TVM_20180601_0_L2A", **{"grid:code": "MGRS-33TVM", "s2:processing_baseline": "02.08", "created": "2018-06-02"})
    again = item("S2A_33TVM_20180601_1_L2A", **{"s2:mgrs_tile": "33TVM", "s2:processing_baseline": "05.00", "created": "2023-06-02"})
    assert product_of(first) == product_of(again) == "33TVM 2023-04-15T10:00:00"
    assert processed(first) < processed(again)
    assert product_of(copernicus()) == "33TVM 2023-04-15T10:00:00"

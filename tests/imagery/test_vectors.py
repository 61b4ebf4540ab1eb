"""Polygons of strangers: no other file is read, no server asked."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import geopandas
import pytest
import shapely

from pipeline.errors import Refused
from pipeline.imagery.vectors import read_vectors

OTHER = "<OGRVRTDataSource><OGRVRTLayer name='secret'><SrcDataSource>{}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.geojson"
    geopandas.GeoDataFrame({"word": ["secret"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326").to_file(path, driver="GeoJSON")
    return path


def test_a_file_that_names_others_is_refused_whatever_it_is_called(tmp_path: Path, secret: Path):
    path = tmp_path / "fields.geojson"
    path.write_text(OTHER.format(secret))
    assert geopandas.read_file(path)["word"].tolist() == ["secret"], "GDAL follows it"
    with pytest.raises(Refused, match="names other files or servers, which are not followed"):
        read_vectors(path)
    command = f"gdal vector pipeline ! read {secret} ! write --format stream streamed"
    path.write_text(json.dumps({"type": "gdal_streamed_alg", "command_line": command}))
    with pytest.raises(Refused, match="names other files or servers"):
        read_vectors(path)


def test_one_in_a_zip_is_refused_too(tmp_path: Path, secret: Path):
    with zipfile.ZipFile(tmp_path / "fields.zip", "w") as archive:
        archive.write(secret, "fields.geojson")
    assert len(read_vectors(tmp_path / "fields.zip")) == 1
    with zipfile.ZipFile(tmp_path / "others.zip", "w") as archive:
        archive.writestr("fields.geojson", OTHER.format(secret))
    with pytest.raises(Refused, match="names other files or servers"):
        read_vectors(tmp_path / "others.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "others.zip").read_bytes()[:40])
    with pytest.raises(Refused, match="cannot be read as a vector file"):
        read_vectors(tmp_path / "cut.zip")

"""What OUT says of itself is read as far as it is there and makes sense."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.results.provenance import COLOURS, read_provenance
from tests.results.monitored import COLOURS as MADE_COLOURS
from tests.results.monitored import MODEL_ID, Monitored, write_results


def test_the_model_in_charge_and_its_colours(tmp_path: Path) -> None:
    write_results(tmp_path, Monitored(parcels=4, dates=1))
    found = read_provenance(tmp_path, "region")
    assert found.model_id == MODEL_ID and found.model == tmp_path / "models" / MODEL_ID[:16]
    assert [found.colour(number) for number in range(4)] == list(MADE_COLOURS[:4])
    assert found.colour(7) == COLOURS[7] and found.colour(None) not in COLOURS and found.failed == {} and found.software == {}


def test_what_makes_no_sense_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "current.json").write_text(json.dumps({"model_id": "ab", "folder": "../../elsewhere/models/x"}))
    folder = tmp_path / "elsewhere" / "models" / "x"
    folder.mkdir(parents=True)
    classes = [{"id": 0, "name": "a", "color": "red;}</style>"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c", "color": "#12ab9F"}]
    (folder / "dataset.json").write_text(json.dumps({"classes": classes}))
    found = read_provenance(tmp_path, "region")
    assert found.model == folder and found.classes == {2: "#12ab9F"} and found.colour(0) == COLOURS[0]
    assert read_provenance(tmp_path / "nowhere", "region").model_id == ""


def test_failures_are_those_of_the_newest_run_that_ended(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    runs = {
        "20170101": {"outcome": "failed on data", "scenes_failed": {"old": "why"}},
        "20170102": {"outcome": "failed on data", "scenes_failed": {"scene": "damaged"}, "dates_failed": {"2017-01-02": "no mask"}},
        "20170103": {"outcome": "running", "software": {"gdal": "3"}},
    }
    for name, content in runs.items():
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "runs" / "20170104.json").write_text("[1, 2")
    found = read_provenance(tmp_path, "region")
    assert found.failed == {"2017-01-02": "no mask", "scene": "damaged"} and found.software == {"gdal": "3"}
    assert [run["outcome"] for run in found.runs] == ["running", "failed on data", "failed on data"]

"""The config of a watch: what it says is what is done."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.monitor_config import read_watch, read_yaml
from pipeline.errors import Refused

LEAST = {"region": "valley", "scenes": "archive", "output": "out", "parcels": "fields.gpkg", "model": "model"}


def config(folder: Path, **changes: Any) -> Path:
    place = folder / "monitor.yaml"
    place.write_text(yaml.safe_dump(LEAST | changes))
    return place


def test_places_are_taken_from_the_configs_own_folder(tmp_path: Path):
    watch = read_watch(config(tmp_path, scenes="https://stac.example/v1", districts="/data/districts.gpkg"))
    assert watch.output == tmp_path / "out" and watch.parcels == tmp_path / "fields.gpkg" and watch.model == str(tmp_path / "model")
    assert watch.scenes == "https://stac.example/v1" and watch.districts == Path("/data/districts.gpkg")


@pytest.mark.parametrize(("said", "used"), [({}, 0.5), ({"minimum_valid_share": None}, 0.5), ({"minimum_valid_share": 0}, 0.0),
                                            ({"minimum_valid_share": 0.0}, 0.0), ({"minimum_valid_share": 1}, 1.0)])  # fmt: skip
def test_a_share_of_nothing_is_a_share(tmp_path: Path, said: dict[str, Any], used: float):
    assert read_watch(config(tmp_path, **said)).minimum_valid_share == used


def test_dates_with_and_without_quotes(tmp_path: Path):
    watch = read_watch(config(tmp_path, since="2017-04-01", until=date(2017, 9, 30)))
    assert watch.asked.since == date(2017, 4, 1) and watch.asked.until == date(2017, 9, 30)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"minimum_valid_share": True}, "minimum_valid_share True: must be a number from 0.0 to 1.0"),
        ({"lookback_days": 0}, "lookback_days 0: must be a number from 1 to 10000"), ({"workers": 0}, "workers 0: must be a number from 1"),
        ({"clouds": {"asset": "scl"}}, "clouds: needs the asset"), ({"clouds": {"hidden": [3]}}, "clouds: needs the asset"),
        ({"clouds": {"asset": "scl", "hidden": [True]}}, "clouds: needs the asset"), ({"clouds": "scl"}, "clouds: needs the asset"),
        ({"rules": []}, "needs a model (a bundle) or rules, not both"), ({"since": "spring"}, "since spring: must be a date"),
        ({"season": [1]}, "season: must be a list of settings"),
    ],
)  # fmt: skip
def test_what_is_no_config_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str):
    place = config(tmp_path, **changes)
    with pytest.raises(Refused) as refusal:
        read_watch(place)
    assert str(refusal.value).startswith(f"{place}: ") and said in str(refusal.value)


@pytest.mark.parametrize(("content", "said"), [("a: [", "is not valid YAML"), ("- a", "must hold keys"), ("", "must hold keys")])
def test_what_is_no_yaml_is_refused(tmp_path: Path, content: str, said: str):
    (tmp_path / "file.yaml").write_text(content)
    with pytest.raises(Refused, match=said):
        read_yaml(tmp_path / "file.yaml")
    with pytest.raises(Refused, match="no such file"):
        read_yaml(tmp_path / "missing.yaml")

"""One model is in charge of a region; another takes its place only when told to, and only if the first is still there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.models.bundle import Bundle
from pipeline.results import pinned
from pipeline.results.pinned import check_pinned, find_model, model_folder, note_model, pin, read_current, switch
from tests.results.scenes import class_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return class_bundle(tmp_path_factory.mktemp("pinned") / "model")


def test_the_first_model_is_pinned_and_any_other_refused(tmp_path: Path, bundle: Bundle):
    assert read_current(tmp_path) is None
    check_pinned(tmp_path, bundle)
    pin(tmp_path, bundle)
    pin(tmp_path, bundle)  # as the next run does
    current = read_current(tmp_path)
    assert current and (current.model_id, current.path) == (bundle.model_id, bundle.path)
    other = replace(bundle, model_id="f" * 64, path="/models/other")
    with pytest.raises(Refused, match=r"is watched with model .*, the config names ffff.* --promote, then --switch ffff"):
        check_pinned(tmp_path, other)
    with pytest.raises(Refused, match="is watched with"):
        pin(tmp_path, other)


def test_a_model_takes_anothers_place_and_gives_it_back(tmp_path: Path, bundle: Bundle):
    other = replace(bundle, model_id="f" * 64, path="/models/other")
    pin(tmp_path, bundle)
    note_model(tmp_path, other)
    switch(tmp_path, *find_model(tmp_path, "ffff"))
    check_pinned(tmp_path, other)
    assert (
        json.loads((tmp_path / "current.json").read_text())["folder"]
        == f"models/{'f' * 16}"
        == storage.relative(model_folder(tmp_path, other.model_id), tmp_path)
    )
    switch(tmp_path, *find_model(tmp_path, bundle.model_id[:6]))
    check_pinned(tmp_path, bundle)


def test_a_switch_loses_against_one_that_came_first(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    pin(tmp_path, bundle)
    seen = read_current(tmp_path)
    switch(tmp_path, "a" * 64, "a")
    monkeypatch.setattr(pinned, "read_current", lambda out: seen)  # it was read a moment too early
    with pytest.raises(Refused, match="another run has switched the model meanwhile"):
        switch(tmp_path, "b" * 64, "b")
    monkeypatch.undo()
    current = read_current(tmp_path)
    assert current and current.model_id == "a" * 64 and not list(tmp_path.glob(".*.tmp"))


def test_what_is_not_there_is_named(tmp_path: Path, bundle: Bundle):
    with pytest.raises(Refused, match="nothing to switch"):
        switch(tmp_path, "a" * 64, "a")
    pin(tmp_path, bundle)
    with pytest.raises(Refused, match=f"has no models beef; there are {bundle.model_id}"):
        find_model(tmp_path, "beef")
    (tmp_path / "current.json").write_text("{}")
    with pytest.raises(Refused, match=r"current\.json: does not name a model"):
        read_current(tmp_path)

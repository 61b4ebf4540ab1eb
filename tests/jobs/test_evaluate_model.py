"""The evaluation job: its files, its refusals, what it writes into bundles, and its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from sklearn import metrics as oracle

from jobs.evaluate_model import main
from pipeline.inference.plan import Settings
from pipeline.inference.segment import segment_scene
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.training import fit as fitting
from tests.conftest import MakeBundle
from tests.processes import job_command, run
from tests.toys import smooth_noise, write_scene
from tests.training.predicted import value_bundle
from tests.training.valued import value_training, write_heights


@pytest.fixture(scope="module")
def bundles(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two bundles in folders of one name, which a test may change."""
    made = [make_bundle("unet", classes=3, exact=True, width=4, depth=2), make_bundle("unet", classes=3, width=4, depth=1)]
    folder = tmp_path_factory.mktemp("bundles")
    return [Path(shutil.copytree(bundle.path, folder / name / "bundle")) for name, bundle in zip("ab", made, strict=True)]


@pytest.fixture
def words(bundles: list[Path], tmp_path: Path) -> list[str]:
    """A command that scores both bundles on a scene of which a twentieth is ignored."""
    scene = write_scene(
        tmp_path / "scene.tif", smooth_noise(1, (3, 140, 200)), compress="deflate", descriptions=["band_1", "band_2", "band_3"]
    )
    labels_HW = (smooth_noise(2, (1, 140, 200))[0] // 90 + 10).astype(np.uint8)
    labels_HW[np.random.default_rng(0).random(labels_HW.shape) < 0.05] = 99
    labels = write_scene(tmp_path / "labels.tif", labels_HW[None])
    write_classes(tmp_path / "classes.json", bundles[0])
    return (
        f"{bundles[0]} {bundles[1]} --data {scene} --labels {labels} --classes {tmp_path / 'classes.json'} --ignore 99"
        f" --precision fp32 --output {tmp_path / 'out'}"
    ).split()


def write_classes(path: Path, bundle: Path, names: dict[int, str] | None = None) -> None:
    entries = load_bundle(bundle).class_table
    table = [
        {"name": (names or {}).get(entry["id"], entry["name"]), "color": entry["color"], "values": [10 + entry["id"]]} for entry in entries
    ]
    path.write_text(json.dumps(table))


def predicted(bundle: Path, words: list[str], tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Truth and the mask of deployment, where there is a label."""
    segment_scene(words[words.index("--data") + 1], bundle, tmp_path / "mask.tif", settings=Settings(precision="fp32"), workers=1)
    truth = rasterio.open(words[words.index("--labels") + 1]).read(1)
    known = truth != 99
    return truth[known] - 10, rasterio.open(tmp_path / "mask.tif").read(1)[known]


def test_the_scores_are_scikit_learns_on_the_masks_of_deployment(
    words: list[str], bundles: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "areas.parquet", "calibration.parquet", "comparison.parquet", "confusion.parquet", "report.html", "scores.parquet",
    ]  # fmt: skip
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    for name, bundle in zip(("a/bundle", "b/bundle"), bundles, strict=True):
        truth, mask = predicted(bundle, words, tmp_path)
        mine = [row for row in rows if row["bundle"] == name and row["scope"] == "all"]
        found = {row["metric"]: row["value"] for row in mine if row["class_id"] is None}
        assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, mask))
        assert found["kappa"] == pytest.approx(oracle.cohen_kappa_score(truth, mask))
        assert found["mean_iou"] == pytest.approx(oracle.jaccard_score(truth, mask, average="macro"))
        for metric, reference in (("precision", oracle.precision_score), ("recall", oracle.recall_score), ("f1", oracle.f1_score)):
            listed = [row["value"] for row in mine if row["metric"] == metric]
            np.testing.assert_allclose(listed, reference(truth, mask, average=None))
        counts = [row["pixel_count"] for row in pq.read_table(out / "confusion.parquet").to_pylist() if row["bundle"] == name]
        assert counts[:9] == oracle.confusion_matrix(truth, mask, labels=range(3)).ravel().tolist()
    assert "a/bundle" in (out / "report.html").read_text() and "report.html" in capsys.readouterr().out


def test_into_bundle_keeps_the_model_and_replaces_the_evaluation(words: list[str], bundles: list[Path], tmp_path: Path) -> None:
    before = [load_bundle(bundle) for bundle in bundles]
    for _ in range(2):
        assert main([*words, "--into-bundle"]) == 0
    for bundle, old in zip(bundles, before, strict=True):
        new = load_bundle(bundle)
        assert new.model_id == old.model_id and {**new.metrics, "evaluation": 0} == {**old.metrics, "evaluation": 0}
        told = new.metrics["evaluation"]
        truth, mask = predicted(bundle, words, tmp_path)
        assert told["confusion_truth_predicted"] == oracle.confusion_matrix(truth, mask, labels=range(3)).tolist()
        assert told["classes"] == [entry.name for entry in new.classes] and told["data"].endswith("scene.tif") and told["date"]
        assert told["computed_in"] == "fp32 by eager" and told["pixels"] == len(truth)
        assert sorted(path.name for path in bundle.iterdir()) == ["model.json", "selftest.safetensors", "weights.safetensors"]


def test_the_class_table_is_the_one_that_the_bundle_was_trained_with(words: list[str], bundles: list[Path], tmp_path: Path) -> None:
    path = bundles[0] / "model.json"
    original = path.read_text()
    content = json.loads(original)
    values = {entry["name"]: [10 + entry["id"]] for entry in content["classes"]}
    path.write_text(json.dumps(content | {"provenance": {"labels": {"values": values}}}))
    place = words.index("--classes")
    try:
        assert main(words[:place] + words[place + 2 :]) == 0
    finally:
        path.write_text(original)
    rows = pq.read_table(tmp_path / "out" / "confusion.parquet").to_pylist()
    truth, mask = predicted(bundles[0], words, tmp_path)
    assert [row["pixel_count"] for row in rows[:9]] == oracle.confusion_matrix(truth, mask, labels=range(3)).ravel().tolist()


def test_other_class_names_are_refused_and_leave_nothing(
    words: list[str], bundles: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "classes.json", bundles[0], {1: "maize"})
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: a/bundle: its classes are not those of the labels: only the bundle has class 1; only the labels have maize (--classes)"
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--data", "nowhere.tif", "nowhere.tif: no such file"),
        ("--labels", "nowhere.tif", "nowhere.tif: no such file"),
        ("--classes", "nowhere.json", "nowhere.json: no such file"),
        ("--precision", "fp7", "--precision fp7: unknown"),
        ("--output", "gs://bucket/out", "gs:// is not supported"),
    ],
)
def test_bad_input_is_one_line(words: list[str], option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words[words.index(option) + 1] = value
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_bundles_that_cannot_be_scored_are_refused(
    words: list[str], identity: Bundle, bundles: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nowhere", *words[2:]]) == 2
    assert main([words[0], words[0], *words[2:]]) == 2
    shutil.make_archive(str(tmp_path / "zipped"), "zip", bundles[0])
    assert main([str(tmp_path / "zipped.zip"), *words[2:], "--into-bundle"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "no such bundle" in errors[0] and "more than once" in errors[1] and "cannot change a zip" in errors[2] and len(errors) == 3
    with pytest.raises(SystemExit) as stopped:
        main(words[:2])
    assert stopped.value.code == 2


def test_a_damaged_scene_costs_only_itself_and_the_exit_code_says_so(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "bad"):
        for folder, source in (("images", "--data"), ("masks", "--labels")):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(words[words.index(source) + 1], tmp_path / "set" / folder / f"{name}.tif")
    bad = tmp_path / "set" / "images" / "bad.tif"
    with rasterio.open(bad) as dataset:
        block = int(dataset.get_tag_item("BLOCK_OFFSET_0_3", "TIFF", bidx=1))
    with open(bad, "r+b") as file:
        file.seek(block)
        file.write(bytes(2_000))
    place = words.index("--labels")
    words[words.index("--data") + 1] = str(tmp_path / "set")
    assert main(words[:place] + words[place + 2 :]) == 3
    out = capsys.readouterr().out
    assert "skipped: " in out and "bad" in out.split("skipped: ")[1].splitlines()[0]
    assert "windows failed" in (tmp_path / "out" / "report.html").read_text()
    scenes = {row["scene"] for row in pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()}
    assert len(scenes) == 2 and None in scenes


def test_bundles_of_numbers_and_of_classes_are_not_mixed(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heights = str(value_bundle(tmp_path / "heights", 0).path)
    assert main([heights, *words]) == 2
    assert "heights predicts a number and a/bundle predicts classes: evaluate them apart" in capsys.readouterr().err
    alone = [heights, *words[2:]]
    assert main(alone) == 2
    assert "--classes: is of classes, and heights predicts a number: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_regression_is_evaluated_on_what_was_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process: the scores are those that the training gave its test set, in the same precision."""
    monkeypatch.setattr(fitting, "MEGAPIXEL", 4_000)
    monkeypatch.setattr(fitting, "MEGAPIXEL_SIDE", 64)
    image, labels = write_heights(tmp_path)
    fitting.fit(value_training(tmp_path), torch.device("cpu"))
    bundle = load_bundle(tmp_path / "bundle")
    done = run(job_command(
        "evaluate_model", bundle.path, "--data", image, "--labels", labels, "--output", tmp_path / "out", "--precision", "fp32",
        "--into-bundle",
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = load_bundle(tmp_path / "bundle")
    assert after.model_id == bundle.model_id
    trained, judged = bundle.metrics["test"]["network"], after.metrics["evaluation"]
    for name in ("rmse", "mae", "bias", "r2"):
        assert judged[name] == pytest.approx(trained[name], rel=1e-3, abs=1e-3)
    assert judged["pixels"] == trained["pixels"] and judged["unit"] == "m"
    table = {words[0]: words[1] for words in map(str.split, done.stdout.splitlines()) if len(words) > 1}
    assert float(table["rmse"]) == pytest.approx(trained["rmse"], rel=1e-3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.parquet", "errors.parquet", "report.html", "scores.parquet",
    ]  # fmt: skip

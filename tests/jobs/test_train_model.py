"""The training job: its words, its refusals, and the demo's bundle, which it made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, jaccard_score

from jobs import train_model
from jobs.train_model import main
from pipeline.models.bundle import load_bundle
from pipeline.models.engine import Engine, Execution
from pipeline.training.fit import Quiet, fit
from pipeline.training.prepare import prepare
from tests.processes import job_command, run
from tests.toys import PROJECT, SHARED
from tests.training.labelled import write_pair
from tests.training.valued import write_heights

CLASSES = [{"name": "dark", "color": "#000000", "values": [0]}, {"name": "bright", "color": "#FFFFFF", "values": [1, 2]}]
ZION, MODEL = PROJECT / "jobs" / "demo" / "zion", PROJECT / "jobs" / "demo" / "model"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command that trains in a second, once Ray is up."""
    write_pair(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return (
        f"--architecture unet --argument width=2 --argument depth=1 --data {tmp_path / 'scene.tif'} --labels {tmp_path / 'labels.tif'}"
        f" --classes {tmp_path / 'classes.json'} --validation 90:110 --test 130:160 --epochs 2 --batch 2 --window 16"
        f" --licence data=CC0-1.0 --output {tmp_path / 'bundle'}"
    ).split()


@pytest.fixture
def height_words(tmp_path: Path) -> list[str]:
    """A command that trains a regression in a second, once Ray is up."""
    write_heights(tmp_path)
    return (
        f"--architecture unet --argument width=2 --argument depth=1 --data {tmp_path / 'scene.tif'} --labels {tmp_path / 'height.tif'}"
        f" --loss mse --validation 120:140 --test 156:192 --epochs 2 --batch 2 --window 16 --output {tmp_path / 'bundle'}"
    ).split()


def without(words: list[str], option: str) -> list[str]:
    place = words.index(option)
    return words[:place] + words[place + 2 :]


def test_two_workers_train_what_one_does_compare_it_and_write_a_bundle(words: list[str], tmp_path: Path) -> None:
    """On Ray, and beside it in this process: BatchNorm is over the whole batch, and a pixel weighs the same whoever has it."""
    done = run(job_command("train_model", *words, "--workers", 2))
    assert done.returncode == 0, done.stderr
    bundle = load_bundle(tmp_path / "bundle")
    Engine(bundle, "cpu", Execution())
    assert bundle.provenance["command"] == f"python jobs/train_model.py {' '.join(words)} --workers 2"
    assert (bundle.arguments, bundle.licences) == ({"width": 2, "depth": 1}, {"data": "CC0-1.0"})
    table = {tuple(line.split()[:-3]): line.split()[-3:] for line in done.stdout.splitlines()}
    assert table[()] == ["network", "logistic_regression", "majority_class"]
    test = bundle.metrics["test"].values()
    assert table["overall", "accuracy"] == [f"{scores['accuracy']:.3f}" for scores in test]
    assert table["IoU", "bright"] == [f"{scores['iou']['bright']:.3f}" for scores in test]
    assert f"halo {bundle.halo} px (exact {bundle.reach.exact_halo} px)" in done.stdout
    kept = {path.name for path in (tmp_path / "bundle.run").iterdir()}
    assert kept == {"epochs.csv", "curves.png", "samples.png", "tensorboard", "run.json"}
    options = train_model.parse([*words, "--output", str(tmp_path / "alone")])
    fit(prepare(train_model.read_request(options, words)), torch.device("cpu"))
    alone, together = (load_file(tmp_path / name / "weights.safetensors") for name in ("alone", "bundle"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert (bundle.provenance["workers"], load_bundle(tmp_path / "alone").provenance["workers"]) == (2, 1)


def test_check_shows_what_would_be_trained_on_and_trains_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_model, "run_training", lambda *_: pytest.fail("it trained"))
    assert main([*words, "--check"]) == 0
    printed = capsys.readouterr().out
    assert "images: 1 train, 1 validation, 1 test (columns, 8 px apart)" in printed
    assert "classes: dark " in printed and "stride 2 px, exact halo 8 px" in printed
    assert {path.name for path in (tmp_path / "bundle.run").iterdir()} == {"labels.png", "windows.png"}
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_is_there_is_refused_before_training(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.json").write_text("{}")
    monkeypatch.setattr(train_model, "run_training", lambda *_: pytest.fail("it trained"))
    assert main(words) == 2
    assert "holds a bundle already" in capsys.readouterr().err
    assert (tmp_path / "bundle" / "model.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data", "nowhere.tif"], "nowhere.tif: no such file or folder"),
        (["--labels", "nowhere.tif"], "nowhere.tif: no such file"),
        (["--classes", "nowhere.json"], "nowhere.json: no such file"),
        (["--architecture", "vnet"], "no architecture 'vnet'"),
        (["--architecture", "identity", "--argument", "width=3"], "does not take these arguments"),
        (["--argument", "colour=3"], "does not take these arguments"),
        (["--bands", "swir"], "has no band swir; there are band_1, band_2"),
        (["--test", "130:161"], "the scene has columns 0:160"),
        (["--test", "100:160"], "overlap"),
        (["--validation", "0:80", "--test", "80:160"], "away from the held-out ones"),
        (["--validation", "2"], "a share to hold out is 0 or more and below 1"),
        (["--validation", "0"], "nothing is held out to choose the best epoch by"),
        (["--window", "15"], "must be a multiple of the network's stride, 2 px"),
        (["--learning-rate", "-1"], "--learning-rate -1.0: out of range"),
        (["--loss", "hinge"], "--loss hinge: combine cross_entropy, focal, dice"),
        (["--augment", "twist"], "--augment twist"),
        (["--loss", "mse"], "classes.json: with --loss mse labels are numbers, not classes: leave it out"),
        (["--loss", "mse", "--balanced"], "--balanced: is of classes, and with --loss mse there are none"),
        (["--loss", "mse+dice"], "mse is of numbers: it stands alone"),
        (["--metric", "rmse"], "--metric rmse: with --loss cross_entropy there are mean_iou, mean_f1, accuracy"),
        (["--ignore", "0.5"], "--ignore 0.5: labels of classes are whole numbers or colours #RRGGBB"),
        (["--class-weights", "1,2,3"], "--class-weights has 3 numbers; there are 2 classes"),
        (["--output", "gs://bucket/bundle"], "gs:// is not supported"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: list[str], change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_model, "run_training", lambda *_: pytest.fail("it trained"))
    before = sorted(tmp_path.rglob("*"))
    assert main(words + change) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_label_that_no_class_has_is_refused_in_every_set(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for column in (10, 100, 140):  # of training, validation and test
        write_pair(tmp_path)
        with rasterio.open(tmp_path / "labels.tif", "r+") as dataset:
            values = dataset.read()
            values[0, 5, column] = 77
            dataset.write(values)
        assert main([*words, "--check"]) == 2
        assert f"{tmp_path / 'labels.tif'}: holds 77, which the class table does not have" in capsys.readouterr().err


def test_more_workers_than_cores_are_refused(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # Ray sets it in a process that has started it
    assert main([*words, "--workers", "99"]) == 2
    errors = capsys.readouterr().err
    assert "--workers 99: this machine has" in errors and len(errors.splitlines()) == 1


def test_without_ray_it_trains_in_this_process(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_model, "find_spec", lambda name: None)
    assert main([*words, "--workers", "2"]) == 2
    assert "--workers 2: Ray is not installed" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "bundle.run")
    assert main(words) == 0
    assert "epoch     loss  accuracy  mean IoU" in capsys.readouterr().out
    assert load_bundle(tmp_path / "bundle").provenance["epochs"] == 2


def test_an_interrupted_training_says_what_is_left(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_model, "run_training", interrupted)
    assert main(words) == 1
    assert "no epoch was finished and no bundle was written" in capsys.readouterr().err

    class Stopped(Quiet):
        def epoch(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_model, "run_training", lambda training, *_: fit(training, torch.device("cpu"), Stopped()))
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "holds the best network so far, of epoch 1; the same command goes on" in captured.err
    assert "it goes on" in captured.out
    assert main([*words, "--learning-rate", "0.1"]) == 2
    assert "holds a training that was stopped, with another recipe learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--data", "--output", "--architecture"])
def test_what_is_needed_is_named(words: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(without(words, option))
    assert stopped.value.code == 2 and f"{option} is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad", [["--output", "x"], ["--architecture", "unet"], ["--window", "1x2x3"], ["--argument", "width"], ["--workers", "0"]]
)
def test_bad_usage_exits_with_2(bad: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(bad)
    assert stopped.value.code == 2


def test_epochs_0_writes_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--architecture logistic_regression --epochs 0 --bands 4 --classes 3 --output {tmp_path / 'random'}".split()
    assert main(words) == 0
    bundle = load_bundle(tmp_path / "random")
    assert (len(bundle.bands), len(bundle.classes), bundle.halo) == (4, 3, 0)
    assert main(words) == 2
    assert main([*without(words, "--bands"), "--output", str(tmp_path / "other")]) == 2
    assert "needs --bands N and --classes K" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_zoo_has_a_line_a_network() -> None:
    done = subprocess.run(
        [sys.executable, "jobs/train_model.py", "--list"], cwd=PROJECT, capture_output=True, text=True, check=False, env=_environment()
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert {"unet", "fcn_resnet50", "deeplabv3_mobilenet_v3_large", "logistic_regression", "identity"} <= set(lines)
    assert "width=64 depth=4" in lines["unet"] and " 31.04 M " in lines["unet"]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(PROJECT)}


def demo_block() -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """What the demo's network sees around its test block, normalised, and the block's labels, by rasterio alone.

    Returns C x H x W, labels H x W of the block, and the block's columns in the image.
    """
    bundle = load_bundle(MODEL)
    [[_, first, _, length]] = bundle.provenance["data"]["split"]["test"]["LC80380342015230LGN00"]["areas"]
    last = first + length
    start = first - bundle.reach.exact_halo
    with rasterio.open(ZION / "landsat_b2.tif") as grid:
        crs, place, height, width = grid.crs, grid.transform, grid.height, grid.width
    planes = []
    assets = json.loads((ZION / "item.json").read_text())["assets"]
    for asset, said in ((assets[band.name], assets[band.name]["bands"][0]) for band in bundle.bands):
        with rasterio.open(ZION / asset["href"]) as dataset, WarpedVRT(
            dataset, crs=crs, transform=place, width=width, height=height, resampling=Resampling.bilinear, nodata=np.nan,
            dtype="float64", tolerance=1e-9,
        ) as placed:  # fmt: skip
            planes.append(placed.read(1) * said.get("raster:scale", 1) + said.get("raster:offset", 0))
    mean, std = ([getattr(band, name) for band in bundle.bands] for name in ("mean", "std"))
    image_CHW = (np.array(planes) - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    with rasterio.open(ZION / "nlcd.tif") as dataset:
        rows, cols = np.mgrid[:height, first:last]
        x, y = transform_points(crs, dataset.crs, *(place * (cols.ravel() + 0.5, rows.ravel() + 0.5)))
        col, row = (np.floor(axis).astype(int).reshape(rows.shape) for axis in ~dataset.transform * (np.array(x), np.array(y)))
        values_HW = dataset.read(1)[row, col]
    labels_HW = np.full(values_HW.shape, 255)
    for number, values in enumerate(bundle.provenance["labels"]["values"].values()):
        labels_HW[np.isin(values_HW, values)] = number
    labels_HW[np.isnan(image_CHW).any(axis=0)[:, first:last]] = 255
    stride = bundle.reach.stride
    image_CHW = np.pad(np.nan_to_num(image_CHW[:, :, start:], nan=0.0), ((0, 0), (0, -height % stride), (0, -width % stride)))
    return image_CHW, labels_HW, (first - start, last - start)


def test_the_demos_bundle_scores_what_it_says() -> None:
    """Run again on the block that was held out, read without the project's own code, it gives the scores that are stored."""
    image_CHW, labels_HW, (first, last) = demo_block()
    bundle = load_bundle(MODEL)
    Engine(bundle, "cpu", Execution())
    with torch.inference_mode():
        logits_KHW = bundle.network()(torch.from_numpy(image_CHW.astype(np.float32))[None])[0]
    ids_HW = logits_KHW.argmax(0).numpy()[: labels_HW.shape[0], first:last]
    known = labels_HW != 255
    stored = bundle.metrics["test"]["network"]
    assert known.sum() == np.sum(stored["confusion_truth_predicted"])
    assert accuracy_score(labels_HW[known], ids_HW[known]) == pytest.approx(stored["accuracy"], abs=2e-4)
    iou = jaccard_score(labels_HW[known], ids_HW[known], average=None)
    assert iou == pytest.approx(list(stored["iou"].values()), abs=1e-3)
    assert iou.mean() == pytest.approx(stored["mean_iou"], abs=1e-3)


def test_the_demos_bundle_beats_both_baselines_and_is_small() -> None:
    test = load_bundle(MODEL).metrics["test"]
    for baseline in ("logistic_regression", "majority_class"):
        assert test["network"]["accuracy"] > test[baseline]["accuracy"] + 0.03
        assert test["network"]["mean_iou"] > test[baseline]["mean_iou"] + 0.05
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 8e6


def test_the_demos_bundle_was_made_by_a_command_that_still_parses() -> None:
    bundle = load_bundle(MODEL)
    command = bundle.provenance["command"].split()
    options = train_model.parse(command[2:])
    assert command[:2] == ["python", "jobs/train_model.py"]
    assert all((PROJECT / place).exists() for place in (*options.data, options.labels, options.classes))
    classes = json.loads((PROJECT / options.classes).read_text())
    learnt = {entry["name"]: entry["values"] for entry in classes if "ignored" not in entry}
    assert bundle.provenance["labels"]["values"] == learnt
    assert (options.validation, options.test) == (["768:888"], ["936:1128"])
    assert bundle.provenance["data"]["split"]["how"] == f"columns, {bundle.reach.exact_halo} px apart"


def test_the_demos_scene_is_a_valid_item() -> None:
    stac = pytest.importorskip("pystac")
    item = stac.Item.from_file(str(ZION / "item.json"))
    item.stac_extensions = []  # their schemas are not on this machine
    item.validate()
    for asset in item.assets.values():
        assert not asset.href.startswith("/") and (ZION / asset.href).exists()
    with rasterio.open(ZION / "landsat_b2.tif") as dataset:
        west, south, east, north = rasterio.warp.transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds)
    assert item.bbox == pytest.approx([west, south, east, north], abs=1e-5)


@pytest.mark.parametrize("name", ["landsat_b2", "landsat_b3", "landsat_b4", "landsat_b5", "srtm", "nlcd"])
def test_the_demos_scene_is_the_data_as_found(name: str) -> None:
    found = SHARED / "data" / "zion-landsat8" / f"{name}.tif"
    if not found.exists():
        pytest.skip("the shared data are not on this machine")
    with rasterio.open(found) as one, rasterio.open(ZION / f"{name}.tif") as other:
        assert (one.read() == other.read()).all()
        for what in ("nodata", "crs", "transform", "dtypes", "shape"):
            assert getattr(one, what) == getattr(other, what)


@pytest.mark.slow
def test_two_workers_train_a_regression_as_one_does(height_words: list[str], tmp_path: Path) -> None:
    """On Ray, and beside it in this process."""
    done = run(job_command("train_model", *height_words, "--workers", 2))
    assert done.returncode == 0, done.stderr
    assert "target: height 1" in done.stdout and "epoch     loss      RMSE       MAE      bias        R2   seconds" in done.stdout
    bundle = load_bundle(tmp_path / "bundle")
    Engine(bundle, "cpu", Execution(), ("value",))
    assert bundle.target is not None and bundle.target.name == "height" and not bundle.classes
    table = {line.split()[0]: line.split()[-3:] for line in done.stdout.splitlines() if line.strip()}
    for name in ("rmse", "mae", "r2"):
        told = [bundle.metrics["test"][model][name] for model in ("network", "linear_regression", "training_mean")]
        assert [float(text) for text in table[name.upper()]] == pytest.approx(told, rel=1e-3)
    again = [*without(height_words, "--output"), "--output", str(tmp_path / "alone" / "bundle")]
    fit(prepare(train_model.read_request(train_model.parse(again), again)), torch.device("cpu"), Quiet())
    first, second = (load_file(tmp_path / place / "weights.safetensors") for place in ("bundle", "alone/bundle"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4)


def test_the_check_of_a_regression_draws_numbers(height_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*height_words, "--check"]) == 0
    assert "target: height 1" in capsys.readouterr().out
    for name in ("labels.png", "windows.png"):
        with Image.open(tmp_path / "bundle.run" / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--ignore", "#FF0000"], "--ignore #FF0000: with --loss mse labels are numbers"),
        (["--class-weights", "inverse-root"], "--class-weights: is of classes"),
        (["--label-smoothing", "0.1"], "--label-smoothing: is of classes"),
        (["--metric", "accuracy"], "--metric accuracy: with --loss mse there are rmse, mae, r2"),
    ],
)
def test_a_regression_that_cannot_be_is_refused(
    height_words: list[str], change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*height_words, *change]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1


def test_labels_of_one_number_are_refused(height_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rasterio.open(tmp_path / "height.tif", "r+") as dataset:
        dataset.write(np.full((1, *dataset.shape), 3.5, np.float32))
    assert main(height_words) == 2
    assert "height.tif: the labels are 3.5 wherever the model is trained: there is nothing to learn" in capsys.readouterr().err

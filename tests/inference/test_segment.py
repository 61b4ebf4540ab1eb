"""Law 2: tiled equals whole. Law 1: the identity model reproduces the raster. Law 6 without Ray: no silent pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from pipeline.errors import Refused, Unreadable
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.raster import open_scene
from pipeline.imagery.region import Region
from pipeline.inference.ledger import SceneLedger
from pipeline.inference.plan import GIB, Plan, Resources, Settings, make_plan
from pipeline.inference.segment import Segmenter, prefetched, segment_scene
from pipeline.models.bundle import Bundle
from pipeline.models.choice import REFERENCE
from pipeline.models.engine import describe_device
from tests.inference.reference import whole_logits
from tests.results.scenes import plan_of
from tests.toys import smooth_noise, write_scene

AMBIGUOUS = 1e-3  # logits: where the reference's two highest are nearer than this, either class is right


def whole_mask(bundle: Bundle, values_CHW: np.ndarray, valid_CHW: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The reference, and where it is ambiguous."""
    logits_KHW = whole_logits(bundle, values_CHW, valid_CHW)
    highest = logits_KHW.topk(2, dim=0).values
    mask_HW = logits_KHW.argmax(0).numpy().astype(np.uint8)
    if valid_CHW is not None:
        mask_HW[~valid_CHW.all(axis=0)] = 255
    return mask_HW, (highest[0] - highest[1] < AMBIGUOUS).numpy()


def read_mask(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


CASES = [  # height, width, tile, halo, shard, batch, workers
    (1, 1, "auto", "exact", "auto", "auto", 1),
    (7, 300, "auto", "exact", "auto", 2, 1),
    (104, 104, 104, "exact", 512, 1, 1),  # a tile with a core of one stride
    (105, 103, 104, "exact", 512, 3, 2),
    (513, 511, 160, "exact", 512, 1, 2),
    (600, 1100, 256, "exact", 512, 4, 2),
    (1025, 530, 176, 56, 512, 2, 2),  # more halo than needed
    (1100, 1030, "auto", "auto", "auto", "auto", None),
    (1100, 1030, 608, "exact", 1024, 1, 2),
    (1500, 1700, "auto", "exact", "auto", "auto", 3),  # the last shards are cut smaller
]


@pytest.mark.parametrize(("height", "width", "tile", "halo", "shard", "batch", "workers"), CASES)
def test_tiled_equals_whole(exact_unet: Bundle, tmp_path: Path, height, width, tile, halo, shard, batch, workers):
    values_CHW = smooth_noise(height, (3, height, width))
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    expected_HW, _ = whole_mask(exact_unet, values_CHW)
    settings = Settings(precision="fp32", tile=tile, halo=halo, shard=shard)
    counts = segment_scene(scene, exact_unet.path, tmp_path / "mask.tif", settings=settings, batch=batch, workers=workers)
    mask_HW = read_mask(tmp_path / "mask.tif")
    assert (mask_HW != expected_HW).sum() == 0
    assert list(counts.values()) == np.bincount(expected_HW.ravel(), minlength=5).tolist()


@pytest.mark.parametrize("name", ["unet", "exact_unet"])
def test_the_references_tell_several_classes_apart(name: str, request: pytest.FixtureRequest):
    mask_HW, ambiguous_HW = whole_mask(request.getfixturevalue(name), smooth_noise(1100, (3, 1100, 1030)))
    assert (np.bincount(mask_HW.ravel(), minlength=5) > 0.02 * mask_HW.size).sum() >= 4
    assert ambiguous_HW.sum() == 0 if name == "exact_unet" else ambiguous_HW.mean() < 1e-3


def test_tiled_equals_whole_with_weights_as_they_come(unet: Bundle, tmp_path: Path):
    """Rounding differs with the tile's shape: only pixels whose two highest logits are within 1e-3 may differ."""
    values_CHW = smooth_noise(10, (3, 1100, 1030))
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    expected_HW, ambiguous_HW = whole_mask(unet, values_CHW)
    segment_scene(scene, unet.path, tmp_path / "mask.tif", settings=Settings(precision="fp32", tile=256, halo="exact", shard=512))
    differing_HW = read_mask(tmp_path / "mask.tif") != expected_HW
    assert (differing_HW & ~ambiguous_HW).sum() == 0
    assert differing_HW.sum() <= 5


def test_less_than_the_exact_halo_is_not_whole(exact_unet: Bundle, tmp_path: Path):
    """The test of law 2 can fail."""
    values_CHW = smooth_noise(4, (3, 600, 600))
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    expected_HW, _ = whole_mask(exact_unet, values_CHW)
    segment_scene(scene, exact_unet.path, tmp_path / "mask.tif", settings=Settings(precision="fp32", tile=128, halo=8, shard=512))
    assert (read_mask(tmp_path / "mask.tif") != expected_HW).sum() > 0


def test_tiled_equals_whole_for_fcn_resnet50(make_bundle, tmp_path: Path):
    fcn = make_bundle("fcn_resnet50", bands=3, classes=5, exact=True)
    assert fcn.reach == (8, 232, None)
    values_CHW = smooth_noise(11, (3, 519, 557))
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    expected_HW, _ = whole_mask(fcn, values_CHW)
    assert (np.bincount(expected_HW.ravel(), minlength=5) > 0.02 * expected_HW.size).sum() >= 4
    segment_scene(scene, fcn.path, tmp_path / "mask.tif", settings=Settings(precision="fp32", tile=496, halo="exact", shard=512))
    assert (read_mask(tmp_path / "mask.tif") != expected_HW).sum() == 0


@pytest.mark.parametrize(("height", "width", "tile", "shard"), [(1, 1, 64, 512), (511, 513, 100, 512), (1500, 700, 333, 1024)])
def test_the_identity_model_reproduces_the_raster(identity: Bundle, tmp_path: Path, height: int, width: int, tile: int, shard: int):
    values_CHW = np.random.default_rng(5).integers(0, 250, (1, height, width), np.uint8)
    scene = write_scene(tmp_path / "scene.tif", values_CHW)
    segment_scene(scene, identity.path, tmp_path / "mask.tif", settings=Settings(precision="fp32", tile=tile, shard=shard))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), values_CHW[0])


def test_nodata_of_one_band_is_nodata_and_its_neighbours_are_computed_with_the_mean(exact_unet: Bundle, tmp_path: Path):
    unet = exact_unet
    values_CHW = smooth_noise(6, (3, 300, 320))
    valid_CHW = np.ones(values_CHW.shape, bool)
    valid_CHW[0, 100:140, 50:200] = False
    valid_CHW[2, 0:30, 0:30] = False
    values_CHW[values_CHW == 0] = 1
    values_CHW[~valid_CHW] = 0
    scene = write_scene(tmp_path / "scene.tif", values_CHW, nodata=0)
    expected_HW, _ = whole_mask(unet, values_CHW, valid_CHW)
    segment_scene(scene, unet.path, tmp_path / "mask.tif", settings=Settings(precision="fp32", tile=160, halo="exact"))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), expected_HW)


def test_a_scene_of_nodata_only_is_not_inferred(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scene = write_scene(tmp_path / "scene.tif", np.zeros((3, 600, 600), np.uint8), nodata=0)
    monkeypatch.setattr("pipeline.models.engine.Engine.begin", lambda *_: pytest.fail("the network ran"))
    counts = segment_scene(scene, unet.path, tmp_path / "mask.tif", settings=Settings(precision="fp32"))
    assert set(counts.values()) == {0}
    assert (read_mask(tmp_path / "mask.tif") == 255).all()


def test_masks_do_not_depend_on_workers_or_batch_in_bf16(unet: Bundle, tmp_path: Path):
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(7, (3, 700, 900)))
    for name, workers, batch in (("a", 1, 1), ("b", 2, 3)):
        segment_scene(
            scene, unet.path, tmp_path / f"{name}.tif", settings=Settings(precision="bf16", shard=512), batch=batch, workers=workers
        )
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_network_that_gives_nan_is_named_nodata(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scene = write_scene(tmp_path / "scene.tif", smooth_noise(8, (3, 500, 900)))

    def poisoned(self, *inputs):
        logits_BKHW = honest(self, *inputs)
        logits_BKHW[0, 0, 70, 70] = torch.nan
        return logits_BKHW

    from pipeline.models.program import Program

    honest = Program.forward
    segment = {"settings": Settings(precision="fp32", tile=512, halo="exact", shard=512), "workers": 1}
    segment_scene(scene, unet.path, tmp_path / "whole.tif", **segment)
    monkeypatch.setattr("pipeline.models.engine.check_device", lambda *_: None)
    monkeypatch.setattr(Program, "forward", poisoned)
    with pytest.raises(Unreadable, match="not finite"):
        segment_scene(scene, unet.path, tmp_path / "mask.tif", **segment)
    assert not (tmp_path / "mask.tif").exists()
    partial_HW, whole_HW = read_mask(tmp_path / "mask.partial.tif"), read_mask(tmp_path / "whole.tif")
    assert (partial_HW == 255).any()
    np.testing.assert_array_equal(partial_HW[partial_HW != 255], whole_HW[partial_HW != 255])


def test_out_of_memory_halves_the_batch_and_names_the_tile(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pipeline.models.program import Program

    honest, sizes = Program.forward, []

    def limited(self, raw_BCHW, *others):
        sizes.append(len(raw_BCHW))
        if len(raw_BCHW) > limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return honest(self, raw_BCHW, *others)

    scene = write_scene(tmp_path / "scene.tif", smooth_noise(9, (3, 400, 900)))
    settings = Settings(precision="fp32", tile=256, halo="exact", shard=1024)
    segment_scene(scene, unet.path, tmp_path / "whole.tif", settings=settings, batch=4)
    monkeypatch.setattr(Program, "forward", limited)
    limit = 2
    segment_scene(scene, unet.path, tmp_path / "halved.tif", settings=settings, batch=4)
    assert {4, 2} <= set(sizes)
    np.testing.assert_array_equal(read_mask(tmp_path / "halved.tif"), read_mask(tmp_path / "whole.tif"))
    monkeypatch.setattr("pipeline.models.engine.check_device", lambda *_: None)
    limit = 0
    with pytest.raises(Unreadable, match="--tile"):
        segment_scene(scene, unet.path, tmp_path / "none.tif", settings=settings, batch=4)


def test_prefetched_keeps_order_and_hands_over_exceptions():
    with ThreadPoolExecutor(1) as pool:
        assert list(prefetched(pool, lambda x: x * x, range(10), 3)) == [x * x for x in range(10)]
        with pytest.raises(ZeroDivisionError):
            list(prefetched(pool, lambda x: 1 // x, [2, 1, 0, 3], 2))


def test_segment_scene_refuses_by_name(unet: Bundle, tmp_path: Path):
    two = write_scene(tmp_path / "two.tif", np.zeros((2, 50, 50), np.uint8))
    with pytest.raises(Refused, match="has 2 bands without names, the model needs 3"):
        segment_scene(two, unet.path, tmp_path / "mask.tif")
    with pytest.raises(Refused, match="no such file"):
        segment_scene(tmp_path / "none.tif", unet.path, tmp_path / "mask.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.tif"]


def plan_of_batches(path: Path, bundle: Bundle, batch: int) -> Plan:
    """Shards of 512 px, tiles of 256."""
    scene = open_scene(find_sources([str(path)])[0], bundle.bands)
    settings, resources = Settings(precision="fp32", shard=512, tile=256), Resources(describe_device("cpu"), 8 * GIB)
    return make_plan(scene, Region(scene.grid.window), bundle, settings, batch=batch, choice=REFERENCE, resources=resources)


def test_each_attempt_at_a_shard_has_half_the_batch_of_the_one_before(exact_unet: Bundle, tmp_path: Path):
    path = write_scene(tmp_path / "scene.tif", smooth_noise(32, (3, 512, 512)))
    plan = plan_of_batches(path, exact_unet, 5)
    batches, parts = [], set()
    for attempt in (1, 2, 3, 4):
        segmenter = Segmenter(exact_unet.path, "cpu")
        batches.append(segmenter.write_part(plan, plan.shards()[0], tmp_path, tmp_path / "part", attempt).batch)
        parts.add((tmp_path / "part").read_bytes())
    assert batches == [5, 2, 1, 1] and len(parts) == 1


def test_one_shard_has_the_device_while_the_next_is_read(exact_unet: Bundle, tmp_path: Path):
    path = write_scene(tmp_path / "scene.tif", smooth_noise(30, (3, 512, 1536)))
    plan, segmenter = plan_of_batches(path, exact_unet, 2), Segmenter(exact_unet.path, "cpu")
    with ThreadPoolExecutor(2) as pool:
        results = list(
            pool.map(lambda shard: segmenter.write_part(plan, shard, tmp_path, tmp_path / plan.shard_name(shard)), plan.shards())
        )
    assert {result.batch for result in results} == {2}
    on_device = sorted(
        (span.began, span.began + span.seconds, result.shard) for result in results for span in result.spans if span.stage == "device"
    )
    order = list(dict.fromkeys(shard for _, _, shard in on_device))
    assert [shard for _, _, shard in on_device] == sorted((shard for _, _, shard in on_device), key=order.index)  # one after the other
    first_read = {result.shard: min(span.began for span in result.spans if span.stage == "read") for result in results}
    first_done = max(end for _, end, shard in on_device if shard == order[0])
    assert first_read[order[1]] < first_done
    assert all(result.seconds > 0 for result in results)


def touching(path: Path, honest: Callable[..., object]) -> Callable[..., object]:
    """The same, after which the file at `path` has changed."""

    def changed(*arguments: object) -> object:
        try:
            return honest(*arguments)
        finally:
            os.utime(path)

    return changed


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_shard_of_an_input_that_changed_is_not_published(exact_unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str):
    """Even if the file goes back to what it was afterwards: what was read meanwhile may be a mixture."""
    path = write_scene(tmp_path / "scene.tif", smooth_noise(31, (3, 300, 200)))
    source = find_sources([str(path)])[0]
    plan = plan_of(source, exact_unet)
    ledger, segmenter = SceneLedger.open(tmp_path, "scene", plan.scene.input_id), Segmenter(exact_unet.path, "cpu")
    if when == "before":
        os.utime(path)
        monkeypatch.setattr(segmenter, "write_part", lambda *_: pytest.fail("it was read"))
    else:
        monkeypatch.setattr(segmenter, "write_part", touching(path, segmenter.write_part))
    with pytest.raises(Unreadable, match="changed while it was read"):
        segmenter.segment(plan, plan.shards()[0], ledger, False)
    assert ledger.missing(plan) == plan.shards() and not list(ledger.folder.glob("*")) and not list(ledger.folder.glob(".*"))


def test_a_scene_that_changes_in_a_run_without_ray_is_not_written(exact_unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_scene(tmp_path / "scene.tif", smooth_noise(33, (3, 300, 200)))
    monkeypatch.setattr(Segmenter, "write_part", touching(path, Segmenter.write_part))
    with pytest.raises(Unreadable, match="changed while it was read"):
        segment_scene(path, exact_unet.path, tmp_path / "out" / "mask.tif", settings=Settings(precision="fp32"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == []


def test_no_engine_is_built_while_a_network_runs(exact_unet: Bundle, tmp_path: Path):
    """torch.fx traces a network to fold its BatchNorm, and takes calls of other networks for parts of it."""
    path = write_scene(tmp_path / "scene.tif", smooth_noise(31, (3, 300, 200)))
    segmenter = Segmenter(exact_unet.path, "cpu")
    with ThreadPoolExecutor(1) as pool:
        with segmenter._turn:
            building = pool.submit(segmenter.engine, plan_of(find_sources([str(path)])[0], exact_unet), tmp_path)
            with pytest.raises(TimeoutError):
                building.result(timeout=0.5)
        assert building.result(timeout=60).layers == ("mask",)

"""The fastest engine that keeps near enough to fp32: what is tried, what is remembered, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Refused
from pipeline.imagery.reader import Pixels
from pipeline.models import choice
from pipeline.models.bundle import Bundle
from pipeline.models.choice import REFERENCE, Choice, Known, Sample, Trial
from pipeline.models.engine import Execution, Scaling
from tests.toys import HEIGHT, smooth_noise

UNIT = Scaling((1 / 50,) * 3, (-128 / 50,) * 3)
SAMPLES = [Sample(Pixels(smooth_noise(seed, (3, 128, 128)), None), UNIT) for seed in range(4)]
MUCH, LITTLE = 1e15, 1.0  # px


def choose(bundle: Bundle, asked: str, work_px: float, kept: Path | None = None) -> Choice:
    """As a run does it."""
    return Trial(bundle, "cpu", asked, lambda: SAMPLES, work_px=work_px, kept=kept).choose()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Fakes:
    """Differences and speeds as they are said to be, in place of measured ones; `asked` is what was measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shares: dict[str, float], speeds: dict[str, float], native: str = "bf16"):
        self.asked: list[str] = []
        monkeypatch.setattr(choice, "native_precision", lambda _: native)
        monkeypatch.setattr(choice, "missing", lambda engine, device: None)
        monkeypatch.setattr(choice, "quantised", lambda bundle, inputs: b"int8")
        monkeypatch.setattr(choice.Trial, "differing", lambda _, precision: shares.get(precision, 0.0))
        monkeypatch.setattr(choice.Trial, "_rate_on_samples", lambda _, one: 1e6 if one.precision == native else 2e5)

        def speed(trial: Trial, execution: Execution) -> float:
            name = f"{execution.precision} {execution.engine}"
            self.asked += [name] * (name not in trial._known.speeds)
            return trial._known.speeds.setdefault(name, speeds[name])

        monkeypatch.setattr(choice.Trial, "speed", speed)


SPEEDS = {"bf16 eager": 3e6, "bf16 compiled": 4e6, "bf16 openvino": 3.5e6, "int8 openvino": 7e6}


def test_the_fastest_that_is_near_enough_wins(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Fakes(monkeypatch, {"int8": 0.004, "bf16": 0.001}, SPEEDS)
    found = choose(unet, "auto", MUCH, tmp_path / "int8.zip")
    assert found.execution == Execution("openvino", "int8", b"int8") and found.differing == 0.004
    assert "0.40% of classes differ from fp32 in int8" in found.why and "int8 openvino 7" in found.why


def test_no_more_is_measured_than_decides(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    """What is not known is guessed to be as fast as it ever was, and tried only where that would win."""
    fakes = Fakes(monkeypatch, {}, SPEEDS)
    assert choose(unet, "auto", MUCH).execution.precision == "int8" and fakes.asked == ["bf16 eager", "int8 openvino"]
    fakes = Fakes(monkeypatch, {}, SPEEDS | {"int8 openvino": 3.2e6})
    found = choose(unet, "auto", MUCH)
    assert found.execution == Execution("compiled", "bf16") and fakes.asked == [
        "bf16 eager",
        "int8 openvino",
        "bf16 openvino",
        "bf16 compiled",
    ]


@pytest.mark.parametrize(("work_s", "expected"), [(3, "bf16 eager"), (12, "bf16 openvino"), (60, "int8 openvino"), (4000, "int8 openvino")])
def test_with_speeds_known_what_ends_first_is_chosen(unet: Bundle, work_s: float, expected: str, monkeypatch: pytest.MonkeyPatch):
    """`work_s` is what PyTorch takes for the pixels alone; 5 s are known to be needed to make an int8 network."""
    known = Known({"bf16 eager": 1e6, "bf16 openvino": 2e6, "int8 openvino": 2.4e6, "bf16 compiled": 1e6}, quantising_s=5.0)
    fakes = Fakes(monkeypatch, {}, {})
    monkeypatch.setattr(Trial, "_remembered", lambda _: known)
    found = choose(unet, "auto", work_s * 1e6)
    assert f"{found.execution.precision} {found.execution.engine}" == expected and not fakes.asked
    assert ("too little work" in found.why) == (expected != "int8 openvino")


def test_a_network_that_is_kept_costs_nothing_to_make(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = Known({"bf16 eager": 1e6, "bf16 openvino": 2e6, "int8 openvino": 2.4e6, "bf16 compiled": 1e6}, quantising_s=5.0)
    Fakes(monkeypatch, {}, {})
    monkeypatch.setattr(Trial, "_remembered", lambda _: known)
    kept = tmp_path / "int8.zip"
    kept.write_bytes(b"")
    assert choose(unet, "auto", 12e6, kept).execution == Execution("openvino", "int8", str(kept))


def test_at_once_is_what_needs_no_building(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Fakes(monkeypatch, {}, SPEEDS)

    def at_once(asked: str, work_px: float, kept: Path | None = None) -> Choice | None:
        return Trial(unet, "cpu", asked, lambda: SAMPLES, work_px=work_px, kept=kept).choose_at_once()

    kept = tmp_path / "int8.zip"
    kept.write_bytes(b"")
    for asked, work_px in (("fp32", MUCH), ("auto", LITTLE), ("bf16", LITTLE)):
        assert at_once(asked, work_px) == choose(unet, asked, work_px)
    assert at_once("auto", MUCH) is None and at_once("bf16", MUCH) is None and at_once("int8", LITTLE) is None
    assert at_once("int8", MUCH, kept) == choose(unet, "int8", MUCH, kept)
    assert at_once("auto", MUCH, kept) is None, "its speed is not known"
    monkeypatch.setattr(Trial, "_remembered", lambda _: Known(SPEEDS))
    assert at_once("auto", MUCH, kept) == choose(unet, "auto", MUCH, kept)


def test_an_int8_network_is_kept_by_the_first_and_taken_by_the_next(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Fakes(monkeypatch, {}, SPEEDS)
    kept = tmp_path / "out" / "int8.zip"
    found = choose(unet, "int8", LITTLE, kept)
    assert not kept.parent.exists()  # until the run says so
    found.keep(kept)
    assert kept.read_bytes() == b"int8"
    monkeypatch.setattr(choice, "quantised", lambda bundle, inputs: b"another")
    assert choose(unet, "int8", LITTLE, kept).execution.network == str(kept)
    choose(unet, "int8", LITTLE).keep(kept)
    assert kept.read_bytes() == b"int8"


def test_what_differs_too_much_is_not_even_timed(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fakes = Fakes(monkeypatch, {"int8": 0.006, "bf16": 0.001}, SPEEDS)
    found = choose(unet, "auto", MUCH, tmp_path / "int8.zip")
    assert found.execution == Execution("compiled", "bf16") and "int8 openvino" not in fakes.asked


def test_fp32_always_fits(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    Fakes(monkeypatch, {"int8": 0.1, "bf16": 0.1}, SPEEDS)
    found = choose(unet, "auto", MUCH)
    assert found.execution == Execution()


def test_an_engine_that_must_be_built_has_to_gain_something(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    Fakes(monkeypatch, {}, SPEEDS | {"bf16 compiled": 3.05e6, "bf16 openvino": 3.0e6, "int8 openvino": 2e6})
    found = choose(unet, "auto", MUCH)
    assert found.execution == Execution("eager", "bf16")


def test_little_work_is_not_worth_a_trial(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    fakes = Fakes(monkeypatch, {"bf16": 0.001}, SPEEDS)
    found = choose(unet, "auto", LITTLE)
    assert found.execution == Execution("eager", "bf16") and not fakes.asked and "too little work" in found.why
    Fakes(monkeypatch, {"bf16": 0.02}, SPEEDS)
    poor = choose(unet, "auto", LITTLE)
    assert poor.execution == Execution()


def test_a_precision_that_was_asked_for_is_kept(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Fakes(monkeypatch, {"int8": 0.006, "bf16": 0.2}, SPEEDS)
    assert choose(unet, "fp32", MUCH) == REFERENCE
    found = choose(unet, "bf16", MUCH)
    assert found.execution == Execution("compiled", "bf16")
    with pytest.raises(Refused, match=r"--precision int8: 0\.60% of the classes differ from fp32 .* at most 0\.5% may"):
        choose(unet, "int8", LITTLE, tmp_path / "int8.zip")
    with pytest.raises(Refused, match="--precision fp16: is for GPUs"):
        choose(unet, "fp16", LITTLE)
    with pytest.raises(Refused, match="--precision fp8: unknown"):
        choose(unet, "fp8", LITTLE)


def test_without_a_compiler_or_openvino_others_are_chosen_and_it_is_said(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    Fakes(monkeypatch, {}, SPEEDS)
    lacks = {"compiled": "no C++ compiler", "openvino": "OpenVINO is not installed"}
    monkeypatch.setattr(choice, "missing", lambda engine, device: lacks.get(engine))
    found = choose(unet, "auto", MUCH)
    assert found.execution == Execution("eager", "bf16") and all(lack in found.why for lack in lacks.values())
    with pytest.raises(Refused, match="--precision int8: OpenVINO is not installed"):
        choose(unet, "int8", MUCH)


def test_a_trial_measures_and_remembers(unet: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The real thing: fp32 against bf16 and int8 on the samples; speeds are measured once."""
    pytest.importorskip("nncf")
    monkeypatch.setattr(choice, "TRIAL_PX", (64,))
    monkeypatch.setattr(choice, "DIFFERING", 1.0)
    monkeypatch.setattr(choice, "missing", lambda engine, device: "left out of this test" if engine == "compiled" else None)
    first = choose(unet, "auto", MUCH)
    first.keep(tmp_path / "int8.zip")
    assert "differ from fp32 in int8" in first.why
    (file,) = (tmp_path / "cache" / "tilewright" / "speeds").iterdir()
    speeds = file.read_text()
    assert "int8 openvino" in speeds
    monkeypatch.setattr(choice, "_seconds", lambda *_: pytest.fail("a speed was measured again"))
    again = choose(unet, "auto", MUCH, tmp_path / "int8.zip")
    assert again.differing == first.differing and (again.execution.precision, again.execution.engine) == (
        first.execution.precision,
        first.execution.engine,
    )
    if first.execution.precision == "int8":
        assert again.execution.network == str(tmp_path / "int8.zip")
    assert file.read_text() == speeds


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", "[1]", "5", "{}", '{"speeds": [1]}', '{"speeds": {"bf16 eager": 0}}', '{"speeds": {"bf16 eager": "1"}}']
)
def test_a_memory_that_is_damaged_is_none(unet: Bundle, damaged: str):
    trial = Trial(unet, "cpu", "auto", lambda: SAMPLES, work_px=MUCH)
    trial._remember({"bf16 eager": 1e6}, side=512)
    assert trial._remembered() == Known({"bf16 eager": 1e6}, side=512)
    trial._file.write_text(damaged)
    assert trial._remembered() == Known()


def test_an_engine_that_fails_its_self_test_is_passed_over(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    """The run goes on with one that passes; nothing is remembered of the other."""
    monkeypatch.setattr(choice, "TRIAL_PX", (64,))
    monkeypatch.setattr(choice, "native_precision", lambda _: "bf16")
    monkeypatch.setattr(choice, "missing", lambda engine, device: None if engine != "compiled" else "left out of this test")
    monkeypatch.setattr(choice, "quantised", lambda bundle, inputs: b"int8")
    monkeypatch.setattr(Trial, "differing", lambda _, precision: 0.1 if precision == "int8" else 0.0)
    build = choice.Engine

    def failing(bundle: Bundle, device: str, execution: Execution) -> object:
        if execution.engine == "openvino":
            raise Refused("self-test failed")
        return build(bundle, device, execution)

    monkeypatch.setattr(choice, "Engine", failing)
    trial = Trial(unet, "cpu", "auto", lambda: SAMPLES, work_px=MUCH)
    found = trial.choose()
    assert found.execution.engine == "eager" and "bf16 openvino: self-test failed" in found.why
    assert list(trial._remembered().speeds) == ["bf16 eager"]


def test_differences_are_those_of_classes(unet: Bundle):
    trial = Trial(unet, "cpu", "auto", lambda: SAMPLES, work_px=MUCH)
    assert trial.differing("fp32") == 0.0
    assert 0.0 < trial.differing("bf16") < 0.1
    blank = trial._outputs["bf16"][1].copy()
    trial._outputs["bf16"][1] = np.where(blank == 0, 1, 0).astype(np.uint8)
    assert trial.differing("bf16") > 0.2


def test_values_differ_where_they_are_a_twentieth_of_a_standard_deviation_off(regression: Bundle):
    trial = Trial(regression, "cpu", "auto", lambda: SAMPLES, work_px=MUCH)
    trial.differing("bf16")
    for off, expected in ((0.04, 0.0), (0.06, 1.0), (-0.06, 1.0), (np.nan, 1.0)):
        trial._outputs["bf16"] = [values + np.float32(off * HEIGHT.std) for values in trial._outputs["fp32"]]
        assert trial.differing("bf16") == expected
    trial._outputs["fp32"] = [np.full_like(values, np.nan) for values in trial._outputs["fp32"]]
    assert trial.differing("bf16") == 0.0, "nodata is nodata"


def test_a_regression_is_tried_in_every_precision_by_its_values(regression: Bundle):
    trial = Trial(regression, "cpu", "auto", lambda: SAMPLES, work_px=LITTLE)
    found = trial.choose()
    assert trial.differing("bf16") < 0.005 and found.execution == trial.plain
    assert "of values differ from fp32" in found.why or trial.plain.precision == "fp32"


def test_int8_is_refused_where_its_values_stray(regression: Bundle):
    """Of this network with random weights a quarter of the values do."""
    with pytest.raises(Refused, match=r"int8: [12345]\d\.\d\d% of the values differ from fp32"):
        choose(regression, "int8", MUCH)


def test_what_cannot_be_converted_is_passed_over_and_the_reason_kept(unet: Bundle, monkeypatch: pytest.MonkeyPatch):
    def fails(_: Trial, precision: str) -> float:
        if precision == "int8":
            raise Refused("OpenVINO cannot convert unet: no rule")
        return 0.001

    Fakes(monkeypatch, {}, SPEEDS)
    monkeypatch.setattr(Trial, "differing", fails)
    found = choose(unet, "auto", MUCH)
    assert found.execution == Execution("compiled", "bf16") and "OpenVINO cannot convert unet: no rule" in found.why
    with pytest.raises(Refused, match="cannot convert unet"):
        choose(unet, "int8", MUCH)

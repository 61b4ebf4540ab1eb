"""Write an evaluation into the bundle that it is of, where the error-adjusted areas of later runs find it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.models.bundle import Bundle
from pipeline.models.metrics import Scores
from pipeline.models.value_scores import ValueScores, rounded
from pipeline.results.evaluation_tables import BundleScores, Score
from pipeline.results.value_tables import BundleErrors
from pipeline.training.scoring import Evaluation
from pipeline.training.value_scoring import ValueEvaluation


def check_changeable(bundle: Bundle) -> None:
    """Raise Refused where the bundle's model.json cannot be replaced."""
    if not Path(bundle.local).is_dir():
        raise Refused(f"{bundle.path}: --into-bundle cannot change a zip: unpack it first")
    storage.check_writable(storage.place_of(bundle.path))


def add_evaluation(bundle: Bundle, told: dict[str, Any]) -> None:
    """Put an evaluation under metrics["evaluation"] of model.json, in place of what was there; the model_id stays."""
    path = storage.place_of(bundle.path) / "model.json"
    description = storage.read_json(path)
    if description is None:
        raise Refused(f"{path}: was removed while it was evaluated")
    metrics = dict(description.get("metrics") or {}) | {"evaluation": told}
    storage.replace_json(path, description | {"metrics": metrics})


def evaluation_json(evaluation: Evaluation, scores: BundleScores, when: datetime) -> dict[str, Any]:
    """What a bundle remembers of an evaluation. Classes are in the bundle's order, in the confusion matrix [truth, predicted] too."""
    ids = {entry.name: entry.id for entry in evaluation.classes}
    classes = [entry.name for entry in scores.counts.bundle.classes]
    order = np.array([ids[name] for name in classes])
    confusion = scores.confusion[np.ix_(order, order)]
    return {
        "data": evaluation.data,
        "date": when.isoformat(timespec="seconds"),
        "scenes": len(evaluation.labelled),
        "pixels": int(confusion.sum()),
        "computed_in": scores.counts.precision,
        "intervals_from": f"{evaluation.drawing.drawn}, drawn anew",
        "classes": classes,
        **Scores(confusion).to_json(classes),
        "boundary_tolerance_px": evaluation.tolerance,
        "boundary_f1": {name: _number(scores.per_class["boundary_f1"][ids[name]].value) for name in classes},
        "expected_calibration_error": _number(scores.overall["expected_calibration_error"].value),
        "intervals_95": {name: _ends(score) for name, score in scores.overall.items()},
    }


def value_evaluation_json(evaluation: ValueEvaluation, scores: BundleErrors, when: datetime) -> dict[str, Any]:
    """What a bundle remembers of an evaluation of numbers."""
    return {
        "data": evaluation.data,
        "date": when.isoformat(timespec="seconds"),
        "scenes": len(evaluation.labelled),
        "computed_in": scores.counts.precision,
        "intervals_from": f"{evaluation.drawing.drawn}, drawn anew",
        "unit": evaluation.target.unit,
        **ValueScores(scores.sums).to_json(),
        "intervals_95": {name: [rounded(score.low), rounded(score.high)] for name, score in scores.overall.items()},
    }


def _ends(score: Score) -> list[float | None]:
    return [_number(score.low), _number(score.high)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)

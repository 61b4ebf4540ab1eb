"""What is kept of a training beside its bundle: a table of epochs, curves, TensorBoard's events, and MLflow's run where it is installed."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.training.loop import Epoch
from pipeline.training.pictures import Panel, draw_curves

Panels = Callable[[Sequence[Mapping[str, float]]], list[Panel]]  # the curves to draw, from the rows of the table


def write_epoch(run: Place, epochs: Sequence[Epoch], names: Sequence[str], title: str, panels: Panels) -> None:
    """Write `epochs.csv` and `curves.png` anew in the folder `run`, and tell TensorBoard and MLflow of the last epoch.

    `names` are those of the classes, for scores that there are of each.
    TensorBoard's events lie in `run/tensorboard`. MLflow's run is that of `MLFLOW_TRACKING_URI`, or lies in
    `run/mlflow.db` if that is local.
    """
    rows = [row_of(epoch, names) for epoch in epochs]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, fieldnames=list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    temporary = storage.temporary(run, "epochs.csv")
    temporary.write_text(text.getvalue())
    storage.publish(temporary, run / "epochs.csv")
    draw_curves(run / "curves.png", [row["epoch"] for row in rows], [row["loss"] for row in rows], panels(rows))
    for name, value in rows[-1].items():
        if name != "epoch" and value == value:  # NaN is no point of a curve
            _events(run).add_scalar(name.replace("iou_", "iou/"), value, epochs[-1].number)
    _events(run).flush()
    storage.mirror(_local_events(run), run / "tensorboard")
    if find_spec("mlflow") and (isinstance(run, Path) or "MLFLOW_TRACKING_URI" in os.environ):
        _tell_mlflow(run, rows[-1], title)


def row_of(epoch: Epoch, names: Sequence[str]) -> dict[str, Any]:
    """An epoch as a row of the table."""
    scores: dict[str, float] = {}
    for score, value in epoch.scores.items():
        if isinstance(value, tuple):
            scores |= {f"{score}_{name}": one for name, one in zip(names, value, strict=True)}
        else:
            scores[score] = value
    return {
        "epoch": epoch.number, "loss": epoch.loss, **scores, "learning_rate": epoch.learning_rate, "seconds": round(epoch.seconds, 2),
    }  # fmt: skip


def _local_events(run: Place) -> Path:
    return storage.workshop(run) / "tensorboard"


@lru_cache(1)
def _events(run: Place) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(_local_events(run)))


def _tell_mlflow(run: Place, row: dict[str, Any], title: str) -> None:
    import mlflow

    if mlflow.active_run() is None:
        mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run / 'mlflow.db'}")
        mlflow.set_experiment("tilewright")
        known = storage.read_json(run / "mlflow.json") or {}
        started = mlflow.start_run(run_id=known.get("run_id"), run_name=None if known else run.stem)
        storage.replace_json(run / "mlflow.json", {"run_id": started.info.run_id})
        if not known:
            mlflow.log_param("metric", title)
    kept = {name.replace(" ", "_"): value for name, value in row.items() if name != "epoch" and value == value}
    mlflow.log_metrics(kept, step=row["epoch"])

"""Score one or several bundles on labelled data, through the tiled inference of deployment.

    python jobs/evaluate_model.py BUNDLE [BUNDLE ...] --data SOURCE [--labels RASTER] [--classes FILE] --output OUT

OUT gets report.html and the Parquet tables scores, confusion, calibration, areas and comparison; for bundles that predict a number
scores, errors and comparison.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.environment import add_access, use_access
from cluster.job import DONE, FAILED_ON_DATA, lasting_place, run_job
from pipeline.errors import Refused, one_line
from pipeline.imagery import storage
from pipeline.imagery.formats import ALLOW_VRT
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.choice import check_precision
from pipeline.models.value_scores import MEASURES
from pipeline.results.evaluation_report import write_report
from pipeline.results.evaluation_tables import Score, score_bundle, write_tables
from pipeline.results.into_bundle import add_evaluation, check_changeable, evaluation_json, value_evaluation_json
from pipeline.results.value_report import write_value_report
from pipeline.results.value_tables import score_errors, write_value_tables
from pipeline.training.classes import ClassTable, LabelClass, read_classes
from pipeline.training.datasets import LabelledScene, open_labelled
from pipeline.training.scoring import evaluate_bundles
from pipeline.training.splits import held_out_of
from pipeline.training.targets import Numbers
from pipeline.training.value_scoring import common_target, evaluate_values

SHOWN = ("accuracy", "mean_iou", "mean_f1", "frequency_weighted_iou", "kappa", "mean_boundary_f1", "expected_calibration_error")
OpenData = Callable[[Bundle], Sequence[LabelledScene]]
EXAMPLE = """example:
  python jobs/evaluate_model.py jobs/demo/model my-model --data jobs/demo/zion/item.json --labels jobs/demo/zion/nlcd.tif \\
      --classes jobs/demo/zion/classes.json --output evaluation

exit code: 0 all done; 2 refused before work began; 3 scenes could not be read, the rest is scored;
1 anything else, interruption included"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. What is wrong with the input is one line on standard error."""
    return run_job(lambda: evaluate_model(parse(arguments)), lambda: "nothing was written")


def evaluate_model(options: argparse.Namespace) -> int:
    """From bundles and labelled data to tables and a page."""
    check_precision(options.precision)
    use_access(options)
    out = lasting_place(options.output)
    bundles = load_bundles(options.bundles)
    if options.into_bundle:
        for bundle in bundles.values():
            check_changeable(bundle)
    of_numbers = any(bundle.target for bundle in bundles.values())
    meaning = numbers_of(options, bundles) if of_numbers else class_table(options, bundles)
    splits = {name: (bundle.provenance.get("data") or {}).get("split") for name, bundle in bundles.items()}

    def open_data(bundle: Bundle) -> Sequence[LabelledScene]:
        found = open_labelled(
            options.data, labels=options.labels, classes=meaning, bands=bundle.bands, class_column=options.class_column,
            ignored=() if of_numbers else options.ignore, trusted=options.allow_vrt,
        )  # fmt: skip
        return found if options.all else held_out_of(found, splits)

    with working_folder(out) as folder:
        skipped = (write_values if of_numbers else write_classes)(options, bundles, open_data, folder, out)
    for scene, reason in skipped.items():
        print(f"skipped: {one_line(scene)}: {one_line(reason)}")
    print(f"\nopen {out / 'report.html'}; tables are beside it")
    return FAILED_ON_DATA if skipped else DONE


def say(line: str) -> None:
    """How far it is."""
    print(one_line(line), file=sys.stderr)


def write_classes(options: argparse.Namespace, bundles: dict[str, Bundle], open_data: OpenData, folder: Path, out: Place) -> dict[str, str]:
    """Score bundles that predict classes; returns the scenes that were skipped, and why."""
    evaluation = evaluate_bundles(
        bundles, open_data, folder, data=" ".join(options.data), precision=options.precision, tolerance=options.boundary_tolerance, say=say
    )
    scores, when = [score_bundle(evaluation, counts) for counts in evaluation.bundles], datetime.now(UTC)
    compared = write_tables(evaluation, scores, out)
    write_report(evaluation, scores, compared, out / "report.html", when)
    for each in scores if options.into_bundle else ():
        add_evaluation(each.counts.bundle, evaluation_json(evaluation, each, when))
    print_scores([(each.counts.name, each.overall) for each in scores], SHOWN, ".3f")
    print(f"95 % intervals from {evaluation.drawing.drawn} drawn anew; boundaries within {evaluation.tolerance} px")
    return evaluation.skipped


def write_values(options: argparse.Namespace, bundles: dict[str, Bundle], open_data: OpenData, folder: Path, out: Place) -> dict[str, str]:
    """Score bundles that predict a number; returns the scenes that were skipped, and why."""
    evaluation = evaluate_values(bundles, open_data, folder, data=" ".join(options.data), precision=options.precision, say=say)
    scores, when = [score_errors(evaluation, counts) for counts in evaluation.bundles], datetime.now(UTC)
    compared = write_value_tables(evaluation, scores, out)
    write_value_report(evaluation, scores, compared, out / "report.html", when)
    for each in scores if options.into_bundle else ():
        add_evaluation(each.counts.bundle, value_evaluation_json(evaluation, each, when))
    print_scores([(each.counts.name, each.overall) for each in scores], tuple(MEASURES), ".4g")
    unit = f"; in {evaluation.target.unit}" if evaluation.target.unit else ""
    print(f"95 % intervals from {evaluation.drawing.drawn} drawn anew{unit}")
    return evaluation.skipped


def numbers_of(options: argparse.Namespace, bundles: dict[str, Bundle]) -> Numbers:
    """What the labels of bundles that predict a number mean. Raises Refused for other bundles, and options of classes."""
    target = common_target(bundles)
    said = next((name for name in ("classes", "boundary_tolerance") if getattr(options, name) is not None), None)
    if said:
        raise Refused(f"--{said.replace('_', '-')}: is of classes, and {next(iter(bundles))} predicts a number: leave it out")
    learnt = [(bundle.provenance.get("labels") or {}).get("ignored") or () for bundle in bundles.values()]
    return Numbers(target.name, target.unit, tuple(map(float, (*learnt[0], *options.ignore))))


def load_bundles(places: Sequence[str]) -> dict[str, Bundle]:
    """The bundles by names that tell them apart: the last parts of their paths, as many as that takes."""
    paths = [storage.place_of(place) for place in places]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise Refused(f"{twice}: is named more than once")
    parts = 1
    while len({_tail(path, parts) for path in paths}) < len(paths):
        parts += 1
    return {_tail(path, parts): load_bundle(path) for path in paths}


def _tail(path: Place, parts: int) -> str:
    return "/".join(str(path).split("/")[-parts:])


def class_table(options: argparse.Namespace, bundles: dict[str, Bundle]) -> ClassTable | None:
    """Which label values are which class: by --classes, or as the first bundle that remembers it was trained; None: ask the labels."""
    if options.classes:
        return read_classes(storage.place_of(options.classes), options.ignore)
    for bundle in bundles.values():
        known: dict[str, Any] = bundle.provenance.get("labels") or {}
        values = known.get("values") or {}
        if {entry.name for entry in bundle.classes} == set(values):
            classes = tuple(LabelClass(entry, tuple(values[entry.name])) for entry in bundle.classes)
            return ClassTable(classes, (*known.get("ignored", ()), *options.ignore), bool(known.get("coloured", False)))
    return None


@contextmanager
def working_folder(out: Place) -> Iterator[Path]:
    """A folder, inside `out` if that is local, that is gone when the block ends; so is `out`, if it was made for this and is empty."""
    storage.check_writable(out)
    fresh = isinstance(out, Path) and not out.exists()
    try:
        with storage.temporary_folder(out) as folder:
            yield folder
    finally:
        if fresh and isinstance(out, Path) and not any(out.iterdir()):
            out.rmdir()


def print_scores(bundles: Sequence[tuple[str, Mapping[str, Score]]], names: Sequence[str], kind: str) -> None:
    """The scores with their intervals, a column a bundle."""
    width = max(24, *(len(called) + 2 for called, _ in bundles))
    print(f"\n{'':28s}" + "".join(f"{called:>{width}s}" for called, _ in bundles))
    for name in names:
        cells = [f"{score.value:{kind}} [{score.low:{kind}}, {score.high:{kind}}]" for score in (overall[name] for _, overall in bundles)]
        print(f"{name.replace('_', ' '):28s}" + "".join(f"{cell:>{width}s}" for cell in cells))


def values(text: str) -> list[float]:
    """Label values by commas; whole ones as such."""
    return [int(value) if re.fullmatch(r"\s*-?\d+\s*", value) else float(value) for value in text.split(",")]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with 2 for bad usage, as a job does."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="models to score on the same pixels, as train_model.py writes them")
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="SOURCE", help="labelled images or scenes, as train_model.py takes them"
    )
    parser.add_argument("--labels", metavar="FILE", help="what labels the scene: a raster or polygons; or a folder of masks")
    parser.add_argument("--classes", metavar="FILE", help="which label values are which class (default: as the first bundle was trained)")
    parser.add_argument("--class-column", metavar="NAME", help="of polygons: the column that says the class, or the number")
    parser.add_argument("--ignore", type=values, default=[], metavar="V,V", help="label values that are not scored")
    add_access(parser)
    parser.add_argument("--output", required=True, metavar="OUT", help="folder for report.html and tables; what is there is replaced")
    parser.add_argument("--allow-vrt", action="store_true", help=ALLOW_VRT)
    parser.add_argument("--all", action="store_true", help="also score what a bundle was trained on; without it only what was held out")
    parser.add_argument("--into-bundle", action="store_true", help="also write metrics and confusion matrix into each model.json")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16 or int8, as in deployment (default: auto)")
    parser.add_argument(
        "--boundary-tolerance", type=int, metavar="PX", help="how far off an edge may be (default: 0.75 %% of the diagonal, at most 5)"
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

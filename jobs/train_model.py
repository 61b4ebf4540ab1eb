"""Train a segmentation network on a labelled scene, measure it beside two baselines, and write a bundle.

python jobs/train_model.py --architecture NAME --data SCENE --labels RASTER --classes FILE --output BUNDLE ...
python jobs/train_model.py --architecture NAME --epochs 0 --bands N --classes K --output BUNDLE     random weights
python jobs/train_model.py --list                                                                   the zoo
"""

from __future__ import annotations

import argparse
import inspect
import json
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rasterio.errors import NotGeoreferencedWarning

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Span
from pipeline.imagery import storage
from pipeline.models.bundle import Bundle
from pipeline.models.networks import ARCHITECTURES
from pipeline.models.random_bundle import save_random_bundle
from pipeline.training.classes import read_classes
from pipeline.training.datasets import open_labelled
from pipeline.training.evaluation import score_table
from pipeline.training.fit import Columns, fit, save_fitted
from pipeline.training.loop import Epoch, Recipe, best_epoch

DONE, ERROR, REFUSED = 0, 1, 2
REPORT_SECONDS = 5.0
EXAMPLE = """example:
  python jobs/train_model.py --architecture unet --argument width=16 --argument depth=2 --data jobs/demo/zion/item.json \\
      --labels jobs/demo/zion/nlcd.tif --classes jobs/demo/zion/classes.json \\
      --validation-columns 768:888 --test-columns 936:1128 --output my-model
  python jobs/train_model.py --architecture unet --epochs 0 --bands 4 --classes 3 --output random-model

FILE of --classes is a JSON list of {"name", "color": "#RRGGBB", "values": [label values that belong to it]}.
exit code: 0 done; 2 refused: bad usage or data that cannot be trained on; 1 anything else, interruption included"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. What is wrong with the input is one line on standard error."""
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    try:
        if options.list:
            print("\n".join(zoo()))
        elif options.epochs == 0:
            save_random(options, words)
        else:
            train_model(options, words)
        return DONE
    except (Refused, Unreadable) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return ERROR
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR


def train_model(options: argparse.Namespace, words: Sequence[str]) -> Bundle:
    """From a labelled scene to a bundle: read, train, compare, save."""
    began = time.monotonic()
    folder = free_folder(options.output)
    for name in ("data", "labels", "classes", "validation_columns", "test_columns"):
        if getattr(options, name) is None:
            raise Refused(f"training needs --{name.replace('_', '-')} too; see --help for an example")
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})
    names = options.bands.split(",") if options.bands else None
    labelled = open_labelled(options.data, options.labels, read_classes(storage.local_path(options.classes)), names)
    held_out = Columns(options.validation_columns, options.test_columns, options.train_columns)
    fitted = fit(labelled, options.architecture, dict(options.argument), held_out, recipe, Progress(recipe.epochs))
    bundle = save_fitted(fitted, folder, command=command(words), licences=dict(options.licence), began=began)
    test = fitted.split.test
    print(f"on the test block, columns {test.start} to {test.stop}; best epoch {best_epoch(fitted.epochs).number} of {recipe.epochs}")
    print(score_table(fitted.scores, fitted.class_names))
    print_bundle(bundle)
    return bundle


def save_random(options: argparse.Namespace, words: Sequence[str]) -> Bundle:
    """The bundle of `--epochs 0`."""
    folder = free_folder(options.output)
    if options.data or not (str(options.bands).isdigit() and str(options.classes).isdigit()):
        raise Refused("--epochs 0 makes random weights: it needs --bands N and --classes K, and no --data")
    bundle = save_random_bundle(
        folder, architecture=options.architecture, arguments=dict(options.argument), bands=int(options.bands),
        classes=int(options.classes), seed=options.seed,
        provenance={"command": command(words), "weights": "random, not trained"}, licences=dict(options.licence),
    )  # fmt: skip
    print_bundle(bundle)
    return bundle


def free_folder(output: str) -> Path:
    """Where the bundle will be. Raises Refused, before any work, where there is one or nothing can be written."""
    folder = storage.local_path(output)
    if (folder / "model.json").exists():
        raise Refused(f"{folder}: holds a bundle already; choose another --output or remove it")
    storage.check_writable(folder)
    return folder


def command(words: Sequence[str]) -> str:
    """What was typed, as the bundle remembers it."""
    return f"python jobs/train_model.py {shlex.join(words)}"


class Progress:
    """Prints a line every few seconds, and for the last epoch."""

    def __init__(self, epochs: int):
        self.epochs, self.began, self.printed = epochs, time.monotonic(), 0.0
        self.best: Epoch | None = None

    def __call__(self, epoch: Epoch) -> None:
        if self.best is None or epoch.score > self.best.score:
            self.best = epoch
        now = time.monotonic()
        if now - self.printed < REPORT_SECONDS and epoch.number < self.epochs:
            return
        self.printed = now
        left_s = (now - self.began) / epoch.number * (self.epochs - epoch.number)
        print(
            f"epoch {epoch.number}/{self.epochs}, loss {epoch.loss:.4f}, validation mean IoU {epoch.score:.4f}"
            f" (best {self.best.score:.4f} in epoch {self.best.number}), {left_s:.0f} s left", flush=True,
        )  # fmt: skip


def print_bundle(bundle: Bundle) -> None:
    """What was written, in two lines."""
    exact = "never exact" if bundle.reach.exact_halo is None else f"exact {bundle.reach.exact_halo} px"
    print(f"{bundle.path}: {bundle.architecture}, {bundle.weight_bytes / 1e6:.2f} MB of weights, model id {bundle.model_id[:12]}")
    print(f"stride {bundle.reach.stride} px, halo {bundle.halo} px ({exact})")


def zoo() -> list[str]:
    """A line a network: its name, the first sentence of its description, its own arguments."""
    lines = []
    for name, build in sorted(ARCHITECTURES.items()):
        own = [item for item in inspect.signature(build).parameters.values() if item.name not in ("bands", "classes")]
        described: Callable[..., Any] = build.func if isinstance(build, partial) else build
        sentence = (inspect.getdoc(described) or "").splitlines()[0]
        lines.append(" ".join([f"{name:<28}", sentence, *(f"--argument {item.name}={item.default}" for item in own)]))
    return lines


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; argparse exits with 2 for bad usage, as a job does."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the architectures and stop")
    parser.add_argument("--architecture", metavar="NAME", help="one of --list")
    parser.add_argument(
        "--argument", action="append", default=[], type=name_value, metavar="NAME=VALUE", help="of the architecture, such as width=16"
    )
    parser.add_argument("--output", metavar="BUNDLE", help="the folder to write; must not hold a bundle yet")
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="SCENE", help="a raster or a STAC item")
    data.add_argument("--labels", metavar="RASTER", help="class values, on any grid: its first band, taken by nearest neighbour")
    data.add_argument("--classes", metavar="FILE", help="the class table; with --epochs 0 the number of classes")
    data.add_argument("--bands", metavar="NAMES", help="bands to learn from, by commas (default: all); with --epochs 0 their number")
    data.add_argument("--test-columns", type=columns, metavar="A:B", help="held out, and measured on once at the end")
    data.add_argument("--validation-columns", type=columns, metavar="A:B", help="held out to choose the best epoch by")
    data.add_argument("--train-columns", type=columns, metavar="A:B", help="trained on (default: the widest run left, a halo away)")
    data.add_argument("--licence", action="append", default=[], type=what_licence, metavar="WHAT=SPDX", help="kept in the bundle")
    usual = Recipe()
    recipe = parser.add_argument_group("recipe")
    for name, kind, metavar, what in (
        ("epochs", int, "N", "0 for random weights"),
        ("batch", int, "N", "windows a step"),
        ("window", int, "PX", "side of a training window"),
        ("learning-rate", float, "X", "at the start; it falls as a cosine"),
        ("weight-decay", float, "X", "of AdamW"),
        ("label-smoothing", float, "X", "share of the target given to the other classes"),
        ("balance", float, "X", "0..1: weigh a pixel by its class's rarity to this power"),
        ("seed", int, "N", "of weights, windows and dropout"),
    ):
        default = getattr(usual, name.replace("-", "_"))
        recipe.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=f"{what} (default {default})")
    recipe.add_argument("--no-turn", dest="turn", action="store_false", help="do not flip and turn training windows")
    options = parser.parse_args(words)
    for name in () if options.list else ("architecture", "output"):
        if getattr(options, name) is None:
            parser.error(f"--{name} is required")
    return options


def columns(text: str) -> Span:
    """A:B, as columns A to B without B."""
    start, stop = text.split(":")
    return Span(int(start), int(stop))


def name_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON has it."""
    name, value = text.split("=", 1)
    return name, json.loads(value)


def what_licence(text: str) -> tuple[str, str]:
    """WHAT=SPDX."""
    what, licence = text.split("=", 1)
    return what, licence


if __name__ == "__main__":
    sys.exit(main())

"""Train a segmentation network on labelled images or scenes, measure it beside two baselines, and write a bundle.

python jobs/train_model.py --architecture NAME --data SOURCE ... --output BUNDLE [options]
python jobs/train_model.py --architecture NAME --epochs 0 --bands N --classes K --output BUNDLE     random weights
python jobs/train_model.py --list                                                                   the zoo
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from typing import Any

import torch

from cluster.environment import add_access, ray_address, secure_embedded_ray, use_access, without_access
from cluster.job import DONE, REFUSED, lasting_place, run_job
from cluster.progress import bar
from pipeline.errors import Refused, one_line
from pipeline.imagery import storage
from pipeline.imagery.formats import ALLOW_VRT
from pipeline.imagery.storage import Place
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.engine import choose_device
from pipeline.models.random_bundle import save_random_bundle
from pipeline.models.zoo import table
from pipeline.training.augmentation import Augmentation
from pipeline.training.fit import Training, fit
from pipeline.training.loop import CLASS_METRICS, OPTIMISERS, PRECISIONS, SCHEDULES, VALUE_METRICS, Epoch, Recipe, Trainer, best_epoch
from pipeline.training.losses import SQUARED_ERROR
from pipeline.training.prepare import Request, describe, draw_check, prepare

CHECKPOINTS = "checkpoints"  # in the folder beside the bundle, until the training is done
LINE_EVERY_S, BAR_EVERY_S = 30.0, 0.5
EXAMPLE = """examples:
  python jobs/train_model.py --architecture unet --argument width=16 --argument depth=2 --data jobs/demo/zion/item.json \\
      --labels jobs/demo/zion/nlcd.tif --classes jobs/demo/zion/classes.json --validation 768:888 --test 936:1128 --output my-model
  python jobs/train_model.py --architecture segnet --data camvid/train.txt --validation camvid/val.txt --ignore 11 \\
      --window 352x480 --output street-model
  python jobs/train_model.py --architecture unet --data "mosaics/Tile 1" "mosaics/Tile 2" --test "mosaics/Tile 6" --output roofs
  python jobs/train_model.py --architecture unet --data scene.tif --labels canopy_height.tif --loss mse --test 0.2 --output heights
  python jobs/train_model.py --architecture unet --epochs 0 --bands 4 --classes 3 --output random-model

SOURCE is a scene (raster or STAC item, with --labels), a folder of images (with --labels the folder of masks), a folder that
holds images/ and masks/ side by side at any depth, or a list (.txt, .csv) of an image and its mask a line.
FILE of --classes is a JSON list of {"name", "color": "#RRGGBB", "values": [label values or mask colours "#RRGGBB"]}; without it
each value or colour of the labels is a class.
The same command again goes on where a training was stopped. exit code: 0 done; 2 refused: bad usage or data that cannot be
trained on; 1 anything else, interruption included"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. What is wrong with the input is one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)

    def work() -> int:
        if options.list:
            print("\n".join(table()))
        elif options.epochs == 0:
            save_random(options, words)
        else:
            train_model(options, words)
        return DONE

    return run_job(work, lambda: what_is_left(options), unreadable=REFUSED)


def train_model(options: argparse.Namespace, words: Sequence[str]) -> None:
    """From labelled data to a bundle: read, split, measure, train, save."""
    access = use_access(options)
    request = read_request(options, words)
    output, run = request.output, request.run
    finished = (storage.read_json(run / "run.json") or {}).get("finished")
    if storage.is_file(output / "model.json") and (finished or not storage.is_file(run / "run.json")):
        raise Refused(f"{output}: holds a bundle already; choose another --output or remove it")
    for note in storage.check_writable(output):
        print(f"note: {note}", file=sys.stderr)
    training = prepare(request)
    print("\n".join(map(one_line, describe(training))), flush=True)
    if options.check:
        draw_check(training, run)
        print(f"nothing was trained; look at {run / 'labels.png'} and {run / 'windows.png'}")
        return
    settings = settings_of(training, options.workers)
    if not storage.create_json(run / "run.json", settings):
        adopt(run, settings)
    scores = run_training(training, options, access)
    storage.replace_json(run / "run.json", settings | {"finished": True})
    storage.remove_folder(run / CHECKPOINTS)
    if scores:
        print(f"on the test set ({training.split.how}):")
        print(training.task.table(scores))
    print_bundle(load_bundle(output))
    print(f"{run}: epochs.csv, curves.png, samples.png, tensorboard/")


def read_request(options: argparse.Namespace, words: Sequence[str]) -> Request:
    """The options as a request. Raises Refused, naming the option."""
    output = lasting_place(options.output)
    asked = {item.name: getattr(options, item.name) for item in fields(Recipe) if item.name != "augment"}
    Augmentation.parse(options.augment or "none")
    return Request(
        architecture=options.architecture, arguments=dict(options.argument), data=options.data, output=output,
        recipe=Recipe(**asked), labels=options.labels, classes=options.classes, class_column=options.class_column, ignored=options.ignore,
        trusted=options.allow_vrt,
        bands=options.bands.split(",") if options.bands else None, validation=options.validation, test=options.test, block=options.block,
        augment=options.augment, encoder=options.encoder, licences=dict(options.licence), command=command(words),
    )  # fmt: skip


def run_training(training: Training, options: argparse.Namespace, access: Mapping[str, str]) -> dict[str, Any] | None:
    """On Ray; in this process where Ray is not installed."""
    progress = Progress(training)
    if find_spec("ray") is None:
        if options.workers > 1:
            raise Refused(f"--workers {options.workers}: Ray is not installed (pip install 'ray[train]')")
        return fit(training, torch.device(choose_device()), progress)
    on_gpu = choose_device() == "cuda"
    slots = torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0))
    if ray_address() == "local" and options.workers > slots:
        raise Refused(f"--workers {options.workers}: this machine has {slots} {'GPUs' if on_gpu else 'CPU cores'}")
    secure_embedded_ray()
    from cluster.session import check_paths, ray_session
    from cluster.train import await_workers, train_on_ray

    place = options.checkpoints or str(training.run)
    with ray_session() as found:
        nodes = await_workers(options.workers, found)
        scenes = [item for some in training.split.sets().values() for item in some]
        files = [path for item in scenes for path in (item.labels.place, *(band.path for band in item.scene.bands))]
        check_paths(nodes, sorted({str(storage.place_of(path).parent) for path in files}), str(training.output))
        return train_on_ray(training, nodes, workers=options.workers, storage=place, name=CHECKPOINTS, tell=progress.tell, access=access)


def settings_of(training: Training, workers: int) -> dict[str, Any]:
    """What a training that is taken up again must share with its first start."""
    return {
        "architecture": training.architecture,
        "arguments": training.arguments,
        "bands": [asdict(band) for band in training.statistics.bands],
        **training.task.settings(),
        "split": training.split.to_json(),
        "recipe": asdict(training.recipe),
        "encoder": training.encoder,
        "workers": workers,
    }


def adopt(run: Place, settings: dict[str, Any]) -> None:
    """Go on with a training that was stopped. Raises Refused, naming it, where something else is asked for now."""
    before = storage.read_json(run / "run.json") or {}
    now = json.loads(json.dumps(settings))
    for name, value in now.items():
        if before.get(name) != value:
            what = name
            if isinstance(value, dict) and isinstance(before.get(name), dict):
                what = next(f"{name} {key}" for key in value if before[name].get(key) != value[key])
            raise Refused(f"{run}: holds a training that was stopped, with another {what}: choose another --output, or remove the folder")
    print(f"{run}: holds this training, stopped before its end: it goes on", flush=True)


def what_is_left(options: argparse.Namespace) -> str:
    """The last words of an interrupted training."""
    output = storage.place_of(options.output) if options.output else None
    if output is None or not storage.is_file(output / "model.json"):
        return "no epoch was finished and no bundle was written"
    after = load_bundle(output).metrics.get("interrupted_after_epoch")
    return f"{output} holds the best network so far, of epoch {after}; the same command goes on"


class Progress:
    """A line for each epoch, under a heading, and between them how far the epoch is: a bar on a terminal, lines in a log."""

    def __init__(self, training: Training):
        self.epochs, self.columns = training.recipe.epochs, training.task.columns
        self.written, self.headed, self.bar = time.monotonic(), False, sys.stderr.isatty()

    def resumed(self) -> None:
        """There is nothing to go on from without Ray."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.written < (BAR_EVERY_S if self.bar else LINE_EVERY_S):
            return
        self.written = now
        text = f"epoch {epoch}/{self.epochs}, step {step}/{steps}, loss {loss:.4f}"
        if self.bar:
            print(bar(step, steps, text), end="", file=sys.stderr, flush=True)
        else:
            print(text, flush=True)

    def epoch(self, epoch: Epoch, trainer: Trainer) -> None:
        self.write(epoch, best_epoch(trainer.epochs) is epoch)

    def write(self, epoch: Epoch, best: bool) -> None:
        if self.bar:
            print("\r\x1b[K", end="", file=sys.stderr)
        if not self.headed:
            self.headed = True
            titles = "".join(f" {title:>{kind.split('.')[0]}}" for title, _, kind in self.columns)
            print(f"epoch     loss{titles}   seconds")
        scores = "".join(f" {epoch.scores[name]:>{kind}}" for _, name, kind in self.columns)
        print(f"{epoch.number:>5} {epoch.loss:>8.4f}{scores} {epoch.seconds:>9.1f}{'  best so far' if best else ''}", flush=True)
        self.written = time.monotonic()

    def tell(self, news: Any) -> None:
        """What Ray's workers have to say."""
        for epoch, best in news.epochs:
            self.write(epoch, best)
        if news.step:
            self.step(*news.step)


def save_random(options: argparse.Namespace, words: Sequence[str]) -> Bundle:
    """The bundle of `--epochs 0`."""
    folder = storage.place_of(options.output)
    if storage.is_file(folder / "model.json"):
        raise Refused(f"{folder}: holds a bundle already; choose another --output or remove it")
    storage.check_writable(folder)
    if options.data or not (str(options.bands).isdigit() and str(options.classes).isdigit()):
        raise Refused("--epochs 0 makes random weights: it needs --bands N and --classes K, and no --data")
    if options.loss == SQUARED_ERROR:
        raise Refused(f"--loss {SQUARED_ERROR}: --epochs 0 makes random weights of classes; a target comes from labels")
    bundle = save_random_bundle(
        folder, architecture=options.architecture, arguments=dict(options.argument), bands=int(options.bands),
        classes=int(options.classes), seed=options.seed,
        provenance={"command": command(words), "weights": "random, not trained"}, licences=dict(options.licence),
    )  # fmt: skip
    print_bundle(bundle)
    return bundle


def command(words: Sequence[str]) -> str:
    """What was typed, as the bundle remembers it."""
    return f"python jobs/train_model.py {shlex.join(without_access(words))}"


def print_bundle(bundle: Bundle) -> None:
    """What was written, in two lines."""
    exact = "never exact" if bundle.reach.exact_halo is None else f"exact {bundle.reach.exact_halo} px"
    print(f"{bundle.path}: {bundle.architecture}, {bundle.weight_bytes / 1e6:.2f} MB of weights, model id {bundle.model_id[:12]}")
    print(f"stride {bundle.reach.stride} px, halo {bundle.halo} px ({exact})")


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
    parser.add_argument("--output", metavar="BUNDLE", help="the folder to write, local or s3://; OUTPUT.run beside it keeps curves")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="that train together: GPUs, or shares of the CPUs (default 1)")
    parser.add_argument("--check", action="store_true", help="print what would be trained on, draw samples, and stop")
    parser.add_argument("--checkpoints", metavar="PLACE", help="a folder or s3:// URI that all nodes see (default: in OUTPUT.run)")
    add_access(parser)
    add_data(parser.add_argument_group("data"))
    add_recipe(parser.add_argument_group("recipe"))
    options = parser.parse_args(words)
    for name in () if options.list else ("architecture", "output") if options.epochs == 0 else ("architecture", "output", "data"):
        if not getattr(options, name):
            parser.error(f"--{name} is required")
    if options.workers < 1:
        parser.error("--workers must be 1 or more")
    return options


def add_data(group: argparse._ArgumentGroup) -> None:
    """The options that say what is learnt from."""
    group.add_argument("--data", nargs="+", default=[], metavar="SOURCE", help="labelled images or scenes, see below")
    group.add_argument(
        "--labels", metavar="PLACE", help="a scene's label raster or polygons, or the folder of the masks of a folder of images"
    )
    group.add_argument("--classes", metavar="FILE", help="the class table; with --epochs 0 the number of classes")
    group.add_argument("--allow-vrt", action="store_true", help=ALLOW_VRT)
    group.add_argument("--class-column", metavar="NAME", help="of label polygons: their classes, or numbers (default: class, or value)")
    group.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="VALUE",
        help="label values, or colours #RRGGBB, that are neither learnt nor scored",
    )
    group.add_argument("--bands", metavar="NAMES", help="bands to learn from, by commas (default: all); with --epochs 0 their number")
    for name, default, what in (("validation", "0.2", "choose the best epoch by"), ("test", "0", "measure on once, at the end")):
        group.add_argument(
            f"--{name}", nargs="+", default=[default], metavar="WHAT",
            help=f"held out to {what}: a share of the files, or of spatial blocks where there are few files; columns A:B of a scene;"
            f" or sources of their own (default {default})",
        )  # fmt: skip
    group.add_argument("--block", type=int, metavar="PX", help="side of the spatial blocks that a share is drawn from")
    group.add_argument("--licence", action="append", default=[], type=what_licence, metavar="WHAT=SPDX", help="kept in the bundle")


def add_recipe(group: argparse._ArgumentGroup) -> None:
    """The options that say how."""
    usual = Recipe()
    group.add_argument("--encoder", metavar="FILE", help="pretrained weights of the network's encoder: .pth, .safetensors or a bundle")
    group.add_argument("--window", type=height_width, default=usual.window, metavar="PX|HxW", help="size of training windows (default 128)")
    group.add_argument("--optimiser", choices=OPTIMISERS, default=usual.optimiser, help=f"(default {usual.optimiser})")
    group.add_argument("--schedule", choices=SCHEDULES, default=usual.schedule, help=f"of the learning rate (default {usual.schedule})")
    group.add_argument(
        "--metric", choices=(*CLASS_METRICS, *VALUE_METRICS), default="",
        help=f"that the best epoch is chosen by (default {CLASS_METRICS[0]}, with --loss mse {VALUE_METRICS[0]})",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=PRECISIONS, default=usual.precision, help="of the computation (default auto: bf16 on GPUs, fp32 on CPUs)"
    )
    for name, kind, metavar, what in (
        ("epochs", int, "N", "0 for random weights"),
        ("batch", int, "N", "windows a step, of all workers together"),
        ("accumulate", int, "N", "pieces in which a worker computes its share of a batch"),
        ("learning-rate", float, "X", "before warm-up and schedule"),
        ("encoder-rate", float, "X", "times the learning rate, for the encoder; 0: frozen"),
        ("warm-up", float, "EPOCHS", "in which the learning rate rises"),
        ("weight-decay", float, "X", "L2, of weights but not of norms and biases"),
        ("loss", str, "LOSS", "cross_entropy, focal, dice, or a sum such as cross_entropy+0.5*dice; mse where labels are numbers"),
        ("label-smoothing", float, "X", "share of the target given to the other classes"),
        ("ema", float, "X", "keep a moving average of the weights with this decay a step; 0: none"),
        ("clip", float, "X", "largest norm of the gradients; 0: any"),
        ("patience", int, "N", "stop after so many epochs without a better score; 0: never"),
        ("seed", int, "N", "of weights, splits, windows and dropout"),
    ):
        default = getattr(usual, name.replace("-", "_"))
        group.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=f"{what} (default {default})")
    group.add_argument(
        "--class-weights", type=numbers_or_name, default=usual.class_weights, metavar="HOW",
        help="none, median-frequency, inverse-root, or a number for each class, by commas (default none)",
    )  # fmt: skip
    group.add_argument("--balanced", action="store_true", help="draw windows so that each class is in as many of them")
    group.add_argument(
        "--augment", metavar="HOW",
        help="none, or of turn,flip,rotate=DEGREES,scale=A:B,brightness=X,contrast=X,blur=P,noise=X,band_dropout=P"
        " (default: turn for scenes with a CRS, else flip)",
    )  # fmt: skip
    group.add_argument("--compile", action="store_true", help="compile the network with torch.compile")


def height_width(text: str) -> tuple[int, int]:
    """256 or 352x480."""
    sides = [int(side) for side in text.split("x")]
    return (sides[0], sides[-1]) if len(sides) <= 2 else height_width("")


def numbers_or_name(text: str) -> str | tuple[float, ...]:
    """none, median-frequency, inverse-root, or numbers parted by commas."""
    if text in ("none", "median-frequency", "inverse-root"):
        return text
    return tuple(float(word) for word in text.split(","))


def name_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON has it, or as it stands."""
    name, value = text.split("=", 1)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def what_licence(text: str) -> tuple[str, str]:
    """WHAT=SPDX."""
    what, licence = text.split("=", 1)
    return what, licence


if __name__ == "__main__":
    sys.exit(main())

"""What bundles make of labelled scenes, through the tiled inference of deployment: files of each scene, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.reader import check_scaling
from pipeline.inference.plan import Settings
from pipeline.inference.segment import LocalRun
from pipeline.models.bundle import Bundle
from pipeline.training.block_counts import Labelled, region_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """The files of a scene's layers, which cover `window` of it, and how they were computed: precision and engine."""

    files: dict[str, Path]
    window: Window
    precision: str


@dataclass(frozen=True)
class Predicted:
    """What was made, by bundle and scene, of the scenes that all bundles could segment; and why others were skipped."""

    made: dict[tuple[str, str], Made] = field(default_factory=dict)
    precisions: dict[str, str] = field(default_factory=dict)  # of each bundle
    skipped: dict[str, str] = field(default_factory=dict)


def predict(
    bundles: Mapping[str, Bundle], opened: Mapping[str, Mapping[str, Labelled]], layers: tuple[str, ...], folder: Path, *,
    precision: str, workers: int | None, say: Say,
) -> Predicted:  # fmt: skip
    """Segment every scene with every bundle into `folder`. A scene that cannot be read, or does not fit one of the bundles, is
    skipped for all, named with the reason."""
    found = Predicted(skipped=_unlike(opened))
    for number, (name, bundle) in enumerate(bundles.items()):
        scenes = {scene: item for scene, item in opened[name].items() if scene not in found.skipped}
        for scene, made in _segment(bundle, scenes, layers, folder / str(number), precision, workers):
            if isinstance(made, str):
                found.skipped[scene] = f"{name}: {made}" if len(bundles) > 1 else made
                say(f"skipped {scene}: {made}")
            else:
                found.made[name, scene], found.precisions[name] = made, made.precision
        say(f"{name}: segmented {len(scenes)} scene(s) in {found.precisions.get(name, precision)}")
    return found


def _unlike(opened: Mapping[str, Mapping[str, Labelled]]) -> dict[str, str]:
    """The scenes that not every bundle sees on the same pixels, and why."""
    first, *others = opened.values()
    skipped = {}
    for scene, item in first.items():
        for other in others:
            if scene not in other:
                skipped[scene] = "not every bundle's bands are there"
            elif other[scene].scene.grid != item.scene.grid or other[scene].areas != item.areas:
                skipped[scene] = "the bundles' bands lie on different grids"
    return skipped


def _segment(
    bundle: Bundle, scenes: Mapping[str, Labelled], layers: tuple[str, ...], folder: Path, precision: str, workers: int | None
) -> Iterator[tuple[str, Made | str]]:
    """Of each scene what was made, or why it was not."""
    folder.mkdir(parents=True)
    run: LocalRun | None = None
    regions = {name: region_of(item) for name, item in scenes.items()}
    for number, (name, item) in enumerate(scenes.items()):
        try:
            check_scaling(item.scene, bundle.bands)
            if run is None:
                everything = [(each.scene, regions[other]) for other, each in scenes.items()]
                settings = Settings(precision=precision, layers=layers)
                run = LocalRun(bundle, everything, settings=settings, workers=workers)
            plan = run.plan(item.scene, regions[name])
            done = run.segment(plan, folder / f"{number}.tif", folder)
        except Unreadable as error:
            yield name, str(error)
            continue
        except Refused as error:
            if precision != "auto" and str(error).startswith("--precision"):
                raise  # of no scene
            yield name, str(error)
            continue
        if done.failed:
            done.files[layers[0]].unlink()
            yield name, f"{len(done.failed)} windows failed; the first: {done.failed[0].reason}"
            continue
        yield name, Made(done.files, regions[name].window, f"{plan.precision} by {plan.engine}")

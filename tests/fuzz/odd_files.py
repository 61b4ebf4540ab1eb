"""Every file of a folder ends as a correct mask or as one line: run the segmentation on each, and compare with an independent reading.

    python tests/fuzz/odd_files.py FOLDER [--table FILE]

The network is the one that passes its first band through, so the mask must be what rasterio reads from the whole file, scaled
to 24 steps; 255 where a band that is needed has no value. Each file has a child of its own, ten minutes and limited memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.errors import Refused, Unreadable
from pipeline.geometry.windows import Window
from pipeline.imagery.bands import Band
from pipeline.imagery.beside import transform_of
from pipeline.imagery.damage import unwritten
from pipeline.inference.plan import Settings
from pipeline.inference.segment import segment_scene
from pipeline.models.bundle import ClassEntry, save_bundle
from pipeline.models.networks import build_network
from pipeline.models.receptive import Reach
from tests.fuzz.children import Case, run_cases
from tests.toys import write_scene

STEPS = 24
BESIDE = (".msk", ".tfw", ".xml", ".md", ".tsv", ".ovr", ".hdr")
TIMEOUT_S, MOST_MIB = 600.0, 3000  # a 4 gigapixel file of which nothing can be read takes 160 s of two busy cores
READABLE_PX = 2**26  # of a file that is compared as a whole
GOOD = ("mask", "refused", "unreadable")
LONGEST_LINE, MOST_BANDS = 600, 50


def main() -> int:
    """Print a table and how many files ended how; returns 1 where one ended otherwise than it should."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, help="write the outcomes there, tab-separated")
    options = parser.parse_args()
    cases, lines = list[Case](), ["\t".join(["file", "outcome", "said", "seconds", "MiB"])]
    for case in segment_all(options.folder):
        cases.append(case)
        lines.append("\t".join(map(str, case._replace(name=str(Path(case.name).relative_to(options.folder))))))
        print(lines[-1], flush=True)
    if options.table:
        options.table.write_text("\n".join(lines) + "\n")
    print(f"{len(cases)} files: {dict(Counter(case.outcome for case in cases))}", file=sys.stderr)
    return int(any(not is_good(case) for case in cases))


def is_good(case: Case) -> bool:
    """A right mask or one line, in limited memory."""
    return case.outcome in GOOD and case.used_mib < MOST_MIB and "\n" not in case.said and len(case.said) < LONGEST_LINE


def segment_all(folder: Path) -> Iterator[Case]:
    """What becomes of each file in a folder, at any depth."""
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    torch.set_num_threads(1)
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file() and path.suffix not in BESIDE)
    with tempfile.TemporaryDirectory() as scratch:
        segment_one(str(write_scene(Path(scratch, "first.tif"), np.ones((1, 64, 64), np.uint8))), Path(scratch))  # imports, once for all
        yield from run_cases(files, partial(segment_one, scratch=Path(scratch)), timeout_s=TIMEOUT_S, each=1)


def segment_one(name: str, scratch: Path) -> tuple[str, str]:
    """Segment a file and compare; what is said of it."""
    path, output, bands, expected_HW = Path(name), scratch / "mask.tif", [Band("band_1")], None
    with suppress(Exception):  # rasterio cannot read it: then it must not become a mask either
        bands = bands_of(path)
        bands, expected_HW = expectation(path, bands)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        bundle = Path(folder, "bundle")
        sample_CHW = torch.zeros(len(bands), 128, 128)
        classes = [ClassEntry(number, f"class {number}", "#204060") for number in range(STEPS)]
        save_bundle(
            bundle, build_network("identity", len(bands), STEPS), architecture="identity", arguments={}, bands=bands, classes=classes,
            sample_CHW=sample_CHW, reach=Reach(1, 0, None),
        )  # fmt: skip
        try:
            segment_scene(path, bundle, output, settings=Settings(precision="fp32"), workers=1)
        except Refused as error:
            return "refused", str(error)
        except Unreadable as error:
            return "unreadable", str(error)
        return compare(path, output, expected_HW)


def bands_of(path: Path) -> list[Band]:
    """The bands of a model that this file fits."""
    with rasterio.open(path) as dataset:
        uses = dataset.colorinterp
        indexes = [index for index, use in enumerate(uses, 1) if use != ColorInterp.alpha] or [1]
        indexes = indexes[:MOST_BANDS]
        return [Band(dataset.descriptions[index - 1] or f"band_{index}", categorical=uses[0] == ColorInterp.palette) for index in indexes]


def expectation(path: Path, bands: list[Band]) -> tuple[list[Band], np.ndarray | None]:
    """The same bands, the first scaled to the file's values, and the mask that must come out; None where the file is too large for that."""
    with rasterio.open(path) as dataset:
        uses = dataset.colorinterp
        indexes = [index for index, use in enumerate(uses, 1) if use != ColorInterp.alpha] or [1]
        indexes = indexes[:MOST_BANDS]
        if dataset.height * dataset.width > READABLE_PX:
            return bands, None
        values_CHW = dataset.read(indexes)
        valid_HW = np.logical_and.reduce([dataset.read_masks(index) > 0 for index in indexes])
        if ColorInterp.alpha in uses:
            valid_HW &= dataset.read(uses.index(ColorInterp.alpha) + 1) > 0
        for index in indexes:
            holes_HW = unwritten(dataset, index, Window(0, 0, *dataset.shape), np.zeros(dataset.shape))  # which rasterio does not tell
            valid_HW &= True if holes_HW is None else ~holes_HW
    valid_HW &= np.isfinite(values_CHW.astype(np.float32)).all(axis=0)
    first_HW = values_CHW[0].astype(np.float32).astype(np.float64)
    low, high = (float(end(first_HW[valid_HW])) if valid_HW.any() else 0.0 for end in (np.min, np.max))
    step = max((high - low) / (STEPS - 1), 1e-6 * max(abs(low), abs(high), 1e-3))
    exact_HW = np.clip((first_HW - low) / step, 0, STEPS - 1)
    return [replace(bands[0], mean=low, std=step), *bands[1:]], np.where(valid_HW, exact_HW, np.nan)


def compare(path: Path, output: Path, expected_HW: np.ndarray | None) -> tuple[str, str]:
    """Whether the mask is what was expected, on the file's own grid."""
    if expected_HW is None:
        return "wrong", "a mask of what rasterio does not read"
    with rasterio.open(output) as mask, rasterio.open(path) as dataset:
        ids_HW, same_grid = mask.read(1), mask.transform.almost_equals(transform_of(dataset), 1e-9) and mask.crs == dataset.crs
    if ids_HW.shape != expected_HW.shape or not same_grid:
        return "wrong", f"another grid: {ids_HW.shape}"
    valid_HW = np.isfinite(expected_HW)
    if not np.array_equal(ids_HW != 255, valid_HW):
        return "wrong", f"{int(((ids_HW != 255) != valid_HW).sum())} px are valid that should not be, or the other way round"
    off = np.abs(ids_HW[valid_HW] - expected_HW[valid_HW]).max(initial=0)
    return ("mask", "") if off < 0.5 + 1e-2 else ("wrong", f"{off:g} classes off")


if __name__ == "__main__":
    sys.exit(main())

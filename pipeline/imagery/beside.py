"""What people keep beside a raster on purpose, and is safe to read: a world file that places it, and a mask of what it shows.

The rest is passed over: .aux.xml, which replaced the CRS of a good file, and .ovr, without which a picture of a whole scene
takes one more reading. GDAL would open .ovr and .msk by any of its drivers, as it would the raster itself. Beside an object in
a bucket nothing is looked for: each look would be a request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from affine import Affine, loadsw
from rasterio.io import DatasetReader

from pipeline.imagery import storage
from pipeline.imagery.storage import Place

LARGEST_WORLD_FILE = 4096  # bytes: it holds six numbers
OF_ALL_BANDS = 2  # GMF_PER_DATASET of GDAL


def mask_beside(path: Place) -> Path | None:
    """The mask file `<name>.msk`; None where there is none."""
    return _first([path.with_name(path.name + suffix) for suffix in (".msk", ".MSK")])


def masks_all_bands(mask: DatasetReader) -> bool:
    """Whether a mask file says of itself, as GDAL writes it, that its only band is the mask of all bands."""
    flags = mask.tags().get("INTERNAL_MASK_FLAGS_1", "")
    return flags.isdigit() and bool(int(flags) & OF_ALL_BANDS)


def settings_beside(path: Place) -> Path | None:
    """GDAL's `.aux.xml`, which is not read; None where there is none."""
    return _first([path.with_name(f"{path.name}.aux.xml")])


def world_file(path: Place) -> Path | None:
    """The world file of a raster, by the names that GDAL knows: `a.pgw`, `a.pngw` or `a.wld` of `a.png`."""
    kind = path.suffix.removeprefix(".").lower()
    if len(kind) < 2:
        return None
    suffixes = [f".{kind[0]}{kind[-1]}w", f".{kind}w", ".wld"]
    return _first([path.with_name(path.stem + case) for suffix in suffixes for case in (suffix, suffix.upper())])


def transform_of(dataset: DatasetReader) -> Affine:
    """From (col, row) to the CRS: as the raster itself says, or else the world file beside it."""
    own = dataset.transform
    if not own.is_identity or dataset.gcps[0]:
        return own
    file = world_file(storage.of_gdal(dataset.name))
    return (_read_world(file) if file else None) or own


def _read_world(file: Path) -> Affine | None:
    """None, as GDAL has it, where the file does not hold six numbers that place a raster."""
    try:
        with file.open("rb") as content:
            placed = loadsw(content.read(LARGEST_WORLD_FILE).decode("ascii"))
    except (OSError, ValueError, TypeError):
        return None
    return placed if all(map(math.isfinite, placed)) and not placed.is_degenerate else None


def _first(files: Sequence[Place]) -> Path | None:
    return next((file for file in files if isinstance(file, Path) and file.is_file()), None)

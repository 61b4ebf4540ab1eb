"""Find the bands that a model needs among those that a scene's files hold: by name, by colour, or by place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from pipeline.errors import Refused
from pipeline.imagery.catalogue import Asset, BandEntry, Source

MEANINGLESS_NAME = re.compile(r"(band|b|layer)?[ _-]?#+|gr[ae]y|undefined")  # with # for each digit: see _style
ALPHA_NAMES = {"alpha", "mask", "opacity"}  # any other makes data of an alpha band: GDAL takes the fourth of four bytes for one


@dataclass(frozen=True)
class Band:
    """A band as a model knows it.

    Mean, standard deviation and range are physical: after a file's scale and offset. `nodata` is the raw value that
    means nothing in files that declare no nodata value of their own.
    """

    name: str
    common_name: str | None = None
    wavelength_um: float | None = None
    unit: str | None = None
    mean: float = 0.0
    std: float = 1.0
    range: tuple[float, float] | None = None
    nodata: float | None = None
    categorical: bool = False


@dataclass(frozen=True)
class Found:
    """One band of a scene's files: where it is, what the file and the catalogue say of it, and the names it answers to."""

    dataset: DatasetReader
    index: int
    dtype: str
    nodata: float | None  # that the file or the catalogue declares
    scale: float
    offset: float
    masked: bool
    palette: bool
    names: frozenset[str]  # that somebody gave it, in lower case
    colour: str | None  # red, green, blue, if the file says so and it has no name that means something


def find_bands(source: Source, files: list[tuple[Asset, DatasetReader]], wanted: Sequence[Band]) -> list[Found]:
    """The wanted bands, in order: by name or colour; by place where no band has a name that means something and the counts agree."""
    listed = [found for asset, dataset in files for found in _describe(asset, dataset)]
    asked = [{name.lower() for name in (band.name, band.common_name) if name} for band in wanted]
    matches = [[found for found in listed if names & found.names or found.colour in names] for names in asked]
    needs = ", ".join(band.name for band in wanted)
    ours = {_style(name) for names in asked for name in names}
    named = any(name for found in listed for name in found.names if _style(name) in ours or not MEANINGLESS_NAME.fullmatch(_style(name)))
    if not named and not all(matches):
        if len(listed) != len(wanted):
            alpha = " beside an alpha band" if any(ColorInterp.alpha in dataset.colorinterp for _, dataset in files) else ""
            raise Refused(
                f"{source.uri}: has {len(listed)} band{'s' * (len(listed) != 1)} without names{alpha}, the model needs {len(wanted)}"
                f" ({needs}): give a file with just those, or name the bands in their descriptions"
            )
        _match_by_place(matches, listed)
    for band, candidates in zip(wanted, matches, strict=True):
        if not candidates:
            has = ", ".join("/".join(sorted(found.names)) or found.colour or "unnamed" for found in listed)
            raise Refused(f"{source.uri}: has no band {band.name}; the model needs {needs}, the scene has {has[:300]}")
        if len(candidates) > 1:
            raise Refused(f"{source.uri}: band {band.name} is there {len(candidates)} times; rename the others")
    return [candidates[0] for candidates in matches]


def _match_by_place(matches: list[list[Found]], listed: list[Found]) -> None:
    """Complete `matches` in place, in the files' order: all of them, or those beside red, green and blue that have no colour."""
    spare = [found for found in listed if not any(found in match for match in matches)]
    if len(spare) < len(listed) and any(found.colour for found in spare):
        return  # red is not the model's near infrared
    missing = [number for number, match in enumerate(matches) if not match]
    for number, found in zip(missing, spare, strict=False):
        matches[number] = [found]


def _style(name: str) -> str:
    """How a name is made, whatever number is in it: `band_#` of band_1."""
    return re.sub(r"\d", "#", name)


def is_alpha(use: ColorInterp, *names: str | None) -> bool:
    """Whether a band tells which pixels are seen: it is marked so, and has no name of something else."""
    said = {name.lower() for name in names if name}
    return use == ColorInterp.alpha and (said <= ALPHA_NAMES or all(MEANINGLESS_NAME.fullmatch(_style(name)) for name in said))


def _describe(asset: Asset, dataset: DatasetReader) -> list[Found]:
    """What is said of each band that holds data."""
    uses, entries = dataset.colorinterp, list(asset.bands)
    if len(entries) == 1 and entries[0].of_asset and sum(use != ColorInterp.alpha for use in uses) > 1:
        entries = [replace(entries[0], names=())] * dataset.count
    entries += [BandEntry()] * (dataset.count - len(entries))
    facts = zip(
        uses, entries, dataset.descriptions, dataset.dtypes, dataset.nodatavals, dataset.scales, dataset.offsets,
        dataset.mask_flag_enums, strict=False,
    )  # fmt: skip
    listed, alpha = [], False
    for index, (use, entry, description, dtype, nodata, scale, offset, flags) in enumerate(facts, 1):
        names = frozenset(name.lower() for name in entry.names or (description,) if name)
        meaningless = all(MEANINGLESS_NAME.fullmatch(_style(name)) for name in names)
        if is_alpha(use, *names):
            alpha = True
            continue
        unscaled = (scale, offset) == (1.0, 0.0)  # by the file: then the catalogue is heard
        listed.append(Found(
            dataset, index, dtype,
            nodata=nodata if nodata is not None else entry.nodata,
            scale=entry.scale if unscaled and entry.scale is not None else scale,
            offset=entry.offset if unscaled and entry.offset is not None else offset,
            masked=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
            palette=use == ColorInterp.palette,
            names=names,
            colour=use.name if meaningless and use in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) else None,
        ))  # fmt: skip
    return [replace(found, masked=True) for found in listed] if alpha else listed

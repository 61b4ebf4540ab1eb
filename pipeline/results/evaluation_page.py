"""What the pages of evaluations share: what a reader must know first, and samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from pipeline.results.evaluation_samples import BUNDLES_SHOWN, Sample
from pipeline.results.page import legend, note

FEW_UNITS = 10


def notes(skipped: Mapping[str, str], unpredicted: Mapping[str, int], thing: str, units: int) -> Iterator[str]:
    """What a reader of any evaluation must know: scenes that were skipped and why, labelled pixels that each bundle gives no `thing`,
    and whether there are too few units to draw from."""
    for scene, reason in skipped.items():
        yield note(f"Skipped: {scene}: {reason}")
    told = ", ".join(f"{name} to {count:,}" for name, count in unpredicted.items() if count)
    if told:
        yield note(f"Labelled pixels that a bundle gives no {thing}, where a band is missing, are scored for no bundle: {told}.")
    if units < FEW_UNITS:
        yield note(f"Only {units} unit{'s' * (units != 1)} to draw from: intervals are rough and too narrow, or missing.")


def samples(colours: Iterable[tuple[str, str]], worst: Sequence[Sample], best: Sequence[Sample], bundles: int) -> str:
    """The worst and the best samples of so many bundles; `colours`, #RRGGBB, and what they mean."""
    more = f" The first {BUNDLES_SHOWN} bundles are shown." if bundles > BUNDLES_SHOWN else ""
    parts = [f'{legend(colours)}<p class="faint">Grey: no label, or no data.{more}</p>']
    for title, listed in (("Worst", worst), ("Best", best)):
        parts += [f"<h3>{title}</h3>", *map(_sample_figure, listed)] if listed else []
    return "".join(parts)


def _sample_figure(sample: Sample) -> str:
    window = sample.unit.window
    figures = "".join(
        f'<figure><img src="{uri}" alt="{escape(title)}"><figcaption>{escape(title)}</figcaption></figure>'
        for title, uri in sample.pictures
    )
    place = f"row {window.row}, column {window.col}, {window.height} x {window.width} px"
    return f'<div class="sample"><small>{escape(sample.unit.scene)}: {place}</small><div class="pictures">{figures}</div></div>'

"""The page of a region: well formed, escaped, loads nothing, tells what the tables hold, and looks right in a browser."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import duckdb
import pytest

from pipeline.errors import Refused
from pipeline.results.monitoring import open_monitoring
from pipeline.results.monitoring_report import report_html, write_report
from tests.browser import browser_page, find_browser
from tests.pages import Checker
from tests.results.monitored import MODEL_ID, Monitored, write_results
from tests.results.watched import watched

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
NASTY = "<script>alert('x')</script>"
WINDOWS = {"phone": (390, 844), "desk": (1280, 900)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Monitored]:
    out = tmp_path_factory.mktemp("watched") / "out"
    wanted = Monitored(parcels=49, dates=7, classes=4, districts=4, seed=19, field_m=700, region="north & south", odd_id=NASTY)
    return out, watched(out, wanted)


@pytest.fixture(scope="module")
def html(made: tuple[Path, Monitored]) -> str:
    return report_html(open_monitoring(made[0]), WHEN)


def test_the_page_is_well_formed_loads_nothing_and_escapes_names(html: str) -> None:
    checker = Checker()
    checker.feed(html)
    assert not checker.open and not checker.tags & {"script", "link", "iframe", "object"}
    assert checker.loaded and all(place.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for place in checker.loaded)
    assert "<script" not in html and "&lt;script&gt;" in html and "north &amp; south" in html
    assert "S2 &lt;b&gt;lost&lt;/b&gt;" in html and "bad &amp; worse" in html
    assert "http" not in re.sub("xmlns=.http://www.w3.org/2000/svg.", "", html)
    assert not re.search(r"\b(nan|None)\b", re.sub('src="data:[^"]*"', "", html))
    for svg in html.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    assert len(html) < 600_000


def test_it_tells_what_the_tables_hold(html: str, made: tuple[Path, Monitored]) -> None:
    out, monitored = made
    results = out / "results"
    changes = duckdb.sql(f"SELECT kind, count(*) FROM '{results}/changes/*.parquet' GROUP BY kind").fetchall()
    for kind, title in {"class": "changed class", "index": "less green than expected"}.items():
        assert f"<b>{dict(changes)[kind]}</b><span>{title}</span>" in html
    areas = f"read_parquet('{results}/areas/*/*.parquet', hive_partitioning = true)"
    of_all = f"FROM {areas} WHERE district_id IS NULL"
    days = duckdb.sql(f"SELECT date, max(valid_area_m2), max(seen_area_m2) {of_all} GROUP BY 1 ORDER BY 1").fetchall()
    most = max(seen for *_, seen in days)
    latest = [day for day, valid, _ in days if valid >= 0.5 * most][-1]
    assert f"<h3>On {latest}</h3>" in html
    rows = duckdb.sql(f"SELECT area_m2, adjusted_area_m2, low_m2 {of_all} AND date = DATE '{latest}'").fetchall()
    for row in rows:
        for area_m2 in row:
            assert f"{area_m2 / 1e4:,.1f}" in html or f"{area_m2 / 1e4:,.0f}" in html
    assert html.count('<div class="card">') == sum(dict(changes).values())
    assert len(re.findall('alt="(?:scene|classes) of ', html)) == 4 * sum(dict(changes).values())  # before and since of each
    assert f"{monitored.parcels} parcels have" in html and MODEL_ID in html and "python 3.11.7, gdal 3.10.3" in html


def test_the_same_results_give_the_same_page(html: str, made: tuple[Path, Monitored]) -> None:
    assert report_html(open_monitoring(made[0]), WHEN) == html


def test_a_page_without_what_a_young_monitoring_lacks(tmp_path: Path) -> None:
    write_results(tmp_path, Monitored(parcels=12, dates=1, districts=1, adjusted=False))
    for table in ("series", "seasons", "changes", "indices"):
        for file in (tmp_path / "results" / table).rglob("*.parquet"):
            file.unlink()
    page = report_html(open_monitoring(tmp_path), WHEN)
    assert "class on the last date" in page.lower() and "No parcel has changed" in page
    assert "the model holds no confusion matrix" in page and "Season curves" not in page and "adjusted, " not in page
    for table in ("parcels", "parcel_geometry"):
        for file in (tmp_path / "results" / table).rglob("*.parquet"):
            file.unlink()
    (tmp_path / "current.json").write_text("no json")
    page = report_html(open_monitoring(tmp_path), WHEN)
    assert "No parcels were given" in page and "Class areas over time" in page and "Changed parcels" not in page


def test_one_of_several_regions_is_named(tmp_path: Path) -> None:
    for region in ("east", "west"):
        write_results(tmp_path, Monitored(parcels=9, dates=2, region=region))
    with pytest.raises(Refused, match="has the regions east, west: say which with --of"):
        report_html(open_monitoring(tmp_path), WHEN)
    assert "<h1>west</h1>" in report_html(open_monitoring(tmp_path, "west"), WHEN)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium on PATH: apt-get install chromium")
def test_looked_at_in_a_browser_without_a_network(made: tuple[Path, Monitored], tmp_path: Path) -> None:
    """Nothing is wider than the window, every picture is there, text can be read, the console is silent."""
    path = tmp_path / "report.html"
    write_report(open_monitoring(made[0]), path, WHEN)
    with browser_page(find_browser() or "") as page:
        for name, (width, height) in WINDOWS.items():
            page.open(path, width, height)
            assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
            assert page.evaluate(BEYOND) == []
            widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
            assert len(widths) > 4 and min(widths) > 0
            shown = page.evaluate("document.body.innerText")
            for text in ("north & south", NASTY, "Class areas over time", "Data gaps", "D03", "S2 <b>lost</b>"):
                assert text in shown
            smallest = page.evaluate(SMALLEST_LETTERS)
            assert smallest > 9.0, f"letters of {smallest} px on a {name}"
            page.picture(tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 50_000
        assert page.complaints == []
        assert {url for url in page.loaded if not url.startswith("data:")} == {path.as_uri()}


BEYOND = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 90))"""
SMALLEST_LETTERS = """Math.min(...[...document.querySelectorAll('svg text, td, p, small, span')].filter(e => e.checkVisibility()).map(e => {
    const drawn = e.ownerSVGElement, scale = drawn ? drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width : 1;
    return parseFloat(getComputedStyle(e).fontSize) * scale; }))"""


def test_what_a_run_says_of_another_region_is_not_shown(made: tuple[Path, Monitored], tmp_path: Path) -> None:
    write_results(tmp_path, Monitored(parcels=9, dates=2))
    (tmp_path / "runs").mkdir()
    for number, region in enumerate(("region", "elsewhere")):
        record = {"region": region, "outcome": "done", "started": f"2018-01-0{number + 1}", "scenes_failed": {f"lost in {region}": "why"}}
        (tmp_path / "runs" / f"2018010{number}.json").write_text(json.dumps(record))
    page = report_html(open_monitoring(tmp_path), WHEN)
    assert "lost in region" in page and "elsewhere" not in page

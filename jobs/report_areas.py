"""Make a page that tells what a crop monitoring found, or ask its tables one of the analysts' questions.

    python jobs/report_areas.py OUT [--output report.html]      map, areas, curves, changes, gaps: one file that loads nothing
    python jobs/report_areas.py --query                         the questions, a line each
    python jobs/report_areas.py OUT --query NAME [--parcel ID] [--since D] [--until D] [--class C]

Nothing in OUT is changed, but for the file that --output may name there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime

from cluster.environment import add_access, use_access
from cluster.job import DONE, lasting_place, run_job
from pipeline.errors import Refused, one_line
from pipeline.imagery import storage
from pipeline.results.answers import FORMS, PRINTED, write_answer
from pipeline.results.monitoring import listed, open_monitoring
from pipeline.results.query import asked, read_queries

EXAMPLE = """example:
  python jobs/report_areas.py season --output season.html
  python jobs/report_areas.py season --query districts_by_change --since 2017-04-01 --format csv > districts.csv

exit code: 0 done; 2 refused: no such query, parcel, class or results; 3 results could not be read; 1 anything else"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. What is wrong with the input is one line on standard error."""
    return run_job(lambda: report_areas(parse(arguments)), lambda: "nothing was written")


def report_areas(options: argparse.Namespace) -> int:
    """Write the page, list the questions, or answer one."""
    use_access(options)
    try:
        if options.query is None:
            report(options)
        elif options.query == "":
            print_queries()
        else:
            answer(options)
    except BrokenPipeError:  # who reads has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def report(options: argparse.Namespace) -> None:
    """Write the page."""
    for name in ("parcel", "since", "until", "class", "format"):
        if getattr(options, name) is not None:
            raise Refused(f"--{name}: is of a question: say which with --query NAME")
    place = lasting_place(options.output or "report.html")
    monitoring = open_monitoring(storage.place_of(options.out), options.of)
    from pipeline.results.monitoring_report import write_report  # seconds to import, which a question should not wait

    write_report(monitoring, place, datetime.now(UTC))
    print(f"open {place}")


def print_queries() -> None:
    queries = read_queries()
    width = max(map(len, queries))
    for query in queries.values():
        print(f"{query.name:{width}s}  {query.about}")


def answer(options: argparse.Namespace) -> None:
    """Ask one question, and print or write what was answered."""
    queries = read_queries()
    if options.query not in queries:
        raise Refused(f"--query {options.query}: there is no such query: there are {listed(list(queries))}")
    form = options.format or form_of(options.output)
    if form == "parquet" and options.output is None:
        raise Refused("--format parquet: is not for a terminal: say where with --output FILE")
    place = lasting_place(options.output) if options.output else None
    monitoring = open_monitoring(storage.place_of(options.out), options.of)
    values = {"parcel": options.parcel, "since": options.since, "until": options.until, "class": getattr(options, "class")}
    with asked(monitoring, queries[options.query], values) as found:
        if place:
            write_answer(found, form, place)
        else:
            PRINTED[form](found, sys.stdout)


def form_of(output: str | None) -> str:
    """By the suffix of the file."""
    suffix = output.rpartition(".")[2].lower() if output else ""
    return suffix if suffix in FORMS else "table"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with 2 for bad usage, as a job does."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", metavar="OUT", help="what jobs/monitor_crops.py wrote: a folder or s3://BUCKET/KEY")
    parser.add_argument("--of", metavar="REGION", help="one region of OUT, where it has several")
    parser.add_argument(
        "--output", metavar="FILE", help="where to write, in place of what is there (default: report.html; an answer goes to the terminal)"
    )
    asking = parser.add_argument_group("a question to the tables")
    asking.add_argument("--query", nargs="?", const="", metavar="NAME", help="which one; alone: list them")
    asking.add_argument("--parcel", metavar="ID", help="the parcel it is of")
    asking.add_argument("--since", type=day, metavar="YYYY-MM-DD", help="from this date on")
    asking.add_argument("--until", type=day, metavar="YYYY-MM-DD", help="up to this date, included")
    asking.add_argument("--class", metavar="NAME", help="of this class alone")
    asking.add_argument("--format", choices=FORMS, help="(default: table, or by the suffix of --output)")
    add_access(parser)
    options = parser.parse_intermixed_args(arguments)
    if options.out is None and options.query != "":
        parser.error("the following arguments are required: OUT")
    return options


def day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{one_line(text)} is not a date: write YYYY-MM-DD") from None


if __name__ == "__main__":
    sys.exit(main())

"""Watch a region: segment the scenes that are new, and keep tables of its parcels, classes, seasons and changes.

    python jobs/monitor_crops.py --config monitor.yaml
    ray job submit --working-dir . -- python jobs/monitor_crops.py ...         the same, on a cluster

For a scheduler: run it as often as you like. It does what is new, and nothing where nothing is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from cluster.environment import add_access, use_access
from cluster.job import AGAIN, check_lasting, run_job
from cluster.monitor_config import Watch, parse_day, read_watch
from cluster.monitor_run import print_plan, promote, switch_back, watch_region
from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.imagery.formats import ALLOW_VRT

EXAMPLE = """example:
  python jobs/monitor_crops.py --config jobs/demo/season/monitor.yaml --until 2016-06-30

exit code: 0 nothing new, or all done; 2 refused before work began; 3 scenes or dates failed, the rest is published and they are
tried again next time; 1 anything else, interruption included"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. What is wrong with the input is one line on standard error."""
    return run_job(lambda: monitor_crops(parse(arguments)), lambda: AGAIN, again=True)


def monitor_crops(options: argparse.Namespace) -> int:
    """Read the config, then watch, plan, promote or switch."""
    access = use_access(options)
    watch = read_request(options)
    for note in storage.check_writable(watch.output):
        print(f"note: {note}", file=sys.stderr)
    if options.switch:
        return switch_back(watch, options.switch)
    if options.promote:
        return promote(watch, options.promote, access)
    return print_plan(watch, access) if options.dry_run else watch_region(watch, access)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with 2 for bad usage, as a job does."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="what is watched: YAML, local or s3://; README.md has every key")
    parser.add_argument("--output", metavar="OUT", help="in place of the config's")
    parser.add_argument("--since", metavar="DATE", help="only scenes from this date on, in place of the config's")
    parser.add_argument("--until", metavar="DATE", help="only scenes up to this date, in place of the config's")
    parser.add_argument("--backfill", action="store_true", help="look through all of the archive, whatever the config's lookback_days")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="say which scenes and dates would be done, and do nothing")
    what.add_argument(
        "--promote", metavar="BUNDLE", help="try another model (or a YAML file with rules) beside the one in charge, and compare them"
    )
    what.add_argument("--switch", metavar="MODEL", help="put a model that was tried in charge: the first digits of its hash; back as well")
    parser.add_argument("--allow-vrt", action="store_true", help=ALLOW_VRT)
    add_access(parser)
    return parser.parse_args(arguments)


def read_request(options: argparse.Namespace) -> Watch:
    """The config with what the command line puts in its place. Raises Refused."""
    watch = read_watch(storage.place_of(options.config))
    since, until = (parse_day(f"--{key}", said) if (said := getattr(options, key)) else None for key in ("since", "until"))
    asked = replace(watch.asked, trusted=options.allow_vrt, since=since or watch.asked.since, until=until or watch.asked.until)
    if asked.since and asked.until and asked.since > asked.until:
        raise Refused(f"--since {asked.since} is after --until {asked.until}")
    if options.output:
        watch = replace(watch, output=storage.place_of(options.output))
    check_lasting(f"--output {options.output}" if options.output else f"{options.config}: output", watch.output)
    return replace(watch, asked=asked, lookback_days=None if options.backfill else watch.lookback_days)


if __name__ == "__main__":
    sys.exit(main())

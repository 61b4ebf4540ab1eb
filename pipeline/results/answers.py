"""What a query answered, written for a person (lines), a spreadsheet (CSV) or a program (Parquet), some rows at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any, TextIO

import duckdb

from pipeline.errors import one_line
from pipeline.imagery import storage
from pipeline.imagery.storage import Place
from pipeline.results.summary import short

ANSWER = "answer"  # the table that holds it
SHOWN, WIDEST = 50, 36  # rows, and characters of a cell, for a person
AT_ONCE = 20_000  # rows


def print_lines(connection: duckdb.DuckDBPyConnection, to: TextIO) -> None:
    """The first rows, in columns, and whether there are more."""
    answer = connection.execute(f"FROM {ANSWER}")
    names = [column[0] for column in answer.description or []]
    found = answer.fetchmany(SHOWN + 1)
    cells = [names, *([_cell(value) for value in row] for row in found[:SHOWN])]
    numeric = [all(isinstance(row[column], int | float | None) for row in found) for column in range(len(names))]
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [cell.rjust(wide) if right else cell.ljust(wide) for cell, wide, right in zip(row, width, numeric, strict=True)]
        to.write("  ".join(padded).rstrip() + "\n")
    if not found:
        to.write("no rows\n")
    if len(found) > SHOWN:
        to.write(f"and more: the first {SHOWN} rows are shown, --format csv or parquet gives all\n")


def print_csv(connection: duckdb.DuckDBPyConnection, to: TextIO) -> None:
    """Every row; what is null is empty."""
    answer = connection.execute(f"FROM {ANSWER}")
    writer = csv.writer(to, lineterminator="\n")
    writer.writerow(column[0] for column in answer.description or [])
    for rows in iter(lambda: answer.fetchmany(AT_ONCE), []):
        writer.writerows(rows)


def write_answer(connection: duckdb.DuckDBPyConnection, form: str, place: Place) -> None:
    """Write a file of the form table, csv or parquet, in place of what is there."""
    finished = storage.temporary(place.parent, place.name)
    with storage.discarded(finished):
        if form == "parquet":
            name = str(finished).replace("'", "''")
            connection.execute(f"COPY {ANSWER} TO '{name}' (FORMAT parquet, COMPRESSION zstd)")
        else:
            with finished.open("w", encoding="utf-8", newline="") as file:
                PRINTED[form](connection, file)
        storage.publish(finished, place)


PRINTED: dict[str, Callable[[duckdb.DuckDBPyConnection, TextIO], None]] = {"table": print_lines, "csv": print_csv}
FORMS = (*PRINTED, "parquet")


def _cell(value: Any) -> str:
    text = "" if value is None else short(value) if isinstance(value, float) else one_line(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"

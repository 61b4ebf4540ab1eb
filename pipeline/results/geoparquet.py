"""Write GeoParquet 1.1 in row groups, as rows come: WKB, a bbox column that covers it, the CRS as PROJJSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj

from pipeline.results.tables import BBOX

CORNERS = tuple(field.name for field in BBOX)


class GeoParquetWriter:
    """A file of one geometry column, `geometry`, of polygons whose outlines run counterclockwise.

    Every row group holds `group` rows; the last what is left. `repeated` are columns of few values, `kinds` what
    geometries there are.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, wkt: str | None, metadata: Mapping[str, str], group: int, repeated: list[str],
        kinds: Sequence[str] = ("Polygon",),
    ):  # fmt: skip
        self._file = pq.ParquetWriter(path, schema.with_metadata(dict(metadata)), compression="zstd", use_dictionary=repeated)
        self._schema, self._group, self._kinds = schema, group, list(kinds)
        self._crs = pyproj.CRS.from_wkt(wkt).to_json_dict() if wkt else None
        self._waiting: list[pa.Table] = []
        self._low = self._high = np.full(2, np.nan)

    def __enter__(self) -> GeoParquetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, columns: Mapping[str, pa.Array], geometry: pa.Array, bounds: np.ndarray) -> None:
        """Add rows, at least one: all columns but geometry and bbox, the WKB of the geometries, and their bounds, rows x 4."""
        self._low, self._high = np.fmin(self._low, bounds[:, :2].min(axis=0)), np.fmax(self._high, bounds[:, 2:].max(axis=0))
        bbox = pa.StructArray.from_arrays([pa.array(bound) for bound in bounds.T], fields=list(BBOX))
        made = {**columns, "geometry": geometry, "bbox": bbox}
        self._waiting.append(pa.table({name: made[name] for name in self._schema.names}, schema=self._schema))
        while sum(table.num_rows for table in self._waiting) >= self._group:
            self._write(self._group)

    def finish(self) -> None:
        """Write what waits, and what is known of the geometry then."""
        if self._waiting:
            self._write(self._group)
        self._file.add_key_value_metadata({"geo": json.dumps(self._geo())})

    def _write(self, rows: int) -> None:
        waiting = pa.concat_tables(self._waiting)
        self._file.write_table(waiting.slice(0, rows).combine_chunks(), row_group_size=rows)
        rest = waiting.slice(rows)
        self._waiting = [rest] if rest.num_rows else []

    def _geo(self) -> dict[str, object]:
        column: dict[str, object] = {
            "encoding": "WKB", "geometry_types": self._kinds, "crs": self._crs, "orientation": "counterclockwise", "edges": "planar",
            "covering": {"bbox": {name: ["bbox", name] for name in CORNERS}},
        }  # fmt: skip
        if np.isfinite(self._low).all():
            column["bbox"] = [*self._low.tolist(), *self._high.tolist()]
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}

"""Join the parts of a scene into one Cloud-Optimized GeoTIFF, through GDAL's own COG driver."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.transform import Affine

from pipeline.geometry.windows import BLOCK, Window
from pipeline.imagery.raster import Grid
from pipeline.inference.part import count_values
from pipeline.inference.plan import Plan
from pipeline.models.bundle import NODATA, Bundle

CREATION = {
    "blocksize": BLOCK, "compress": "DEFLATE", "bigtiff": "IF_SAFER", "overviews": "IGNORE_EXISTING",
    "overview_compress": "DEFLATE", "num_threads": 1,
}  # fmt: skip


def write_mask(parts: Iterable[tuple[Window, Path]], target: Path, plan: Plan, bundle: Bundle, *, input_id: str) -> np.ndarray:
    """Write the class ids of a scene as a COG with colour table, class table and `input_id`; returns its value counts."""
    tags = {"CLASSES": json.dumps(bundle.class_table), "INPUT_ID": input_id, "MODEL_ID": bundle.model_id, "SCENE": plan.scene.uri}
    return write_cog(
        parts, [1], target, region=plan.region.window, grid=plan.scene.grid, tags=tags, names=["class"], colours=bundle.colours
    )


def write_cog(
    parts: Iterable[tuple[Window, Path]], bands: Sequence[int], target: Path, *, region: Window, grid: Grid,
    tags: Mapping[str, str], names: Sequence[str], colours: Mapping[int, tuple[int, int, int]] | None = None,
    resampling: str = "MODE",
) -> np.ndarray:  # fmt: skip
    """Write bands `bands` of the parts as one COG over `region`, 255 where no part lies, and read it back whole.

    `names` are the band descriptions; `colours` makes it a palette image. Returns how often each value, 0..255, is
    in its first band, as read back from the finished file: a caller compares it with what the parts counted.
    """
    mosaic = target.with_name(target.name.removesuffix(".tmp") + ".vrt.tmp")
    try:
        mosaic.write_text(_mosaic(parts, bands, region, grid, tags, names, colours), encoding="utf-8")
        with rasterio.Env(GDAL_PAM_ENABLED="NO"):
            rasterio.shutil.copy(mosaic, target, driver="COG", overview_resampling=resampling, **CREATION)
    finally:
        mosaic.unlink(missing_ok=True)
    with rasterio.open(target) as dataset:
        return count_values(dataset)


def _mosaic(
    parts: Iterable[tuple[Window, Path]], bands: Sequence[int], region: Window, grid: Grid,
    tags: Mapping[str, str], names: Sequence[str], colours: Mapping[int, tuple[int, int, int]] | None,
) -> str:  # fmt: skip
    """A GDAL virtual raster (VRT) of the parts: it holds no pixels."""
    placed = [(part.relative_to(region), path) for part, path in parts]
    lines = [f'<VRTDataset rasterXSize="{region.width}" rasterYSize="{region.height}">']
    if grid.crs:
        lines.append(f"<SRS>{escape(grid.crs)}</SRS>")
    transform = grid.affine * Affine.translation(region.col, region.row)
    if not transform.is_identity:
        lines.append(f"<GeoTransform>{', '.join(map(repr, transform.to_gdal()))}</GeoTransform>")
    entries = "".join(f'<MDI key="{escape(key)}">{escape(value)}</MDI>' for key, value in sorted(tags.items()))
    lines.append(f"<Metadata>{entries}</Metadata>")
    for number, (source_band, name) in enumerate(zip(bands, names, strict=True), 1):
        lines.append(f'<VRTRasterBand dataType="Byte" band="{number}" blockXSize="{BLOCK}" blockYSize="{BLOCK}">')
        lines.append(f"<Description>{escape(name)}</Description><NoDataValue>{NODATA}</NoDataValue>")
        if colours:
            lines.append(f"<ColorInterp>Palette</ColorInterp><ColorTable>{_colour_entries(colours)}</ColorTable>")
        for window, path in placed:
            size = f'xSize="{window.width}" ySize="{window.height}"'
            lines.append(
                f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(path))}</SourceFilename>'
                f"<SourceBand>{source_band}</SourceBand>"
                f'<SourceProperties RasterXSize="{window.width}" RasterYSize="{window.height}" DataType="Byte"'
                f' BlockXSize="{BLOCK}" BlockYSize="{BLOCK}"/>'
                f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{window.col}" yOff="{window.row}" {size}/></SimpleSource>'
            )
        lines.append("</VRTRasterBand>")
    lines.append("</VRTDataset>")
    return "\n".join(lines)


def _colour_entries(colours: Mapping[int, tuple[int, int, int]]) -> str:
    entries = []
    for value in range(256):
        red, green, blue = colours.get(value, (0, 0, 0))
        alpha = 255 if value in colours else 0
        entries.append(f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="{alpha}"/>')
    return "".join(entries)

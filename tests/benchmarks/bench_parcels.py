"""How fast, how small and how exact are the statistics of parcels? Against exactextract's own DataFrame and rasterising.

    python tests/benchmarks/bench_parcels.py [--parcels 90000] [--size 6000]
    python tests/benchmarks/bench_parcels.py --real ../shared/data

Every way runs in a process of its own, one after the other, on the same files; the peak is that process's resident memory, in which
the libraries alone take what the line `imports` says. With --real: what each way is off on real parcels, where shapely's intersection
of every pixel's box with the polygon is the truth.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import geopandas
import numpy as np
import pyproj
import rasterio
import shapely
from exactextract import exact_extract
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.errors import Refused
from pipeline.imagery.bands import Band
from pipeline.imagery.catalogue import find_sources
from pipeline.imagery.expressions import Expression
from pipeline.imagery.parcels import Parcels, read_parcels
from pipeline.imagery.raster import open_scene
from pipeline.results.seen import SeenScene
from pipeline.results.zonal import Coverages, parcel_statistics

CLASSES = 5
PX = 10.0
NDVI = {"ndvi": Expression.parse("(nir - red) / (nir + red)")}
REAL = 100  # parcels of a country at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parcels", type=int, default=90_000)
    parser.add_argument("--size", type=int, default=6000, help="px a side of the mask")
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="shared/data: compare areas on real parcels instead")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        WAYS[options.way](options.folder)
        return
    from tests.benchmarks.machine import describe_machine  # brings torch, which would be in every peak

    print(describe_machine())
    if options.real:
        compare_real(options.real)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scene(folder, options.size)
        make_parcels(folder / "parcels.parquet", options.parcels, options.size)
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--folder", name]
            subprocess.run(command, check=True)


def write_scene(*arguments: object, **profile: object) -> None:
    from tests.toys import write_scene

    write_scene(*arguments, **profile)


def make_scene(folder: Path, size: int) -> None:
    """A mask of blobs with 5 % nodata, and red and near infrared."""
    random = np.random.default_rng(1)
    blobs = random.integers(0, CLASSES, (size // 8 + 1, size // 8 + 1)).repeat(8, 0).repeat(8, 1)[:size, :size]
    mask_HW = np.where(random.random((size, size)) < 0.05, 255, blobs).astype(np.uint8)
    bands_CHW = random.integers(500, 6000, (2, size, size)).astype(np.uint16)
    place = {"transform": from_origin(500_000, 5_400_000, PX, PX), "crs": "EPSG:32633"}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    write_scene(folder / "mask.tif", mask_HW[None], nodata=255, **place, **blocks)
    write_scene(folder / "scene.tif", bands_CHW, nodata=0, descriptions=["red", "nir"], **place, **blocks)


def make_parcels(path: Path, count: int, size: int) -> None:
    """Fields of a jittered lattice, twelve corners each, which leave paths between them."""
    random = np.random.default_rng(2)
    side = int(np.ceil(np.sqrt(count)))
    step = size / side
    row, col = (values.ravel()[:count] for values in np.mgrid[:side, :side])
    around = np.linspace(0, 1, 4)[:3]
    square = np.concatenate([np.stack(edge, 1) for edge in (
        (around, 0 * around), (1 + 0 * around, around), (1 - around, 1 + 0 * around), (0 * around, 1 - around))])  # fmt: skip
    corners = np.stack([col, row], 1)[:, None] + 0.06 + 0.88 * square + random.uniform(-0.05, 0.05, (count, 12, 2))
    polygons = shapely.polygons(corners * step * PX * (1, -1) + (500_000, 5_400_000))
    frame = geopandas.GeoDataFrame({"id": np.arange(count)}, geometry=polygons[shapely.is_valid(polygons)], crs="EPSG:32633")
    frame.to_parquet(path)


def told(way: str, **works: Callable[[], object]) -> None:
    """Do them in order, and print the seconds of each: on the clock, and of the CPU, which a busy machine changes less."""
    spent = []
    for name, work in works.items():
        clock, cpu = perf_counter(), process_time()
        work()
        spent.append(f"{name} {perf_counter() - clock:.2f} ({process_time() - cpu:.2f})")
    status = Path("/proc/self/status").read_text()  # getrusage tells the peak of the process that began this one
    print(f"{way:13s} peak {int(status.partition('VmHWM:')[2].split()[0]) / 1024:5.0f} MB   {', '.join(spent)} s", flush=True)


def imports(folder: Path) -> None:
    told("imports")


def ours(folder: Path) -> None:
    """Classes alone; again with what is covered known, as on the next date; and with an index too."""
    scene = open_scene(find_sources([str(folder / "scene.tif")])[0], [Band("red"), Band("nir")])
    made: list[Coverages] = []

    def count(**indices: Expression) -> None:
        parcel_statistics(made[0], [SeenScene(scene, folder / "mask.tif", None, indices)], CLASSES)

    told(
        "ours", read=lambda: made.append(Coverages(read_parcels(folder / "parcels.parquet"))), first=count, next_date=count,
        with_ndvi=lambda: count(**NDVI),
    )  # fmt: skip


def dataframe(folder: Path) -> None:
    frame = geopandas.read_parquet(folder / "parcels.parquet")
    asked = ["count", "unique", "frac"]
    told("exactextract", first=lambda: exact_extract(str(folder / "mask.tif"), frame, asked, include_cols=["id"], output="pandas"))


def rasterised(folder: Path) -> None:
    """Each parcel burnt into its own window, pixels whose centre is inside: the mask is in memory."""
    frame = geopandas.read_parquet(folder / "parcels.parquet")
    with rasterio.open(folder / "mask.tif") as dataset:
        mask_HW, transform = dataset.read(1), dataset.transform
    told("rasterised", first=lambda: [by_centres(mask_HW, polygon) for polygon in pixels_of(frame.geometry.to_numpy(), transform)])


def pixels_of(polygons: np.ndarray, transform: Affine) -> np.ndarray:
    a, b, c, d, e, f = tuple(~transform)[:6]
    return shapely.transform(polygons, lambda xy: np.column_stack([xy @ (a, b) + c, xy @ (d, e) + f]))


def by_centres(mask_HW: np.ndarray, polygon: shapely.Geometry) -> np.ndarray:
    left, top, right, bottom = polygon.bounds
    rows = slice(max(int(top), 0), min(int(bottom) + 1, mask_HW.shape[0]))
    cols = slice(max(int(left), 0), min(int(right) + 1, mask_HW.shape[1]))
    burnt = rasterize([polygon], (rows.stop - rows.start, cols.stop - cols.start), transform=Affine.translation(cols.start, rows.start))
    return np.bincount(mask_HW[rows, cols][burnt == 1], minlength=256)[:-1].astype(float)


WAYS = {"imports": imports, "ours": ours, "exactextract": dataframe, "rasterised": rasterised}


def exactly(mask_HW: np.ndarray, polygon: shapely.Geometry) -> np.ndarray:
    """Pixels of each class, by shapely."""
    left, top, right, bottom = polygon.bounds
    rows = np.arange(max(int(top), 0), min(int(bottom) + 1, mask_HW.shape[0]))
    cols = np.arange(max(int(left), 0), min(int(right) + 1, mask_HW.shape[1]))
    col, row = np.meshgrid(cols, rows)
    shapely.prepare(polygon)
    share_HW = shapely.area(shapely.intersection(shapely.box(col, row, col + 1, row + 1), polygon))
    return np.bincount(mask_HW[row, col].ravel(), share_HW.ravel(), 256)[:-1]


def compare_real(data: Path) -> None:
    """A line a country: what ours and rasterising are off, in shares of a parcel, in its worst class: the most, and the mean."""
    fiboa = data / "fiboa-parcels" / "tests" / "data-files" / "convert"
    heads = "ours off: most, mean    rasterised off: most, mean   ha: ours, exact, rasterised"
    print(f"{'parcels':24s} {'median ha':>9s} {'count':>5s}   {heads}")
    for path in sorted(each for each in fiboa.rglob("*") if each.suffix in (".zip", ".gpkg", ".shp")):
        with tempfile.TemporaryDirectory() as name:
            compare(path.parent.name, Path(name), open_parcels(path))
    compare_lulc(data / "eolearn-slovenia" / "example_data" / "TestEOPatch")


def open_parcels(path: Path) -> Parcels:
    for column in (None, "fid", "CUL_ID"):
        try:
            return read_parcels(path, column)
        except Refused as error:
            last = error
    raise last


def compare(title: str, folder: Path, parcels: Parcels) -> None:
    """On a mask of 30 km x 30 km at 10 m, in UTM, where most of them lie."""
    way = pyproj.Transformer.from_crs(parcels.crs, "EPSG:4326", always_xy=True)
    middles = np.column_stack(way.transform(*shapely.get_coordinates(shapely.centroid(parcels.polygons)).T))
    apart = np.abs(middles[:, None] - middles).max(axis=2)
    lon, lat = middles[(apart < 0.1).sum(axis=1).argmax()]  # where most are near
    epsg = (32600 if lat >= 0 else 32700) + int((lon + 180) // 6) + 1
    x, y = pyproj.Transformer.from_crs("EPSG:4326", epsg, always_xy=True).transform(lon, lat)
    transform, size = from_origin(round(x, -1) - 15_000, round(y, -1) + 15_000, PX, PX), 3000
    random = np.random.default_rng(3)
    mask_HW = random.integers(0, CLASSES, (size // 6, size // 6)).repeat(6, 0).repeat(6, 1).astype(np.uint8)
    write_scene(folder / "mask.tif", mask_HW[None], nodata=255, transform=transform, crs=f"EPSG:{epsg}")
    report(title, folder / "mask.tif", mask_HW, transform, f"EPSG:{epsg}", parcels)


def compare_lulc(patch: Path) -> None:
    """The real land use of eo-learn's patch."""
    mask_HW = np.load(patch / "mask_timeless" / "LULC.npy")[..., 0]
    west, south, east, north = geopandas.read_file(patch / "bbox.geojson").total_bounds
    height, width = mask_HW.shape
    transform = from_origin(west, north, (east - west) / width, (north - south) / height)
    kept = np.unique(mask_HW)
    dense_HW = np.searchsorted(kept, mask_HW).astype(np.uint8)
    with tempfile.TemporaryDirectory() as name:
        write_scene(Path(name) / "mask.tif", dense_HW[None], nodata=255, transform=transform, crs="EPSG:32633")
        parcels = read_parcels(patch / "vector_timeless" / "LULC.gpkg", "fid")
        report("eolearn LULC", Path(name) / "mask.tif", dense_HW, transform, "EPSG:32633", parcels)


def report(title: str, mask: Path, mask_HW: np.ndarray, transform: Affine, crs: str, parcels: Parcels) -> None:
    scene = open_scene(find_sources([str(mask)])[0], [Band("1")])
    found = parcel_statistics(Coverages(parcels), [SeenScene(scene, mask)], int(mask_HW.max()) + 1)
    moved = geopandas.GeoSeries(parcels.polygons, crs=parcels.crs).segmentize(20 if "PROJ" in parcels.crs[:4] else 2e-4).to_crs(crs)
    pixels = pixels_of(moved.to_numpy(), transform)
    inside = shapely.contains_properly(shapely.box(0, 0, *mask_HW.shape[::-1]), pixels)
    numbers = np.flatnonzero(inside)[:REAL]
    if not len(numbers):
        print(f"{title:24s} none lies on the mask")
        return
    exact = np.array([exactly(mask_HW, pixels[number]) for number in numbers])
    burnt = np.array([by_centres(mask_HW, pixels[number]) for number in numbers])
    whole = shapely.area(pixels[numbers])[:, None]
    ours_off, burnt_off = (np.abs(values - exact) / whole for values in (widened(found.pixels_PK[numbers]), burnt))
    m2_a_pixel = found.area_m2_PK.sum() / found.pixels_PK.sum() / 1e4
    totals = [found.area_m2_PK[numbers].sum() / 1e4, exact.sum() * m2_a_pixel, burnt.sum() * m2_a_pixel]
    print(
        f"{title:24s} {np.median(parcels.area_m2) / 1e4:9.2f} {len(numbers):5d}"
        f"   {ours_off.max():.1e}, {ours_off.max(axis=1).mean():.1e}    {burnt_off.max():8.2%}, {burnt_off.max(axis=1).mean():.2%}"
        f"            {totals[0]:.2f}, {totals[1]:.2f}, {totals[2]:.2f}",
        flush=True,
    )


def widened(pixels_PK: np.ndarray) -> np.ndarray:
    return np.pad(pixels_PK, ((0, 0), (0, 255 - pixels_PK.shape[1])))


if __name__ == "__main__":
    main()

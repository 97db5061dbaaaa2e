"""Label rasters as polygons in a GeoPackage."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gla_jax.support.errors import first_line
from gla_jax.support.files import unfinished

LAYER = "regions"
ROWS_AT_ONCE = 20_000  # polygons that are written together


def write_regions(labels: Path, names: Sequence[str], place: Path) -> None:
    """Write a polygon for every 4-connected region of a label GeoTIFF, with class number, name and area in pixels.

    Raises OSError when the file cannot be written.
    """
    import pyogrio
    import rasterio
    from rasterio.features import shapes
    from shapely.geometry import shape

    beside = unfinished(place)
    beside = beside.with_name(f"{beside.name}.gpkg")  # GDAL chooses the driver's rules by the ending
    geometries, values, areas = [], [], []

    def write() -> None:
        fields = ["class", "name", "pixels"]
        columns = [np.array(values), np.array([names[value] for value in values], object), np.array(areas)]
        crs = source.crs.to_wkt() if source.crs else None
        pyogrio.raw.write(
            beside,
            np.array([geometry.wkb for geometry in geometries], object),
            columns,
            fields,
            layer=LAYER,
            driver="GPKG",
            geometry_type="Polygon",
            crs=crs,
            append=beside.exists(),
        )
        for column in (geometries, values, areas):
            column.clear()

    try:
        with rasterio.open(labels, driver="GTiff") as source:
            pixel = abs(source.transform.determinant)
            for polygon, value in shapes(rasterio.band(source, 1), connectivity=4, transform=source.transform):
                if value != source.nodata:
                    geometries.append(shape(polygon))
                    values.append(int(value))
                    areas.append(round(geometries[-1].area / pixel))
                if len(values) == ROWS_AT_ONCE:
                    write()
            write()
        beside.replace(place)
    except (pyogrio.errors.DataSourceError, rasterio.errors.RasterioError) as error:
        raise OSError(f"{place} cannot be written ({first_line(error)})") from error
    finally:
        beside.unlink(missing_ok=True)

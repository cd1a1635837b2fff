"""Its calls and its traits: rows and columns of organised clouds swapped, never dense, rows taken as packed, bytes swapped in place."""

import array

import numpy as np
from sensor_msgs.msg import PointCloud2

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


def _dtype(fields, point_step=None) -> np.dtype:
    described = {
        "names": [f.name for f in fields],
        "formats": [_TYPES[f.datatype] for f in fields],
        "offsets": [f.offset for f in fields],
    }
    return np.dtype({**described, "itemsize": point_step} if point_step is not None else described)


def create_cloud(header, fields, points, point_step=None) -> PointCloud2:
    points = np.asarray(points, None if isinstance(points, np.ndarray) else _dtype(fields, point_step))
    assert points.dtype == _dtype(fields, point_step) and points.ndim <= 2
    width, height = points.shape if points.ndim == 2 else (len(points), 1)
    cloud = PointCloud2(
        header=header, height=height, width=width, fields=fields, is_dense=False, point_step=points.dtype.itemsize,
        row_step=points.dtype.itemsize * width,
    )  # fmt: skip
    cloud.data = array.array("B", memoryview(points).cast("B").tobytes())
    return cloud


def read_points(cloud, field_names=None, skip_nans=False, uvs=None, reshape_organized_cloud=False) -> np.ndarray:
    assert isinstance(cloud, PointCloud2)
    points = np.ndarray(cloud.width * cloud.height, _dtype(cloud.fields, cloud.point_step), cloud.data)
    if field_names is not None:
        points = points[list(field_names)]
    if cloud.is_bigendian:
        points = points.byteswap(inplace=True)
    if skip_nans and not cloud.is_dense:
        points = points[~np.any([np.isnan(points[n]) for n in points.dtype.names], axis=0)]
    points = points if uvs is None else points[np.fromiter(uvs, int)]
    return points.reshape(cloud.width, cloud.height) if reshape_organized_cloud and cloud.height > 1 else points

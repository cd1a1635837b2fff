"""Lens distortion: reads it from CameraInfo and removes it from images and depth.

The lens models are OpenCV's. A rectified image has the size of the original and a pinhole camera of its own: the largest whose
pixels all lie inside the original (alpha 0), so no pixel is invented at the border. Imports no ROS; messages are read by the names
of their fields.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..errors import FrameError
from ..files import quoted
from ..types import F32, F64, U8

# distortion_model -> how many coefficients it may have. 12 and 14 are OpenCV's thin prism and tilted sensor; OpenCV goes by
# the number alone, so the first two are one model.
_POLYNOMIAL = (4, 5, 8, 12, 14)
MODELS: Mapping[str, tuple[int, ...]] = {
    "plumb_bob": _POLYNOMIAL,
    "rational_polynomial": _POLYNOMIAL,
    "equidistant": (4,),
}
# Other names of the same models in kalibr, COLMAP, drivers and papers. RealSense's inverse model is not among them.
_NO_LENS = ("none", "pinhole", "perspective", "no_distortion", "undistorted", "rectified", "simple_pinhole")
_OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(
        ("radtan", "radial_tangential", "pinhole_radtan", "brown_conrady", "brown", "opencv", "plumbob", "radial"), "plumb_bob"
    ),
    **dict.fromkeys(("rational", "rational_poly", "thin_prism", "full_opencv", "rational_thin_prism"), "rational_polynomial"),
    **dict.fromkeys(
        ("fisheye", "opencv_fisheye", "kannala_brandt", "kannala_brandt4", "kannala", "kb4", "equi", "equidist", "pinhole_equi"),
        "equidistant",
    ),
}  # fmt: skip
# OpenCV finds the largest pinhole from a few border points only: it is narrowed by these factors until all pixels fit.
_ZOOMS = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0)
_MOST_ZOOM = 4.0  # share of the focal length: a real lens needs less, and invalid coefficients can look valid in a small part of the image


@dataclass(frozen=True)
class Lens:
    """The camera of an image of width x height px: pinhole fx, fy, cx, cy in px, and distortion.

    model: one of MODELS. d: its coefficients in OpenCV's order, () for none.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "plumb_bob"
    d: tuple[float, ...] = ()

    @property
    def intrinsics(self) -> F64:
        """(3, 3), of the distorted image."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    @property
    def distorted(self) -> bool:
        return any(self.d)


# What a camera may have, in widths of its image: a telescope's focal length, a part cut out far from the axis.
FOCAL_WIDTHS, CENTRE_WIDTHS = (0.01, 1000.0), 100.0
ASPECT = 10.0  # of a pixel: anamorphic lenses have 2


def pinhole_fault(fx: float, fy: float, cx: float, cy: float, width: int, height: int) -> str:
    """Why no camera of that image (px) has such intrinsics, "" if one may: numbers that are finite, but absurd, end in overflows."""
    size, (low, high) = max(width, height), FOCAL_WIDTHS
    if not (low * size <= fx <= high * size and low * size <= fy <= high * size):  # written so that NaN fails as well
        return f"a focal length of {fx:g} x {fy:g} px, but an image of {width}x{height} px needs {low * size:g} .. {high * size:g}"
    if not 1 / ASPECT <= fx / fy <= ASPECT:
        return f"a focal length of {fx:g} x {fy:g} px, whose parts differ more than {ASPECT:g} times"
    if not (abs(cx) <= CENTRE_WIDTHS * size and abs(cy) <= CENTRE_WIDTHS * size):
        return f"a principal point at {cx:g}, {cy:g} px, but an image of {width}x{height} px has it within {CENTRE_WIDTHS * size:g}"
    return ""


class Rectifier:
    """Removes the distortion of one lens. The maps are computed once, in the constructor; `rectifier_of` caches the latest ones.

    intrinsics: (3, 3) of every rectified image. The image is not rotated: the stereo rectification (R of a CameraInfo) is
    deliberately not applied, so the frame stays the camera's own optical frame.
    """

    def __init__(self, lens: Lens) -> None:
        """Raises FrameError if the distortion cannot be inverted over the image."""
        self.lens = lens
        self.intrinsics, x, y = _undistorted(lens)
        # in 1/32 px, several times as fast as floats
        self._fixed = cv2.convertMaps(x, y, cv2.CV_16SC2)

    def image(self, picture: U8) -> U8:
        """(H, W, 3) uint8, bilinear."""
        return np.asarray(cv2.remap(picture, *self._fixed, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)

    def depth(self, depth: F32) -> F32:
        """(H, W) float32 along z, from the nearest pixel: depths are never interpolated, and NaN does not spread."""
        return _nearest(depth, *_fixed_maps(self.lens, tuple(self.intrinsics.flat)))


def rectifier_of(lens: Lens) -> Rectifier:
    """The Rectifier of `lens`, made once. Raises FrameError."""
    made = _made(lens)
    if isinstance(made, FrameError):
        raise made
    return made


@functools.lru_cache(maxsize=8)
def _made(lens: Lens) -> Rectifier | FrameError:
    try:
        return Rectifier(lens)
    except FrameError as error:  # cached as well: the next image would fail again
        return error


class Rectification:
    """The parameter `rectify` for the images of one topic: auto assumes that a topic whose last name contains "rect" is already
    rectified."""

    def __init__(self, mode: str, topic: str) -> None:
        """mode: auto, on or off. topic: of the images; with off its name still decides which matrix of a CameraInfo applies."""
        self.mode = mode
        self.rectified = self._is_rectified(topic)

    def _is_rectified(self, topic: str) -> bool:
        return self.mode != "on" and "rect" in topic.removesuffix("/compressed").rpartition("/")[2]

    def image(self, picture: U8, info: Any) -> tuple[U8, F64 | None, str]:
        """`picture` without distortion, its intrinsics (3, 3) or None, and a remark ("" if all is well).

        info: the CameraInfo. The remark says what cannot be used; the picture is then returned unchanged.
        """
        height, width = picture.shape[:2]
        lens, remark = lens_from_camera_info(info, width, height, self.rectified)
        if lens is None or not lens.distorted:
            return picture, None if lens is None else lens.intrinsics, remark
        if self.mode == "off":
            return (
                picture,
                lens.intrinsics,
                "camera_info describes lens distortion, which is not removed: set rectify to auto",
            )
        try:
            rectifier = rectifier_of(lens)
        except FrameError as error:
            return picture, lens.intrinsics, f"{error}; the image is used as it is"
        return rectifier.image(picture), rectifier.intrinsics, remark

    def depth(self, depth: F32, info: Any, topic: str) -> tuple[F32, str]:
        """`depth` (H, W), registered to the camera of `info`, in the pixels that `image` gives; and a remark, as for `image`.

        topic: of the depth. Its name says whether the depth is rectified, independently of the images.
        """
        height, width = depth.shape
        seen, remark = lens_from_camera_info(info, width, height, self.rectified)
        own, _ = lens_from_camera_info(info, width, height, self._is_rectified(topic))
        if seen is None or own is None or self.mode == "off":
            return depth, remark
        try:
            intrinsics = rectifier_of(seen).intrinsics if seen.distorted else seen.intrinsics
            if own.distorted or not np.array_equal(own.intrinsics, intrinsics):
                depth = _nearest(depth, *_fixed_maps(own, tuple(intrinsics.flat)))
        except FrameError as error:
            return depth, f"{error}; the depth is used as it is"
        return depth, remark


def lens_from_camera_info(info: Any, width: int, height: int, rectified: bool = False) -> tuple[Lens | None, str]:
    """The lens of images of that size, and a remark ("" if there is none); (None, why) if the CameraInfo is unusable.

    rectified: whether the images are rectified; then P holds their intrinsics and there is no distortion; otherwise K and D apply.
    K is for the full resolution; binning and region of interest are applied to it as sensor_msgs/CameraInfo defines them, pixel
    centres lying at whole numbers. R is not read, see Rectifier.
    """
    k, p, d = (_numbers(info, name) for name in "kpd")
    full = (int(info.width), int(info.height))
    if full == (0, 0):  # drivers that do not fill it in: K must be of this image then
        if not _is_about_an_image(k, width, height):
            return (
                None,
                "camera_info is empty (0x0 px, and no K that fits the image): the camera is not calibrated: calibrate it",
            )
        full = (width, height)
    shift, binning, size = _window(info, full)
    if (width, height) == full:  # many drivers give K for the images they send, whatever binning they report
        shift, binning = (0, 0), (1, 1)
    elif (width, height) != size:
        cut = "" if size == full else f" ({size[0]}x{size[1]} with its binning and region of interest)"
        return None, (
            f"camera_info is for {full[0]}x{full[1]} px{cut}, the image has {width}x{height}: "
            f"remap camera_info to that of these images, or set its binning or roi"
        )
    name, matrix, columns = ("p", p, 4) if rectified else ("k", k, 3)
    if matrix.size != 3 * columns:
        return (
            None,
            f"camera_info has {matrix.size} numbers in {name}, but must have {3 * columns}: calibrate the camera",
        )
    fx, fy, cx, cy = (float(matrix[i]) for i in (0, columns + 1, 2, columns + 2))
    if not np.all(np.isfinite(matrix)):
        return None, f"camera_info holds NaN or infinite intrinsics in {name}: calibrate the camera"
    if not (fx > 0 and fy > 0):
        return (
            None,
            f"camera_info has a focal length of {fx:g} x {fy:g} px in {name}, but it must be positive: calibrate the camera",
        )
    cx, cy = ((c - s + 0.5) / b - 0.5 for c, s, b in zip((cx, cy), shift, binning, strict=True))
    pinhole = Lens(width, height, fx / binning[0], fy / binning[1], cx, cy)
    if fault := pinhole_fault(pinhole.fx, pinhole.fy, cx, cy, width, height):
        return None, f"camera_info has {fault}: calibrate the camera"
    if rectified or not np.any(d != 0):
        return pinhole, ""
    if not np.all(np.isfinite(d)):
        return None, "camera_info holds NaN or infinite distortion in d: calibrate the camera"
    model, coefficients, remark = normalised_distortion(str(info.distortion_model), tuple(d.tolist()))
    if remark or not coefficients:
        return pinhole, remark
    return Lens(width, height, pinhole.fx, pinhole.fy, cx, cy, model, coefficients), ""


def normalised_distortion(name: str, d: tuple[float, ...]) -> tuple[str, tuple[float, ...], str]:
    """One of MODELS, its coefficients (padded to a valid number; () for none), and a remark ("" if they can be used).

    Names are matched regardless of case and spelling; trailing zeros are ignored, missing coefficients are zero.
    """
    as_it_is = "the image is used as it is"
    word = "_".join(name.strip().lower().replace("-", " ").replace("_", " ").split())
    model = _OTHER_NAMES.get(word, word)
    if not any(d):
        return "plumb_bob", (), ""
    if word in _NO_LENS:
        return (
            "plumb_bob",
            (),
            (
                f"camera_info has the distortion_model {quoted(name)}, but d is not zero: {as_it_is}; set the model that d belongs to"
            ),
        )
    used = d[: max(i for i, value in enumerate(d) if value) + 1]
    if not word and len(d) > 4:  # only polynomials have so many
        model = "plumb_bob"
    if model not in MODELS:
        return (
            "plumb_bob",
            (),
            (
                f"camera_info has the distortion_model {quoted(name)}, but only {', '.join(MODELS)} are known: {as_it_is}; publish a "
                f"rectified one"
            ),
        )
    allowed = MODELS[model]
    if len(d) in allowed:
        return model, d, ""
    count = next((n for n in allowed if n >= len(used)), 0)
    # k1 k2 and then either p1 or k3: ambiguous
    if not count or (len(used) == 3 and allowed is _POLYNOMIAL):
        numbers = " or ".join(str(n) for n in allowed)
        return (
            "plumb_bob",
            (),
            (
                f"camera_info has {len(d)} numbers in d, but {model} must have {numbers}: {as_it_is}; write them as that model has them"
            ),
        )
    return model, (*used, *(0.0,) * (count - len(used))), ""


def _is_about_an_image(k: F64, width: int, height: int) -> bool:
    """Whether the principal point of K (9,) lies about the middle of an image of that size."""
    if k.size != 9 or not np.isfinite(k).all() or not (k[0] > 0 and k[4] > 0):
        return False
    return bool(0.2 < k[2] / width < 0.8 and 0.2 < k[5] / height < 0.8)


def _numbers(info: Any, name: str) -> F64:
    """An array of a CameraInfo, which ROS 1 writes in capitals."""
    return np.array(getattr(info, name) if hasattr(info, name) else getattr(info, name.upper()), np.float64).reshape(-1)


def _window(info: Any, full: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Offset of the region of interest (full px), binning, and the size of the images they leave. 0 stands for the default."""
    roi = info.roi
    binning = (int(info.binning_x) or 1, int(info.binning_y) or 1)
    region = (int(roi.width) or full[0], int(roi.height) or full[1])
    size = (region[0] // binning[0], region[1] // binning[1])
    return (int(roi.x_offset), int(roi.y_offset)), binning, size


def _undistorted(lens: Lens) -> tuple[F64, F32, F32]:
    """Intrinsics (3, 3) of the rectified image, and where each of its pixels lies in the original: x, y (H, W).

    Raises FrameError.
    """
    k, d, size = lens.intrinsics, np.array(lens.d).reshape(-1, 1), (lens.width, lens.height)
    try:
        if lens.model == "equidistant":
            widest = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(k, d, size, np.eye(3), balance=0.0)
        else:
            widest, _ = cv2.getOptimalNewCameraMatrix(k, d, size, 0.0)
        for zoom in _ZOOMS:
            with np.errstate(invalid="ignore"):  # invalid coefficients give NaN, which does not fit
                new = _about_the_centre(zoom, size) @ widest
            focal = new[[0, 1], [0, 1]] / k[[0, 1], [0, 1]]
            x, y = _maps(lens, new)
            if np.all((focal > 1 / _MOST_ZOOM) & (focal < _MOST_ZOOM)) and _fits(x, y):
                return new, x, y
    except cv2.error as error:
        raise FrameError(
            f"the lens distortion in camera_info cannot be used ({error}): calibrate the camera"
        ) from error
    raise FrameError(
        f"the lens distortion in camera_info folds the image over itself (d = {', '.join(f'{c:g}' for c in lens.d)}), "
        f"but must be invertible: calibrate the camera"
    )


def _maps(lens: Lens, intrinsics: F64) -> tuple[F32, F32]:
    """Where each pixel of a pinhole camera with `intrinsics` lies in the image of `lens`: x, y (H, W)."""
    map_of: Any = cv2.fisheye.initUndistortRectifyMap if lens.model == "equidistant" else cv2.initUndistortRectifyMap
    d = np.array(lens.d or (0.0,) * 4).reshape(-1, 1)
    x, y = map_of(lens.intrinsics, d, np.eye(3), intrinsics, (lens.width, lens.height), cv2.CV_32FC1)
    return np.asarray(x, np.float32), np.asarray(y, np.float32)


@functools.lru_cache(maxsize=8)
def _fixed_maps(lens: Lens, intrinsics: tuple[float, ...]) -> tuple[Any, Any]:
    """The same in whole pixels, in OpenCV's form."""
    x, y = _maps(lens, np.array(intrinsics).reshape(3, 3))
    return cv2.convertMaps(x, y, cv2.CV_16SC2, nninterpolation=True)


def _nearest(depth: F32, x: Any, y: Any) -> F32:
    """(H, W) float32 of the pixels there, NaN beyond the border."""
    border = cv2.BORDER_CONSTANT
    return np.asarray(cv2.remap(depth, x, y, cv2.INTER_NEAREST, borderMode=border, borderValue=math.nan), np.float32)


def _about_the_centre(zoom: float, size: tuple[int, int]) -> F64:
    """(3, 3): pixels of the image scaled about its centre."""
    u, v = ((extent - 1) / 2 * (1 - zoom) for extent in size)
    return np.array([[zoom, 0, u], [0, zoom, v], [0, 0, 1]])


def _fits(x: F32, y: F32) -> bool:
    """Whether every pixel comes from inside the original, and neighbours stay in their order (a polynomial may fold far out)."""
    height, width = x.shape
    inside = x.min() >= 0 and y.min() >= 0 and x.max() <= width - 1 and y.max() <= height - 1  # false for NaN
    return bool(inside and np.all(np.diff(x, axis=1) > 0) and np.all(np.diff(y, axis=0) > 0))

"""Reads image files of all formats, for every kind of image folder.

Python reads the bytes, so any file name works; OpenCV decodes them, or Pillow for formats that OpenCV does not support.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..camera.compressed import reason_of
from ..camera.levels import FULL, Levels
from ..camera.quiet import quiet
from ..errors import DatasetError
from ..files import shown
from ..types import U8

log = logging.getLogger("come_ros")

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
HEIF = (".heic", ".heif")
_RAW = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".raw")
_RARE = (".gif", ".avif", ".jp2", ".jxl", ".exr", ".hdr", ".svg", ".psd", ".pdf")
# Image files that cannot be read here: suffix -> reason and fix.
NOT_READ = {
    **dict.fromkeys(HEIF, "HEIC needs the Python package pillow-heif, or convert to JPEG"),
    **dict.fromkeys(_RAW, "raw photographs: convert to JPEG"),
    **dict.fromkeys(_RARE, "no supported format: convert to PNG, animations to a video"),
}
GREY = 128  # colour behind transparent pixels
OPAQUE = 128  # alpha below it: the pixel is hidden
SAME_SHAPE = 0.02  # tolerance of the aspect ratio: images may be resized, but not distorted
_ORIENTATION = 0x0112  # of EXIF
# orientation -> (mirrored left to right, then quarter turns counterclockwise)
_TURNS = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}


class Picture(NamedTuple):
    """image: (H, W, 3) uint8 RGB, with transparent pixels grey. hidden: (H, W) bool of those, None if there are none."""

    image: U8
    hidden: NDArray[np.bool_] | None = None


def suffixes() -> tuple[str, ...]:
    """Suffixes of the supported formats."""
    return (*SUFFIXES, *HEIF) if _heif() else SUFFIXES


def read_picture(path: Path, levels: Levels | None = None, upright: bool = False) -> Picture:
    """Reads a colour image. levels: of its stream, for more than 8 bits. upright: rotate by the EXIF orientation; data sets with
    poses refer to the stored pixels. Raises DatasetError."""
    data = _bytes_of(path)
    pixels = _decoded(data, path)
    if pixels.dtype != np.uint8:
        pixels = (levels or FULL).to_8_bits(pixels)
    if upright:
        pixels = _turned(pixels, _orientation(data))
    if pixels.ndim == 2:
        return Picture(np.repeat(pixels[..., None], 3, axis=2))
    if pixels.shape[2] == 2:  # grey with alpha
        pixels = pixels[..., [0, 0, 0, 1]]
    colours, hidden = pixels[..., 2::-1], None
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3]
        if alpha.min() < 255:
            share = alpha[..., None].astype(np.float32) / 255
            colours = np.rint(colours * share + GREY * (1 - share)).astype(np.uint8)
            hidden = alpha < OPAQUE
    return Picture(np.ascontiguousarray(colours), hidden if hidden is not None and hidden.any() else None)


def read_stored(path: Path) -> NDArray[Any]:
    """The stored values of a file: (H, W), or (H, W, C) in OpenCV's order of channels. Raises DatasetError."""
    return _decoded(_bytes_of(path), path)


def size_of(path: Path, upright: bool = False) -> tuple[int, int] | None:
    """(height, width) from the file's header, None if that cannot be read."""
    header = _header(path, upright)
    return None if header is None else header[0]


def _header(path: Path, upright: bool) -> tuple[tuple[int, int], int] | None:
    """(height, width), and how many images the file holds, from its header; None if that cannot be read."""
    from PIL import Image as Pillow

    _heif()
    try:
        with quiet(), open(path, "rb") as stream, Pillow.open(stream) as picture:
            width, height = picture.size
            turned = upright and picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            # the others of an MPO are previews and gain maps of the first
            count = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            return ((width, height) if turned else (height, width)), count
    except Exception:  # Pillow raises all kinds of exceptions for damaged files
        return None


class OneSize:
    """Resizes the images of one camera to the most frequent size; images of another aspect ratio are rejected.

    size: (height, width), None if there is no image. others: number of images of another size. Files that hold more than their first
    image are logged.
    """

    def __init__(self, paths: Iterable[Path], upright: bool) -> None:
        headers = {path: header for path in paths if (header := _header(path, upright)) is not None}
        counts = Counter(size for size, _ in headers.values())
        if several := [shown(path.name) for path, (_, count) in headers.items() if count > 1]:
            log.warning(
                "only the first image of each is read, the animation or other pages are left out: %s", _some(several)
            )
        self.size = max(counts, key=lambda size: (counts[size], size), default=None)
        self.others = sum(counts.values()) - (counts[self.size] if self.size else 0)

    def fit(self, picture: Picture, path: Path) -> Picture:
        """Resizes `picture`, read from `path`. Raises DatasetError if it has another aspect ratio."""
        height, width = picture.image.shape[:2]
        if self.size is None or (height, width) == self.size:
            return picture
        h, w = self.size
        if abs((width / height) / (w / h) - 1) > SAME_SHAPE:
            raise DatasetError(
                f"{shown(path)} has {width}x{height} px, but most images next to it have {w}x{h}, which is another aspect ratio: "
                f"only one camera can be read at a time; put the others into a separate folder"
            )
        smaller = cv2.INTER_AREA if w < width else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(picture.image, (w, h), interpolation=smaller), np.uint8)
        if picture.hidden is None:
            return Picture(image)
        hidden = cv2.resize(picture.hidden.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
        return Picture(image, hidden.astype(bool))


def left_out(folder: Path, taken: Sequence[Path]) -> tuple[str, int]:
    """A one-line list of the files of a folder that are not read, "" if all are read; and how many of them are images."""
    reasons: dict[str, list[str]] = {}
    images = 0
    names = {path.name for path in taken}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if path.name in names or (path.is_dir() and suffix not in SUFFIXES):
            continue
        if path.is_dir():
            reason = "a folder"
        elif path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini"):
            reason = "hidden files of the system"
        elif path.is_symlink() and not path.exists():
            reason, images = "links to files that are missing", images + (suffix in SUFFIXES)
        elif suffix in NOT_READ:
            reason, images = NOT_READ[suffix], images + 1
        else:
            reason = "not images"
        reasons.setdefault(reason, []).append(shown(path.name))
    parts = [f"{_some(names)} ({reason})" for reason, names in reasons.items()]
    return f"left out of {shown(folder)}: {'; '.join(parts)}" if parts else "", images


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def _bytes_of(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        missing = getattr(error, "strerror", None) or str(error)
        missing = "it is missing" if isinstance(error, FileNotFoundError) else missing
        raise DatasetError(f"cannot read the image {shown(path)}: {missing}") from error
    if not data:
        raise DatasetError(f"cannot read the image {shown(path)}: it is empty (0 bytes)")
    return data


def _decoded(data: bytes, path: Path) -> NDArray[Any]:
    """uint8, uint16 or float32, (H, W) or (H, W, C) with BGR or BGRA. Raises DatasetError."""
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise DatasetError(f"cannot read the image {shown(path)}: it is damaged (a JPEG whose end is missing)")
    if _too_large(data):
        raise DatasetError(f"cannot read the image {shown(path)}: it has more than 178 million pixels: make it smaller")
    with quiet():
        pixels = _by_opencv(data, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            pixels = _by_pillow(data, path)
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise DatasetError(
            f"cannot read the image {shown(path)}: its values are {pixels.dtype}: convert it to 8 or 16 bits"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return np.asarray(pixels)


def _too_large(data: bytes) -> bool:
    """Whether Pillow refuses its size, as everywhere else; OpenCV would spend minutes and gigabytes."""
    from PIL import Image as Pillow

    try:
        with quiet(), Pillow.open(io.BytesIO(data)):
            return False
    except Pillow.DecompressionBombError:
        return True
    except Exception:  # Pillow raises all kinds of exceptions for damaged files
        return False


def _by_opencv(data: bytes, how: int) -> NDArray[Any] | None:
    told = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(told)


def _by_pillow(data: bytes, path: Path) -> NDArray[Any]:
    from PIL import Image as Pillow

    _heif()
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            if picture.mode.startswith("I"):
                return np.asarray(picture).astype(np.uint16)
            if picture.mode == "F":
                return np.asarray(picture, np.float32)
            clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
            pixels = np.asarray(picture.convert("RGBA" if clear else "RGB"))
            return pixels[..., [2, 1, 0, 3]] if clear else pixels[..., ::-1]
    except Exception as error:  # Pillow raises all kinds of exceptions for damaged files
        raise DatasetError(
            f"cannot read the image {shown(path)}: it is damaged or of an unknown format ({reason_of(error)})"
        ) from error


def decoded_file(path: str | Path, how: int) -> NDArray[Any] | None:
    """A file as OpenCV decodes it (how: cv2.IMREAD_...), None if it cannot. The name never reaches OpenCV, which crashes at one that is no
    UTF-8."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError):
        return None
    with quiet():
        return _by_opencv(data, how) if data else None


def _orientation(data: bytes) -> int:
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises all kinds of exceptions for damaged files
        return 1


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    mirrored, quarters = _TURNS.get(orientation, (False, 0))
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters))


def _heif() -> bool:
    """Whether Pillow can read HEIC."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True

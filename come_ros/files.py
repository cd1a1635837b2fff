"""Atomic files: written under another name, then renamed. Clouds as PLY and PCD, trajectories as TUM."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import DatasetError, OutputError
from .geometry import quat_xyzw_from_matrix
from .messages import NANO
from .types import F64

PARTS, PART_BYTES = 64, 1 << 16  # of a file that tell it from others


def shown(path: str | Path) -> str:
    """A path for messages: bytes that are not UTF-8, which Linux allows in names, are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def quoted(text: str, most: int = 60) -> str:
    """A text from a file or message, for messages: on one line, and not longer than `most` characters."""
    return repr(text if len(text) <= most else f"{text[:most]}...")


def text_of_file(path: Path) -> str:
    """Reads a text file in the encodings that editors write: UTF-8 with or without a byte order mark, or UTF-16 with one. Other
    bytes are kept by surrogateescape, so lists of such file names work. Raises OSError."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary stream that becomes the file `path` at the end; on any error `path` is unchanged and no other file is left.

    Raises OutputError if it cannot be written (no such folder, no permission, disk full).
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}: choose a folder with enough space and write permission"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `path` at the end; on any error nothing is left of it.

    Folders above `path` are made. Raises OutputError if that, or the writing, fails, and if `path` exists and is not empty.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.rename(partial, path)
    except OSError as error:
        raise OutputError(
            f"cannot write the folder {path}: {error.strerror or error}: choose a place with enough space and write permission"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fingerprint(path: str | Path) -> str:
    """16 hexadecimal digits that differ for different large files: of the size and of 64 parts of 64 KiB, evenly spread, so that it is
    quick where a checksum of the whole takes seconds. Raises OSError."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        for i in range(PARTS):
            stream.seek(max(0, size - PART_BYTES) * i // (PARTS - 1))
            digest.update(stream.read(PART_BYTES))
    return digest.hexdigest()[:16]


def write_text(path: str | Path, text: str) -> None:
    """UTF-8 text as a whole file; what is not Unicode, such as parts of odd file names, is escaped. Raises OutputError."""
    with whole_file(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def write_safetensors(path: str | Path, tensors: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Torch tensors by name, with `about` as metadata. safetensors' own writer is not atomic and makes files that only their owner
    can read; this one follows the umask, as for all results. Raises OutputError."""
    from safetensors.torch import save

    with whole_file(path) as stream:
        stream.write(save(dict(tensors), dict(about)))


_PLY = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("confidence", "<f4")]
"""the columns of our PLY files"""


def write_ply(path: str | Path, points: NDArray[Any], about: str = "", frame: str = "odometry frame") -> None:
    """Points of cloud.POINT_DTYPE (n,) as a binary PLY with x y z red green blue confidence. about: a comment. frame: in
    words, of the points. Raises OutputError."""
    with whole_file(path) as stream:
        stream.write(ply_bytes(points, about, frame))


def ply_bytes(points: NDArray[Any], about: str = "", frame: str = "odometry frame") -> bytes:
    """The content of the file of `write_ply`."""
    rows = np.empty(len(points), _PLY)
    for name in "xyz":
        rows[name] = points[name]
    bits = np.ascontiguousarray(points["rgb"]).view(np.uint32)
    for name, shift in (("red", 16), ("green", 8), ("blue", 0)):
        rows[name] = (bits >> shift) & 255
    rows["confidence"] = points["conf"]
    types = {"<f4": "float", "u1": "uchar"}
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment come_ros, {frame}",
        *([f"comment {about}"] if about else []),
        f"element vertex {len(rows)}",
    ]
    lines += [f"property {types[t]} {name}" for name, t in _PLY] + ["end_header"]
    return ("\n".join(lines) + "\n").encode("ascii") + rows.tobytes()


def read_ply(path: str | Path) -> NDArray[np.void]:
    """(n,) with the fields x y z red green blue confidence, of a file of `write_ply`. Raises DatasetError."""
    try:
        data = Path(path).read_bytes()
        head, _, body = data.partition(b"end_header\n")
        lines = head.decode("ascii", "replace").splitlines()
        count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex "))
        names = [line.split()[2] for line in lines if line.startswith("property ")]
        if "format binary_little_endian 1.0" not in lines or names != [name for name, _ in _PLY]:
            raise ValueError("it is not a cloud of come_ros")
        if len(body) != count * np.dtype(_PLY).itemsize:
            raise ValueError("it is not whole")
        return np.frombuffer(body, _PLY)
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise DatasetError(f"cannot read {shown(path)} ({error}): make it again, or remove it") from error


def write_pcd(path: str | Path, points: NDArray[Any], about: str = "") -> None:
    """Points of cloud.POINT_DTYPE (n,) as a binary PCD 0.7 with x y z rgb conf. about: a comment. Raises OutputError."""
    n, names = len(points), points.dtype.names or ()
    many = len(names)
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format", *([f"# {about}"] if about else []), "VERSION 0.7", "FIELDS " + " ".join(names),
        "SIZE" + " 4" * many, "TYPE" + " F" * many, "COUNT" + " 1" * many,
        f"WIDTH {n}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {n}", "DATA binary",
    ]  # fmt: skip
    with whole_file(path) as stream:
        stream.write(("\n".join(lines) + "\n").encode("ascii"))
        stream.write(np.ascontiguousarray(points).tobytes())


def write_tum(path: str | Path, poses: Mapping[int, F64], about: str = "") -> None:
    """Stamp in ns -> (4, 4) as a TUM trajectory (stamp tx ty tz qx qy qz qw); stamps from whole nanoseconds. about: a comment. Raises
    OutputError."""
    stamps = sorted(poses)
    matrices = np.array([poses[t] for t in stamps], np.float64).reshape(-1, 4, 4)
    values = np.hstack(
        [matrices[:, :3, 3], quat_xyzw_from_matrix(matrices)]
    )  # all at once: 20 times as fast as one by one
    rows = [
        f"{t // NANO}.{t % NANO:09d} " + " ".join(f"{v:.9f}" for v in row)
        for t, row in zip(stamps, values.tolist(), strict=True)
    ]
    write_text(path, "\n".join([*([f"# {about}"] if about else []), *rows]) + "\n")

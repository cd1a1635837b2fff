"""A recording of one or several files: the files listed in its metadata.yaml that exist, or all files without it."""

from __future__ import annotations

import heapq
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from . import mcap, ros1, sqlite
from .parts import Channel, Message, Storage, StorageError, listed_damage, zstd

METADATA = "metadata.yaml"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PACKED = (".zstd", ".zst")
SUFFIXES = (".mcap", ".db3", *(f"{kind}{packed}" for kind in (".mcap", ".db3") for packed in _PACKED))
ROS1_SUFFIXES = (".bag", ".bag.active")

# First bytes of other files that are given as recordings by mistake, and the fix.
_OTHERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS: `git lfs pull` fetches the file",
    b"<!doctype html": "it is a web page: the download went wrong",
    b"<html": "it is a web page: the download went wrong",
    b"\x1f\x8b": "it is compressed by gzip: unpack it with gunzip",
    b"pk\x03\x04": "it is a zip archive: unpack it",
    b"7z\xbc\xaf": "it is a 7z archive: unpack it",
    b"\xfd7zxz": "it is compressed by xz: unpack it with unxz",
    b"bzh": "it is compressed by bzip2: unpack it with bunzip2",
}


def is_recording(path: Path) -> bool:
    """Whether `path` seems to be a recording, by the names of its files or the first bytes of the file."""
    if path.is_dir():
        return (path / METADATA).is_file() or bool(_storage_files(path)) or bool(_ros1_files(path))
    if path.name.endswith((*SUFFIXES, *ROS1_SUFFIXES)) or path.name == METADATA:
        return True
    return path.is_file() and _start_of(path).startswith((mcap.MAGIC, sqlite.MAGIC, ros1.MAGIC))


def open_recording(path: Path) -> Recording:
    """Opens a recording. Raises StorageError, with the fix in its message, if nothing of it can be read."""
    if path.name == METADATA and path.is_file():
        path = path.parent
    plan = _plan_of(path)
    stack, storages, damage, failures = ExitStack(), [], list(plan.damage), []
    try:
        for file in plan.files:
            try:
                storage = _open_file(file, stack)
            except StorageError as error:
                failures.append(error)
                damage.append(f"{file.name} is left out: {error}")
                continue
            stack.callback(storage.close)
            storages.append(storage)
        if not storages:
            if failures:
                raise failures[0]
            raise StorageError(f"{path} cannot be read as a bag: {listed_damage(damage) or 'it holds no files'}")
    except BaseException:
        stack.close()
        raise
    return Recording(path, storages, listed_damage(damage), plan.announced, stack, plan.remark)


class Recording:
    """Open files, read as one. A context manager.

    channels: those that hold messages, of all files. is_ros1: whether it is a ROS 1 bag. damage: what is missing or cannot be read,
    "" if nothing is known to be lost; it may grow while messages are read. remark: other problems, "" if there are none.
    """

    def __init__(
        self,
        path: Path,
        storages: list[Storage],
        missing: str,
        announced: int | None,
        stack: ExitStack,
        remark: str = "",
    ) -> None:
        """missing: problems found so far. announced: number of messages by the metadata, None if unknown. stack: closes all files."""
        self.path, self._storages, self._missing, self._stack = path, storages, missing, stack
        self.remark = remark
        self.is_ros1 = any(isinstance(storage, ros1.Ros1Bag) for storage in storages)
        merged: dict[tuple[str, str, str], Channel] = {}
        for channel in (c for storage in storages for c in storage.channels if c.count):
            key = (channel.topic, channel.type, channel.encoding)
            before = merged.get(key)
            merged[key] = channel if before is None else replace(before, count=before.count + channel.count)
        self.channels = list(merged.values())
        there = sum(channel.count for channel in self.channels)
        if missing and announced is not None and there < announced:
            self._missing += f"; {there} of {announced} messages are there"

    @property
    def damage(self) -> str:
        return listed_damage([self._missing, *(storage.damage for storage in self._storages)])

    def messages(self, *topics: str) -> Iterator[Message]:
        """Messages of those topics by their times; messages compressed by rosbag2 are decompressed. Damaged parts are left out and
        reported in `damage`."""
        wanted = set(topics)
        streams = [storage.messages(wanted) for storage in self._storages]
        for log_ns, channel, data in heapq.merge(*streams, key=itemgetter(0)) if len(streams) > 1 else streams[0]:
            if data[:4] == _ZSTD and channel.encoding == "cdr":
                yield log_ns, channel, _unpacked_message(data)
            else:
                yield log_ns, channel, data

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()


@dataclass(frozen=True)
class _Plan:
    """files: to be read. damage: the missing ones. remark: other problems of the list. announced: number of messages by the
    metadata, None if unknown."""

    files: list[Path]
    damage: tuple[str, ...] = ()
    announced: int | None = None
    remark: str = ""


def _plan_of(path: Path) -> _Plan:
    if path.is_file():
        return _Plan([path])
    there, bags = _storage_files(path), _ros1_files(path)
    if (path / METADATA).is_file():
        try:
            names, announced = _listed(path / METADATA)
        except ValueError as error:
            if not there:
                raise StorageError(
                    f"{path} cannot be read as a bag: {error}, and it holds no .mcap or .db3 file"
                ) from error
            return _Plan(there, remark=f"{error}: all files of {path} are read; `ros2 bag reindex` writes it again")
        return _by_metadata(path, names, announced, there)
    if there:
        return _Plan(there)
    if len(bags) > 1:
        listed = ", ".join(bag.name for bag in bags)
        raise StorageError(f"{path} holds {len(bags)} ROS 1 bags ({listed}): give one of them")
    return _Plan(bags)


def _by_metadata(path: Path, names: list[str], announced: int | None, there: list[Path]) -> _Plan:
    """The files listed in the metadata; a file of another name replaces a missing one, since it was most likely renamed."""
    found = [path / name for name in names if (path / name).is_file()]
    missing = [name for name in names if not (path / name).is_file()]
    # a recorder killed during compression leaves the file uncompressed
    for name in list(missing):
        bare = path / name.removesuffix(".zstd").removesuffix(".zst")
        if bare in there:
            found.append(bare)
            missing.remove(name)
    spare = [file for file in there if file not in found]
    kinds = {_kind(Path(name)) for name in missing}
    renamed = [file for file in spare if _kind(file) in kinds][: len(missing)]
    lost = missing[len(renamed) :] if len(renamed) < len(missing) else []
    if not found and not renamed:
        raise StorageError(
            f"{path} cannot be read as a bag: {', '.join(names) or 'nothing'} is listed in its {METADATA}, but not there: copy it too"
        )
    damage: tuple[str, ...] = ()
    if lost:
        damage = (f"{len(lost)} of {len(names)} files of {path} are missing ({', '.join(lost)}): copy them too",)
    return _Plan([*found, *renamed], damage, announced)


def _listed(metadata: Path) -> tuple[list[str], int | None]:
    """File names and number of messages in a metadata.yaml. Raises ValueError, saying what is wrong with it."""
    import yaml

    try:
        about = yaml.safe_load(metadata.read_bytes().decode("utf-8-sig", "replace"))["rosbag2_bagfile_information"]
        names = [Path(str(name)).name for name in about["relative_file_paths"]]
        announced = about.get("message_count")
    except OSError as error:
        raise ValueError(f"{metadata} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged YAML file raises all kinds of exceptions
        raise ValueError(f"{metadata} is damaged") from error
    return names, announced if isinstance(announced, int) else None


def _open_file(path: Path, stack: ExitStack) -> Storage:
    """Opens a file by its content, regardless of its name. Raises StorageError."""
    try:
        start = _start_of(path)
        if not start:
            raise StorageError(
                f"{path} cannot be read as a bag: it is empty (0 bytes): the recorder wrote nothing to it, or the copy is not complete"
            )
        if start.startswith(_ZSTD):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="come_ros_"))
            path = _unpacked_file(path, Path(folder))
            start = _start_of(path)
        if start.startswith(sqlite.MAGIC):
            return sqlite.SqliteFile(path)
        if start.startswith(mcap.MAGIC):
            return mcap.McapFile(path, open(path, "rb"))
        if start.startswith(ros1.MAGIC):
            return ros1.Ros1Bag(path, open(path, "rb"))
    except OSError as error:
        raise StorageError(f"{path} cannot be read as a bag: {error.strerror or error}") from error
    reason = next((text for head, text in _OTHERS.items() if start.lower().startswith(head)), "")
    if not start.strip(b"\0"):
        reason = "it starts with zeros: the disk was full, or the copy is not complete"
    raise StorageError(
        f"{path} cannot be read as a bag: {reason or 'it is neither MCAP, nor SQLite, nor a ROS 1 bag, or its start is damaged'}"
    )


def _unpacked_file(path: Path, folder: Path) -> Path:
    """The readable part of a file that rosbag2 compressed as a whole. Raises StorageError, OSError."""
    out = folder / Path(path.name).stem
    try:
        with zstd().open(path, "rb") as packed, open(out, "wb") as stream:
            shutil.copyfileobj(packed, stream)
    except OSError:
        raise
    except Exception as error:  # the end is missing; the part before is in `out`
        if not out.is_file() or not out.stat().st_size:
            raise StorageError(f"{path} cannot be read as a bag: its compression is damaged") from error
    return out


def _unpacked_message(data: bytes) -> bytes:
    try:
        return bytes(zstd().decompress(data))
    except Exception:  # damaged: detected when it is decoded
        return data


def _start_of(path: Path) -> bytes:
    """Raises OSError."""
    with open(path, "rb") as stream:
        return stream.read(64)


def _storage_files(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("._")), key=_natural
    )


def _ros1_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(ROS1_SUFFIXES) and not p.name.startswith("._"))


def _kind(path: Path) -> str:
    return ".db3" if ".db3" in path.name else ".mcap"


def _natural(path: Path) -> list[Any]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name) if part]

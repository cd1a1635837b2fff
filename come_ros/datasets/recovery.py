"""Damaged recordings: MCAP files without an end (a full disk, a power cut), bags without their metadata.yaml."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.storage_mcap import ChunkInfo, McapReader, decompress
from rosbags.typesys import Stores, get_typestore

_CHUNK, _DATA_END, _FOOTER = 0x06, 0x0F, 0x02
_HEAD = struct.Struct("<BQ")  # of every record: kind, length
_CHUNK_HEAD = struct.Struct("<QQQI")  # first and last time, uncompressed size, checksum


def open_reader(path: Path) -> tuple[AnyReader, str]:
    """An open reader of the bag `path`, and what is wrong with it: "" unless messages may be missing.

    What cannot be opened as it is, is read as far as its records are whole. Raises what rosbags raises for the bag as it is
    where that does not help either.
    """
    try:
        return _opened([path], {}), ""
    except Exception:  # the readers let all kinds through for damaged files
        files = _storage_files(path)
        recovered = {file: RecoveredMcap(file) for file in files if file.suffix == ".mcap"}
        with contextlib.suppress(Exception):  # what the bag as it is had to say is what counts then
            if files:
                return _opened(files, recovered), "; ".join(r.damage for r in recovered.values() if r.damage)
        raise


def _opened(files: list[Path], storages: dict[Path, RecoveredMcap]) -> AnyReader:
    reader = AnyReader(files, default_typestore=get_typestore(Stores.ROS2_HUMBLE))
    for part in reader.readers:
        if isinstance(part, Reader) and Path(part.path) in storages:
            part.storage = storages[Path(part.path)]
    reader.open()
    return reader


def _storage_files(path: Path) -> list[Path]:
    """The files of a bag that may be read one by one, all of one kind."""
    if path.is_file():
        return [path] if path.suffix == ".mcap" else []
    mcaps = sorted(path.glob("*.mcap"))
    if mcaps or (path / "metadata.yaml").is_file():
        return mcaps
    return sorted(path.glob("*.db3"))


class RecoveredMcap(McapReader):
    """Reads what is whole of an MCAP file: all of it, or all chunks before the first that is not.

    damage: what is wrong, "" if nothing.
    """

    damage = ""

    def _open(self) -> None:
        try:
            super()._open()
            return
        except Exception:
            if not self.data_start:  # not even the header
                raise
        for part in (self.schemas, self.channels, self.chunks, self.connections):
            part.clear()
        self._find_whole_records()
        self.meta_scan()
        statistics = self.statistics
        assert statistics is not None
        counts, count = statistics.channel_message_counts, statistics.message_count
        for chunk in self.chunks:  # what is in them was not kept apart
            chunk.channel_count.update(counts)
        self.connections = [c._replace(msgcount=counts.get(c.id, 0)) for c in self.connections]
        if count:
            first, last = statistics.start_time, statistics.end_time
            self.metadata = self.metadata._replace(
                duration=last - first + 1, start_time=first, end_time=last + 1, message_count=count
            )
        self.damage = (
            f"{self.path} has no end: {count} messages could be read, up to byte {self.data_end} of {self._size()}"
        )

    def _find_whole_records(self) -> None:
        """Sets `data_end` behind the last record that is whole, and lists the chunks before it."""
        assert self.bio is not None
        size, self.data_end = self._size(), self.data_start
        while self.data_end + _HEAD.size <= size:
            self.bio.seek(self.data_end)
            kind, length = _HEAD.unpack(self.bio.read(_HEAD.size))
            after = self.data_end + _HEAD.size + length
            if kind in (_DATA_END, _FOOTER) or after > size:
                return
            if kind == _CHUNK:
                try:
                    self.chunks.append(self._chunk(self.bio.read(length), after - self.data_end))
                except Exception:  # unpacking damaged data raises all kinds
                    return
            self.data_end = after

    def _chunk(self, record: bytes, length: int) -> ChunkInfo:
        """Checked: its content unpacks and has the right checksum."""
        first, last, uncompressed, crc = _CHUNK_HEAD.unpack_from(record)
        (name_length,) = struct.unpack_from("<I", record, _CHUNK_HEAD.size)
        data = _CHUNK_HEAD.size + 4 + name_length
        name = record[_CHUNK_HEAD.size + 4 : data].decode()
        (compressed,) = struct.unpack_from("<Q", record, data)
        decompress(record[data + 8 : data + 8 + compressed], name, uncompressed, crc)
        no_index: dict[int, int] = {}
        counts: dict[int, Any] = {}
        return ChunkInfo(
            first, last, self.data_end, length, no_index, 0, name, compressed, uncompressed, counts
        )  # fmt: skip

    def _size(self) -> int:
        assert self.bio is not None
        return os.fstat(self.bio.fileno()).st_size

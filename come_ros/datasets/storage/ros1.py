"""ROS 1 bags (format 2.0), even without their index, such as .bag.active of a killed `rosbag record`."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .parts import (
    Channel,
    Damaged,
    Message,
    Storage,
    StorageError,
    in_order,
    read_part,
    text_of,
    type_name,
    unpack,
    unpack_start,
)

MAGIC = b"#ROSBAG V"
_MESSAGE, _BAG_HEADER, _INDEX, _CHUNK, _CHUNK_INFO, _CONNECTION = range(2, 8)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_TIME = struct.Struct("<II")
_MOST_UNCOMPRESSED = 2 << 30


@dataclass
class _Chunk:
    """start, end: bytes of its content in the file. cut: whether the file ends within it. counts: messages by connection, None if
    its index is missing."""

    start: int
    end: int
    packing: str
    size: int
    cut: bool = False
    first_ns: int = 0
    counts: dict[int, int] | None = None


class Ros1Bag(Storage):
    """Finds chunks and connections by scanning the records' headers, which needs no index; chunks without an index are decompressed
    once."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        """stream: seekable, closed by this object. Raises StorageError."""
        self.path, self._stream = path, stream
        self._size = os.fstat(stream.fileno()).st_size
        self._connections: dict[int, Channel] = {}
        self._chunks: list[_Chunk] = []
        self._lost: set[int] = set()
        self._cut = ""
        stream.seek(0)
        version = stream.readline(100)
        if not version.startswith(MAGIC):
            raise StorageError(f"{path} cannot be read as a bag: it does not start like a ROS 1 bag")
        if version.strip() != b"#ROSBAG V2.0":
            said = text_of(version.strip()[len(MAGIC) :])
            raise StorageError(
                f"{path} cannot be read as a bag: its format is {said}, not 2.0: `rosbag fix` converts it"
            )
        self._scan(len(version))
        counts: dict[int, int] = {}
        for chunk in self._chunks:
            if chunk.counts is None or chunk.counts.keys() - self._connections.keys():
                self._scan_chunk(chunk)
            for number, count in (chunk.counts or {}).items():
                counts[number] = counts.get(number, 0) + count
        self.channels = [
            Channel(c.topic, c.type, c.encoding, counts.get(number, 0)) for number, c in self._connections.items()
        ]
        if self._cut:
            self._cut = self._cut.format(count=sum(counts.values()))

    @property
    def damage(self) -> str:  # type: ignore[override]
        reasons = [self._cut]
        if self._lost:
            reasons.append(
                f"{self.path} is damaged: {len(self._lost)} of {len(self._chunks)} chunks cannot be unpacked"
            )
        return "; ".join(filter(None, reasons))

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        wanted = {number: c for number, c in self._connections.items() if c.topic in topics}
        chunks = [c for c in self._chunks if c.counts is None or c.counts.keys() & wanted.keys()]
        chunks.sort(key=lambda chunk: chunk.first_ns)
        return in_order(chunks, lambda chunk: chunk.first_ns, lambda chunk: self._messages_of(chunk, wanted))

    def close(self) -> None:
        self._stream.close()

    def _messages_of(self, chunk: _Chunk, wanted: dict[int, Channel]) -> Iterator[Message]:
        found: list[Message] = []
        try:
            for fields, data in _records(self._unpacked(chunk)):
                if fields.get(b"op") == bytes([_MESSAGE]):
                    channel = wanted.get(_u32(fields, b"conn"))
                    if channel is not None:
                        found.append((_time(fields, b"time"), channel, bytes(data)))
        except Damaged:
            if not chunk.cut:
                self._lost.add(chunk.start)
        found.sort(key=lambda message: message[0])
        return iter(found)

    def _scan(self, at: int) -> None:
        """Lists chunks and connections, up to the first damaged record."""
        chunk: _Chunk | None = None
        indexed = False
        while at + 4 <= self._size:
            try:
                fields, start, end = self._head(at)
                op = fields.get(b"op", b"\0")[0]
                cut = end > self._size
                if cut and op != _CHUNK:
                    break
                if op == _BAG_HEADER:
                    if fields.get(b"encryptor"):
                        raise StorageError(
                            f"{self.path} cannot be read as a bag: it is encrypted: `rosbag decrypt` first"
                        )
                    indexed = _U64.unpack(fields.get(b"index_pos", bytes(8)))[0] > 0
                elif op == _CHUNK:
                    chunk = _Chunk(
                        start, min(end, self._size), text_of(fields.get(b"compression")), _u32(fields, b"size"), cut
                    )
                    self._chunks.append(chunk)
                    if cut:
                        break
                elif op == _INDEX and chunk is not None:
                    self._note_index(chunk, fields, start, end)
                elif op == _CONNECTION:
                    self._note_connection(fields, read_part(self._stream, self._size, start, end))
            except (Damaged, struct.error, IndexError):
                break
            at = end
        if at < self._size or not indexed:
            self._cut = f"{self.path} has no end: {{count}} messages could be read, up to byte {at} of {self._size}"

    def _head(self, at: int) -> tuple[dict[bytes, bytes], int, int]:
        """Fields of the record at that position, and where its data starts and ends. Raises Damaged."""
        (length,) = _U32.unpack(read_part(self._stream, self._size, at, at + 4))
        fields = _fields(read_part(self._stream, self._size, at + 4, at + 4 + length))
        start = at + 8 + length
        (size,) = _U32.unpack(read_part(self._stream, self._size, start - 4, start))
        return fields, start, start + size

    def _note_index(self, chunk: _Chunk, fields: dict[bytes, bytes], start: int, end: int) -> None:
        rows = np.frombuffer(read_part(self._stream, self._size, start, end), "<u4")
        rows = rows[: len(rows) // 3 * 3].reshape(-1, 3)  # sec, nanosec, offset
        if chunk.counts is None:
            chunk.counts, chunk.first_ns = {}, 2**63
        number = _u32(fields, b"conn")
        chunk.counts[number] = chunk.counts.get(number, 0) + len(rows)
        if len(rows):
            times = rows[:, 0].astype(np.int64) * 1_000_000_000 + rows[:, 1]
            chunk.first_ns = min(chunk.first_ns, int(times.min()))

    def _note_connection(self, fields: dict[bytes, bytes], data: memoryview) -> None:
        topic, about = text_of(fields.get(b"topic", b"")), _fields(data)
        absolute = "/" + "/".join(word for word in topic.split("/") if word) if topic.startswith("/") else topic
        kind = type_name(text_of(about.get(b"type", b"")))
        self._connections.setdefault(_u32(fields, b"conn"), Channel(absolute, kind, "ros1"))

    def _scan_chunk(self, chunk: _Chunk) -> None:
        """For a chunk without an index: connections, counts, and the first time."""
        chunk.counts, chunk.first_ns = {}, 2**63
        try:
            for fields, data in _records(self._unpacked(chunk)):
                op = fields.get(b"op", b"\0")[0]
                if op == _CONNECTION:
                    self._note_connection(fields, data)
                elif op == _MESSAGE:
                    number = _u32(fields, b"conn")
                    chunk.counts[number] = chunk.counts.get(number, 0) + 1
                    chunk.first_ns = min(chunk.first_ns, _time(fields, b"time"))
        except Damaged:
            if not chunk.cut:
                self._lost.add(chunk.start)

    def _unpacked(self, chunk: _Chunk) -> memoryview:
        """Raises Damaged."""
        if chunk.size > _MOST_UNCOMPRESSED:
            raise Damaged
        data = bytes(read_part(self._stream, self._size, chunk.start, chunk.end))
        if chunk.cut:
            return memoryview(unpack_start(chunk.packing, data))
        try:
            return memoryview(unpack(chunk.packing, data))
        except Exception as error:  # decompressing damaged data raises all kinds of exceptions
            raise Damaged from error


def _records(data: memoryview) -> Iterator[tuple[dict[bytes, bytes], memoryview]]:
    """Fields and data of each record. Raises Damaged at an invalid one."""
    at, size = 0, len(data)
    while at < size:
        if at + 4 > size:
            raise Damaged
        (length,) = _U32.unpack_from(data, at)
        start = at + 8 + length
        if start > size:
            raise Damaged
        fields = _fields(data[at + 4 : start - 4])
        (content,) = _U32.unpack_from(data, start - 4)
        at = start + content
        if at > size:
            raise Damaged
        yield fields, data[start:at]


def _fields(data: memoryview) -> dict[bytes, bytes]:
    """name -> value of a record's header. Raises Damaged."""
    out, at, size = {}, 0, len(data)
    while at < size:
        if at + 4 > size:
            raise Damaged
        (length,) = _U32.unpack_from(data, at)
        at += 4
        if length > size - at:
            raise Damaged
        name, equals, value = bytes(data[at : at + length]).partition(b"=")
        if not equals:
            raise Damaged
        out[name] = value
        at += length
    return out


def _u32(fields: dict[bytes, bytes], name: bytes) -> int:
    value = fields.get(name, b"")
    if len(value) != 4:
        raise Damaged
    return int(_U32.unpack(value)[0])


def _time(fields: dict[bytes, bytes], name: bytes) -> int:
    value = fields.get(name, b"")
    if len(value) != 8:
        raise Damaged
    sec, nanosec = _TIME.unpack(value)
    return int(sec) * 1_000_000_000 + int(nanosec)

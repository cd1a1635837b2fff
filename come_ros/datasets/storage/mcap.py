"""MCAP files (mcap.dev/spec), even without their index, their end, or some of their chunks."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

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

MAGIC = b"\x89MCAP0\r\n"
_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = range(1, 7)
_CHUNK_INDEX, _STATISTICS, _DATA_END = 0x08, 0x0B, 0x0F
_HEAD = struct.Struct("<BQ")  # of every record: kind, length
_CHUNK_HEAD = struct.Struct("<QQQI")  # first and last time, uncompressed size, checksum
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, time of recording, time of publication
_END_BYTES = _HEAD.size + 20 + len(MAGIC)
_RUN_BYTES = 4 << 20  # messages outside of chunks are read in runs of about this size
# Zstandard compresses zeros by a factor of some thousand: a damaged size must not allocate all memory.
_MOST_UNCOMPRESSED = 2 << 30


@dataclass
class _Part:
    """A chunk, or a run of messages outside of chunks. start, end: bytes in the file. ids: channels in it, None if unknown."""

    start: int
    end: int
    first_ns: int
    chunk: bool
    ids: set[int] | None = None


@dataclass
class _Contents:
    """The contents of a file, from its summary or from a scan."""

    schemas: dict[int, tuple[str, str]] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    parts: list[_Part] = field(default_factory=list)
    whole: bool = True
    """whether the schema of every channel is known"""

    def take(self, kind: int, record: memoryview) -> None:
        """Adds a schema or a channel."""
        if kind == _SCHEMA:
            (number,) = struct.unpack_from("<H", record)
            name, at = _text(record, 2)
            encoding, _ = _text(record, at)
            self.schemas.setdefault(number, (name, encoding))
        elif kind == _CHANNEL:
            number, schema = struct.unpack_from("<HH", record)
            topic, at = _text(record, 4)
            encoding, _ = _text(record, at)
            self.whole = self.whole and (schema == 0 or schema in self.schemas)
            name, _ = self.schemas.get(schema, ("", ""))
            self.channels.setdefault(number, Channel(topic, type_name(name), encoding))

    def count(self, number: int) -> None:
        self.counts[number] = self.counts.get(number, 0) + 1


class McapFile(Storage):
    """Reads by the summary at the file's end if it is valid, else by a scan of all records."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        """stream: seekable, closed by this object. Raises StorageError if the file does not start as MCAP."""
        self.path, self._stream = path, stream
        self._size = os.fstat(stream.fileno()).st_size
        self._lost_chunks: set[int] = set()
        self._cut = ""
        stream.seek(0)
        if stream.read(len(MAGIC)) != MAGIC:
            raise StorageError(f"{path} cannot be read as a bag: it does not start like an MCAP file")
        try:
            contents = self._by_summary()
        except (Damaged, struct.error, ValueError):
            contents = self._by_scan()
        self._contents = contents
        self.channels = [
            Channel(c.topic, c.type, c.encoding, contents.counts.get(n, 0)) for n, c in contents.channels.items()
        ]

    @property
    def damage(self) -> str:  # type: ignore[override]
        reasons = [self._cut]
        if self._lost_chunks:
            lost, all_of_them = len(self._lost_chunks), sum(part.chunk for part in self._contents.parts)
            reasons.append(f"{self.path} is damaged: {lost} of {max(all_of_them, lost)} chunks cannot be unpacked")
        return "; ".join(filter(None, reasons))

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        wanted = {n: c for n, c in self._contents.channels.items() if c.topic in topics}
        parts = [p for p in self._contents.parts if p.ids is None or p.ids & wanted.keys()]
        parts.sort(key=lambda part: part.first_ns)
        return in_order(parts, lambda part: part.first_ns, lambda part: self._messages_of(part, wanted))

    def close(self) -> None:
        self._stream.close()

    def _messages_of(self, part: _Part, wanted: dict[int, Channel]) -> Iterator[Message]:
        found: list[Message] = []
        try:
            data = self._bytes_of(part)
            for kind, at, end in _records(data):
                if kind == _MESSAGE and end - at >= _MESSAGE_HEAD.size:
                    number, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(data, at)
                    channel = wanted.get(number)
                    if channel is not None:
                        found.append((log_ns, channel, bytes(data[at + _MESSAGE_HEAD.size : end])))
        except Damaged:
            self._lost_chunks.add(part.start)
        found.sort(key=lambda message: message[0])
        return iter(found)

    def _bytes_of(self, part: _Part) -> memoryview:
        """The records of a part. Raises Damaged."""
        if not part.chunk:
            return read_part(self._stream, self._size, part.start, part.end)
        record = read_part(self._stream, self._size, part.start, part.end)
        try:
            kind, length = _HEAD.unpack_from(record)
            if kind != _CHUNK or length < len(record) - _HEAD.size:
                raise Damaged
            return _unpacked(record[_HEAD.size :], cut=length > len(record) - _HEAD.size)
        except struct.error as error:
            raise Damaged from error

    def _by_summary(self) -> _Contents:
        """Raises Damaged, struct.error or ValueError if there is no usable summary."""
        end = read_part(self._stream, self._size, max(0, self._size - _END_BYTES), self._size)
        kind, length = _HEAD.unpack_from(end)
        start, _, checksum = struct.unpack_from("<QQI", end, _HEAD.size)
        if (kind, length) != (_FOOTER, 20) or end[-len(MAGIC) :] != MAGIC or not start:
            raise Damaged
        summary = read_part(self._stream, self._size, start, self._size - _END_BYTES)
        if checksum and zlib.crc32(end[: _HEAD.size + 16], zlib.crc32(summary)) != checksum:
            raise Damaged
        out, statistics = _Contents(), None
        for kind, at, stop in _records(summary):
            record = summary[at:stop]
            out.take(kind, record)
            if kind == _STATISTICS:
                statistics = struct.unpack_from("<QHIIIIQQ", record)
                (size,) = struct.unpack_from("<I", record, 42)
                out.counts = dict(struct.iter_unpack("<HQ", record[46 : 46 + size]))
            elif kind == _CHUNK_INDEX:
                first_ns, _, offset, size = struct.unpack_from("<QQQQ", record)
                (index_size,) = struct.unpack_from("<I", record, 32)
                ids = {number for number, _ in struct.iter_unpack("<HQ", record[36 : 36 + index_size])}
                if offset + size > start:
                    raise Damaged
                out.parts.append(_Part(offset, offset + size, first_ns, True, ids or None))
        # without statistics, or with messages outside of chunks, a scan finds more
        if statistics is None or statistics[5] != len(out.parts) or (statistics[0] and not out.parts):
            raise Damaged
        if not out.whole or set(out.counts) - set(out.channels) or sum(out.counts.values()) != statistics[0]:
            raise Damaged
        return out

    def _by_scan(self) -> _Contents:
        """All records up to the first damaged one."""
        out, at, count, ended = _Contents(), len(MAGIC), 0, False
        run: _Part | None = None
        while at + _HEAD.size <= self._size:
            kind, length = _HEAD.unpack(read_part(self._stream, self._size, at, at + _HEAD.size))
            end = at + _HEAD.size + length
            if kind in (_DATA_END, _FOOTER):
                ended = True
                break
            if kind == 0:
                break
            if end > self._size:
                if kind == _CHUNK:  # the last one is truncated: its start may hold messages
                    count += self._scan_chunk(out, at, self._size)
                break
            if kind in (_SCHEMA, _CHANNEL):
                self._learn(out, kind, read_part(self._stream, self._size, at + _HEAD.size, end))
            elif kind == _CHUNK:
                run = None
                count += self._scan_chunk(out, at, end)
            elif kind == _MESSAGE and length >= _MESSAGE_HEAD.size:
                head = read_part(self._stream, self._size, at + _HEAD.size, at + _HEAD.size + _MESSAGE_HEAD.size)
                number, _, log_ns, _ = _MESSAGE_HEAD.unpack(head)
                out.count(number)
                count += 1
                if run is None or run.end != at or run.end - run.start > _RUN_BYTES:
                    run = _Part(at, end, log_ns, False, set())
                    out.parts.append(run)
                run.end, run.first_ns = end, min(run.first_ns, log_ns)
                assert run.ids is not None
                run.ids.add(number)
            at = end
        if not ended:
            self._cut = f"{self.path} has no end: {count} messages could be read, up to byte {at} of {self._size}"
        return out

    def _scan_chunk(self, out: _Contents, start: int, end: int) -> int:
        """Counts the messages in a chunk."""
        part, count = _Part(start, end, 0, True, set()), 0
        assert part.ids is not None
        try:
            part.first_ns = _CHUNK_HEAD.unpack_from(read_part(self._stream, self._size, start + _HEAD.size, end))[0]
            data = self._bytes_of(part)
            for kind, at, stop in _records(data):
                if kind in (_SCHEMA, _CHANNEL):
                    self._learn(out, kind, data[at:stop])
                elif kind == _MESSAGE and stop - at >= _MESSAGE_HEAD.size:
                    number = _MESSAGE_HEAD.unpack_from(data, at)[0]
                    part.ids.add(number)
                    out.count(number)
                    count += 1
        except (Damaged, struct.error):
            self._lost_chunks.add(start)
        out.parts.append(part)
        return count

    @staticmethod
    def _learn(out: _Contents, kind: int, record: memoryview) -> None:
        try:
            out.take(kind, record)
        except (struct.error, Damaged):  # of one channel: the others can still be read
            return


def _records(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """(kind, first byte, byte after the last) of each record's content. Raises Damaged at an invalid one."""
    at, size = 0, len(data)
    while at < size:
        if at + _HEAD.size > size:
            raise Damaged
        kind, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if length > size - at:
            raise Damaged
        yield kind, at, at + length
        at += length


def _unpacked(record: memoryview, cut: bool = False) -> memoryview:
    """The records in a chunk, verified by its checksum; the complete ones of a chunk that was `cut` off. Raises Damaged."""
    try:
        _, _, size, checksum = _CHUNK_HEAD.unpack_from(record)
        name, at = _text(record, _CHUNK_HEAD.size)
        (packed,) = struct.unpack_from("<Q", record, at)
        if cut:
            return _whole_records(memoryview(unpack_start(name, bytes(record[at + 8 :]))))
        if packed > len(record) - at - 8 or size > _MOST_UNCOMPRESSED:
            raise Damaged
        data = unpack(name, bytes(record[at + 8 : at + 8 + packed]))
        if len(data) != size or (checksum and zlib.crc32(data) != checksum):
            raise Damaged
        return memoryview(data)
    except Exception as error:  # decompressing damaged data raises all kinds of exceptions
        raise Damaged from error


def _whole_records(data: memoryview) -> memoryview:
    whole = 0
    try:
        for _, _, end in _records(data):
            whole = end
    except Damaged:
        pass
    return data[:whole]


def _text(data: memoryview, at: int) -> tuple[str, int]:
    """A string, and the byte after it. Raises Damaged."""
    (length,) = struct.unpack_from("<I", data, at)
    end = at + 4 + length
    if end > len(data):
        raise Damaged
    return text_of(data[at + 4 : end]), end

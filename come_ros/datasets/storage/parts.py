"""Common parts of the three storage formats: channels, damage, and messages sorted by time."""

from __future__ import annotations

import bz2
import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ...errors import DatasetError

Message = tuple[int, "Channel", bytes]
"""(time of recording in ns, channel, bytes)"""

# Parts (chunks) of a file may overlap in time. At most this many are held back for sorting: some writers give no times.
MOST_HELD_BYTES = 256 << 20


class StorageError(DatasetError):
    """A file is not a recording, or nothing of it can be read. The message names the problem and the fix."""


class Damaged(Exception):
    """A part of a file is not as its format wants it."""


def read_part(stream: BinaryIO, size: int, start: int, end: int) -> memoryview:
    """Bytes `start` to `end` of a file of `size` bytes. Raises Damaged if it does not hold them."""
    if not 0 <= start <= end <= size:
        raise Damaged
    stream.seek(start)
    data = stream.read(end - start)
    if len(data) != end - start:
        raise Damaged
    return memoryview(data)


@dataclass(frozen=True)
class Channel:
    """One stream of messages. type: such as "sensor_msgs/msg/Image". encoding: of the bytes: "cdr" (ROS 2), "ros1", or another
    one, which is not ROS. count: messages."""

    topic: str
    type: str
    encoding: str
    count: int = 0


class Storage(ABC):
    """One open file of a recording.

    channels: all that hold messages. damage: what cannot be read of it, "" if nothing is known to be lost; it may grow while
    messages are read.
    """

    channels: list[Channel]
    damage = ""

    @abstractmethod
    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Messages of those topics sorted by time; damaged parts are left out and reported in `damage`."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""


def type_name(text: str) -> str:
    """Type name such as "sensor_msgs/msg/Image", from the spellings of ROS 1, ROS 2 and DDS."""
    words = [word for word in text.replace("::", "/").split("/") if word and word != "dds_"]
    if len(words) == 2:
        words.insert(1, "msg")
    return "/".join(words).removesuffix("_")


def text_of(data: Any) -> str:
    """Text from a damaged or foreign file: bytes that are not UTF-8 are escaped."""
    if isinstance(data, str):
        return data
    return bytes(data or b"").decode("utf-8", "backslashreplace")


def in_order(
    parts: Iterable[Any], first_ns: Callable[[Any], int], read: Callable[[Any], Iterable[Message]]
) -> Iterator[Message]:
    """Messages of all parts sorted by time, with only overlapping parts in memory. `parts`: sorted by their first times."""
    waiting: list[tuple[int, int, Message]] = []
    held = number = 0
    for part in parts:
        start = first_ns(part)
        while waiting and (waiting[0][0] < start or held > MOST_HELD_BYTES):
            message = heapq.heappop(waiting)[2]
            held -= len(message[2])
            yield message
        for message in read(part):
            heapq.heappush(waiting, (message[0], number, message))  # numbered, so that equal times keep their order
            held += len(message[2])
            number += 1
    while waiting:
        yield heapq.heappop(waiting)[2]


def listed_damage(reasons: Iterable[str]) -> str:
    """Joins reasons to one line, "" for none."""
    return "; ".join(filter(None, reasons))


def unpack(packing: str, data: bytes) -> bytes:
    """Decompresses data. packing: "", lz4, zstd or bz2. Raises all kinds of exceptions for damaged data, ValueError for another
    packing."""
    if packing in ("", "none"):
        return data
    if packing == "zstd":
        return bytes(zstd().decompress(data))
    if packing == "bz2":
        return bz2.decompress(data)
    if packing == "lz4":
        from lz4.frame import decompress

        return bytes(decompress(data))
    raise ValueError(f"chunks are packed by {packing!r}, which is unknown")


def unpack_start(packing: str, data: bytes) -> bytes:
    """The same for data whose end is missing, as far as possible."""
    if packing in ("", "none"):
        return data
    try:
        if packing == "zstd":
            return bytes(zstd().ZstdDecompressor().decompress(data))
        if packing == "bz2":
            return bz2.BZ2Decompressor().decompress(data)
        from lz4.frame import LZ4FrameDecompressor

        return bytes(LZ4FrameDecompressor().decompress(data))
    except Exception:  # decompressing damaged data raises all kinds of exceptions
        return b""


def zstd() -> Any:
    """The zstd module of Python 3.14, or its backport."""
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return zstd

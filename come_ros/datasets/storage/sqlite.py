"""SQLite files of rosbag2 (.db3), with every version of their tables, and the journal files of a killed recorder."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes

from .parts import Channel, Message, Storage, StorageError, text_of, type_name

MAGIC = b"SQLite format 3\0"
# what a damaged file raises; the second while Python makes the text of the first
FAULTS = (sqlite3.Error, UnicodeDecodeError, OverflowError)
LEFTOVERS = ("-wal", "-journal")  # messages of a killed recorder that SQLite has not moved into the file


class SqliteFile(Storage):
    """Reads sorted by time with the file's index, or in the order of rows if the index is damaged."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError if no table of topics and messages can be read."""
        self.path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._database: sqlite3.Connection | None = None
        try:
            self._database = self._opened()
            self._topics = self._read_topics()
        except FAULTS as error:
            self.close()
            reason = _one_line(error)
            raise StorageError(
                f"{path} cannot be read as a bag: {reason}: `sqlite3 {path.name} .recover` may save what is left"
            ) from error
        self.channels = list(self._topics.values())

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        wanted = {number: channel for number, channel in self._topics.items() if channel.topic in topics}
        if not wanted:
            return
        assert self._database is not None
        places = ",".join(map(str, wanted))
        query = f"SELECT id, topic_id, timestamp, data FROM messages WHERE topic_id IN ({places}) ORDER BY "
        seen: set[int] = set()
        for order in ("timestamp, id", "rowid"):  # the second query needs no index, which may be damaged
            try:
                for number, topic, log_ns, data in self._database.execute(query + order):
                    if number in seen or topic not in wanted:
                        continue
                    seen.add(number)
                    if isinstance(data, bytes) and isinstance(log_ns, int):
                        yield log_ns, wanted[topic], data
            except FAULTS as error:
                self._note(f"{self.path} is damaged: {len(seen)} messages could be read ({_one_line(error)})")
                continue
            return

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
        if self._copy is not None:
            self._copy.cleanup()

    def _note(self, damage: str) -> None:
        self.damage = damage

    def _opened(self) -> sqlite3.Connection:
        """Opens the file read-only; opens a copy if SQLite must repair it first."""
        path, options = self.path, "mode=ro&immutable=1"
        left = [suffix for suffix in LEFTOVERS if _size(_beside(path, suffix))]
        if left:
            self._copy = tempfile.TemporaryDirectory(prefix="come_ros_")
            copy = Path(self._copy.name, "bag.db3")
            for suffix in ("", *left):
                shutil.copyfile(_beside(path, suffix), _beside(copy, suffix))
            path, options = copy, "mode=rw"
        database = sqlite3.connect(f"file:{quote_from_bytes(os.fsencode(path.absolute()))}?{options}", uri=True)
        database.text_factory = text_of
        return database

    def _read_topics(self) -> dict[int, Channel]:
        assert self._database is not None
        execute = self._database.execute
        tables = {name for (name,) in execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"topics", "messages"} <= tables:
            raise sqlite3.DatabaseError("it has no tables of topics and messages, so it is not a recording")
        rows = execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
        try:
            counts = dict(execute("SELECT topic_id, count(*) FROM messages GROUP BY topic_id"))
        except FAULTS as error:
            self._note(f"{self.path} is damaged: {_one_line(error)}")
            counts = dict.fromkeys((row[0] for row in rows), 1)  # unknown, but they are read
        return {
            number: Channel(str(name), type_name(str(kind)), str(encoding), int(counts.get(number, 0)))
            for number, name, kind, encoding in rows
            if isinstance(number, int)
        }


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

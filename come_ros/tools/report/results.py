"""The output folder of a run: filled in a hidden folder, then moved into place; and disk space reserved for that."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import OutputError

RESERVE_BYTES = 16 << 20
PART = ".part-"


class ResultFolder:
    """`path` is a hidden folder inside `out`, to be filled; `publish` moves its contents to `out`. A context manager that leaves no
    hidden folder behind, and removes those of killed runs.

    reserve: disk space with which to finish when the disk is full.
    """

    def __init__(self, out: Path, names: Sequence[str], overwrite: bool, kept: Sequence[str] = ()) -> None:
        """names: of the results. kept: of these, those that stay as they are where this run has none of its own. Raises OutputError if some
        of them are there and not to be overwritten, or `out` cannot be written."""
        self.out, self._names, self._kept = out, names, kept
        self.path = out / f"{PART}{os.getpid()}"
        try:
            there = [name for name in names if (out / name).exists()]
            if there and not overwrite:
                raise OutputError(
                    f"{out} already holds results ({', '.join(there)}): choose another folder with -o, or replace them with --overwrite"
                )
            out.mkdir(parents=True, exist_ok=True)
            for left in out.glob(f"{PART}*"):
                if not _alive(left.name.removeprefix(PART)) or left == self.path:
                    shutil.rmtree(left, ignore_errors=True)
            self.path.mkdir()
            self.reserve = Reserve(self.path)
        except OSError as error:
            self.close()
            raise cannot_write(out, error) from error

    def publish(self) -> None:
        """Replaces the results of an earlier run; other files in `out` are kept. Raises OutputError."""
        try:
            for name in self._names:
                place = self.out / name
                if name in self._kept and not (self.path / name).exists():
                    continue
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                elif place.exists():
                    place.unlink()
                if (self.path / name).exists():
                    os.rename(self.path / name, place)
        except OSError as error:
            raise cannot_write(self.out, error) from error

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()


class Reserve:
    """Disk space that is released at the first write that fails, so that a run can end properly.

    full: why it was released, "" until then.
    """

    def __init__(self, folder: Path, size: int = RESERVE_BYTES) -> None:
        """Raises OSError if there is not enough space."""
        self.full = ""
        self._path = folder / ".reserve"
        with open(self._path, "wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)

    def give_back(self, error: OSError) -> bool:
        """Releases the space. Returns whether writing may be tried again."""
        if self.full or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return False
        self.full = error.strerror or str(error)
        self.release()
        return True

    def release(self) -> None:
        """Releases the space."""
        self._path.unlink(missing_ok=True)

    def guard(self, stream: io.BufferedWriter) -> GuardedStream:
        """Wraps `stream` with this reserve. Write only through the result."""
        return GuardedStream(stream.detach(), self)


class GuardedStream:
    """A binary stream whose writes are complete, using the reserve if necessary."""

    def __init__(self, raw: io.RawIOBase, reserve: Reserve) -> None:
        self._raw, self._reserve = raw, reserve

    def write(self, data: Any) -> int:
        """Raises OSError if not even the reserve is enough."""
        left = memoryview(data)
        total = len(left)
        while len(left):
            try:
                left = left[self._raw.write(left) or 0 :]
            except OSError as error:
                if not self._reserve.give_back(error):
                    raise
        return total

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._raw.close()


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error in our own words."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return OutputError(f"cannot write to {path}: it, or a part of it, is a file: name a folder")
    return OutputError(
        f"cannot write to {path}: {error.strerror or error}: choose a folder with enough space and write permission"
    )


def _alive(pid: str) -> bool:
    return pid.isdigit() and Path("/proc", pid).exists()

"""What image libraries print about an image, which is said in our own line."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator

warnings.filterwarnings("ignore", module=r"PIL\.")  # as the lines below, but from Python

# libpng, libjpeg, libtiff (whose lines begin with a module of it), OpenCV
_OF_LIBRARIES = re.compile(
    rb"libpng |Corrupt JPEG|Premature end of|Unsupported marker|Warning: unknown JFIF|Inconsistent progression|Unknown Adobe|"
    rb"Invalid SOS|JPEG datastream|Application transferred|More samples per pixel|\[ ?(?:WARN|ERROR|FATAL| INFO):\d+@|"
    rb"(?:_?TIFF\w+|\w+(?:Decode|PreDecode|SetupDecode)\w*|O?JPEG\w*|Fax\w+|LogLuv\w*|LZMA\w*|ZSTD\w*|WebP\w*|tempfile\.tif)(?:, [^:]*)?: "
)

MOST_BYTES = 1 << 20  # that are kept


class _Collector:
    """Takes the place of file descriptor 2 while some thread decodes: C libraries write there, whatever sys.stderr is. Lines that are not
    theirs, which other threads may write meanwhile, are passed on afterwards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stderr = -1
        os.fstat(2)  # raises OSError if stderr is closed: the file must not take its place
        make = getattr(os, "memfd_create", None)  # Linux: needs no disk
        self._file = os.fdopen(make("come_ros"), "w+b", 0) if make else tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (kept open)
        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) | os.O_APPEND)
        self._read = 0  # bytes so far; it is seldom cut, since others may be writing
        atexit.register(self._at_exit)  # a signal may have ended `quiet` halfway

    def begin(self) -> None:
        """Raises OSError if there is no stderr."""
        with self._lock:
            if self._stderr < 0:  # whatever the number of users: a signal may have come between the two
                self._stderr = os.dup(2)
            self._users += 1
            os.dup2(self._file.fileno(), 2)

    def end(self) -> list[str]:
        """The lines of libraries, for the last of those that decode at the same time."""
        with self._lock:
            self._users -= 1
            if self._users:
                return []  # the last one gets them all
            self._restore()
            return self._sorted_out()

    def _restore(self) -> None:
        if self._stderr >= 0:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(self._stderr, 2)
            stderr, self._stderr = self._stderr, -1
            os.close(stderr)

    def _at_exit(self) -> None:
        if self._stderr >= 0:
            self._restore()
            self._sorted_out()

    def _sorted_out(self) -> list[str]:
        size = os.fstat(self._file.fileno()).st_size
        if size == self._read:
            return []
        lines = os.pread(self._file.fileno(), size - self._read, self._read).splitlines(keepends=True)
        self._read = size
        if size > MOST_BYTES:
            os.ftruncate(self._file.fileno(), 0)
            self._read = 0
        theirs = [line for line in lines if _OF_LIBRARIES.match(line)]
        if others := b"".join(line for line in lines if not _OF_LIBRARIES.match(line)):
            with contextlib.suppress(OSError):
                os.write(2, others)
        return [line.decode(errors="replace").strip() for line in theirs]


_collector: _Collector | None = None
_making = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """For decoding an image: what libraries print meanwhile is in the list afterwards, and nowhere else."""
    global _collector
    said: list[str] = []
    try:
        with _making:
            collector = _collector = _collector or _Collector()
        collector.begin()
    except OSError:  # stderr is closed, or there is no memory for a file: then they print
        yield said
        return
    try:
        yield said
    finally:
        said += collector.end()

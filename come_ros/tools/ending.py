"""The last line of a command that ends early, whether or not anybody is left to read it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def print_error(command: str, message: str) -> None:
    """Prints `come_ros COMMAND: MESSAGE` to stderr, if that can be written: the exit code and the results do not depend on it."""
    try:
        print(f"come_ros {command}: {message}", file=sys.stderr, flush=True)
    except OSError:  # the terminal is closed, or the reader of a pipe has ended
        mute(sys.stderr)


def mute(stream: TextIO) -> None:
    """So that flushing `stream` at exit neither prints an error nor changes the exit code."""
    with contextlib.suppress(OSError):  # a stream without a file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

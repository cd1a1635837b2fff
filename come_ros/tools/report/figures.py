"""Pictures of matplotlib: one way to reach it, and a picture that cannot be drawn costs nothing but itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("come_ros")


def pyplot() -> Any:
    """matplotlib.pyplot, drawing into files. What the environment says of a backend is for the terminal or notebook that it comes from."""
    backend = os.environ.pop(
        "MPLBACKEND", None
    )  # matplotlib reads it at import, and refuses names that it does not know
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return plt


def not_drawn(path: str | Path, draw: Callable[[], Any]) -> str:
    """Draws the picture `path`; why that failed, in one line, "" if it did not. The rest of the results does not depend on it."""
    try:
        draw()
    except Exception as error:
        Path(path).unlink(missing_ok=True)  # half a picture is none
        reason = " ".join(str(error).split()) or "no reason given"
        return f"{Path(path).name} could not be drawn: {type(error).__name__}: {reason}"
    return ""


def draw_or_warn(path: str | Path, draw: Callable[[], Any]) -> None:
    """As `not_drawn`, with the failure as a warning in the log."""
    if failure := not_drawn(path, draw):
        log.warning("%s; everything else is there", failure)

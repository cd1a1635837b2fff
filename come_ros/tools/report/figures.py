"""Access to matplotlib. A picture that cannot be drawn does not affect other results."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("come_ros")


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files. The backend set in the environment is ignored, since it is meant for a terminal or
    notebook."""
    backend = os.environ.pop("MPLBACKEND", None)  # matplotlib reads it at import, and refuses unknown names
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its fonts does not matter to a picture
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return plt


def not_drawn(path: str | Path, draw: Callable[[], Any]) -> str:
    """Draws the picture `path`. Returns a one-line reason if that failed, else "". Other results do not depend on it."""
    try:
        draw()
    except Exception as error:
        Path(path).unlink(missing_ok=True)  # half a picture is useless
        reason = " ".join(str(error).split()) or "no reason given"
        return f"{Path(path).name} could not be drawn: {type(error).__name__}: {reason}"
    return ""


def draw_or_warn(path: str | Path, draw: Callable[[], Any]) -> None:
    """As `not_drawn`, with the failure as a warning in the log."""
    if failure := not_drawn(path, draw):
        log.warning("%s; all other results are complete", failure)

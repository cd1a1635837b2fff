"""The 3D view among the results of a command. A view that cannot be made does not affect other results."""

from __future__ import annotations

from pathlib import Path

from ...view.page import FOLDER, write_view


def no_view(results: Path, problems: list[str]) -> str:
    """Writes the folder `view` into a folder of results. Returns why there is none, in one line; "" if it is there, or if it failed: then
    `problems` gets the reason."""
    try:
        return write_view(results)
    except Exception as error:  # whatever it is, the results are kept
        problems.append(f"{FOLDER}/ could not be made: {type(error).__name__}: {' '.join(str(error).split())}")
        return ""

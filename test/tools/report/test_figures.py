"""Pictures: whatever the environment says of matplotlib, and whatever fails, the other results stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from come_ros.tools.report import figures

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "TkAgg", "nonsense"])
def test_a_backend_of_the_environment_does_not_matter(backend: str, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from come_ros.tools.report.figures import pyplot\n"
        "figure, _ = pyplot().subplots()\n"
        "figure.savefig(sys.argv[1])\n"
        "print(os.environ['MPLBACKEND'])\n"
    )
    path = tmp_path / "a.png"
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size > 1000
    assert done.stdout.strip() == backend  # what this process starts sees what it would have seen


def test_no_other_module_reaches_matplotlib_by_itself() -> None:
    users = [
        path for path in (ROOT / "come_ros").rglob("*.py") if "matplotlib.use(" in path.read_text(encoding="utf-8")
    ]
    assert [path.name for path in users] == ["figures.py"]


def test_a_picture_that_fails_is_one_line_and_leaves_no_half(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.png"

    def draw() -> None:
        path.write_bytes(b"half")
        raise ValueError("no\nfont")

    assert figures.not_drawn(path, draw) == "a.png could not be drawn: ValueError: no font"
    assert not path.exists()
    figures.draw_or_warn(path, draw)
    assert "a.png could not be drawn" in caplog.text and "all other results are complete" in caplog.text
    assert figures.not_drawn(path, lambda: path.write_bytes(b"whole")) == ""
    assert path.exists()

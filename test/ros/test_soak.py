"""test/benchmark/soak.py for some seconds, with the stand-in for a model: all that it does to the node, each once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]


def test_whatever_happens_every_frame_is_accounted_for(tmp_path: Path) -> None:
    script = ROOT / "test/benchmark/soak.py"
    options = ("--backbone", "fake", "--minutes", "0.1", "--period", "0.5", "--sample", "0.3", "--out", str(tmp_path))
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert (tmp_path / "soak.json").is_file(), said
    result = json.loads((tmp_path / "soak.json").read_text())
    holds = {name: ok for name, *_, ok in result["bounds"]}
    for name in ("diagnostics whose counts do not add up", "frames pending at the end", "exit code of the node"):
        assert holds[name], said
    assert holds["frames used without an odometry message, or the reverse"], said
    assert result["configured_times"] == 2 and result["diagnostics_checked"] > 10
    counts = result["counts"]
    assert counts["used"] > 20 and counts["decode"] and counts["paused"], counts
    assert (tmp_path / "soak.png").stat().st_size > 10_000 and "| bound |" in (tmp_path / "soak.md").read_text()

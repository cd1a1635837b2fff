"""launched_node.py under launch_testing, where that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ros.live_node import PATIENCE_S

pytest.importorskip("launch_testing.launch_test", reason="launch_testing is not installed (it comes with ROS)")
pytest.importorskip("launch_ros", reason="launch_ros is not installed (it comes with ROS)")

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]


def test_launched_node(prefix: Path) -> None:
    def joined(name: str, *folders: Path) -> str:
        return os.pathsep.join([*filter(None, os.environ.get(name, "").split(os.pathsep)), *map(str, folders)])

    # after launch's own sources, where those are on the path: this repository has a folder of that name
    environment = {**os.environ, "PYTHONPATH": joined("PYTHONPATH", ROOT, ROOT / "test"), "OMP_NUM_THREADS": "1"}
    environment["AMENT_PREFIX_PATH"] = os.pathsep.join([str(prefix), joined("AMENT_PREFIX_PATH")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "launch_testing.launch_test", str(Path(__file__).with_name("launched_node.py"))]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=4 * PATIENCE_S
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("\nOK\n") == 2, "one test while all runs, and one after it"

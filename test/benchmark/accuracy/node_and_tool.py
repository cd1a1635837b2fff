"""The node at a slow playback, with backpressure all, and `come_ros bag` on the same bag: do they say the same?

python test/benchmark/accuracy/node_and_tool.py [--rate 0.3] -> results/node_and_tool.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, write_result

from come_ros.datasets.tum import read_trajectory
from come_ros.ros.programs.live import PlayedCamera, run_live
from come_ros.tools.demo import render_room
from come_ros.tools.report.live_scores import read_recording

SEED = 20_000_548  # a room that is neither trained on nor scored
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.3, help="speed of playing (default %(default)s)")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("-o", "--out", default="out/node_and_tool")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    bag = render_room(out / "input", SEED, args.frames, "320x240")
    command = [
        sys.executable,
        "-m",
        "come_ros.tools.cli",
        "bag",
        str(bag),
        "-o",
        str(out / "tool"),
        "--overwrite",
        "--no-bag",
    ]
    subprocess.run(command, check=True)
    run = run_live(PlayedCamera.of_bag(bag, rate=args.rate), out / "node", ["-p", "backpressure:=all"])
    node = read_recording(run.recording)
    tool = dict(read_trajectory(out / "tool" / "trajectory.tum"))
    both = sorted(set(tool) & set(node.odom_from_camera))
    a, b = (np.stack([poses[t] for t in both]) for poses in (tool, node.odom_from_camera))
    extent = float(np.ptp(a[:, :3, 3], axis=0).max())
    apart = np.linalg.norm(a[:, :3, 3] - b[:, :3, 3], axis=1)
    turned = np.abs(a[:, :3, :3] - b[:, :3, :3]).max()
    result = {
        "rate": args.rate,
        "tool_poses": len(tool),
        "node_poses": len(node.odom_from_camera),
        "shared": len(both),
        "pending_at_the_end": int(node.input["pending"]),
        "extent": extent,
        "largest_difference_of_extent": float(apart.max() / extent),
        "largest_rotation_element_difference": float(turned),
    }
    print(json.dumps(result, indent=1))
    write_result(RESULTS, "node_and_tool", result, weights=TINY)


if __name__ == "__main__":
    main()

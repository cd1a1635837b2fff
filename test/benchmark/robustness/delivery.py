"""How many raw images arrive, what becomes of them, and how late the results are: 640x480 rgb8 at 15 Hz over DDS, best effort, from a
camera process to the node; one camera, or several that go through it in one window.

The profile and the QoS are those that ship. Counted is what the node's own diagnostics say; latency runs from an image's stamp, which
is when it was due, to the arrival of the result at a recorder next to the node.

    python test/benchmark/robustness/delivery.py [--cameras 1 3] [--backbones fake vggt] [--count 1000] [--size 640x480] [--hz 15]

writes delivery.json and delivery.md into results/; vggt is the bundled model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, write_result

from come_ros.outputs.topics import topic_of
from come_ros.ros.programs.live import PlayedCamera, run_live
from come_ros.tools.report.live_scores import read_recording

RESULTS = Path(__file__).with_name("results")
NAMES = ("front", "left", "right", "rear", "up", "down", "far", "near")
KEYFRAMES = "every"  # noise moves so that `flow` would take hardly any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 3], help="how many, 1 to 8 (default: 1 and 3)")
    parser.add_argument("--backbones", nargs="+", default=["fake", "vggt"])
    parser.add_argument("--count", type=int, default=1000, help="images of each camera (default %(default)s)")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--hz", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = []
    for backbone in options.backbones:
        for cameras in options.cameras:
            runs.append(measure(backbone, NAMES[:cameras] if cameras > 1 else (), options))
            print(json.dumps(runs[-1], indent=2))
    result = {
        "image": f"{options.size} rgb8",
        "hz": options.hz,
        "keyframe_mode": KEYFRAMES,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "runs": runs,
    }
    weights = TINY if "vggt" in options.backbones else ()
    write_result(options.out, "delivery", result, markdown(result), weights=weights)
    print(markdown(result))
    return int(any(run["share"] < 0.99 or not run["balanced"] or run["node_exit_code"] for run in runs))


def measure(backbone: str, names: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """One run. names: of the cameras; () for a single one."""
    width, height = (int(v) for v in options.size.split("x"))
    arguments = [f"backbone:={backbone}", f"keyframe.mode:={KEYFRAMES}", "tf.mode:=off"]
    camera = PlayedCamera.of_pattern(width, height, options.count, options.hz, names)
    images = options.count * max(1, len(names))
    with tempfile.TemporaryDirectory() as folder, tqdm(total=images, unit="img", disable=None) as bar:

        def progress(text: str, sent: int) -> None:
            bar.set_description_str(f"{backbone}, {max(1, len(names))} cameras: {text}")
            bar.update(sent - bar.n)

        given = [word for each in arguments for word in ("-p", each)]
        run = run_live(camera, Path(folder), given, record_inputs=False, progress=progress)
        recording = read_recording(run.recording)
    counts = {key: int(recording.input[key]) for key in ("received", "used", "pending")}
    dropped = {k[8:]: int(v) for k, v in recording.input.items() if k.startswith("dropped_") and int(v)}
    topics = {"odometry": "odometry", **{name or "depth": topic_of(name, "depth/image") for name in names or ("",)}}
    return {
        "backbone": backbone,
        "cameras": max(1, len(names)),
        "sent": len(run.sent),
        **counts,
        "share": counts["received"] / len(run.sent),
        "dropped": dropped,
        "balanced": counts["received"] == sum(counts[k] for k in ("used", "pending")) + sum(dropped.values()),
        "latency_ms": {key: latency(recording.arrivals.get(f"/come/{topic}", {})) for key, topic in topics.items()},
        "qos": recording.input["qos"],
        "camera_late_ms": round(run.late_ms, 1),
        "node_exit_code": run.exit_code,
        "load": round(os.getloadavg()[0], 1),
    }


def latency(arrivals: dict[int, int]) -> dict[str, float] | None:
    """Of messages, stamp -> arrival in ns."""
    if not arrivals:
        return None
    ms = np.array([when - stamp for stamp, when in arrivals.items()]) * 1e-6
    return {"messages": len(ms), **{f"p{p}": round(float(np.percentile(ms, p)), 1) for p in (50, 95)}}


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Delivery and latency",
        "",
        f"Made by `python test/benchmark/robustness/delivery.py`: {result['image']} at {result['hz']:g} Hz from each camera, best effort; "
        f"keyframes: {result['keyframe_mode']}. {result['machine']}.",
        "",
        "| backbone | cameras | sent | received | used | dropped | odometry p50 / p95, ms | depth of each camera p50 / p95, ms | load |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        dropped = ", ".join(f"{n} {reason}" for reason, n in run["dropped"].items()) or "none"
        odometry, *depth = [f"{t['p50']:.0f} / {t['p95']:.0f}" if t else "none" for t in run["latency_ms"].values()]
        lines.append(
            f"| {run['backbone']} | {run['cameras']} | {run['sent']} | {run['received']} | {run['used']} | {dropped} | {odometry} | "
            f"{', '.join(depth)} | {run['load']} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())

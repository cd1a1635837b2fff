"""How many raw images arrive: 640x480 rgb8 at 15 Hz over DDS, best effort, from a camera process to the node.

The profile and the QoS are those that ship. Counted is what the node's own diagnostics say it received.

    python test/benchmark/delivery.py [--count 1000] [--size 640x480] [--hz 15] [--weights FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from come_ros.tools.live import Camera, run_live
from come_ros.tools.scores import read_recording

RESULTS = Path(__file__).with_name("results")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--hz", type=float, default=15.0)
    parser.add_argument("--weights", default=None, help="a real model instead of the stand-in, to load the machine")
    parser.add_argument("--out", type=Path, default=RESULTS / "delivery.json")
    options = parser.parse_args()
    width, height = (int(v) for v in options.size.split("x"))
    model = ["-p", f"weights:={options.weights}"] if options.weights else ["-p", "backbone:=fake"]
    with tempfile.TemporaryDirectory() as folder:
        camera = Camera.of_pattern(width, height, options.count, options.hz)
        run = run_live(camera, Path(folder), model, record_inputs=False)
        recording = read_recording(run.recording)
    received = int(recording.input["received"])
    result = {
        "sent": len(run.sent),
        "received": received,
        "share": received / len(run.sent),
        "used": int(recording.input["used"]),
        "pending": int(recording.input["pending"]),
        "dropped": {k[8:]: int(v) for k, v in recording.input.items() if k.startswith("dropped_") and int(v)},
        "image": f"{options.size} rgb8",
        "hz": options.hz,
        "qos": recording.input["qos"],
        "backbone": recording.inference["backbone"],
        "camera_late_ms": round(run.late_ms, 1),
        "node_exit_code": run.exit_code,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return int(result["share"] < 0.99)


if __name__ == "__main__":
    sys.exit(main())

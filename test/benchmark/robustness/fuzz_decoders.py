"""Throws random messages at the decoders: each is decoded rightly or refused with a FrameError, nothing else.

    .venv/bin/python test/benchmark/robustness/fuzz_decoders.py [--messages 100000]

Writes results/fuzz_decoders.json: messages, decoded, refused, escapes (other exceptions), wrong, seconds; by kind of message.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fuzz
from benchmark.stamped import write_result

from come_ros.camera import images

try:
    from sensor_msgs.msg import CompressedImage, Image
except ImportError:  # without ROS: only messages like those of rosbags
    Image = CompressedImage = None

RESULTS = Path(__file__).with_name("results")
SHARES = {"image": 0.6, "depth": 0.1, "compressed": 0.2, "camera_info": 0.1}
SHOWN = 5  # faults of each kind


def run(messages: int, seed: int) -> dict[str, object]:
    choices = fuzz.RandomChoices(seed)
    checks = {
        "image": lambda: fuzz.check_image(choices, images.decode_image, Image),
        "depth": lambda: fuzz.check_depth(choices, images.decode_depth, Image),
        "compressed": lambda: fuzz.check_compressed(choices, images.decode_image, CompressedImage),
        "camera_info": lambda: fuzz.check_camera_info(choices),
    }
    start = time.perf_counter()
    kinds = {}
    for kind, check in checks.items():
        counts = {"messages": round(SHARES[kind] * messages), "decoded": 0, "refused": 0, "escapes": 0, "wrong": 0}
        for _ in range(counts["messages"]):
            try:
                counts["decoded" if check() else "refused"] += 1
            except AssertionError as error:
                counts["wrong"] += 1
                if counts["wrong"] <= SHOWN:
                    print(kind, error)
            except Exception:
                counts["escapes"] += 1
                if counts["escapes"] <= SHOWN:
                    traceback.print_exc()
        kinds[kind] = counts
        print(kind, counts, flush=True)
    total = {name: sum(counts[name] for counts in kinds.values()) for name in kinds["image"]}
    seconds = round(time.perf_counter() - start, 1)
    return {**total, "seconds": seconds, "seed": seed, "rclpy": Image is not None, "kinds": kinds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = run(options.messages, options.seed)
    write_result(options.results, "fuzz_decoders", result)
    print(f"written to {options.results}")
    return int(result["escapes"] != 0 or result["wrong"] != 0)


if __name__ == "__main__":
    sys.exit(main())

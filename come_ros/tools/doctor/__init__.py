"""Checks this machine: what come_ros finds, what is missing, and how to fix it.

Each line is OK, WARN (works, but not as well as it could) or FAIL (come_ros cannot run), with the fix below it; the exit code is 1
if any check fails. It checks Python and its packages, GPU and driver, the weights, memory (and the largest window that fits into
it), ROS, DDS, and the camera, TF and /clock of the ROS system that runs here. Nothing is changed, downloaded or published.

examples:
  come_ros doctor                                   everything; the camera, if there is only one
  come_ros doctor --topic /camera/image_raw         this camera must be published and usable
  come_ros doctor --quick                           only what needs no model and no ROS system: 2 s
  come_ros doctor --params my.yaml --set weights=vggt_1b.safetensors --json
  ros2 run come_ros come_ros doctor                 the same from a ROS workspace
"""

from __future__ import annotations

import argparse
import json

from ... import __version__
from ..arguments import add_config_arguments, configured
from .checks import MODELS, examine
from .running_system import FAIL, OK, WARN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topic", default="", help="image topic that must be published (default: the only one, if there is one)"
    )
    parser.add_argument(
        "--camera-info",
        default="",
        metavar="TOPIC",
        help="its camera_info topic (default: in the namespace of the images)",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="listen to it for this many seconds (default: 2)")
    parser.add_argument("--sim-time", action="store_true", help="/clock must be published")
    add_config_arguments(parser, several=True)
    parser.add_argument("--quick", action="store_true", help="skip the trial pass and the running ROS system")


def run(options: argparse.Namespace) -> int:
    """Prints the findings. Returns 1 if any check fails. Raises ConfigError if --params or --set are wrong."""
    config = configured(options)
    if not options.json:
        print(f"come_ros {__version__} in {MODELS.parent}")
    found = []
    for finding in examine(config, options):
        found.append(finding)
        if not options.json:
            print(f"  {finding.level:4}  {finding.subject:14} {finding.text}", flush=True)
            if finding.fix:
                print(f"{'':22} fix: {finding.fix}")
    worst = max((f.level for f in found), key=(OK, WARN, FAIL).index)
    if options.json:
        print(json.dumps([f._asdict() for f in found], indent=2))
    else:
        print(
            {
                OK: "All is well.",
                WARN: "Works, with the warnings above.",
                FAIL: "At least one check failed: come_ros cannot run.",
            }[worst]
        )
    return int(worst == FAIL)

"""Plays a recording over DDS in real time, as a camera driver would.

SOURCE is what `come_ros bag` takes: a bag, a folder of images or a data set, or a video. A bag's messages go out as they were recorded, on
their own topics or, with --camera, on those of a camera of that name; all others go out on /camera/image_raw and, where the intrinsics are
known, /camera/camera_info. It waits for a subscriber of the images. Ctrl-C ends it.

examples:
  come_ros play my_bag                               a node in another terminal: come_ros node --ros-args -r image:=/camera/image_raw
  come_ros play my_bag --topic /left/image --camera camera
  come_ros play video.mp4 --stamps now --loop        as a camera that never ends, for RViz and TF of a robot
  come_ros play images/ --fps 10 --rate 0.5
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import progress
from ..datasets.part import Part
from ..datasets.rosbag import Bag
from ..datasets.sequence import open_sequence
from ..datasets.storage import is_recording
from ..errors import ConfigError, DatasetError, Stopped
from ..files import shown
from ..interrupts import Interrupts
from .result import print_result

if TYPE_CHECKING:
    from ..ros.programs.camera_messages import PlayedTopics

CAMERA = "camera"
FASTEST = 100.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="bag, folder or video")
    parser.add_argument("--topic", default=None, help="image topic of a bag that holds several")
    parser.add_argument(
        "--camera", metavar="NAME", default=None,
        help="publish on /NAME/image_raw and /NAME/camera_info (default: a bag's own topics, else camera)",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, default=1.0, help="speed, 1 is real time (default: %(default)s)")
    parser.add_argument(
        "--fps", type=float, default=None, help="images per second of a folder of images, or of a video"
    )
    parser.add_argument(
        "--start", metavar="SECONDS", type=float, default=0.0, help="start this long after the first image"
    )
    parser.add_argument(
        "--duration", metavar="SECONDS", type=float, default=None, help="stop this long after the start"
    )
    parser.add_argument(
        "--stamps", choices=("recorded", "now"), default="recorded",
        help="stamps of the messages: as recorded, or as of a camera that runs now (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--loop", action="store_true", help="again and again, until Ctrl-C; stamps go on")
    parser.add_argument("--reliability", choices=("best_effort", "reliable"), default="best_effort")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for a subscriber of the images")


def run(options: argparse.Namespace) -> int:
    """Returns 0 if everything was played, or a signal ended --loop. Raises Stopped if a signal ended it earlier, ComeRosError."""
    if not 0 < options.rate <= FASTEST:
        raise ConfigError(f"--rate is {options.rate:g}, but must be more than 0 and at most {FASTEST:g}")
    from ..ros.arguments import check_environment

    check_environment()  # before rclpy is imported
    from ..ros.programs import camera_messages, process
    from ..ros.programs.player import publish

    with contextlib.ExitStack() as stack:
        played = _opened(options, stack)
        if options.loop:
            played = dataclasses.replace(
                played, count=None, source=functools.partial(camera_messages.repeated, played.source)
            )
        if options.stamps == "now":
            source = played.source
            played = dataclasses.replace(
                played, source=lambda: camera_messages.stamped_now(source(), played.images, options.rate)
            )
        stopped = stack.enter_context(Interrupts())
        node = stack.enter_context(process.command_node("come_ros_player"))
        report = _Progress(played, stack.enter_context(progress.bar(total=played.count, unit="img")))
        heard = () if options.no_wait else played.images
        ended = publish(
            node, played, options.rate, 1, options.reliability, process.Polled(stopped), report, waited_for=heard
        )
    if ended and not (options.loop and report.images):
        raise Stopped(stopped.number or 0, f"{report.images} images were sent on {report.topic}")
    if not report.images:
        raise DatasetError(f"{shown(options.source)} has no image in that part: lower --start, or raise --duration")
    text = f"{report.images} images sent on {report.topic}" + (f" in {report.seconds:.1f} s" if report.seconds else "")
    print_result(options, {"topic": report.topic, "images": report.images, "seconds": report.seconds}, text)
    return 0


class _Progress:
    """Takes the player's events: a bar on a terminal, and what is left of them at the end."""

    def __init__(self, played: PlayedTopics, bar: Any) -> None:
        self.images, self.seconds = 0, 0.0
        (self.topic,) = played.images
        self._bar = bar

    def __call__(self, event: str, **values: Any) -> None:
        if event == "waiting":
            self._bar.write(
                f"waiting for a subscriber of {self.topic} (--no-wait plays without one; Ctrl-C ends it)",
                file=sys.stderr,
            )
        elif event == "matched":
            self._bar.set_description_str(f"playing on {self.topic}")
        else:
            self.images = values["images"] if event == "sent" else len(values["images"])
            self.seconds = values.get("seconds", 0.0)
            self._bar.update(self.images - self._bar.n)


def _opened(options: argparse.Namespace, stack: contextlib.ExitStack) -> PlayedTopics:
    """Raises DatasetError, ConfigError."""
    from ..ros.programs import camera_messages

    part = Part(options.start, options.duration)
    if is_recording(Path(options.source)):
        if options.fps is not None:
            raise ConfigError("--fps has no effect on a bag, whose messages have times: leave it out")
        bag = stack.enter_context(Bag(options.source, options.topic, part=part, depth="none"))
        return camera_messages.of_bag(bag, options.camera, whole=not part)
    recording = stack.enter_context(open_sequence(options.source, options.topic, options.fps, depth="none", part=part))
    if not recording.timed:
        raise DatasetError(f"the images in {shown(options.source)} have no times: give their rate with --fps")
    return camera_messages.of_recording(recording, options.camera or CAMERA)

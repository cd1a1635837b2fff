"""Shows the live node at work: renders a walk once round a furnished room (or takes your bag), plays it in real time, records, scores and
plots the results. The node looks for loops, so its map is corrected where the walk comes back to its start.

The node, the camera and the recorder are separate processes in a separate DDS domain on this machine. The output folder then holds
output.mcap (everything the node published; opens in Foxglove and RViz), metrics.json, overview.png, the logs, and view/index.html, which
shows the result in 3D in a browser, without a server (it needs viser, extra `view`).

examples:
  come_ros demo                      a rendered room, the bundled model
  come_ros demo my_bag               your recording; scored if it holds depth or /ground_truth/odometry
  come_ros demo --weights vggt.pt --params my.yaml
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, progress
from ..drops import in_words
from ..errors import ComeRosError, Stopped
from ..files import shown
from .report.figures import draw_or_warn
from .result import print_result

if TYPE_CHECKING:
    from ..datasets.rooms.scene import Scene
    from ..types import F64

SIZE = (320, 240)
FRAMES, HZ = 240, 10.0
# The first room of the validation split, which is never trained on, with space for a walk of several metres round it that sees enough of
# its furniture: datasets.rooms.tour.first_toured. That looks at the geometry only, so no model and no score had a say.
SEED = 10_000_011
INPUT = "input"
RESULTS = ("overview.png", "metrics.json", "output.mcap", "trajectory.tum", "view/index.html")


class DemoError(ComeRosError):
    """The demo cannot continue."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", nargs="?", default=None, help="ROS bag to play instead of a rendered room")
    parser.add_argument("--bag", dest="bag_option", metavar="BAG", default=None, help="the same")
    parser.add_argument("-o", "--output", dest="out", default="out/demo", help="output folder (default: %(default)s)")
    parser.add_argument("--topic", default=None, help="image topic of the bag, if it holds several")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="speed of playing, 1 is real time (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, default=FRAMES, help="images of the rendered room (default: %(default)s)")
    parser.add_argument(
        "--size", default=f"{SIZE[0]}x{SIZE[1]}", metavar="WxH", help="their size (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the room (default: %(default)s)")
    parser.add_argument("--weights", default=None, help="weights file instead of the bundled model")
    parser.add_argument("--params", default=None, help="ROS parameters file for the node")
    parser.add_argument("--no-view", action="store_true", help="do not write view/")


def run(options: argparse.Namespace) -> int:
    """Returns 0 if the node did its work and ended properly, 1 otherwise."""
    if not 0 < options.rate <= 100:
        raise DemoError(f"--rate is {options.rate:g}, but must lie in 0 .. 100")
    if options.bag and options.bag_option:
        raise DemoError(f"two bags are given, {options.bag} and --bag {options.bag_option}: leave one out")
    given = options.bag or options.bag_option
    if given:
        _check_bag(Path(given))
    defaults = {"frames": FRAMES, "size": f"{SIZE[0]}x{SIZE[1]}", "seed": SEED} if given else {"topic": None}
    for name, default in defaults.items():
        if getattr(options, name) != default:
            what = "a bag" if given else "a rendered room"
            raise DemoError(f"--{name} {getattr(options, name)} has no effect on {what}: leave it out")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    bag = given or _render_tour(out / INPUT, options)
    title = f"come_ros {__version__}: " + (f"room {options.seed}" if bag == out / INPUT else Path(bag).name)
    try:
        metrics = play_and_score(
            bag, out, title, topic=options.topic, rate=options.rate, weights=options.weights, params=options.params
        )
    except Stopped as stop:
        recorded = (out / "output.mcap").exists()
        raise Stopped(stop.number, f"what was recorded so far is in {shown(out)}" if recorded else "") from None
    from .report.next_steps import of_results, tell
    from .report.tables import table
    from .report.verdict import of_metrics
    from .report.view import no_view

    problems: list[str] = []
    without_view, stopped = "", None
    try:
        without_view = "" if options.no_view else no_view(out, problems)
    except Stopped as stop:
        stopped = Stopped(stop.number, f"all results but view/ are in {shown(out)}")
    files = [name for name in RESULTS if (out / name).exists()]
    text = f"{table(metrics)}\n\nverdict: {of_metrics(metrics).line}\n\n"
    text += f"{', '.join(str(out / name) for name in files)}; {metrics['run']['seconds']:.0f} s live"
    if without_view:
        text += f"\nview/ is missing: {without_view}"
    print_result(options, {**metrics, "folder": str(out), "files": files}, text)
    if not without_view:
        tell(of_results(shown(out)))
    if stopped is not None:
        raise stopped
    if problems:
        raise DemoError(f"{'; '.join(problems)}; all other results are in {shown(out)}")
    return int(not sound(metrics))


def _check_bag(path: Path) -> None:
    """Raises DemoError unless the path exists and looks like a ROS recording."""
    from ..datasets.storage import is_recording

    if not path.exists():
        raise DemoError(f"{shown(path)} does not exist: give a bag")
    if not is_recording(path):
        raise DemoError(
            f"{shown(path)} is not a ROS bag, and only bags can be played: use `come_ros bag` for folders of images and videos"
        )


def sound(metrics: dict[str, Any]) -> bool:
    """Whether the node did its work: it published something, every frame is accounted for, and it ended properly."""
    return bool(metrics["frames"]["used"] and metrics["frames"]["balanced"] and metrics["run"]["exit_code"] == 0)


def _render_tour(bag: Path, options: argparse.Namespace) -> Path:
    from ..datasets.rooms.tour import tour_path  # numba and OpenCV: only now, so that --help is quick

    return render_room(bag, options.seed, options.frames, options.size, tour_path)


def render_room(
    bag: Path, seed: int, frames: int, size: str, path: Callable[[Scene, int, int, float], F64] | None = None
) -> Path:
    """A camera's walk through a room, HZ images per second, as a bag with its truth; replaces one. path: makes world_from_camera
    (frames, 4, 4) of the scene, the seed, the number of frames and their rate; by default that of the rooms that models are trained on.
    Raises DemoError."""
    import numpy as np

    from ..datasets.bag_writer import BagWriter
    from ..datasets.rooms import raycast, splits
    from ..datasets.rooms.camera import camera_path, degrade
    from ..datasets.rooms.scene import make_scene
    from ..types import Frame

    if bag.exists():
        if not (bag / "metadata.yaml").is_file():
            raise DemoError(f"{bag} exists, but is not a bag: move it away, or choose another folder with --output")
        shutil.rmtree(bag)
    images, depths = [], []
    try:
        width, height = (int(v) for v in size.split("x"))
        scene = make_scene(seed)
        poses = (path or camera_path)(scene, seed, frames, HZ)
        k = scene.intrinsics(width, height)
        with progress.bar(total=frames, desc="rendering", unit="img") as bar:
            for i in range(0, frames, 8):
                image, depth = raycast.render(scene, poses[i : i + 8], k, width, height, os.cpu_count() or 1)
                images.append(image)
                depths.append(depth)
                bar.update(len(image))
    except ValueError as error:
        raise DemoError(f"cannot render {frames} images of {size} in room {seed}: {error}") from error
    stream = np.random.default_rng((seed, splits.GENERATOR_VERSION, splits.STREAM_PHOTOMETRIC))
    pictures = degrade(np.concatenate(images), stream)
    with BagWriter(bag) as writer:
        for i, depth in enumerate(np.concatenate(depths)):
            stamp = splits.EPOCH_NS + round(i * 1e9 / HZ)
            writer.write(Frame(pictures[i], stamp, "camera_optical_frame", k), depth, poses[i])
    return bag


def play_and_score(
    bag: str | Path,
    out: Path,
    title: str,
    topic: str | None = None,
    rate: float = 1.0,
    weights: str | None = None,
    params: str | None = None,
) -> dict[str, Any]:
    """Plays `bag` to the live node and writes recording, metrics and picture to `out`. Returns the metrics. Raises ComeRosError."""
    from ..files import write_tum
    from ..ros.programs.live import PlayedCamera, run_live
    from .report.bars import bars_of
    from .report.live_scores import read_recording, read_truth, score
    from .report.picture import draw, overview_of
    from .report.verdict import of_metrics

    arguments: list[str] = []
    for file, given in ((params, ["--params-file", params]), (weights, ["-p", f"weights:={weights}"])):
        if file is not None:
            if not Path(file).is_file():
                raise DemoError(f"{file} does not exist")
            arguments += [str(v) for v in given]
    camera = PlayedCamera.of_bag(bag, topic, rate)
    for name in RESULTS:  # of an earlier run: must not be mistaken for this one's if it fails
        (out / name).unlink(missing_ok=True)
    with progress.bar(total=_images(bag, topic), unit="img") as bar:

        def report(text: str, sent: int) -> None:
            bar.set_description_str(text)
            bar.update(sent - bar.n)

        live = run_live(camera, out, arguments, progress=report)
        bar.set_description_str("scoring")
        recording = read_recording(live.recording)
        truth = read_truth(bag, recording, topic)
        metrics = score(live, recording, truth, camera.topic)
        bar.set_description_str("played and scored")
    metrics = {"come_ros": __version__, "bag": str(bag), "topic": camera.topic, "rate": rate, **metrics}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_tum(out / "trajectory.tum", recording.odom_from_camera)
    if not recording.depth:
        raise DemoError(f"the node published no depth: see {out / 'node.log'} and {out / 'metrics.json'}")
    picture = out / "overview.png"
    with progress.doing(f"drawing {picture.name}"):
        draw_or_warn(
            picture,
            lambda: draw(
                picture,
                dataclasses.replace(overview_of(bag, recording, truth, topic), bars=bars_of(metrics)),
                f"{title}\nverdict: {of_metrics(metrics).line}\n{_figures(metrics)}",
            ),
        )
    return metrics


def _figures(metrics: dict[str, Any]) -> str:
    """One line with what came and when."""
    from .report.picture import SEPARATOR

    frames, latency = metrics["frames"], metrics["latency_ms"]["~/odometry"]
    unused = in_words(frames["dropped"])
    parts = [f"{frames['sent']} images sent, {frames['used']} used" + (f"; not used: {unused}" if unused else "")]
    if latency:
        parts.append(f"latency p50 {latency['p50']:.0f} ms")
    return SEPARATOR.join(parts)


def _images(bag: str | Path, topic: str | None) -> int:
    from ..datasets.rosbag import Bag

    with Bag(bag, topic) as source:
        return len(source)

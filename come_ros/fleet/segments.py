"""Parts of a long recording in processes of their own: python -m come_ros.fleet.segments TASK, with TASK as JSON.

The path of a camera is one chain: keyframes follow from keyframes, windows share frames with the windows before, loops tie the last to the
first. So a recording is not cut into runs of their own whose maps are joined afterwards. One pass without a model finds the windows
(`outline`). Then overlapping segments of them go through the model, each in a process, wherever there is room (`predict`). At the end a
run of `come_ros bag` over the whole recording takes their predictions (predictions.py), aligns them by the keyframes that they share,
closes the loops, and writes what it would have written alone.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones import load_backbone, reproducible
from ..backbones.backbone import Backbone
from ..backbones.stream import FrameCache, FrameName, Step
from ..config import MIN_SIDE, Config
from ..datasets import Recording
from ..datasets.part import Part
from ..datasets.sequence import open_sequence
from ..errors import ComeRosError, DatasetError
from ..files import write_text
from ..pipeline import ReconstructionPipeline
from ..types import Frame, Known, Prediction
from .predictions import Kept

OUTLINE = "windows.json"


@dataclass(frozen=True)
class Task:
    """source: of open_sequence, with `options`, its keyword arguments; `part`: fields of datasets.part.Part. config: all parameters by
    name. folder: of the outline and the predictions. segment, segments: which of how many; None for the outline."""

    source: str
    options: dict[str, Any]
    part: dict[str, Any]
    config: dict[str, Any]
    folder: str
    segment: int | None = None
    segments: int = 1

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def open(self) -> Recording:
        return open_sequence(self.source, **self.options, depth="none", part=Part(**self.part))


def main(words: list[str]) -> int:
    task = Task(**json.loads(words[0]))
    try:
        if task.segment is None:
            outline(task)
        else:
            predict(task)
    except ComeRosError as error:
        print(f"come_ros fleet: {error}", file=sys.stderr)
        return 1
    return 0


class _Accepted(Backbone):
    """Tells the pipeline of every window something that it accepts, so that its windows depend on the images only: the alignment of a part
    without the bundle may refuse what that of the whole run accepts. windows: names of their frames. inner: predicts them, None for
    nobody."""

    name = "outline"
    patch_size, native_side, device = 14, 56, "cpu"
    streams = True

    def __init__(self, inner: Backbone | None = None) -> None:
        self.windows: list[list[FrameName]] = []
        self._inner = inner
        if inner is not None:
            self.patch_size, self.native_side, self.inputs = inner.patch_size, inner.native_side, inner.inputs
            self.streams = inner.streams

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        inner = self._inner
        return super().image_size(width, height, side) if inner is None else inner.image_size(width, height, side)

    def configured(self, config: Config) -> Backbone:
        return self if self._inner is None else _Accepted(self._inner.configured(config))

    def new_cache(self) -> FrameCache:
        return super().new_cache() if self._inner is None else self._inner.new_cache()

    def predict(
        self,
        images: np.ndarray,
        stop: Callable[[], bool] | None = None,
        known: Known | None = None,
        step: Step | None = None,
    ) -> Prediction:
        if self._inner is not None:
            self._inner.predict(images, stop, known, step)
        s, h, w = images.shape[:3]
        dense = None if step is None else step.dense
        self.windows.append([] if step is None else list(step.names))
        near = np.ones((s if dense is None else len(dense), h, w), np.float32)
        focal = np.array([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1]])
        return Prediction(images, near, near + 1, np.tile(np.eye(4), (s, 1, 1)), np.tile(focal, (s, 1, 1)), dense=dense)


def windows_only(config: Config) -> Config:
    """Without what follows after a prediction: neither points nor poses of other images are wanted."""
    return config.replace(**{"refine.mode": "none", "odometry.rate": "keyframe"})


def outline(task: Task) -> None:
    """Writes the windows of the recording, as its keyframes make them: lists of stamps. Raises ComeRosError."""
    config = windows_only(Config.from_flat(task.config))
    backbone = _Accepted()
    small = config.replace(
        **{"input.max_side": MIN_SIDE, "backbone": "fake", "accelerator.name": "none", "known.intrinsics": False}
    )
    with task.open() as source:
        pipeline = ReconstructionPipeline(small, backbone)
        for _ in pipeline.run(source.iter_frames()):
            pass
    if not backbone.windows:
        raise DatasetError(f"{task.source} has no image that can be used")
    windows = [[stamp for stamp, _ in names] for names in backbone.windows]
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    write_text(Path(task.folder, OUTLINE), json.dumps(windows) + "\n")


def segment_of(windows: list[list[int]], index: int, count: int) -> list[list[int]]:
    """The windows of segment `index` of `count`, and enough of those before it: of each frame in its first window the encoder has seen the
    same frames together as in a run over all windows."""
    first, last = (round(len(windows) * i / count) for i in (index, index + 1))
    begin = first
    while 0 < begin < last and set(windows[begin - 1]) & set(windows[first]):
        begin -= 1
    return windows[max(0, begin - 1) : last] if begin < last else []


def predict(task: Task) -> None:
    """Adds the predictions of the windows of a segment to the folder, unless all are there. Raises ComeRosError."""
    assert task.segment is not None
    try:
        windows = json.loads(Path(task.folder, OUTLINE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"the outline in {task.folder} cannot be read ({error}): start the fleet again") from error
    done = Path(task.folder, f"{task.segment}.{task.segments}.done")
    if done.exists():  # before the fleet was started again
        return
    wanted = segment_of(windows, task.segment, task.segments)
    if not wanted:
        return
    stamps = {stamp for window in wanted for stamp in window}
    config = Config.from_flat(task.config)
    reproducible(config)
    backbone = _Accepted(Kept(load_backbone(config), Path(task.folder), make=True))
    pipeline = ReconstructionPipeline(windows_only(config).replace(**{"keyframe.mode": "every"}), backbone)

    def frames(source: Recording) -> Iterator[Frame]:
        for frame in source.iter_frames():
            if frame.stamp_ns in stamps:
                yield frame
            if frame.stamp_ns >= wanted[-1][-1]:
                return

    with task.open() as source:
        for _ in pipeline.run(frames(source)):
            pass
    write_text(done, "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Training data for networks that learn from a fixed model: rendered rooms, or recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..camera.preprocess import patch_grid_size
from ..errors import DatasetError

if TYPE_CHECKING:
    from ..datasets.rooms.rooms import SyntheticSequence

LONGEST = 8  # frames in a training window
VALIDATION_WINDOWS = 24


Batch = dict[str, Any]
"""images (B, S, 3, H, W) uint8; in rooms also depth, camera_from_first and intrinsics, as datasets.windows gives them"""


class RoomWindows:
    """Windows of rendered rooms, as `come_ros train` draws them."""

    def __init__(self, seed: int, side: int, patch: int) -> None:
        """side: longer side of the model's images, px; patch: the side of its patches."""
        from .room_windows import WindowStream

        self.side, self.patch = side, patch
        self._stream = WindowStream(seed + 77, side, patch=patch)
        self._debt = 0.0
        for _ in range(24):
            self._stream.render()

    def batch(self, windows: int, frames: int) -> np.ndarray:
        """(windows, frames, 3, H, W) uint8."""
        self._debt += windows * frames / 4
        while self._debt > 12:
            self._stream.render()
            self._debt -= 12
        size = self._stream.draw_size()
        return np.stack([self._stream.window(frames, 0.6, size).images for _ in range(windows)])

    def validation(self) -> list[np.ndarray]:
        made = validation_rooms(self.side, self.patch, VALIDATION_WINDOWS)
        return [s.images.transpose(0, 3, 1, 2) for s in made]


class RecordedWindows:
    """Windows of neighbouring frames of recordings; the last tenth of each is kept for validation."""

    def __init__(self, sources: list[str], model: Any, side: int, seed: int) -> None:
        """sources: recordings, or folders of `come_ros fleet`, whose finished recordings are read. model: defines the images' size, with a
        longer side of about `side`. Raises DatasetError if a recording cannot be read or
        is too short."""
        from ..camera.preprocess import image_plan, preprocess
        from ..datasets.sequence import open_sequence
        from ..fleet.record import finished

        self.rng = np.random.default_rng(seed)
        self.train, self.held = [], []
        for source in (each for word in sources for each in finished(Path(word)) or [word]):
            with open_sequence(source) as sequence:
                images = []
                for frame in sequence.iter_frames():
                    height, width = frame.image.shape[:2]
                    plan = image_plan(model, width, height, side)
                    images.append(preprocess(frame.image, plan).transpose(2, 0, 1))
            if len(images) < 10 or len({i.shape for i in images}) > 1:
                raise DatasetError(f"{source} has {len(images)} images of {len({i.shape for i in images})} sizes: "
                                   f"give 10 or more of one size")  # fmt: skip
            cut = len(images) - max(2, len(images) // 10)
            self.train.append(np.stack(images[:cut]))
            self.held.append(np.stack(images[cut:]))
        self._share = np.array([len(i) for i in self.train]) / sum(len(i) for i in self.train)

    def batch(self, windows: int, frames: int) -> np.ndarray:
        source = self.train[self.rng.choice(len(self.train), p=self._share)]  # one image size per batch
        frames = min(frames, len(source))
        out = []
        for _ in range(windows):
            span = int(self.rng.integers(frames, min(len(source), 4 * frames) + 1))
            start = int(self.rng.integers(len(source) - span + 1))
            picked = start + self.rng.permutation(span)[:frames]  # in any order, so that any frame can be the reference
            out.append(source[picked])
        return np.stack(out)

    def validation(self) -> list[np.ndarray]:
        windows = [h[i : i + 4] for h in self.held for i in range(0, max(1, len(h) - 3), 4)]
        return windows[:VALIDATION_WINDOWS]


def draw_batch(data: Any, rng: np.random.Generator, batch: int) -> np.ndarray:
    """Windows (B, S, 3, H, W) uint8 of one random length, `batch` frames in all."""
    frames = int(rng.integers(1, LONGEST + 1))
    return data.batch(max(1, batch // frames), frames)


def room_batches(side: int, patch: int, batch: int, seed: int) -> Iterator[Batch]:
    from .room_windows import WINDOWS, WindowStream

    return WindowStream(seed + 991, side, cut=WINDOWS.most(6), patch=patch).batches(batch)


def room_validation(side: int, patch: int, count: int) -> list[Batch]:
    import torch

    return [
        {"images": torch.from_numpy(s.images.transpose(0, 3, 1, 2))[None], "depth": torch.from_numpy(s.depth)[None]}
        for s in validation_rooms(side, patch, count)
    ]


def validation_rooms(side: int, patch: int, count: int) -> Iterator[SyntheticSequence]:
    """The first `count` windows of 4 frames of the validation split, for a model of those image and patch sides, px."""
    from ..datasets.rooms.rooms import render_sequence
    from ..datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ

    width, height = patch_grid_size(4, 3, side, patch)
    for seed in SPLIT_SEEDS["validation"][:count]:
        yield render_sequence(seed, frames=4, rate_hz=TEST_RATE_HZ, width=width, height=height)


def recorded_batches(data: Any, batch: int, seed: int) -> Iterator[Batch]:
    import torch

    rng = np.random.default_rng(seed)
    while True:
        yield {"images": torch.from_numpy(draw_batch(data, rng, batch))}

"""Contract of readers of recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..datasets import Recording
from ..datasets.sequence import open_sequence


class ReaderContract:
    """Inherit it in a class called Test..., and define the fixture `source`: a recording of a few images, as commands take it, such as a
    path, or "my_package.euroc:Euroc::/data/MH_01"."""

    @pytest.fixture
    def source(self) -> str | Path:
        raise NotImplementedError("define the fixture `source` in your test class: it returns a path, or READER::PATH")

    @pytest.fixture
    def opened(self, source: str | Path) -> Any:
        with open_sequence(source) as sequence:
            yield sequence

    def test_it_says_what_it_is(self, opened: Recording) -> None:
        assert opened.kind and isinstance(opened.kind, str)
        assert opened.count is None or opened.count > 0

    def test_images_are_rgb_in_the_order_of_their_stamps(self, opened: Recording) -> None:
        frames = list(opened.iter_frames())
        assert frames and (opened.count is None or len(frames) + opened.unreadable == opened.count)
        for frame in frames:
            assert frame.image.dtype == np.uint8 and frame.image.ndim == 3 and frame.image.shape[2] == 3
            assert type(frame.stamp_ns) is int and frame.camera
            assert frame.intrinsics is None or frame.intrinsics.shape == (3, 3)
        stamps = [frame.stamp_ns for frame in frames]
        assert stamps == sorted(set(stamps)), "stamps must grow from image to image"

    def test_it_can_be_read_again(self, opened: Recording) -> None:
        first, second = ([(f.stamp_ns, f.image.tobytes()) for f in opened.iter_frames()] for _ in range(2))
        assert first == second

    def test_depth_fits_the_images(self, opened: Recording) -> None:
        sizes = {frame.stamp_ns: frame.image.shape[:2] for frame in opened.iter_frames()}
        for _, depth in opened.iter_depth():
            assert depth.dtype == np.float32 and depth.shape in sizes.values()
            assert not (depth <= 0).any(), "unknown depth is NaN"

    def test_true_poses_are_rigid_and_in_order(self, opened: Recording) -> None:
        truth = opened.truth()
        assert list(truth) == sorted(truth)
        for pose in truth.values():
            assert pose.shape == (4, 4) and pose.dtype == np.float64
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-5)
            assert np.linalg.det(pose[:3, :3]) > 0 and (pose[3] == (0, 0, 0, 1)).all()

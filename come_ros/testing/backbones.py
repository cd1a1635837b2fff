"""Contract of backbones with the pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ..errors import Cancelled
from ..types import U8


class BackboneContract:
    """Inherit it in a class called Test..., and define the fixture `make`: a function without arguments that returns the backbone."""

    @pytest.fixture
    def make(self) -> Any:
        raise NotImplementedError("define the fixture `make` in your test class: it returns a function make()")

    @pytest.fixture
    def backbone(self, make: Any) -> Any:
        return make()

    @pytest.fixture
    def images(self, backbone: Any) -> U8:
        """(3, H, W, 3), about 70 px wide: the model's image of a 320x240 camera at that side."""
        width, height = backbone.image_size(320, 240, 70)
        return np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)

    def test_it_describes_itself(self, backbone: Any) -> None:
        assert backbone.name and backbone.device and backbone.patch_size > 0 and backbone.native_side > 0
        assert backbone.inputs <= {"intrinsics", "depth", "poses"}
        assert {"backbone", "accelerator", "weights", "device"} <= set(backbone.description)
        assert all(isinstance(value, str) for value in backbone.description.values())

    @pytest.mark.parametrize("camera", [(640, 480), (480, 640), (1241, 376), (100, 100)])
    def test_image_sizes_are_multiples_of_the_patch(self, backbone: Any, camera: tuple[int, int]) -> None:
        width, height = backbone.image_size(*camera, backbone.native_side)
        assert width % backbone.patch_size == height % backbone.patch_size == 0 < min(width, height)

    @pytest.mark.parametrize("frames", [1, 2, 3])
    def test_a_prediction_has_the_promised_arrays(self, backbone: Any, images: U8, frames: int) -> None:
        p = backbone.predict(images[:frames])
        shape = images[:frames].shape[:3]
        assert p.images.shape == images[:frames].shape and p.depth.shape == p.confidence.shape == shape
        assert p.depth.dtype == p.confidence.dtype == np.float32
        assert np.isfinite(p.depth).all() and np.isfinite(p.confidence).all()
        poses = p.window_from_camera
        assert poses.shape == (frames, 4, 4) and poses.dtype == np.float64
        turns = poses[:, :3, :3]
        np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-4)
        assert (np.linalg.det(turns) > 0).all() and (poses[:, 3] == (0, 0, 0, 1)).all()
        assert p.intrinsics.shape == (frames, 3, 3) and np.isfinite(p.intrinsics).all()
        assert p.merged is None or p.merged.shape == shape
        assert 0 < p.kept_ratio <= 1 and 0 < p.read_ratio <= 1

    def test_the_same_images_give_the_same_bits(self, backbone: Any, images: U8) -> None:
        """No state is kept from one window to the next."""
        first = backbone.predict(images)
        backbone.predict(images[::-1].copy())
        again = backbone.predict(images)
        assert np.array_equal(first.depth, again.depth) and np.array_equal(first.intrinsics, again.intrinsics)
        assert np.array_equal(first.window_from_camera, again.window_from_camera)

    def test_a_pass_can_be_cancelled(self, backbone: Any, images: U8) -> None:
        with pytest.raises(Cancelled):
            backbone.predict(images, stop=lambda: True)

    def test_it_can_be_asked_without_an_accelerator(self, backbone: Any, images: U8) -> None:
        dense = backbone.dense()
        assert dense.dense() is dense
        assert dense.predict(images).kept_ratio == 1

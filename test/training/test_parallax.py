"""Windows chosen by parallax and overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from come_ros.datasets.material import Material
from come_ros.training.parallax import LEAST_OVERLAP, LENGTHS, SIZES, Mix, ParallaxStream, loader, motion


def plane(poses, width=64, height=48, z=2.0, focal=50.0):
    """Depth (S, H, W) of the wall Z = z for cameras at `poses`, and the lens."""
    k = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
    v, u = np.mgrid[:height, :width]
    rays = np.stack([(u - k[0, 2]) / focal, (v - k[1, 2]) / focal, np.ones(u.shape)], axis=-1)
    depth = [(z - p[2, 3]) / (rays @ p[2, :3]) for p in poses]
    return np.array(depth, np.float32), k


def test_motion_is_what_a_plane_shows():
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[1, 0, 3] = 0.2  # sideways: 0.2 m at 2 m and a focal length of 50 px move a pixel by 5
    c, s = np.cos(0.1), np.sin(0.1)
    poses[2, :3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]  # only turned
    poses[3, 0, 3] = 5.0  # sees nothing of the first image
    parallax, overlap = motion(*plane(poses)[:1], poses, plane(poses)[1], every=2)
    assert parallax == pytest.approx([0, 5, 0, 0], abs=1e-6)
    assert overlap[0] == 1 and overlap[3] == 0
    assert overlap[1] == pytest.approx(1 - 5 / 64, abs=0.04) and overlap[2] == pytest.approx(1 - 5.1 / 64, abs=0.06)


@pytest.fixture(scope="module")
def stream():
    s = ParallaxStream(3, Material(panoramas=(np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8),)))
    for _ in range(4):
        s.render()
    return s


@pytest.mark.slow
def test_most_windows_move_and_all_see_the_first_frame(stream):
    moved, shared = [], []
    for _ in range(30):
        s, picked = stream.pick(4)
        parallax, overlap = motion(s.depth[picked], s.world_from_camera[picked], s.intrinsics)
        moved.append(parallax.max() / (16 * s.depth.shape[2] / 256))
        shared.append(overlap.min())
        assert len(set(picked)) == 4
    assert np.mean(np.array(moved) >= 0.3) >= 0.75 and np.mean(np.array(shared) >= LEAST_OVERLAP) >= 0.9


@pytest.mark.slow
def test_windows_are_consistent_and_say_whether_depth_is_true(stream):
    kinds = set()
    for _ in range(20):
        w = stream.window(3, (192, 144))
        kinds.add(float(w.measured))
        assert w.images.shape == (3, 3, 144, 192) and w.depth.shape == (3, 144, 192) and w.images.dtype == np.uint8
        assert np.allclose(w.camera_from_first[0], np.eye(4), atol=1e-6) and (w.depth > 0).all()
        if not w.measured:
            assert np.allclose(w.camera_from_first[:, :3, 3], 0, atol=1e-6)
    assert kinds <= {0.0, 1.0} and 1.0 in kinds
    alone = [stream.window(1, (192, 144)).measured for _ in range(5)]
    assert alone == [1.0] * 5  # a panorama has nothing to teach about one image


@pytest.mark.slow
def test_batches_hold_as_many_frames_as_asked_for_and_begin_alike():
    mix = Mix(pool=2, sizes={(64, 48): 1.0}, lengths={2: 0.5, 4: 0.5})
    first, again = (list(itertools.islice(ParallaxStream(7, Material(), mix).batches(8), 3)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert a["images"].shape[0] * a["images"].shape[1] == 8 and a["images"].shape[3:] == (48, 64)
        assert all(a[name].equal(b[name]) for name in a)
    assert sum(LENGTHS.values()) == pytest.approx(1) and all(w % 16 == h % 16 == 0 for w, h in SIZES)


@pytest.mark.slow
def test_workers_draw_different_windows():
    mix = Mix(pool=8, sizes={(64, 48): 1.0}, lengths={2: 1.0})
    batches = list(itertools.islice(loader(7, Material(), mix, 16, 4, workers=2), 4))
    assert all(b["images"].shape == (2, 2, 3, 48, 64) for b in batches)
    assert not batches[0]["images"].equal(batches[1]["images"])

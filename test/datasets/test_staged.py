"""Staged rooms: what they put up stands where it is said, the camera sees it from free space, paint changes colours only."""

import numpy as np
import pytest

from come_ros.datasets import staged, synthetic
from come_ros.geometry import is_finite_pose


@pytest.mark.parametrize("put_up", [staged.stage_desk, staged.stage_floor])
def test_the_camera_watches_what_was_put_up(put_up):
    nearer, found = [], 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scene = synthetic.make_scene(seed)
        stage = put_up(scene, rng)
        assert len(stage.scene.shapes) == len(stage.scene.records)
        assert stage.scene.shapes[:, 1].max() < len(stage.scene.textures)
        assert np.array_equal(stage.scene.textures[: len(scene.textures)], scene.textures)
        poses = staged.watching_path(stage, rng, 5, 3.0)
        if poses is None:
            continue
        found += 1
        assert all(map(is_finite_pose, poses))
        assert stage.scene.clearance(poses[:, :3, 3]).min() >= staged.LEAST_CLEARANCE_M
        k = stage.scene.intrinsics(48, 36)
        _, depth = synthetic.render(stage.scene, poses, k, 48, 36)
        assert depth.min() > 0.1
        bare = synthetic.make_scene(seed)
        empty = staged.dataclasses.replace(bare, shapes=bare.shapes[:0], records=bare.records[:0])
        nearer.append((depth < 0.98 * synthetic.render(empty, poses, k, 48, 36)[1]).mean())
        to_target = stage.target - poses[:, :3, 3]
        cosine = (to_target * poses[:, :3, 2]).sum(1) / np.linalg.norm(to_target, axis=1)
        assert np.median(cosine) > 0.5  # within 60 degrees of the optical axis
    assert found >= 6 and np.mean(nearer) > 0.15  # it fills a good part of the image


def test_paint_takes_texture_away_and_no_geometry():
    scene = synthetic.make_scene(5)
    before = scene.textures.copy()
    painted = staged.paint(scene, np.random.default_rng(1))
    assert np.array_equal(scene.textures, before) and painted.textures.dtype == np.uint8
    spread = [t.astype(float).std(axis=1).mean() for t in (painted.textures, scene.textures)]
    assert spread[0] < 0.7 * spread[1]
    assert painted.shapes is scene.shapes and painted.records is scene.records

"""Staged rooms: what they put up stands where it is said, the camera sees it from free space, paint changes colours only."""

import dataclasses

import numpy as np
import pytest

from come_ros.datasets.rooms import raycast, staged
from come_ros.datasets.rooms.scene import SPHERE, Builder, make_scene
from come_ros.geometry import is_finite_pose


@pytest.mark.parametrize("put_up", [staged.stage_desk, staged.stage_floor])
def test_the_camera_watches_what_was_put_up(put_up):
    nearer, found = [], 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scene = make_scene(seed)
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
        _, depth = raycast.render(stage.scene, poses, k, 48, 36)
        assert depth.min() > 0.1
        bare = make_scene(seed)
        empty = dataclasses.replace(bare, shapes=bare.shapes[:0], records=bare.records[:0])
        nearer.append((depth < 0.98 * raycast.render(empty, poses, k, 48, 36)[1]).mean())
        to_target = stage.target - poses[:, :3, 3]
        cosine = (to_target * poses[:, :3, 2]).sum(1) / np.linalg.norm(to_target, axis=1)
        assert np.median(cosine) > 0.5  # within 60 degrees of the optical axis
    assert found >= 6 and np.mean(nearer) > 0.15  # it fills a good part of the image


def test_paint_takes_texture_away_and_no_geometry():
    scene = make_scene(5)
    before = scene.textures.copy()
    painted = staged.paint(scene, np.random.default_rng(1))
    assert np.array_equal(scene.textures, before) and painted.textures.dtype == np.uint8
    spread = [t.astype(float).std(axis=1).mean() for t in (painted.textures, scene.textures)]
    assert spread[0] < 0.7 * spread[1]
    assert painted.shapes is scene.shapes and painted.records is scene.records


def test_a_shadow_lies_where_a_ball_hides_the_light():
    """Against the distance of the ball's centre from each segment between floor and light."""
    scene = make_scene(5)
    builder = Builder(np.random.default_rng(0), np.random.default_rng(0), float(scene.room[2]))
    ball, radius, light = np.array([0.1, 0.2, 0.8]), 0.25, np.array([-0.3, 0.4, 2.0])
    builder.add(SPHERE, ball, (radius,) * 3, np.eye(3), 0)
    scene = dataclasses.replace(
        scene,
        shapes=np.array(builder.shapes, np.int64),
        records=np.array(builder.records),
        lights=np.array([[*light, 1.0, 1.0, 1.0, 3.0]]),
    )
    pose = np.eye(4)
    pose[:3, :3] = np.diag([1, -1, -1])  # looks down
    pose[:3, 3] = 0, 0, 2.2
    k = scene.intrinsics(64, 48)
    images, depths = zip(*(raycast.render(scene, pose[None], k, 64, 48, lamp=r) for r in (0.0, 1e-6)), strict=True)
    assert np.array_equal(*depths)
    darker = (images[0].astype(int) - images[1])[0].max(axis=2) > 0
    v, u = np.mgrid[:48, :64]
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(u.shape)], axis=-1)
    points = depths[0][0][..., None] * rays @ pose[:3, :3].T + pose[:3, 3]
    floor = points[..., 2] < 1e-3
    way = light - points
    along = ((ball - points) * way).sum(-1) / (way**2).sum(-1)
    off = np.linalg.norm(points + along[..., None] * way - ball, axis=-1)
    assert (darker == (off < radius))[floor & (abs(off - radius) > 1e-3)].all()
    assert 20 < (darker & floor).sum() < 0.5 * floor.sum()
    with pytest.raises(ValueError, match="lamp is -1"):
        raycast.render(scene, pose[None], k, 64, 48, lamp=-1)

"""Synthetic rooms: exact geometry, exact repetition, and a frozen test split."""

import itertools
import math

import numpy as np
import pytest
from marks import gives

from come_ros.datasets.rooms import camera, raycast, rooms, splits
from come_ros.datasets.rooms.scene import BOX, CYLINDER, LAY_DOWN, SPHERE, Scene, make_scene, yaw_rotation

SMALL = {"frames": 3, "width": 64, "height": 48}


def hand_made_scene(records=(), room=(6.0, 6.0, 3.0)):
    """A grey room with primitives given as (kind, centre, half sizes, local_from_world)."""
    shapes = np.array([(kind, 0, 0) for kind, *_ in records], np.int64).reshape(-1, 3)
    rows = np.zeros((len(records), 23))
    for row, (kind, centre, half, rotation) in zip(rows, records, strict=True):
        bound = half[0] if kind == SPHERE else np.linalg.norm(half)
        row[:20] = [*centre, *np.ravel(rotation), *half, bound, 1, 1, 1, 100]
    return Scene(
        seed=0,
        room=np.array(room),
        shapes=shapes,
        records=rows,
        room_shapes=np.zeros(6, np.int64),
        room_records=np.tile([1.0, 1, 1, 100, 0, 0, 0], (6, 1)),
        lights=np.array([[0, 0, 2.5, 1, 1, 1, 2.0]]),
        ambient=np.full(3, 0.3),
        textures=np.full((1, 87376, 3), 128, np.uint8),
        horizontal_fov_deg=60.0,
    )


def looking_along_x(position):
    """world_from_camera (1, 4, 4) of a level camera whose z axis is the world's x axis."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[:3, 3] = position
    return pose[None]


def pixel_rays(intrinsics, width, height):
    """Camera-frame directions (H, W, 3) with z = 1."""
    v, u = np.mgrid[:height, :width]
    return np.stack(
        [(u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1], np.ones(u.shape)],
        axis=-1,
    )


@pytest.fixture(scope="module")
@gives("slow")
def windows():
    """The frozen test split, rendered once for the tests that judge it."""
    return list(rooms.test_windows())


def test_equal_arguments_give_equal_sequences():
    first, again = (rooms.render_sequence(7, **SMALL) for _ in range(2))
    threaded = rooms.render_sequence(7, **SMALL, threads=2)
    for other in (again, threaded):
        for field in ("images", "depth", "world_from_camera", "intrinsics", "stamps_ns"):
            np.testing.assert_array_equal(getattr(first, field), getattr(other, field))


def test_different_seeds_give_different_sequences():
    first, other = (rooms.render_sequence(seed, **SMALL) for seed in (7, 8))
    assert not np.array_equal(first.images, other.images)
    assert np.abs(first.depth - other.depth).mean() > 0.05


def test_a_seed_shows_the_same_scene_at_every_resolution():
    large, small = (rooms.render_sequence(5, 2, w, w * 3 // 4, photometric=False) for w in (192, 64))
    np.testing.assert_array_equal(large.world_from_camera, small.world_from_camera)
    # Pixel (u, v) of the small image has its centre on pixel (3u + 1, 3v + 1) of the image three times larger.
    np.testing.assert_allclose(large.depth[:, 1::3, 1::3], small.depth, rtol=1e-4)


def test_fields_have_the_promised_shapes_and_types():
    sequence = rooms.render_sequence(3, **SMALL, rate_hz=4.0)
    assert sequence.images.shape == (3, 48, 64, 3) and sequence.images.dtype == np.uint8
    assert sequence.depth.shape == (3, 48, 64) and sequence.depth.dtype == np.float32
    assert sequence.world_from_camera.shape == (3, 4, 4) and sequence.world_from_camera.dtype == np.float64
    assert sequence.stamps_ns.dtype == np.int64
    np.testing.assert_array_equal(np.diff(sequence.stamps_ns), 250_000_000)
    focal = sequence.intrinsics[0, 0]
    np.testing.assert_allclose(sequence.intrinsics, [[focal, 0, 31.5], [0, focal, 23.5], [0, 0, 1]])
    rotation = sequence.world_from_camera[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (3, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1)


def test_depth_of_an_empty_room_is_that_of_its_planes():
    scene = hand_made_scene()
    intrinsics = scene.intrinsics(80, 60)
    _, depth = raycast.render(scene, looking_along_x((-1.0, 0.5, 1.2)), intrinsics, 80, 60)
    rays = pixel_rays(intrinsics, 80, 60)
    with np.errstate(divide="ignore"):
        side = np.where(rays[..., 0] > 0, 3.5, 2.5) / np.abs(rays[..., 0])  # camera x is the world's -y
        level = np.where(rays[..., 1] > 0, 1.2, 1.8) / np.abs(rays[..., 1])
    np.testing.assert_allclose(depth[0], np.minimum(4.0, np.minimum(side, level)), rtol=1e-6)


def test_depth_of_a_sphere_is_its_closed_form():
    scene = hand_made_scene([(SPHERE, (1.5, 0.0, 1.2), (0.5, 0.5, 0.5), np.eye(3))])
    intrinsics = scene.intrinsics(81, 61)
    _, depth = raycast.render(scene, looking_along_x((-1.0, 0.0, 1.2)), intrinsics, 81, 61)
    rays = pixel_rays(intrinsics, 81, 61)
    squared = (rays**2).sum(axis=-1)
    root = 2.5**2 - squared * (2.5**2 - 0.5**2)
    on_sphere = root > 1e-9
    assert on_sphere.sum() > 200
    np.testing.assert_allclose(depth[0][on_sphere], ((2.5 - np.sqrt(root[on_sphere])) / squared[on_sphere]), rtol=1e-5)
    assert depth[0, 30, 40] == pytest.approx(2.0)


@pytest.mark.parametrize("kind", [BOX, CYLINDER])
def test_every_hit_lies_on_a_surface(kind):
    """Points unprojected from depth have distance zero by Scene.clearance, which is written separately."""
    rotation = yaw_rotation(0.7)
    lying = LAY_DOWN @ rotation
    half = (0.3, 0.3, 0.6)
    scene = hand_made_scene([(kind, (1.0, 0.5, 0.6), half, rotation), (kind, (0.8, -0.8, 0.9), half, lying)])
    intrinsics = scene.intrinsics(80, 60)
    for height in (0.3, 2.0):
        pose = looking_along_x((-1.5, 0.0, height))
        _, depth = raycast.render(scene, pose, intrinsics, 80, 60)
        points = (pixel_rays(intrinsics, 80, 60) * depth[0][..., None]).reshape(-1, 3)
        points = points @ pose[0, :3, :3].T + pose[0, :3, 3]
        np.testing.assert_allclose(scene.clearance(points), 0, atol=1e-5)
        assert (depth[0] < 2.6).sum() > 300


def test_depth_and_poses_agree_between_views():
    """Points of frame 0 seen in frame 1: never in front of its depth; at its depth wherever that is smooth."""
    agreeing, in_view = 0, 0
    for seed in range(6):
        sequence = rooms.render_sequence(seed, 2, 160, 120, photometric=False)
        rays = pixel_rays(sequence.intrinsics, 160, 120)
        camera1_from_camera0 = np.linalg.inv(sequence.world_from_camera[1]) @ sequence.world_from_camera[0]
        points = (rays * sequence.depth[0][..., None]).reshape(-1, 3)
        points = points @ camera1_from_camera0[:3, :3].T + camera1_from_camera0[:3, 3]
        pixels = points @ sequence.intrinsics.T
        u, v = (np.rint(pixels[:, k] / pixels[:, 2]) for k in (0, 1))
        seen = (points[:, 2] > 0.1) & (u >= 1) & (u < 159) & (v >= 1) & (v < 119)
        u, v, z = u[seen].astype(int), v[seen].astype(int), points[seen, 2]
        # Rounding moves the pixel by up to a half, so compare with the range of depth around it; 2 % on top.
        around = np.stack([sequence.depth[1][v + dv, u + du] for dv in (-1, 0, 1) for du in (-1, 0, 1)])
        in_front = z < 0.98 * around.min(axis=0)
        hidden = z > 1.02 * around.max(axis=0)
        assert in_front.mean() < 0.005  # nothing can float before the surface that frame 1 sees
        agreeing += (~in_front & ~hidden).sum()
        in_view += len(z)
    assert in_view > 50_000
    assert agreeing / in_view > 0.9  # the rest is hidden by nearer things


def test_supersampling_leaves_depth_alone():
    scene = make_scene(2)
    pose = camera.camera_path(scene, 2, 1)
    plain, fine = (raycast.render(scene, pose, scene.intrinsics(64, 48), 64, 48, supersample=k) for k in (1, 3))
    np.testing.assert_array_equal(plain[1], fine[1])
    assert np.abs(plain[0].astype(int) - fine[0]).mean() < 25


def test_camera_keeps_its_distance():
    for seed in range(8):
        scene = make_scene(seed)
        path = camera.camera_path(scene, seed, 60, rate_hz=10.0)
        assert scene.clearance(path[:, :3, 3]).min() >= 0.25
        down_tilt = np.degrees(np.arcsin(path[:, 2, 2]))
        assert down_tilt.min() > -40 and down_tilt.max() < 25
        assert np.degrees(np.abs(np.arcsin(path[:, 2, 0]))).max() < 8
        step = np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1)
        assert step.max() * 10 < 2.0


def test_motion_scales_the_step_between_frames():
    scene = make_scene(4)
    full, slow = (camera.camera_path(scene, 4, 8, 3.0, motion) for motion in (1.0, 0.1))
    assert rooms.rotation_deg(slow[0], slow[-1]) < 0.5 * rooms.rotation_deg(full[0], full[-1])
    still = camera.camera_path(scene, 4, 3, 3.0, 0.0)
    np.testing.assert_array_equal(still[0], still[2])


def test_split_seeds_are_disjoint():
    for a, b in itertools.combinations(splits.SPLIT_SEEDS.values(), 2):
        assert a.stop <= b.start or b.stop <= a.start


@pytest.mark.slow
def test_frozen_split_has_its_fingerprint(windows):
    assert [w.seed for w in windows] == list(splits.SPLIT_SEEDS["test"][:64])
    assert rooms.depth_fingerprint(windows) == splits.TEST_SPLIT_SHA256


def test_frozen_split_is_hard_but_overlapping(windows):
    rotations = [rooms.rotation_deg(w.world_from_camera[0], w.world_from_camera[-1]) for w in windows]
    assert np.median(rotations) >= 15
    assert np.median([rooms.overlap(w, 0, 1) for w in windows]) >= 0.6
    assert np.median([rooms.overlap(w, 0, 3) for w in windows]) >= 0.35


def test_frozen_split_is_finite_and_textured(windows):
    for window in windows:
        assert np.isfinite(window.depth).all() and window.depth.min() > 0.1
        assert window.images.std() > 8
        assert 20 < window.images.mean() < 235
    assert 1.0 < np.median([np.median(w.depth) for w in windows]) < 4.0


def test_overlap_of_a_frame_with_itself_is_complete():
    sequence = rooms.render_sequence(1, 2, 64, 48, motion=0.0)
    assert rooms.overlap(sequence, 0, 1) == 1.0
    assert rooms.rotation_deg(*sequence.world_from_camera) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 1, "frames": 0}, "frames"),
        ({"seed": 1, "width": 4}, "width"),
        ({"seed": 1, "height": 10**6}, "height"),
        ({"seed": 1, "rate_hz": 0.0}, "rate_hz"),
        ({"seed": 1, "motion": math.nan}, "motion"),
        ({"seed": 1, "threads": 0}, "threads"),
    ],
)
def test_wrong_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} is .* must be .*pass one"):
        rooms.render_sequence(**arguments)


def test_wrong_arrays_are_named():
    scene = hand_made_scene()
    intrinsics = scene.intrinsics(16, 16)
    with pytest.raises(ValueError, match=r"world_from_camera has shape \(4, 4\)"):
        raycast.render(scene, np.eye(4), intrinsics, 16, 16)
    with pytest.raises(ValueError, match=r"world_from_camera\[0\] .* outside the room"):
        raycast.render(scene, looking_along_x((9, 0, 1)), intrinsics, 16, 16)
    with pytest.raises(ValueError, match=r"intrinsics has shape \(4,\)"):
        raycast.render(scene, looking_along_x((0, 0, 1)), np.ones(4), 16, 16)
    with pytest.raises(ValueError, match=r"images is float64"):
        camera.degrade(np.zeros((1, 8, 8, 3)), np.random.default_rng(0))

"""Training windows: whatever is done to them, images, depth, poses and intrinsics stay one geometry."""

import dataclasses
import itertools

import numpy as np
import pytest

from come_ros.datasets.rooms import camera, raycast
from come_ros.datasets.rooms.scene import make_scene
from come_ros.errors import DatasetError
from come_ros.training import data, room_windows
from come_ros.training.room_windows import (
    Cut,
    WindowStream,
    clear_out,
    crop,
    hang_pictures,
    load_pictures,
    motion_blur,
    spoil,
    tilt,
)


@pytest.fixture(scope="module")
def stream():
    made = WindowStream(seed=11, side=112)
    for _ in range(3):
        made.render()
    return made


@pytest.mark.parametrize("size", [(112, 84), (168, 98), (126, 168), (224, 168), (98, 98)])
def test_a_window_is_one_geometry(stream, size):
    """Each frame's depth, moved into the first camera, must meet the depth seen there."""
    met = []
    for _ in range(6):
        w = stream.window(3, 0.4, size)
        assert w.images.shape == (3, 3, size[1], size[0]) and w.images.dtype == np.uint8
        assert w.depth.shape == (3, size[1], size[0]) and (w.depth > 0.1).all()
        assert np.allclose(w.camera_from_first[0], np.eye(4), atol=1e-5)
        v, u = np.mgrid[: size[1], : size[0]]
        k = w.intrinsics
        for depth, pose in zip(w.depth[1:], w.camera_from_first[1:], strict=True):
            rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(u.shape)], axis=-1)
            p = (depth[..., None] * rays - pose[:3, 3]) @ pose[:3, :3]  # inverse of a rigid motion, row vectors
            x, y = (p[..., i] / p[..., 2] * k[i, i] + k[i, 2] for i in (0, 1))
            inside = (p[..., 2] > 0.1) & (x > 0) & (x < size[0] - 1) & (y > 0) & (y < size[1] - 1)
            seen = w.depth[0][np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)]
            # never farther than the first camera sees, but for what hides (nearer) and for edges
            if inside.mean() > 0.2:
                met.append(np.mean(np.abs(p[..., 2][inside] / seen - 1) < 0.03))
    assert len(met) > 6 and np.median(met) > 0.75


def test_crops_keep_rays(stream):
    """A pixel of the crop shows the same ray as the source's: checked through depth of a tilted plane, at any zoom."""
    rng = np.random.default_rng(0)
    k = np.array([[200.0, 0, 111.5], [0, 200.0, 83.5], [0, 0, 1]])
    v, u = np.mgrid[:168, :224]
    plane = 1 / (1 + 0.3 * (u - k[0, 2]) / k[0, 0] - 0.2 * (v - k[1, 2]) / k[1, 1])
    image = np.repeat((40 + 0.5 * u + 0.3 * v)[..., None], 3, axis=2).astype(np.uint8)
    for size in [(112, 84), (168, 126), (126, 168), (56, 84)] * 5:
        images, depth, c = crop(image[None], plane[None].astype(np.float32), k, size, rng)
        y, x = np.mgrid[: size[1], : size[0]]
        want = 1 / (1 + 0.3 * (x - c[0, 2]) / c[0, 0] - 0.2 * (y - c[1, 2]) / c[1, 1])
        half = 0.6 * 0.5 / 200 * want.max() ** 2  # half a source pixel: depth is that of the nearest one
        assert np.abs(depth[0] - want).max() < half
        source_u, source_v = (x - c[0, 2]) / c[0, 0] * 200 + 111.5, (y - c[1, 2]) / c[1, 1] * 200 + 83.5
        inner = np.s_[4:-4, 4:-4]
        assert np.abs(images[0, ..., 0] - (40 + 0.5 * source_u + 0.3 * source_v))[inner].max() < 1.6
        assert c[0, 0] == c[1, 1]


def test_draws_are_valid_and_varied():
    for side, patch, rendered in ((112, 14, (224, 168)), (168, 14, (224, 168)), (256, 16, (336, 256))):
        made = WindowStream(seed=1, side=side, patch=patch)
        assert made.rendered == rendered
        sizes = {made.draw_size() for _ in range(300)}
        assert len(sizes) > 5 and max(w for w, _ in sizes) > side
        for w, h in sizes:
            assert w % patch == 0 and h % patch == 0 and 28 <= w <= rendered[0] and 28 <= h <= rendered[1]


def test_networks_learn_from_images_made_of_the_patches_of_their_model(stream, monkeypatch):
    """Those of a model with a stem have 16 px, and it refuses other images."""
    monkeypatch.setattr(WindowStream, "render", lambda self: self.pool.append(stream.pool[0]))
    monkeypatch.setattr(data, "VALIDATION_WINDOWS", 1)
    made = data.RoomWindows(0, 64, 16)
    shapes = {made.batch(1, 2).shape[-2:] for _ in range(6)}
    shapes |= {next(data.room_batches(64, 16, 4, seed))["images"].shape[-2:] for seed in range(4)}
    assert len(shapes) > 1 and all(length % 16 == 0 for shape in shapes for length in shape)
    assert [w.shape[-2:] for w in made.validation()] == [(48, 64)]
    assert [w["images"].shape[-2:] for w in data.room_validation(64, 16, 1)] == [(48, 64)]


def test_batches_hold_all_lengths(stream, monkeypatch):
    monkeypatch.setattr(room_windows, "REUSE", 1e9)  # nothing new is rendered
    other = WindowStream(seed=4, side=56)
    other.pool = stream.pool * 8
    lengths = set()
    for batch in itertools.islice(other.batches(8), 120):
        b, s = batch["images"].shape[:2]
        assert b * s <= 8 and b >= 1 and batch["depth"].shape[:2] == (b, s)
        lengths.add(s)
    assert {1, 2, 3, 4, 6, 8} == lengths


def test_streams_run_in_the_order_of_time_forwards_and_backwards(stream):
    """Windows of other kinds come in any order as well."""
    first, frames = stream.pool[0], len(stream.pool[0].images)
    marked = dataclasses.replace(first, depth=np.ones_like(first.depth) * np.arange(1, frames + 1)[:, None, None])
    ways = {}
    for in_order in (True, False):
        made = WindowStream(seed=5, side=56, cut=Cut({4: 1.0}, sequence=frames, in_order=in_order))
        made.pool = [marked]
        steps = [np.sign(np.diff(made.window(4, 0.6).depth[:, 0, 0])) for _ in range(40)]
        ways[in_order] = {tuple(s) for s in steps}
    assert ways[True] == {(1, 1, 1), (-1, -1, -1)} and len(ways[False]) > 3


def test_spoilt_images_stay_the_same_scene(stream):
    rng = np.random.default_rng(2)
    images = stream.pool[0].images[:3]
    kept = spoiled = 0
    for _ in range(60):
        out = spoil(images, rng)
        assert out.shape == images.shape and out.dtype == np.uint8
        if out is images:
            kept += 1
            continue
        spoiled += 1
        same = np.corrcoef(out[1].mean(2).ravel(), images[1].mean(2).ravel())[0, 1]
        assert same > 0.6
    assert kept > 10 and spoiled > 10


def test_motion_blur_is_a_mean_along_the_line():
    image = np.zeros((21, 21, 3), np.uint8)
    image[:, 10] = 250
    along, across = motion_blur(image, 6.0, np.pi / 2), motion_blur(image, 6.0, 0.0)
    assert np.array_equal(along[8:13], image[8:13])
    assert across[10, 10, 0] < 90 and abs(int(across[10, :, 0].astype(int).sum()) - 250) < 12
    assert motion_blur(image, 0.5, 0.0) is image


def test_pictures_change_surfaces_but_no_geometry(tmp_path):
    from PIL import Image

    with pytest.raises(DatasetError, match="no pictures"):
        load_pictures(str(tmp_path))
    with pytest.raises(DatasetError, match="is not a folder"):
        load_pictures(str(tmp_path / "nowhere"))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    with pytest.raises(DatasetError, match=r"bad\.png"):
        load_pictures(str(tmp_path))
    (tmp_path / "bad.png").unlink()
    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 255, (90, 300, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 255, (400, 200), np.uint8)).save(tmp_path / "b.jpg")
    pictures = load_pictures(str(tmp_path))
    assert [p.shape for p in pictures] == [(90, 300, 3), (400, 200, 3)]
    scene = make_scene(3)
    before = scene.textures.copy()
    other = hang_pictures(scene, pictures, rng)
    changed = (other.textures != before).any((1, 2))
    assert 0 < changed.sum() < len(changed) and np.array_equal(scene.textures, before)
    poses = camera.camera_path(scene, 3, 2)
    depths = [raycast.render(s, poses, s.intrinsics(64, 48), 64, 48)[1] for s in (scene, other)]
    assert np.array_equal(*depths)


def test_pool_is_bounded(monkeypatch):
    monkeypatch.setattr(room_windows, "POOL", 2)
    made = WindowStream(seed=8, cut=Cut({2: 1.0}, sequence=3))
    for _ in range(4):
        made.render()
    assert len(made.pool) == 2 and len({s.seed for s in made.pool}) == 2


def test_a_tilted_camera_looks_down_from_the_same_place():
    from come_ros.datasets.rooms import rooms

    level = np.tile(np.eye(4), (3, 1, 1))
    level[:, :3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]  # forward is world y, down is world -z
    level[:, :3, 3] = [[0, 0, 1], [0, 0.1, 1], [0, 0.2, 1.1]]
    down = []
    for seed in range(200):
        tilted = tilt(level, np.random.default_rng(seed))
        assert np.array_equal(tilted[:, :3, 3], level[:, :3, 3])
        assert np.allclose(tilted[:, :3, :3] @ tilted[:, :3, :3].transpose(0, 2, 1), np.eye(3))
        assert np.allclose([rooms.rotation_deg(tilted[0], t) for t in tilted], 0, atol=1e-5)
        down.append(tilted[0, 2, 2])  # world z of the optical axis
    assert -0.5 < np.mean(down) < -0.2 and np.min(down) < -0.7 and np.max(down) > 0.1


def test_rooms_can_be_emptied():

    scene = make_scene(5)
    rng = np.random.default_rng(0)
    left = [len(clear_out(scene, rng).shapes) for _ in range(20)]
    assert max(left) < 0.6 * len(scene.shapes) and min(left) < 0.1 * len(scene.shapes)
    empty = clear_out(scene, np.random.default_rng(1))
    assert len(empty.records) == len(empty.shapes)

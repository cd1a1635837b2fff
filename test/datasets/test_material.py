"""Photographs for training: what is read from a folder, how rooms wear it, and windows out of panoramas."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from come_ros.datasets.material import CELL, Material, cells, dress, load_material
from come_ros.datasets.panoramas import load_panorama, panorama_window, pinhole, turning_path, view
from come_ros.datasets.rooms.scene import make_scene
from come_ros.errors import DatasetError


def sheet(rng):
    """Two rows of a contact sheet: seven textures, then one that is half as high, and blank paper."""
    image = np.full((16 + 2 * 176, 16 + 7 * 144, 3), 255, np.uint8)
    for i in range(8):
        top, left = 16 + 176 * (i // 7), 16 + 144 * (i % 7)
        high = CELL if i < 7 else CELL // 2
        image[top : top + high, left : left + CELL] = rng.integers(0, 200, (high, CELL, 3))
    return image


def panorama(height=64):
    """Red grows with the azimuth, green with the elevation (down), so that a colour tells a direction."""
    v, u = np.mgrid[:height, : 2 * height].astype(np.float32)
    return np.stack([255 * u / (2 * height), 255 * v / height, np.zeros_like(u)], axis=-1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "a" / "previews").mkdir(parents=True)
    (tmp_path / "b" / "chars").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "a" / "previews" / "Wood.webp"), sheet(rng))
    hdr = rng.uniform(0, 2, (64, 128, 3)).astype(np.float32)
    for name in ("x.hdr", "same.hdr"):
        cv2.imwrite(str(tmp_path / "b" / name), hdr)
    cv2.imwrite(str(tmp_path / "b" / "narrow.hdr"), hdr[:, :64])
    cv2.imwrite(str(tmp_path / "b" / "picture.png"), rng.integers(0, 255, (120, 150, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b" / "small.png"), rng.integers(0, 255, (40, 50, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b" / "chars" / "ch_1.png"), rng.integers(0, 255, (128, 128, 3), np.uint8))
    (tmp_path / "b" / "broken.png").write_bytes(b"not an image")
    return tmp_path


def test_a_folder_gives_textures_pictures_and_panoramas(folder):
    material = load_material(folder)
    assert len(material.textures) == 8 and len(material.panoramas) == 1
    assert len(material.pictures) == 1 + 4  # and four views of the panorama
    assert material.panoramas[0].shape == (64, 128, 3) and material.panoramas[0].dtype == np.uint8
    assert str(material) == "8 textures, 5 pictures, 1 panoramas"


def test_an_empty_folder_is_one_clear_error(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no textures .*come_ros/training/README\.md"):
        load_material(tmp_path)


def test_cells_are_cut_without_paper():
    found = cells(sheet(np.random.default_rng(1)))
    assert [t.shape[:2] for t in found] == [(124, 124)] * 7 + [(60, 124)]
    assert max(t.max() for t in found) < 200


def test_rooms_wear_it_and_keep_their_shape():
    rng = np.random.default_rng(2)
    scene = make_scene(5)
    material = Material((np.full((124, 124, 3), 90, np.uint8),), (np.full((200, 130, 3), 160, np.uint8),))
    dressed = dress(scene, material, rng)
    changed = (dressed.textures != scene.textures).any(axis=(1, 2))
    assert 0.4 < changed.mean() < 1 and np.array_equal(dressed.records, scene.records)
    assert np.array_equal(dress(scene, Material(), rng).textures, scene.textures)


def test_a_view_looks_where_its_camera_does():
    image = panorama()
    k = pinhole(np.radians(60), (33, 25))
    assert np.allclose(view(image, np.eye(3), k, (33, 25))[12, 16, :2], 127, atol=4)
    right = np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])  # a quarter to the right
    assert np.allclose(view(image, right, k, (33, 25))[12, 16, :2], [191, 127], atol=4)
    seen = view(image, np.eye(3), k, (33, 25)).astype(int)
    assert seen[12, 30, 0] > seen[12, 2, 0] and seen[22, 16, 1] > seen[2, 16, 1]  # x to the right, y down
    back = view(image, np.diag([-1.0, 1, -1]), k, (33, 25))  # over the seam
    assert back[12, :15, 0].min() > 200 and back[12, 18:, 0].max() < 55


def test_a_window_of_a_panorama_is_exact_rotation():
    """A pixel's colour in one image is that of the pixel to which the rotation takes it in another."""
    rng = np.random.default_rng(3)
    images, depth, poses, k = panorama_window(panorama(512), 4, (64, 48), rng)
    assert images.shape == (4, 48, 64, 3) and depth.shape == (4, 48, 64) and np.ptp(poses[:, :3, 3]) == 0
    v, u = np.mgrid[:48, :64]
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(u.shape)], axis=-1)
    assert np.allclose(np.linalg.norm(rays * depth[0][..., None], axis=-1), 1, atol=1e-5)
    other = np.linalg.inv(poses[2]) @ poses[0]
    assert not np.allclose(other, np.eye(4), atol=0.02)
    moved = rays @ other[:3, :3].T
    column, row = (np.rint(moved[..., i] / moved[..., 2] * k[i, i] + k[i, 2]).astype(int) for i in (0, 1))
    inside = (column >= 0) & (column < 64) & (row >= 0) & (row < 48) & (moved[..., 2] > 0)
    assert inside.mean() > 0.2
    apart = images[2][row[inside], column[inside]].astype(int) - images[0][inside]
    assert np.median(np.abs(apart[:, :2])) <= 1


def test_neighbours_on_a_turning_path_share_most_of_the_view():
    rng = np.random.default_rng(4)
    for _ in range(20):
        turns = turning_path(rng, 4, 1.0)
        assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-9)
        between = np.arccos(
            np.clip((np.trace(turns[:-1].transpose(0, 2, 1) @ turns[1:], axis1=1, axis2=2) - 1) / 2, -1, 1)
        )
        assert between.max() < 0.6


def test_what_is_no_panorama_is_none(folder):
    assert load_panorama(folder / "b" / "narrow.hdr") is None
    assert load_panorama(folder / "b" / "broken.png") is None


def test_names_that_are_not_utf8_do_no_harm(tmp_path):
    """OpenCV crashes at such a name, and takes the process with it."""
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(odd)
    cv2.imwrite(str(tmp_path / "p.png"), np.zeros((120, 150, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "h.hdr"), np.ones((32, 64, 3), np.float32))
    os.rename(tmp_path / "p.png", odd + b"/\xff.png")
    os.rename(tmp_path / "h.hdr", odd + b"/\xfe.hdr")
    material = load_material(os.fsdecode(odd))
    assert len(material.panoramas) == 1 and len(material.pictures) > 1
    assert load_panorama(tmp_path / "missing.hdr") is None

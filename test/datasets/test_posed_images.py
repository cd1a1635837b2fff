"""Layouts of data sets with poses, each made here from one small world, and what is said of damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import Truth, trajectory, truth_of

from come_ros import geometry
from come_ros.camera.rectify import Lens
from come_ros.datasets.colmap import lens_of
from come_ros.datasets.posed_images import PosedImages, in_pixels_of, read_depth, read_pose, resized
from come_ros.datasets.sequence import open_sequence
from come_ros.datasets.transforms import OPTICAL_FROM_OPENGL
from come_ros.errors import DatasetError

COUNT = 4


@pytest.fixture(scope="module")
def world() -> Truth:
    return truth_of(trajectory("curve", COUNT), height=48, width=64, focal=58.5)


def text_of(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(str(v) for v in row) for row in matrix) + "\n"


def millimetres(depth: np.ndarray) -> np.ndarray:
    return np.rint(depth * 1000).astype(np.uint16)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])


def write_seven_scenes(folder: Path, world: Truth) -> Path:
    for i in range(COUNT):
        write(folder / f"frame-{i:06d}.color.png", world.images[i])
        depth = millimetres(world.depth[i])
        depth[0, 0], depth[0, 1] = 0, 65535
        write(folder / f"frame-{i:06d}.depth.png", depth)
        (folder / f"frame-{i:06d}.pose.txt").write_text(text_of(world.world_from_camera[i]))
    return folder


def write_scannet(folder: Path, world: Truth) -> Path:
    """Colour twice as large as depth, whose principal point lies elsewhere."""
    k = world.intrinsics.copy()
    for i in range(COUNT):
        large = cv2.resize(world.images[i], None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        write(folder / "color" / f"{i}.png", large)
        write(folder / "depth" / f"{i}.png", millimetres(world.depth[i]))
        (folder / "pose").mkdir(exist_ok=True)
        (folder / "pose" / f"{i}.txt").write_text(text_of(world.world_from_camera[i]))
    (folder / "intrinsic").mkdir()
    four = np.eye(4)
    four[:3, :3] = k
    (folder / "intrinsic" / "intrinsic_depth.txt").write_text(text_of(four))
    four[:2] *= 2
    four[:2, 2] += 0.5
    (folder / "intrinsic" / "intrinsic_color.txt").write_text(text_of(four))
    return folder


def write_colmap(folder: Path, world: Truth, binary: bool, model: str = "sparse/0") -> Path:
    k, (height, width) = world.intrinsics, world.images.shape[1:3]
    parameters = [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5]
    (folder / model).mkdir(parents=True)
    rows = []
    for i in reversed(range(COUNT)):  # the reader sorts
        write(folder / "images" / f"view {i}.png", world.images[i])
        camera_from_world = geometry.inverse(world.world_from_camera[i])
        x, y, z, w = geometry.quat_xyzw_from_matrix(camera_from_world)
        rows.append((i + 1, [w, x, y, z, *camera_from_world[:3, 3]], f"view {i}.png"))
    if binary:
        cameras = struct.pack("<QiiQQ4d", 1, 7, 1, width, height, *parameters)
        images = struct.pack("<Q", COUNT)
        for i, numbers, name in rows:
            images += struct.pack("<I7dI", i, *numbers, 7) + name.encode() + b"\0"
            images += struct.pack("<Q", i) + struct.pack("<ddQ", 1.5, 2.5, 9) * i
        (folder / model / "cameras.bin").write_bytes(cameras)
        (folder / model / "images.bin").write_bytes(images)
        return folder
    (folder / model / "cameras.txt").write_text(
        f"# a comment\n7 PINHOLE {width} {height} {' '.join(map(str, parameters))}\n"
    )
    lines = [
        f"{i} {' '.join(map(str, numbers))} 7 {name}\n" + ("1 2 -1 3 4 5" if i % 2 else "") for i, numbers, name in rows
    ]
    (folder / model / "images.txt").write_text("# a comment\n" + "\n".join(lines) + "\n")
    return folder


def write_transforms(folder: Path, world: Truth, **changes: object) -> Path:
    k, (height, width) = world.intrinsics, world.images.shape[1:3]
    frames = []
    for i in range(COUNT):
        write(folder / "images" / f"{i}.png", world.images[i])
        write(folder / "depth" / f"{i}.png", millimetres(world.depth[i]))
        pose = world.world_from_camera[i] @ geometry.inverse(OPTICAL_FROM_OPENGL)
        frames.append(
            {
                "file_path": f"./images/{i}",
                "transform_matrix": pose.tolist(),
                "depth_file_path": f"depth/{i}.png",
            }
        )
    about = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5, "w": width, "h": height}
    (folder / "transforms.json").write_text(json.dumps({**about, "frames": frames[::-1], **changes}))
    return folder


WRITERS = {
    "seven_scenes": write_seven_scenes,
    "scannet": write_scannet,
    "colmap_text": lambda folder, world: write_colmap(folder, world, False),
    "colmap_binary": lambda folder, world: write_colmap(folder, world, True),
    "colmap_beside": lambda folder, world: write_colmap(folder, world, False, "."),
    "transforms": write_transforms,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_images_poses_and_depth_of_every_layout(tmp_path: Path, world: Truth, layout: str) -> None:
    with open_sequence(WRITERS[layout](tmp_path / layout, world)) as sequence:
        frames, truth, depth = list(sequence.iter_frames()), sequence.truth(), dict(sequence.iter_depth())
        assert sequence.count == COUNT == len(frames) and sequence.unreadable == 0
    poses = np.stack([truth[f.stamp_ns] for f in frames])
    np.testing.assert_allclose(poses, world.world_from_camera, atol=1e-6)
    assert [f.stamp_ns for f in frames] == sorted({f.stamp_ns for f in frames})
    times = frames[0].image.shape[1] // 64
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image[::times, ::times], world.images[i])
    if layout == "seven_scenes":  # of the Kinect, at the size of these images
        assert frames[0].intrinsics[0] == pytest.approx([58.5, 0, 31.55])
    else:
        expected = world.intrinsics.copy()
        expected[:2] *= times
        expected[:2, 2] += 0.5 * (times - 1)
        np.testing.assert_allclose(frames[0].intrinsics, expected, atol=1e-9)
    assert len(depth) == (0 if layout.startswith("colmap") else COUNT)
    for i, frame in enumerate(frames if depth else []):
        found = depth[frame.stamp_ns]
        assert found.shape == frame.image.shape[:2] and found.dtype == np.float32
        # a point of the world is where depth, lens and pose say; 2 px of the large image show one depth pixel
        wanted = np.repeat(np.repeat(world.depth[i], times, axis=0), times, axis=1)
        good = np.isfinite(found)
        assert good.sum() >= good.size - 2 and np.abs(found[good] - wanted[good]).max() < 1e-3


def test_seven_scenes_leaves_readings_out_that_are_none(tmp_path: Path, world: Truth) -> None:
    folder = write_seven_scenes(tmp_path / "seq-01", world)
    (folder / "frame-000002.depth.png").unlink()
    (folder / "frame-000001.pose.txt").write_text("nan " * 16)
    (folder / "frame-000003.pose.txt").unlink()
    with pytest.raises(DatasetError, match=r"needs 4x4"), open_sequence(folder):
        pass
    (folder / "frame-000001.pose.txt").write_text(text_of(np.full((4, 4), np.nan)))
    with open_sequence(folder) as sequence:
        depth = list(sequence.iter_depth())
        assert len(depth) == 3 and np.isnan(depth[0][1][0, :2]).all() and np.isfinite(depth[0][1][1:]).all()
        assert len(sequence.truth()) == 2
    with pytest.raises(DatasetError, match=r"several sequences \(seq-01\): give one"):
        open_sequence(tmp_path)


def test_scannet_poses_that_were_lost_and_frames_without_depth(tmp_path: Path, world: Truth) -> None:
    folder = write_scannet(tmp_path / "scene0000_00", world)
    (folder / "pose" / "1.txt").write_text(text_of(np.full((4, 4), -np.inf)))
    (folder / "depth" / "2.png").unlink()
    (folder / "depth" / "3.png").write_bytes(b"no image")
    with open_sequence(folder) as sequence:
        assert len(sequence.truth()) == COUNT - 1
        stamps = [stamp for stamp, _ in sequence.iter_depth()]
        assert len(stamps) == 2 and len(list(sequence.iter_frames())) == COUNT
    (folder / "pose" / "0.txt").write_text(text_of(np.diag([2.0, 2, 2, 1])))
    with pytest.raises(DatasetError, match=r"0\.txt: a camera's pose must be a rigid"):
        open_sequence(folder)


def test_scannet_depth_of_another_camera_is_looked_up_along_the_ray(tmp_path: Path, world: Truth) -> None:
    """Depth with a narrower lens covers only the middle of the image."""
    folder = write_scannet(tmp_path / "scene", world)
    narrow = np.eye(4)
    narrow[:3, :3] = world.intrinsics
    narrow[:2, :2] *= 2
    (folder / "intrinsic" / "intrinsic_depth.txt").write_text(text_of(narrow))
    with open_sequence(folder) as sequence:
        _, depth = next(iter(sequence.iter_depth()))
    assert np.isnan(depth[0]).all() and np.isnan(depth[:, 0]).all() and np.isfinite(depth[40:56, 50:78]).all()
    # pixel (u, v) of the image, 2 f away from the middle of it, is pixel 2 (u - cx) / 2 + cx of the depth
    assert depth[47, 80] == pytest.approx(millimetres(world.depth[0])[47 - 24, 80 - 32] / 1000, abs=0.05)


def test_colmap_lens_models_and_the_half_pixel() -> None:
    lens = lens_of("SIMPLE_RADIAL", 640, 480, (500.0, 320.0, 240.0, -0.1))
    assert (lens.fx, lens.fy, lens.cx, lens.cy) == (500, 500, 319.5, 239.5) and lens.d == (-0.1, 0, 0, 0)
    assert lens_of(5, 64, 48, (50, 50, 32, 24, 0.1, 0, 0, 0)).model == "equidistant"
    assert not lens_of(4, 64, 48, (50, 50, 32, 24, 0, 0, 0, 0)).distorted
    with pytest.raises(ValueError, match="camera model FOV cannot be used, but SIMPLE_PINHOLE"):
        lens_of("FOV", 640, 480, (1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="PINHOLE camera needs 4 finite parameters"):
        lens_of("PINHOLE", 640, 480, (1, 1))


def test_distortion_is_taken_out_unless_it_may_not_be(tmp_path: Path, world: Truth) -> None:
    folder = write_transforms(tmp_path / "scene", world, k1=-0.2)
    with open_sequence(folder) as sequence, open_sequence(folder, rectify="off") as raw:
        frame, depth = next(sequence.iter_frames()), next(iter(sequence.iter_depth()))[1]
        untouched = next(raw.iter_frames())
    np.testing.assert_array_equal(untouched.image, world.images[0])
    assert not np.array_equal(frame.image, world.images[0]) and depth.shape == frame.image.shape[:2]
    assert frame.intrinsics[0, 0] != world.intrinsics[0, 0] and untouched.intrinsics[0, 0] == world.intrinsics[0, 0]


def test_transforms_without_suffix_size_or_depth(tmp_path: Path, world: Truth) -> None:
    """As in the Blender scenes: a field of view for all images."""
    folder = write_transforms(tmp_path / "scene", world)
    about = json.loads((folder / "transforms.json").read_text())
    angle = 2 * np.arctan(32 / world.intrinsics[0, 0])
    for frame in about["frames"]:
        del frame["depth_file_path"]
    about["frames"][0]["transform_matrix"][0][0] = float("nan")
    file = folder / "transforms_test.json"
    file.write_text(json.dumps({"camera_angle_x": angle, "frames": about["frames"]}))
    with open_sequence(file) as sequence:
        assert len(sequence.truth()) == COUNT - 1 and not list(sequence.iter_depth())
        np.testing.assert_allclose(next(sequence.iter_frames()).intrinsics, world.intrinsics, atol=1e-9)


def test_images_may_be_resized_but_not_squashed() -> None:
    lens = Lens(640, 480, 500, 510, 319.5, 239.5)
    half = resized(lens, 240, 320, Path("a.png"))
    assert (half.fx, half.fy, half.cx, half.cy) == (250, 255, 159.5, 119.5)
    with pytest.raises(DatasetError, match=r"a\.png has 320x320 px, but its camera was calibrated at 640x480"):
        resized(lens, 320, 320, Path("a.png"))


def test_depth_without_lenses_is_looked_up_by_its_share_of_the_image() -> None:
    depth = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    np.testing.assert_array_equal(in_pixels_of(depth, (6, 8), None, None), depth.repeat(2, 0).repeat(2, 1))
    assert in_pixels_of(depth, (3, 4), None, None) is depth


def test_depth_files_of_other_kinds(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([[1.5, 0.0, np.inf]]))
    assert np.array_equal(read_depth(tmp_path / "d.npy", 1e-3), [[1.5, np.nan, np.nan]], equal_nan=True)
    np.save(tmp_path / "d.npy", np.array([[1500, 0, 65535]], np.uint16)[..., None])
    np.testing.assert_allclose(read_depth(tmp_path / "d.npy", 1e-3), [[1.5, np.nan, np.nan]], rtol=1e-6)
    write(tmp_path / "d.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DatasetError, match="must have one channel"):
        read_depth(tmp_path / "d.png", 1e-3)
    (tmp_path / "d.npy").write_bytes(b"x")
    with pytest.raises(DatasetError, match="cannot read the depth"):
        read_depth(tmp_path / "d.npy", 1e-3)
    assert read_pose(tmp_path / "none.txt") is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "cameras.txt").write_text("7 PINHOLE 64 48 x 1 1 1"), "could not convert"),
        (lambda m: (m / "cameras.txt").write_text("7 PINHOLE 64"), "line 1 needs id, model"),
        (lambda m: (m / "cameras.txt").write_text("8 PINHOLE 64 48 1 1 1 1"), r"images of cameras \[7\]"),
        (lambda m: (m / "images.txt").write_text("1 2 3\n\n"), "needs id, qw"),
        (lambda m: (m / "images.txt").write_text("# none\n"), "no registered images"),
        (lambda m: (m / "images.txt").write_text("1 0 0 0 0 0 0 0 7 view 0.png\n\n"), "quaternion is zero"),
        (lambda m: (m / "images.txt").write_text("1 1 0 0 0 0 0 0 7 gone.png\n\n"), "put the images there"),
    ],
)
def test_damaged_colmap_models_are_named(tmp_path: Path, world: Truth, damage, message: str) -> None:
    folder = write_colmap(tmp_path / "c", world, False)
    damage(folder / "sparse/0")
    with pytest.raises(DatasetError, match=message):
        open_sequence(folder)


@pytest.mark.parametrize(
    ("name", "length"), [("cameras.bin", 4), ("cameras.bin", 40), ("images.bin", 40), ("images.bin", 120)]
)
def test_cut_off_colmap_models_are_named(tmp_path: Path, world: Truth, name: str, length: int) -> None:
    file = write_colmap(tmp_path / "c", world, True) / "sparse/0" / name
    assert length < len(file.read_bytes())
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DatasetError, match="cannot be read"):
        open_sequence(tmp_path / "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot use"),
        ("{}", "it has no 'frames'"),
        ('{"frames": []}', "names no images"),
        ('{"frames": [{"file_path": "a"}]}', "it has no 'transform_matrix'"),
        ('{"frames": [{"file_path": "a", "transform_matrix": [[1]]}]}', "must be a rigid"),
        ('{"fl_x": -1, "w": 2, "h": 2, "frames": [{"file_path": "a", "transform_matrix": EYE}]}', "needs 0.02 .. 2000"),
        ('{"fl_x": 1, "w": 2, "h": 2, "camera_model": "FOV", "frames": [{"file_path": "a", "transform_matrix": EYE}]}', "camera_model FOV"),
    ],
)  # fmt: skip
def test_damaged_transforms_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "transforms.json").write_text(text.replace("EYE", str(np.eye(4).tolist())))
    with pytest.raises(DatasetError, match=message):
        open_sequence(tmp_path)


def test_images_that_are_missing_are_left_out(tmp_path: Path, world: Truth) -> None:
    folder = write_transforms(tmp_path / "scene", world)
    (folder / "images" / "1.png").unlink()
    with open_sequence(folder) as sequence:
        assert len(list(sequence.iter_frames())) == COUNT - 1 and sequence.unreadable == 1
    with pytest.raises(DatasetError, match="names no images"):
        PosedImages("thing", [])


def test_a_pose_of_colmap_that_is_not_finite_is_unknown(tmp_path: Path) -> None:
    import recordings

    recordings.write_images(tmp_path / "images", 3)
    model = tmp_path / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text("1 PINHOLE 40 30 30 30 20 15\n")
    rows = [f"{i + 1} 1 0 0 0 {'nan' if i == 1 else -0.1 * i} 0 0 1 {i:02}.png\n\n" for i in range(3)]
    (model / "images.txt").write_text("".join(rows))
    with open_sequence(tmp_path) as source:
        assert len(list(source.iter_frames())) == 3 and len(source.truth()) == 2

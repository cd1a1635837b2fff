import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from come_ros import geometry
from come_ros.datasets.image_folder import ImageFolder
from come_ros.datasets.stamps import MAX_DIFFERENCE_NS, nearest, stamp_ns_from_text
from come_ros.datasets.tum import TumSequence, read_trajectory
from come_ros.errors import DatasetError

STAMPS = ["1305031229.528748", "1305031229.596600", "1305031229.7"]


@pytest.fixture
def folder(tmp_path):
    """Three images in red, depth for two of them, poses for two of them."""
    (tmp_path / "rgb").mkdir()
    (tmp_path / "depth").mkdir()
    for i in range(3):
        image = np.zeros((12, 16, 3), np.uint8)
        image[..., 2] = 100 + 50 * i  # OpenCV's order is BGR
        cv2.imwrite(str(tmp_path / f"rgb/{i}.png"), image)
    depth = np.full((12, 16), 5000, np.uint16)
    depth[0, 0] = 0
    cv2.imwrite(str(tmp_path / "depth/0.png"), depth)
    cv2.imwrite(str(tmp_path / "depth/1.png"), 2 * depth)
    (tmp_path / "frames.txt").write_text(
        f"# t rgb depth\n{STAMPS[0]} rgb/0.png depth/0.png\n{STAMPS[2]} rgb/2.png\n{STAMPS[1]} rgb/1.png depth/1.png\n"
    )
    (tmp_path / "groundtruth.txt").write_text(
        f"# stamp tx ty tz qx qy qz qw\n{STAMPS[0]} 1 2 3 0 0 0 1\n1305031229.606600 4 5 6 0 0 0.7071068 0.7071068\n"
    )
    about = {
        "name": "red",
        "frame_id": "front_optical_frame",
        "camera": {"fx": 10, "fy": 11, "cx": 7.5, "cy": 5.5, "d": [0.1, 0]},
    }
    (tmp_path / "sequence.json").write_text(json.dumps(about))
    return tmp_path


def test_frames_depth_and_poses_of_a_prepared_folder(folder):
    sequence = TumSequence(folder, rectify=False)
    assert sequence.name == "red" and len(sequence) == 3 and sequence.distortion == (0.1, 0.0)
    frames = list(sequence.iter_frames())
    assert [f.stamp_ns for f in frames] == [1305031229528748000, 1305031229596600000, 1305031229700000000]
    assert [tuple(f.image[0, 0]) for f in frames] == [(100, 0, 0), (150, 0, 0), (200, 0, 0)]
    assert frames[0].camera == "front_optical_frame" and frames[0].intrinsics[0].tolist() == [10, 0, 7.5]
    depth = sequence.depth(1)
    assert (
        depth.dtype == np.float32 and np.isnan(depth[0, 0]) and np.allclose(depth[1:], 2) and sequence.depth(2) is None
    )
    assert sequence.poses[2] is None and sequence.poses[0][:3, 3].tolist() == [1, 2, 3]
    assert np.allclose(sequence.poses[1][:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-6)


def test_plain_folders_are_matched_by_time(folder):
    (folder / "frames.txt").unlink()
    (folder / "sequence.json").unlink()
    (folder / "rgb.txt").write_text("".join(f"{s} rgb/{i}.png\n" for i, s in enumerate(STAMPS)))
    (folder / "depth.txt").write_text("1305031229.530000 depth/0.png\n1305031229.700001 depth/1.png\n")
    sequence = TumSequence(folder)
    assert np.nanmax(sequence.depth(0)) == 1 and sequence.depth(1) is None and np.nanmax(sequence.depth(2)) == 2
    assert sequence.intrinsics is None and sequence.frame(0).intrinsics is None
    known = folder.rename(folder.parent / "rgbd_dataset_freiburg3_desk")
    assert TumSequence(known).intrinsics[0, 0] == 535.4


def test_poses_and_depth_are_optional(folder):
    (folder / "groundtruth.txt").unlink()
    assert TumSequence(folder).poses == [None] * 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("frames.txt", "abc rgb/0.png\n", "line 1.*not a time"),
        ("frames.txt", "\n12.5\n", "line 2 has 1 columns, but needs 2"),
        ("frames.txt", "# nothing\n", "lists no images"),
        ("groundtruth.txt", "1.0 1 2 3 0 0 0\n", "has 7 columns, but needs 8"),
        ("groundtruth.txt", "1.0 1 2 3 0 0 0 x\n", "could not convert"),
        ("groundtruth.txt", "1.0 1 2 3 0 0 0 0\n", "quaternions not zero"),
        ("sequence.json", "{", "cannot read"),
        ("sequence.json", '{"camera": {"fx": 1}}', "fx, fy, cx, cy"),
    ],
)
def test_damaged_lists_are_named(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        TumSequence(folder)


def test_missing_folders_and_images_are_named(folder):
    with pytest.raises(DatasetError, match="is not a folder"):
        TumSequence(folder / "nowhere")
    with pytest.raises(DatasetError, match="holds neither"):
        TumSequence(folder / "rgb")
    sequence = TumSequence(folder)
    (folder / "rgb/0.png").write_bytes(b"no image")
    (folder / "rgb/1.png").unlink()
    with pytest.raises(DatasetError, match="damaged"):
        sequence.frame(0)
    with pytest.raises(DatasetError, match="missing"):
        sequence.frame(1)


@given(st.integers(0, 2**33), st.integers(0, 999_999_999))
def test_stamps_are_exact(seconds, nanoseconds):
    assert stamp_ns_from_text(f"{seconds}.{nanoseconds:09d}") == seconds * 1_000_000_000 + nanoseconds


def test_stamps_of_other_lengths():
    assert stamp_ns_from_text("12") == 12_000_000_000 and stamp_ns_from_text("12.5") == 12_500_000_000
    assert stamp_ns_from_text("1.1234567899") == 1_123_456_789
    assert stamp_ns_from_text("1.305031229528748000e+09") == 1_305_031_229_528_748_000  # numpy.savetxt, seconds
    assert stamp_ns_from_text("1.305031229528748032e+18") == 1_305_031_229_528_748_032  # the same, nanoseconds
    assert stamp_ns_from_text("0.000000000000000000e+00") == 0 and stamp_ns_from_text("1e9") == 10**18
    for text in ("", "-1.0", "1e-9", "1e999", "e9", "1.2.3", "nan"):
        with pytest.raises(ValueError, match="not a time"):
            stamp_ns_from_text(text)


def test_the_nearest_stamp_within_reach():
    ms = 1_000_000
    assert nearest([0, 50 * ms, 90 * ms], [10 * ms, 45 * ms, 60 * ms]) == [0, 1, None]
    assert nearest([0], [MAX_DIFFERENCE_NS]) == [0] and nearest([0], [MAX_DIFFERENCE_NS + 1]) == [None]
    assert nearest([5], []) == [None]


def test_image_folders_are_read_in_natural_order(tmp_path):
    for i in (10, 9, 1):
        cv2.imwrite(str(tmp_path / f"frame{i}.png"), np.full((8, 8, 3), i, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    images = ImageFolder(tmp_path, fps=30.0, intrinsics=np.eye(3))
    frames = list(images.iter_frames())
    assert [f.image[0, 0, 0] for f in frames] == [1, 9, 10] and len(images) == 3
    assert [f.stamp_ns for f in frames] == [0, 33333333, 66666667] and frames[0].intrinsics is images.intrinsics
    (tmp_path / "frame1.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot read the image"):
        images.frame(0)


def test_image_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DatasetError, match="holds no images"):
        ImageFolder(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        ImageFolder(tmp_path / "nowhere")
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DatasetError, match="fps"):
            ImageFolder(tmp_path, fps=fps)


def _rows() -> list[str]:
    return [f"170000000{i}.250000000 {0.5 * i} 1.5 -2 0.5 -0.5 0.5 0.5" for i in range(4)]


def _written(form: str) -> bytes:
    rows = _rows()
    plain = "\n".join(rows)
    words = [row.split() for row in rows]
    nanoseconds = [[w[0].replace(".", ""), *w[1:]] for w in words]
    w_first = [[*w[:4], w[7], *w[4:7]] for w in nanoseconds]
    texts = {
        "plain": plain,
        "names": "timestamp tx ty tz qx qy qz qw\n" + plain,
        "commas": plain.replace(" ", ","),
        "commas and spaces": plain.replace(" ", ", "),
        "tabs, CRLF": plain.replace(" ", "\t").replace("\n", "\r\n"),
        "byte order mark": "\ufeff# path\n" + plain,
        "byte order mark alone": "\ufeff" + plain,
        "more columns": "\n".join(row + " 0.5 1" for row in rows),
        "unsorted": "\n".join(reversed(rows)),
        "lost": "\n".join(
            [rows[0], "1700000000.5 nan nan nan nan nan nan nan", "1700000000.6 0 0 0 0 0 0 0", *rows[1:]]
        ),
        "nanoseconds": "\n".join(" ".join(w) for w in nanoseconds),
        "EuRoC": "#timestamp [ns], p_x, p_y, p_z, q_w, q_x, q_y, q_z, v\n"
        + "\n".join(",".join([*w, "0"]) for w in w_first),
        "decimal commas": plain.replace(".", ","),
    }
    if form == "UTF-16":
        return plain.encode("utf-16")
    if form == "latin-1":
        return ("# Strecke f\u00fcr Test\n" + plain).encode("latin-1")
    return texts[form].encode()


FORMS = ("plain", "names", "commas", "commas and spaces", "tabs, CRLF", "byte order mark", "byte order mark alone", "more columns",
         "unsorted", "lost", "nanoseconds", "EuRoC", "decimal commas", "UTF-16", "latin-1")  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_paths_are_read_as_people_have_them(tmp_path: Path, form: str) -> None:
    (tmp_path / "gt.txt").write_bytes(_written(form))
    path = read_trajectory(tmp_path / "gt.txt")
    assert list(path) == [1_700_000_000_250_000_000 + i * 10**9 for i in range(4)]
    for i, pose in enumerate(path.values()):
        np.testing.assert_allclose(pose[:3, 3], [0.5 * i, 1.5, -2])
        np.testing.assert_allclose(pose[:3, :3], geometry.matrix_from_quat_xyzw([0.5, -0.5, 0.5, 0.5]), atol=1e-12)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no poses"),
        ("# only words\n", "holds no poses"),
        ("1 0 0 0 0 1 0 0 0 0 1 0\n" * 5, "as KITTI's paths, which have no times"),
        ("1.5 nan 0 0 0 0 0 1\n", "must be finite"),
        ("1.5 0 0 0 0 0 0 0\n", "quaternions not zero"),
    ],
)
def test_what_is_no_path_is_said(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "gt.txt").write_text(text)
    with pytest.raises(DatasetError, match=told):
        read_trajectory(tmp_path / "gt.txt")

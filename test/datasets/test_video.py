"""Videos: every image once and in order, with the container's times; what cannot be opened is said in one line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from come_ros.datasets.video import Video
from come_ros.errors import DatasetError

IMAGES = 12


def written(path: Path, fps: float = 30.0, codec: str = "MJPG") -> Path:
    """A video of IMAGES gray images, each one brighter than the last."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (64, 48))
    assert writer.isOpened()
    for i in range(IMAGES):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("name", "fps", "codec"), [("v.mp4", 30.0, "mp4v"), ("v.avi", 29.97, "MJPG"), ("v.mkv", 15.0, "MJPG")]
)
def test_every_image_has_the_container_s_time(tmp_path: Path, name: str, fps: float, codec: str) -> None:
    video = Video(written(tmp_path / name, fps, codec))
    frames = list(video.iter_frames())
    assert video.count == len(frames) == IMAGES and not video.damage
    # Matroska counts in milliseconds
    np.testing.assert_allclose([f.stamp_ns for f in frames], [i * 1e9 / fps for i in range(IMAGES)], atol=1e6)
    assert all(isinstance(f.stamp_ns, int) for f in frames)
    np.testing.assert_allclose([f.image.mean() for f in frames], 20 * np.arange(IMAGES), atol=8)
    assert [f.stamp_ns for f in video.iter_frames()] == [f.stamp_ns for f in frames]


def test_a_given_rate_replaces_the_container_s(tmp_path: Path) -> None:
    video = Video(written(tmp_path / "v.avi"), fps=4.0)
    assert [f.stamp_ns for f in video.iter_frames()] == [i * 250_000_000 for i in range(IMAGES)]


def test_colours_are_in_the_order_of_frames(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))  # OpenCV's red
    writer.release()
    red, green, blue = next(Video(tmp_path / "v.avi").iter_frames()).image.reshape(-1, 3).mean(axis=0)
    assert red > 230 and green < 25 and blue < 25


def test_a_video_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = written(tmp_path / "v.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 4 // 5])
    video = Video(tmp_path / "cut.avi")
    count = len(list(video.iter_frames()))
    assert 0 < count < IMAGES and video.unreadable == IMAGES - count
    assert f"{count} of {IMAGES}" in video.damage


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_what_cannot_be_opened_is_said(
    tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(written(tmp_path / "w.mp4", codec="mp4v").read_bytes()[:600] if content is None else content)
    with pytest.raises(DatasetError, match=r"OpenCV cannot open the video .*v\.mp4.*convert it"):
        Video(path)
    assert "moov" not in capfd.readouterr().err  # FFmpeg's own words


def test_wrong_rates_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "v.avi")
    for fps in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(DatasetError, match="must lie in 0"):
            Video(path, fps)


@pytest.mark.parametrize("name", ["a:b.avi", "http:x.avi", "%02d.avi", "v|w.avi"])
def test_a_name_that_looks_like_a_protocol_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    written(tmp_path / "v.avi").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(Video(Path(name)).iter_frames())) == IMAGES

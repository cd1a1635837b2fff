"""The one reader of image files: any name, any kind, upright where that is meant, one size for a folder, and what is left out is named."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import recordings
from PIL import Image as Pillow
from PIL import ImageOps
from recordings import HEIGHT, WIDTH, picture, write_images

from come_ros.camera.levels import Levels
from come_ros.datasets.image_file import GREY, read_picture, read_stored, size_of
from come_ros.datasets.image_folder import ImageFolder
from come_ros.datasets.sequence import open_sequence
from come_ros.errors import ConfigError, DatasetError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3), np.uint8)


def exif(orientation: int) -> Pillow.Exif:
    out = Pillow.Exif()
    out[0x0112] = orientation
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    file = tmp_path / "a.png"
    Pillow.fromarray(COLOURS).save(file, exif=exif(orientation))
    with Pillow.open(file) as opened:
        want = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_picture(file, upright=True).image, want)
    np.testing.assert_array_equal(read_picture(file).image, COLOURS)
    assert size_of(file, upright=True) == want.shape[:2] and size_of(file) == (5, 7)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_modes(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    opened = Pillow.fromarray(COLOURS).convert(mode)
    opened.save(file)
    np.testing.assert_allclose(
        read_picture(file).image, np.asarray(opened.convert("RGB")), atol=3 if mode == "CMYK" else 0
    )


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.dstack([4 * x % 256, 5 * y % 256, 2 * (x + y) % 256]).astype(np.uint8)


@pytest.mark.parametrize("kind", ["CMYK jpg", "1 bit tif", "1 bit bmp", "palette png", "YCbCr tif"])
def test_colours_are_those_that_pillow_shows(tmp_path: Path, kind: str) -> None:
    mode, suffix = kind.rsplit(" ", 1)
    picture = Pillow.fromarray(smooth()).convert({"1 bit": "1", "palette": "P"}.get(mode, mode))
    file = tmp_path / f"a.{suffix}"
    picture.save(file, **{"CMYK jpg": {"quality": 95}, "1 bit tif": {"compression": "group4"}}.get(kind, {}))
    off = np.abs(read_picture(file).image.astype(int) - np.asarray(picture.convert("RGB")))
    assert off.mean() < 2


@pytest.mark.parametrize("kind", ["palette", "16 bits png", "16 bits tiff", "webp"])
def test_transparency_of_all_kinds(tmp_path: Path, kind: str) -> None:
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:20], alpha[20:30] = 0, 128
    rgba = np.dstack([smooth(), alpha])
    file = tmp_path / f"a.{kind.split()[-1]}"
    if kind == "palette":
        file = tmp_path / "a.png"
        pixels = np.mgrid[:48, :64][0].astype(np.uint8)  # one colour for each row
        picture = Pillow.fromarray(pixels, "P")
        picture.putpalette(smooth(48, 1).reshape(-1).tolist())
        rgba = np.dstack([smooth(48, 1).repeat(64, 1), alpha])
        picture.save(file, transparency=bytes(alpha[:, 0].tolist()))
    elif kind == "webp":
        Pillow.fromarray(rgba).save(file, lossless=True, exact=True)
    else:
        cv2.imwrite(str(file), rgba[..., [2, 1, 0, 3]].astype(np.uint16) * 257)
    got = read_picture(file)
    share = alpha[..., None] / 255
    np.testing.assert_allclose(got.image, rgba[..., :3] * share + GREY * (1 - share), atol=2)
    assert got.hidden is not None
    np.testing.assert_array_equal(got.hidden, alpha < 128)


@pytest.mark.parametrize("suffix", ["webp", "png", "tif"])
def test_of_animations_and_pages_the_first_is_read_and_the_rest_named(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = Pillow.fromarray(smooth())
    for name in ("a", "b"):
        lossless = {"lossless": True} if suffix == "webp" else {}
        others = [Pillow.fromarray(255 - smooth())] if name == "b" else []
        first.save(tmp_path / f"{name}.{suffix}", save_all=bool(others), append_images=others, **lossless)
    with open_sequence(tmp_path) as source:
        frames = list(source.iter_frames())
    assert len(frames) == 2 and all(np.array_equal(frame.image, smooth()) for frame in frames)
    told = [r.getMessage() for r in caplog.records if "only the first image of each" in r.getMessage()]
    assert len(told) == 1 and told[0].endswith(f"left out: b.{suffix}")


def test_an_image_of_billions_of_pixels_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(DatasetError, match="more than 178 million pixels: make it smaller"):
        read_picture(tmp_path / "a.png")


def test_photographs_with_a_preview_inside_are_single_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Pillow.fromarray(smooth()).save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Pillow.fromarray(smooth())]
    )
    with open_sequence(tmp_path) as source:
        assert len(list(source.iter_frames())) == 1 and "only the first" not in caplog.text


def test_transparent_pixels_are_grey_and_hidden(tmp_path: Path) -> None:
    alpha = np.full((5, 7), 255, np.uint8)
    alpha[:2], alpha[2] = 0, 128
    Pillow.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "a.png")
    got = read_picture(tmp_path / "a.png")
    assert (got.image[:2] == GREY).all() and got.hidden is not None
    np.testing.assert_array_equal(got.hidden, alpha < 128)
    np.testing.assert_array_equal(got.image[3:], COLOURS[3:])
    np.testing.assert_allclose(got.image[2], COLOURS[2] * (128 / 255) + GREY * (127 / 255), atol=1)


def test_hidden_pixels_have_no_depth_to_be_scored(tmp_path: Path) -> None:
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:10] = 0
    depth = np.full((HEIGHT, WIDTH), 1500, np.uint16)
    frames = []
    for i in range(3):
        Pillow.fromarray(np.dstack([picture(i), alpha])).save(tmp_path / f"{i}.png")
        Pillow.fromarray(depth).save(tmp_path / f"d{i}.png")
        matrix = np.eye(4)
        matrix[0, 3] = i
        frames.append({"file_path": f"{i}.png", "depth_file_path": f"d{i}.png", "transform_matrix": matrix.tolist()})
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 30, "frames": frames}))
    with open_sequence(tmp_path) as source:
        (_, metres), *_ = source.iter_depth()
    assert np.isnan(metres[:10]).all() and np.allclose(metres[10:], 1.5)


def test_deep_files(tmp_path: Path) -> None:
    ten_bits = COLOURS.astype(np.uint16) * 4
    cv2.imwrite(str(tmp_path / "a.png"), ten_bits[..., ::-1])
    assert np.abs(read_picture(tmp_path / "a.png", Levels()).image.astype(int) - COLOURS).max() <= 1
    floats = COLOURS[..., 0].astype(np.float32) / 255
    cv2.imwrite(str(tmp_path / "a.tiff"), floats)
    assert np.abs(read_picture(tmp_path / "a.tiff", Levels()).image[..., 0].astype(int) - COLOURS[..., 0]).max() <= 1
    np.testing.assert_array_equal(read_stored(tmp_path / "a.tiff"), floats)


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/aufnahme_\xfc"
    os.mkdir(folder)
    for i in range(3):
        with open(folder + b"/bild_\xe4%d.png" % i, "wb") as stream:
            stream.write(recordings.packed(picture(i)))
    with open_sequence(os.fsdecode(folder)) as source:
        frames = list(source.iter_frames())
    np.testing.assert_array_equal(frames[2].image, picture(2))
    with open(folder + b"/bild_\xe49.png", "wb") as stream:
        stream.write(b"damaged")
    with open_sequence(os.fsdecode(folder)) as source:
        assert len(list(source.iter_frames())) == 3 and source.unreadable == 1


def test_a_video_whose_name_is_not_unicode(tmp_path: Path) -> None:
    plain = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(plain), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for i in range(4):
        writer.write(picture(i))
    writer.release()
    odd = os.fsencode(tmp_path) + b"/aufnahme_\xfc.avi"
    os.rename(plain, odd)
    with open_sequence(os.fsdecode(odd)) as source:
        assert len(list(source.iter_frames())) == 4


def test_every_file_of_a_folder_is_read_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_images(tmp_path / "mixed", 4, ".jpg")
    for i in range(4):
        (folder / f"._{i:02}.jpg").write_bytes(b"\0\5\26\7")
        (folder / f"IMG_{i}.HEIC").write_bytes(b"ftypheic")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"x")
    (folder / "raw.NEF").write_bytes(b"x")
    (folder / "99.jpg").mkdir()
    (folder / "98.jpg").symlink_to("nowhere.jpg")
    with open_sequence(folder) as source:
        assert source.count == len(list(source.iter_frames())) == 4
        assert source.unreadable == 6, "images that cannot be read are counted"
    for told in (
        "IMG_0.HEIC and 3 more (HEIC needs",
        "raw.NEF (raw photographs",
        "notes.txt (not images)",
        "99.jpg (a folder)",
        "98.jpg (links to files that are missing)",
        "hidden files",
    ):
        assert told in caplog.text
    only = tmp_path / "only"
    only.mkdir()
    (only / "IMG.heic").write_bytes(b"x")
    with pytest.raises(DatasetError, match="holds 1 images that cannot be read: HEIC needs"):
        open_sequence(only)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"no image", "damaged or of an unknown format"),
        (recordings.packed(picture(0), "JPEG")[:700], "whose end is missing"),
    ],
)
def test_damaged_files_are_said_in_one_line(
    tmp_path: Path, content: bytes, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DatasetError, match=told) as caught:
        read_picture(tmp_path / "a.jpg")
    assert "\n" not in str(caught.value) and capfd.readouterr().err == "", "decoders do not print by themselves"


def test_images_of_two_sizes_become_one_camera(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_images(tmp_path / "images", 5)
    for i in range(5, 8):
        Pillow.fromarray(picture(i, 2 * WIDTH, 2 * HEIGHT)).save(folder / f"{i:02}.png")
    for i in range(8, 10):
        Pillow.fromarray(picture(i, HEIGHT, WIDTH)).save(folder / f"{i:02}.png")
    with open_sequence(folder) as source:
        frames = list(source.iter_frames())
    assert len(frames) == 8 and {f.image.shape for f in frames} == {(HEIGHT, WIDTH, 3)} and source.unreadable == 2
    assert (
        "5 images are not of 40x30 px like most" in caplog.text
        and "30x40 px, but most images next to it have 40x30" in caplog.text
    )


def test_data_sets_with_poses_are_read_as_stored(tmp_path: Path) -> None:
    frames = []
    for i in range(3):
        Pillow.fromarray(picture(i)).save(tmp_path / f"{i}.jpg", quality=100, exif=exif(6))
        frames.append({"file_path": f"{i}.jpg", "transform_matrix": np.eye(4).tolist()})
    about = {"fl_x": 30, "w": WIDTH, "h": HEIGHT, "frames": frames}
    (tmp_path / "transforms.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(about).encode())  # with a byte order mark
    with open_sequence(tmp_path) as source:
        first = next(iter(source.iter_frames()))
        assert not source.timed
    assert first.image.shape == (HEIGHT, WIDTH, 3) and np.abs(first.image.astype(int) - picture(0)).mean() < 2
    (tmp_path / "transforms.json").unlink()
    with open_sequence(tmp_path) as source:  # as photographs they are turned
        assert next(iter(source.iter_frames())).image.shape == (WIDTH, HEIGHT, 3)


def test_photographs_have_no_times_unless_a_rate_is_given(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    with open_sequence(folder) as source:
        assert not source.timed
    with open_sequence(folder, fps=30.0) as source:
        assert source.timed


def test_pictures_of_results_are_not_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    (folder / "overview.png").write_bytes(recordings.packed(picture(0)))
    assert len(ImageFolder(folder)) == 4
    (folder / "run.yaml").write_text("come_ros: 0.2.0")
    assert len(ImageFolder(folder)) == 3


def test_what_to_give_instead(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a" / "images", 2)
    with pytest.raises(DatasetError, match=r"00.png is a single image: give its folder"):
        open_sequence(folder / "00.png")
    with pytest.raises(DatasetError, match=r"holds some: give one of .*images"):
        open_sequence(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"--depth-topic /d has no effect"):
        open_sequence(folder, depth="/d")

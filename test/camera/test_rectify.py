"""Lens distortion: what a CameraInfo says of it, and that images, depth and points agree once it is taken out."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import cv2
import fuzz
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from come_ros.camera.preprocess import crop_intrinsics, plan_resize, preprocess, uncrop_intrinsics
from come_ros.camera.rectify import Lens, Rectification, Rectifier, lens_from_camera_info, pinhole_fault, rectifier_of
from come_ros.datasets.tum import TumSequence
from come_ros.errors import FrameError

WIDTH, HEIGHT = 320, 240
LENSES = {
    "barrel": Lens(WIDTH, HEIGHT, 200, 204, 164, 114, "plumb_bob", (-0.3, 0.1, 0.0, 0.0)),
    "pincushion": Lens(WIDTH, HEIGHT, 260, 256, 154, 122, "plumb_bob", (0.2, 0.05, 0.001, -0.002, 0.01)),
    "tum_fr1": Lens(WIDTH, HEIGHT, 258.4, 258, 159, 127.4, "plumb_bob", (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "rational": Lens(
        WIDTH, HEIGHT, 240, 240, 160, 120, "rational_polynomial", (1.2, 0.5, 0.001, 0.0, 0.05, 1.5, 0.7, 0.1)
    ),
    "thin prism": Lens(
        WIDTH, HEIGHT, 240, 240, 160, 120, "rational_polynomial", (0.1, 0.05, 0, 0, 0.05, 0.1, 0.07, 0.1, *(0.01,) * 4)
    ),
    "fisheye": Lens(WIDTH, HEIGHT, 142, 144, 161, 117, "equidistant", (-0.01, 0.03, -0.02, 0.004)),
}


def project(lens: Lens, points: np.ndarray) -> np.ndarray:
    """(N, 2) px of points (N, 3) in the camera's frame, through the lens."""
    nothing, d = np.zeros(3), np.array(lens.d)
    if lens.model == "equidistant":
        return cv2.fisheye.projectPoints(points[:, None], nothing, nothing, lens.intrinsics, d)[0][:, 0]
    return cv2.projectPoints(points, nothing, nothing, lens.intrinsics, d)[0][:, 0]


def dots(pixels: np.ndarray, radius: float = 1.5) -> np.ndarray:
    """(H, W, 3) with a smooth white dot at each of pixels (N, 2)."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    gray = np.zeros((HEIGHT, WIDTH))
    for x, y in pixels:
        gray += np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * radius**2 / 4))
    return np.repeat(np.rint(255 * np.clip(gray, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)


def centre_near(image: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """Centre of mass of the dot near `pixel`."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    weight = image[..., 0] * (np.hypot(u - pixel[0], v - pixel[1]) < 6)
    return np.array([(u * weight).sum(), (v * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("name", LENSES)
def test_known_points_come_back_to_where_a_pinhole_sees_them(name: str) -> None:
    lens = LENSES[name]
    rectifier = Rectifier(lens)
    grid = np.stack(np.meshgrid(np.linspace(20, WIDTH - 21, 5), np.linspace(20, HEIGHT - 21, 4)), -1).reshape(-1, 2)
    rays = np.c_[grid, np.ones(len(grid))] @ np.linalg.inv(rectifier.intrinsics).T
    points = rays * np.linspace(1, 3, len(rays))[:, None]  # each at its own depth
    rectified = rectifier.image(dots(project(lens, points)))
    errors = [np.linalg.norm(centre_near(rectified, pixel) - pixel) for pixel in grid]
    assert max(errors) < 0.1


@pytest.mark.parametrize("name", LENSES)
def test_every_pixel_comes_from_the_original(name: str) -> None:
    lens = LENSES[name]
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    rectifier = Rectifier(lens)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    border = np.argwhere(((u % (WIDTH - 1)) * (v % (HEIGHT - 1))).T == 0).astype(np.float64)
    source = project(lens, np.c_[border, np.ones(len(border))] @ np.linalg.inv(rectifier.intrinsics).T)
    assert source.min() > -0.01 and (source.max(axis=0) < [WIDTH - 0.99, HEIGHT - 0.99]).all()
    assert rectifier.image(white).min() == 255
    # and not more is thrown away than must be: somewhere it reaches the border of the original
    assert np.minimum(source, [WIDTH - 1, HEIGHT - 1] - source).min() < 3


def test_depth_is_bent_like_the_image_and_never_mixed() -> None:
    lens = LENSES["barrel"]
    rectifier = Rectifier(lens)
    near = np.zeros((HEIGHT, WIDTH), bool)
    near[60:180, 80:240] = True
    depth = np.where(near, np.float32(1.5), np.float32(4.25))
    depth[:10] = np.nan
    image = np.repeat((255 * near).astype(np.uint8)[..., None], 3, axis=2)
    bent, seen = rectifier.depth(depth), rectifier.image(image)[..., 0]
    assert bent.dtype == np.float32 and set(np.unique(bent[~np.isnan(bent)])) == {1.5, 4.25}
    assert np.isnan(bent).any()
    clear = (seen < 64) | (seen > 191)
    assert np.array_equal((bent == 1.5)[clear], (seen > 128)[clear])


@pytest.mark.parametrize("images", ["image_raw", "image_rect"])
@pytest.mark.parametrize("depths", ["depth_registered/image_raw", "depth_registered/image_rect"])
def test_depth_lands_on_the_pixels_of_the_image_whichever_of_them_is_rectified(images, depths) -> None:
    """A board with a dot, seen by both: raw through the lens, rectified through P."""
    lens = LENSES["barrel"]
    p = np.array([[170.0, 0, 150, 0], [0, 175, 125, 0], [0, 0, 1, 0]])
    message = info(width=WIDTH, height=HEIGHT, d=list(lens.d), k=lens.intrinsics.ravel().tolist(), p=p.ravel().tolist())
    points = np.array([[-0.2, 0.1, 1.0], [0.25, -0.2, 1.2], [0.3, 0.25, 1.0]])
    straight = (points @ p[:, :3].T)[:, :2] / points[:, 2:]

    def seen(topic: str) -> np.ndarray:
        return dots(project(lens, points) if topic.endswith("raw") else straight, radius=6)

    depth = np.where(seen(depths)[..., 0] > 127, np.float32(1), np.float32(2))
    rectification = Rectification("auto", images)
    image, intrinsics, remark = rectification.image(seen(images), message)
    bent, _ = rectification.depth(depth, message, depths)
    assert remark == ""
    for pixel in (points @ intrinsics.T)[:, :2] / points[:, 2:]:
        near = np.repeat((255 * (bent == 1)).astype(np.uint8)[..., None], 3, axis=2)
        assert np.linalg.norm(centre_near(near, pixel) - pixel) < 0.35
        assert np.linalg.norm(centre_near(image, pixel) - pixel) < 0.2


def test_undoing_a_distortion_gives_the_picture_that_was_distorted() -> None:
    """rectify(distort(x)) = x on a smooth picture, where each pixel is known to 2 of 255."""
    lens = LENSES["tum_fr1"]
    rectifier = Rectifier(lens)
    v, u = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)

    def texture(u, v):
        return 127 + 60 * np.sin(u / 9) + 50 * np.cos(v / 7 + u / 31)

    pixels = np.stack([u, v], -1).reshape(-1, 2)
    ideal = pixels.copy()  # where the pinhole sees what the lens shows at `pixels`
    for _ in range(15):
        rays = np.c_[ideal, np.ones(len(ideal))] @ np.linalg.inv(rectifier.intrinsics).T
        ideal += pixels - project(lens, rays)
    ideal = ideal.reshape(HEIGHT, WIDTH, 2)
    distorted = np.rint(texture(ideal[..., 0], ideal[..., 1])).astype(np.uint8)
    got = rectifier.image(np.repeat(distorted[..., None], 3, axis=2))[..., 0]
    assert np.abs(got - texture(u, v)).max() < 2.5


def test_scaled_to_the_models_image_and_back_the_intrinsics_are_exact() -> None:
    lens = LENSES["pincushion"]
    rectifier = Rectifier(lens)
    plan = plan_resize(WIDTH, HEIGHT, 224, 14)
    k = crop_intrinsics(rectifier.intrinsics, plan)
    np.testing.assert_allclose(uncrop_intrinsics(k, plan), rectifier.intrinsics, rtol=0, atol=1e-10)
    # a point seen through the lens, rectified and shrunk lies where the model's intrinsics say
    point = np.array([[0.12, -0.08, 1.3]])
    shrunk = preprocess(rectifier.image(dots(project(lens, point), radius=6)), plan)
    want = (k @ point[0])[:2] / point[0, 2]
    v, u = np.mgrid[: plan.height, : plan.width]
    weight = shrunk[..., 0].astype(float)
    got = np.array([(u * weight).sum(), (v * weight).sum()]) / weight.sum()
    assert np.linalg.norm(got - want) < 0.1


def test_straight_lines_of_a_real_room_become_straighter(shared_data) -> None:
    """Long edges of fr1 (monitors, desk): their points deviate less from a line in the rectified image."""
    folder = shared_data / "real" / "tum_fr1_rpy"
    raw, straight = TumSequence(folder, rectify=False), TumSequence(folder)
    assert raw.distortion == (0.2624, -0.9531, -0.0054, 0.0026, 1.1633) and straight.distortion == ()
    assert straight.frame(0).intrinsics is straight.intrinsics
    assert not np.array_equal(raw.frame(0).image, straight.frame(0).image)
    before, after = raw.depth(0), straight.depth(0)
    assert before.shape == after.shape and set(np.unique(after[~np.isnan(after)])) <= set(np.unique(before))
    # points of straight lines in space, seen through the calibrated lens: fr1's own bends them by some px
    k, d = raw.intrinsics, np.array(raw.distortion)
    line = np.stack([np.linspace(-0.55, 0.55, 200), np.full(200, -0.42), np.ones(200)], axis=1)
    seen = cv2.projectPoints(line, np.zeros(3), np.zeros(3), k, d)[0][:, 0]
    assert bend(seen) > 1.5
    back = cv2.undistortPoints(seen[:, None], k, d, None, straight.intrinsics)[:, 0]
    assert bend(back) < 0.1
    assert np.abs(back - (line @ straight.intrinsics.T)[:, :2]).max() < 0.1


def bend(pixels: np.ndarray) -> float:
    """Largest distance of pixels (N, 2) to the line through them, px."""
    off = pixels - pixels.mean(axis=0)
    return float(np.abs(off @ np.linalg.svd(off, full_matrices=False)[2][1]).max())


def test_the_cost_of_a_vga_image_is_a_few_milliseconds() -> None:
    rectifier = rectifier_of(Lens(640, 480, 517.3, 516.5, 318.6, 255.3, "plumb_bob", (0.2624, -0.9531, 0, 0, 1.1633)))
    picture = np.zeros((480, 640, 3), np.uint8)
    times = []
    for _ in range(20):
        start = time.process_time()
        rectifier.image(picture)
        times.append(time.process_time() - start)
    assert min(times) < 0.02


# What a CameraInfo says


def info(**fields) -> SimpleNamespace:
    roi = {name: fields.pop(name, 0) for name in ("x_offset", "y_offset", "roi_width", "roi_height")}
    given = {
        "width": 40,
        "height": 30,
        "distortion_model": "plumb_bob",
        "d": [0.0] * 5,
        "k": [50.0, 0, 20, 0, 51, 15, 0, 0, 1],
        "p": [60.0, 0, 21, 0, 0, 61, 16, 0, 0, 0, 1, 0],
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(
            x_offset=roi["x_offset"], y_offset=roi["y_offset"], width=roi["roi_width"], height=roi["roi_height"]
        ),
    }
    return SimpleNamespace(**{**given, **fields})


def test_the_lens_or_why_there_is_none() -> None:
    assert lens_from_camera_info(info(), 40, 30) == (Lens(40, 30, 50, 51, 20, 15), "")
    lens, remark = lens_from_camera_info(info(), 40, 30, rectified=True)
    assert (lens.fx, lens.fy, lens.cx, lens.cy, remark) == (60, 61, 21, 16, "")
    for message, told in (
        (info(k=[0.0] * 9), "focal length of 0 x 0 px in k, but it must be positive: calibrate"),
        (info(k=[-50.0, 0, 20, 0, 51, 15, 0, 0, 1]), "focal length of -50 x 51"),
        (info(k=[np.nan] * 9), "NaN or infinite intrinsics"),
        (info(k=[1e300, 0, 50, 0, 1e300, 15, 0, 0, 1]), "focal length of 1e+300"),
        (info(k=[1e-9, 0, 50, 0, 50, 15, 0, 0, 1]), "focal length of 1e-09"),
        (info(k=[50, 0, 1e200, 0, 50, 15, 0, 0, 1]), "principal point at 1e+200"),
        (info(k=[50.0, 0, np.inf, 0, 51, 15, 0, 0, 1]), "NaN or infinite intrinsics"),
        (info(d=[0.1, np.nan, 0, 0, 0]), "NaN or infinite distortion"),
        (info(k=[1.0] * 8), "8 numbers in k, but must have 9"),
        (
            info(width=80),
            "for 80x30 px, the image has 40x30: remap camera_info to that of these images, or set its binning or roi",
        ),
    ):
        assert lens_from_camera_info(message, 40, 30)[0] is None
        assert told in lens_from_camera_info(message, 40, 30)[1]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"distortion_model": "inverse_brown_conrady", "d": [0.1]},
            "'inverse_brown_conrady', but only plumb_bob, rational_polynomial, equidistant",
        ),
        ({"d": [0.1, 0.0, 0.1]}, "3 numbers in d, but plumb_bob must have 4 or 5 or 8 or 12 or 14"),
        ({"d": [0.1] * 15}, "15 numbers in d, but plumb_bob must have 4 or 5 or 8 or 12 or 14"),
        ({"distortion_model": "none", "d": [0.1, 0, 0, 0, 0]}, "'none', but d is not zero"),
        ({"distortion_model": "", "d": [0.1, 0.2, 0.1, 0.1]}, "'', but only plumb_bob"),
        ({"distortion_model": "equidistant", "d": [0.1] * 5}, "5 numbers in d, but equidistant must have 4"),
        ({"d": [1e300, 0.0, 0.0, 0.0]}, "folds the image over itself (d = 1e+300, 0, 0, 0)"),
        ({"d": [0.0, 0.05, 1.0, -1e9]}, "folds the image over itself"),  # OpenCV's best has a negative focal length
        ({"distortion_model": "equidistant", "d": [-3.0, 0, 0, 0]}, "folds the image over itself|cannot be used"),
    ],
)
def test_a_distortion_that_cannot_be_used_is_said_and_the_image_taken_as_it_is(fields, told) -> None:
    picture = np.zeros((30, 40, 3), np.uint8)
    got, intrinsics, remark = Rectification("auto", "image_raw").image(picture, info(**fields))
    assert got is picture and intrinsics[0, 0] == 50
    assert any(t in remark for t in told.split("|")) and "the image is used as it is" in remark


@pytest.mark.parametrize(
    ("name", "d", "want"),
    [
        ("plumb_bob", [], ("plumb_bob", ())),
        ("equidistant", [0.0] * 5, ("plumb_bob", ())),
        ("anything at all", [0.0] * 3, ("plumb_bob", ())),
        ("equidistant", [0.1, 0.2, 0.3, 0.4, 0.0], ("equidistant", (0.1, 0.2, 0.3, 0.4))),
        ("equidistant", [0.1, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0, 0.0], ("equidistant", (0.1, 0.2, 0.3, 0.4))),
        ("equidistant", [0.1], ("equidistant", (0.1, 0.0, 0.0, 0.0))),
        ("Kannala-Brandt", [0.1, 0.2, 0.0, 0.0], ("equidistant", (0.1, 0.2, 0.0, 0.0))),
        ("FISHEYE", [0.1, 0.2, 0.3, 0.4], ("equidistant", (0.1, 0.2, 0.3, 0.4))),
        ("Plumb_Bob", [0.1, 0.0, 0.0, 0.0, 0.0], ("plumb_bob", (0.1, 0.0, 0.0, 0.0, 0.0))),
        ("radial-tangential", [0.1, 0.2], ("plumb_bob", (0.1, 0.2, 0.0, 0.0))),
        ("brown conrady", [0.1, 0.0, 0.0], ("plumb_bob", (0.1, 0.0, 0.0, 0.0))),
        ("plumb_bob", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], ("plumb_bob", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0, 0.0))),
        ("plumb_bob", [0.1] + [0.0] * 19, ("plumb_bob", (0.1, 0.0, 0.0, 0.0))),
        ("", [0.1, 0.2, 0.3, 0.4, 0.5], ("plumb_bob", (0.1, 0.2, 0.3, 0.4, 0.5))),
        ("none", [], ("plumb_bob", ())),
    ],
)
def test_distortion_is_read_as_it_was_meant(name, d, want) -> None:
    lens, remark = lens_from_camera_info(info(distortion_model=name, d=d), 40, 30)
    assert (lens.model, lens.d) == want and remark == ""


def test_a_camera_info_without_a_size_counts_if_its_k_is_about_the_image() -> None:
    assert lens_from_camera_info(info(width=0, height=0), 40, 30) == (Lens(40, 30, 50, 51, 20, 15), "")
    for wrong in ({"k": [0.0] * 9}, {"k": [500.0, 0, 320, 0, 500, 240, 0, 0, 1]}):
        lens, remark = lens_from_camera_info(info(width=0, height=0, **wrong), 40, 30)
        assert lens is None and "camera_info is empty (0x0 px" in remark and "calibrate it" in remark


def test_binning_and_region_of_interest_move_the_intrinsics() -> None:
    binned = info(width=80, height=60, binning_x=2, binning_y=2)
    lens, remark = lens_from_camera_info(binned, 40, 30)
    # a binned pixel covers two: pixel centres lie at whole numbers
    assert remark == "" and (lens.fx, lens.fy, lens.cx, lens.cy) == (25, 25.5, 9.75, 7.25)
    cut = info(width=80, height=60, x_offset=10, y_offset=4, roi_width=40, roi_height=30)
    lens, _ = lens_from_camera_info(cut, 40, 30)
    assert (lens.fx, lens.fy, lens.cx, lens.cy) == (50, 51, 10, 11)
    both = info(width=80, height=60, x_offset=10, y_offset=4, roi_width=40, roi_height=30, binning_x=2, binning_y=2)
    lens, _ = lens_from_camera_info(both, 20, 15)
    assert (lens.fx, lens.fy, lens.cx, lens.cy) == (25, 25.5, 4.75, 5.25)
    assert lens_from_camera_info(both, 80, 60)[0].fx == 50, "K is for the full resolution"
    assert (
        "(20x15 with its binning and region of interest), the image has 40x30" in lens_from_camera_info(both, 40, 30)[1]
    )


def test_the_parameter_says_whose_distortion_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (30, 40, 3), np.uint8)
    bent = info(d=[-0.2, 0.05, 0, 0, 0])

    def undone(mode, topic, message=bent):
        image, intrinsics, remark = Rectification(mode, topic).image(picture, message)
        return image is not picture, intrinsics[0, 0], remark

    done = undone("auto", "/cam/image_raw")
    assert done[0] and done[1] not in (50, 60) and done[2] == ""
    assert undone("auto", "/rect/image_raw/compressed") == done
    for topic in ("/cam/image_rect", "/cam/image_rect_color/compressed"):
        assert undone("auto", topic) == undone("off", topic) == (False, 60, "")
        assert undone("on", topic) == done
    assert undone("off", "image_raw") == (
        False, 50, "camera_info describes lens distortion, which is not removed: set rectify to auto",
    )  # fmt: skip
    assert undone("auto", "image_raw", info()) == undone("off", "image_raw", info()) == (False, 50, "")


def test_maps_are_made_once_for_a_lens() -> None:
    lens = LENSES["barrel"]
    assert rectifier_of(lens) is rectifier_of(replace(lens)) is not rectifier_of(replace(lens, fx=101.0))
    folded = replace(lens, d=(1e300, 0.0, 0.0, 0.0))
    with pytest.raises(FrameError) as first:
        rectifier_of(folded)
    with pytest.raises(FrameError) as second:
        rectifier_of(folded)
    assert first.value is second.value


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_camera_info_escapes_with_an_exception(data) -> None:
    fuzz.check_camera_info(fuzz.DrawnChoices(data))


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ((500, 500, 320, 240), ""),
        ((500_000, 500_000, 320, 240), ""),  # a telescope
        ((500, 500, -5_000, 240), ""),  # a part cut out far from the axis
        ((500, 1000, 320, 240), ""),  # anamorphic
        ((140, 12, 320, 240), "differ more than 10 times"),
        ((1e-300, 500, 320, 240), "focal length"),
        ((500, 1e300, 320, 240), "focal length"),
        ((-500, 500, 320, 240), "focal length"),
        ((np.nan, 500, 320, 240), "focal length"),
        ((500, 500, 1e18, 240), "principal point"),
        ((500, 500, 320, np.nan), "principal point"),
    ],
)
def test_finite_numbers_that_no_camera_has_are_no_intrinsics(numbers, fault):
    found = pinhole_fault(*numbers, 640, 480)
    assert (fault in found) if fault else not found


@pytest.mark.parametrize("focal", [1e-200, 1e200])
def test_readers_refuse_absurd_intrinsics_in_one_line(focal, tmp_path):
    """A damaged cameras.bin gave a focal length of 1e-150, and the bundle an exception."""
    from come_ros.datasets.colmap import lens_of
    from come_ros.datasets.transforms import _lens as lens_of_transforms
    from come_ros.errors import DatasetError

    with pytest.raises(ValueError, match="PINHOLE camera has a focal length"):
        lens_of("PINHOLE", 64, 48, (focal, focal, 32, 24))
    with pytest.raises(ValueError, match="focal length"):
        lens_of_transforms({"w": 64, "h": 48, "fl_x": focal}, tmp_path / "0.png")
    (tmp_path / "rgb").mkdir()
    cv2.imwrite(str(tmp_path / "rgb" / "0.png"), np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "rgb.txt").write_text("1.0 rgb/0.png\n")
    camera = {"fx": focal, "fy": focal, "cx": 32, "cy": 24}
    (tmp_path / "sequence.json").write_text(json.dumps({"camera": camera}))
    with pytest.raises(DatasetError, match=r"sequence\.json: camera has a focal length"):
        TumSequence(tmp_path)
    (tmp_path / "sequence.json").write_text(json.dumps({"depth": 7}))
    with pytest.raises(DatasetError, match="metres_per_unit"):
        TumSequence(tmp_path)

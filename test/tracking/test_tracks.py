"""Tracks: points stay on what they were put on, through motion, exposure, blur and repeated texture."""

import cv2
import numpy as np
import pytest

from come_ros.tracking.tracks import Tracker, flow

HEIGHT, WIDTH = 240, 320


def textured(seed: int = 0, height: int = 400, width: int = 500) -> np.ndarray:
    """(height, width) uint8, random blobs of several sizes."""
    random = np.random.default_rng(seed)
    levels = sum(
        size * cv2.GaussianBlur(random.standard_normal((height, width)), (0, 0), size) for size in (1.5, 3.0, 6.0)
    )
    return np.clip(128 + 60 * levels / levels.std(), 0, 255).astype(np.uint8)


def seen(world: np.ndarray, x: float, y: float, angle: float = 0.0) -> np.ndarray:
    """(HEIGHT, WIDTH) of `world` around (x, y), turned by `angle` rad."""
    return cv2.warpAffine(world, affine(x, y, angle), (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def affine(x: float, y: float, angle: float) -> np.ndarray:
    """(2, 3) pixels of `world` from those of `seen`."""
    c, s = np.cos(angle), np.sin(angle)
    half = np.array([WIDTH / 2, HEIGHT / 2])
    turn = np.array([[c, -s], [s, c]])
    return np.hstack([turn, (half + [x, y] - turn @ half)[:, None]])


def errors(first, before, second, after) -> np.ndarray:
    """px that the points seen in both images are off."""
    here, there = first.of(second.ids)
    world = (
        np.hstack([first.pixels[here], np.ones((len(here), 1))]) @ before.T
        - np.hstack([second.pixels[there], np.ones((len(there), 1))]) @ after.T
    )
    return np.linalg.norm(world, axis=1)


@pytest.mark.parametrize(("x", "y", "angle"), [(0.0, 0.0, 0.0), (3.3, -2.6, 0.0), (31.0, 17.0, 0.0), (8.0, 4.0, 0.08)])
def test_points_stay_on_what_they_were_put_on(x, y, angle):
    world, tracker = textured(), Tracker()
    first = tracker.track(seen(world, 30, 40))
    second = tracker.track(seen(world, 30 + x, 40 + y, angle))
    off = errors(first, affine(30, 40, 0), second, affine(30 + x, 40 + y, angle))
    assert len(off) > 0.6 * len(first)
    assert np.median(off) < 0.15
    assert np.mean(off < 1.0) > 0.97


def test_ids_ascend_and_are_never_used_again():
    world, tracker = textured(), Tracker()
    most = -1
    for step in range(8):
        observations = tracker.track(seen(world, 12 * step, 6 * step))
        assert (np.diff(observations.ids) > 0).all()
        assert observations.pixels.shape == (len(observations), 2) and observations.pixels.dtype == np.float64
        assert ((observations.pixels >= 0) & (observations.pixels <= [WIDTH - 1, HEIGHT - 1])).all()
        most = max(most, observations.ids.max())
    tracker.reset()
    assert tracker.track(seen(world, 0, 0)).ids.min() > most


def test_points_cover_the_image_evenly():
    observations = Tracker().track(seen(textured(), 0, 0))
    counts, _, _ = np.histogram2d(*observations.pixels.T, bins=(4, 3), range=((0, WIDTH), (0, HEIGHT)))
    assert counts.min() > 0.5 * counts.mean()


def test_a_nearly_plain_wall_keeps_points():
    plain = (128 + 0.03 * (textured().astype(float) - 128)).round().astype(np.uint8)  # 6 grey levels in all
    tracker = Tracker()
    first, second = tracker.track(seen(plain, 0, 0)), tracker.track(seen(plain, 2, 1))
    off = errors(first, affine(0, 0, 0), second, affine(2, 1, 0))
    assert len(off) >= 50
    assert np.median(off) < 1.0


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0), (1.5, 0), (0.7, 60)])
def test_a_step_of_exposure_loses_little(gain, offset):
    world, tracker = textured(), Tracker()
    first = tracker.track(seen(world, 0, 0))
    other = np.clip(gain * seen(world, 4, 3).astype(float) + offset, 0, 255).astype(np.uint8)
    second = tracker.track(other)
    off = errors(first, affine(0, 0, 0), second, affine(4, 3, 0))
    assert len(off) > 0.6 * len(first)
    assert np.median(off) < 0.3


def test_a_frozen_image_leaves_all_points_where_they_are():
    image, tracker = seen(textured(), 0, 0), Tracker()
    first = tracker.track(image)
    for _ in range(5):
        last = tracker.track(image.copy())
    here, there = first.of(last.ids)
    assert len(here) == len(first)
    assert np.abs(first.pixels[here] - last.pixels[there]).max() < 0.1


def test_a_change_of_size_begins_new_points():
    world, tracker = textured(), Tracker()
    first = tracker.track(seen(world, 0, 0))
    second = tracker.track(seen(world, 0, 0)[:200])
    assert len(second) > 100 and len(first.of(second.ids)[0]) == 0


def test_another_scene_keeps_hardly_any_point():
    tracker = Tracker()
    first = tracker.track(seen(textured(1), 0, 0))
    second = tracker.track(seen(textured(2), 0, 0))
    assert len(first.of(second.ids)[0]) < 0.1 * len(first)


def test_large_images_are_measured_in_their_own_pixels():
    world = cv2.resize(textured(), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    tracker = Tracker()
    first = tracker.track(np.ascontiguousarray(world[:1080, :1920]))
    second = tracker.track(np.ascontiguousarray(world[12:1092, 20:1940]))
    here, there = first.of(second.ids)
    moved = first.pixels[here] - second.pixels[there]
    assert len(here) > 0.6 * len(first)
    assert np.abs(np.median(moved, axis=0) - [20, 12]).max() < 0.1


def test_the_same_images_give_the_same_tracks_on_any_number_of_threads():
    world, found = textured(), []
    before = cv2.getNumThreads()
    try:
        for threads in (1, 2, 1):
            cv2.setNumThreads(threads)
            tracker = Tracker()
            found.append([tracker.track(seen(world, 5 * i, 3 * i, 0.02 * i)) for i in range(6)])
    finally:
        cv2.setNumThreads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert np.array_equal(a.ids, b.ids) and np.array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize("image", [np.zeros((20, 20, 3), np.uint8), np.zeros((40, 40)), np.zeros((4, 40), np.uint8)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="must be"):
        Tracker().track(image)


def test_an_image_without_any_texture_has_no_points():
    tracker = Tracker()
    assert len(tracker.track(np.full((HEIGHT, WIDTH), 77, np.uint8))) == 0
    assert len(tracker.track(np.full((HEIGHT, WIDTH), 80, np.uint8))) == 0


def test_a_far_turn_is_bridged_by_descriptors():
    world, tracker = textured(3, 500, 800), Tracker()
    before, after = affine(40, 150, 0.0), affine(150, 80, 0.9)
    images = seen(world, 40, 150), seen(world, 150, 80, 0.9)
    first = tracker.track(images[0], 0)
    off = errors(first, before, tracker.track(images[1], 300_000_000), after)
    assert np.count_nonzero(off < 2.0) > 60 and np.mean(off < 2.0) > 0.9

    points = first.pixels.astype(np.float32)
    there, good = flow(*images, points)  # alone
    off = np.linalg.norm(
        np.hstack([points, np.ones((len(points), 1))]) @ before.T
        - np.hstack([there, np.ones((len(there), 1))]) @ after.T,
        axis=1,
    )
    assert np.count_nonzero(good & (off < 2.0)) < 20


def test_points_that_were_out_of_sight_are_known_again():
    world, tracker = textured(3, 500, 1200), Tracker()
    first = tracker.track(seen(world, 40, 100), 0)
    away = [tracker.track(seen(world, x, 100, 0.1), i * 400_000_000) for i, x in ((1, 330), (2, 640), (3, 350))]
    assert np.isin(first.ids, away[1].ids).mean() < 0.02
    again = tracker.track(seen(world, 60, 110), 4 * 400_000_000)
    off = errors(first, affine(40, 100, 0), again, affine(60, 110, 0))
    assert len(off) > 100 and np.mean(off < 2.0) > 0.95


def test_a_sharp_image_before_blurred_ones_is_a_bridge():
    """In two blurred images of a fast turn hardly any point of the views before and after it is found."""
    world = textured(5, 500, 1200)

    def blurred(x: float) -> np.ndarray:
        return np.mean([seen(world, x + shift, 100) for shift in range(-48, 49, 4)], axis=0).astype(np.uint8)

    images = [seen(world, 40, 100), seen(world, 44, 100), blurred(150), blurred(260), seen(world, 120, 104)]
    tracker = Tracker()
    _, before, *_, after = (tracker.track(image, i * 66_000_000) for i, image in enumerate(images))
    off = errors(before, affine(44, 100, 0), after, affine(120, 104, 0))
    assert len(off) > 60 and np.mean(off < 2.0) > 0.95


def test_descriptors_give_the_same_tracks_on_any_number_of_threads():
    world, runs, before = textured(4, 500, 900), [], cv2.getNumThreads()
    try:
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            tracker = Tracker()
            runs.append([tracker.track(seen(world, 130 * i, 30 * i, 0.2 * i), i * 400_000_000) for i in range(4)])
    finally:
        cv2.setNumThreads(before)
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.ids, two.ids)
        assert one.pixels.tobytes() == two.pixels.tobytes()

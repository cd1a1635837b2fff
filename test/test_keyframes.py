import time

import cv2
import numpy as np
import pytest

from come_ros.config import Config
from come_ros.keyframes import KeyframeSelector, thumbnail_of
from come_ros.types import Frame

SECOND = 1_000_000_000


def texture(height=480, width=640, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 20 + 4, width // 20 + 4, 3), dtype=np.uint8)
    return cv2.resize(blocks, (width + 80, height + 80), interpolation=cv2.INTER_CUBIC)


def view(shift=0, height=480, width=640, seed=0):
    return np.ascontiguousarray(texture(height, width, seed)[40 : 40 + height, 40 + shift : 40 + shift + width])


def selector(**parameters):
    return KeyframeSelector(Config().replace(**{f"keyframe.{k}": v for k, v in parameters.items()}))


def test_every_frame_or_by_time():
    image = view()
    every = selector(mode="every")
    assert all(every.is_keyframe(Frame(image, i)) for i in range(5))
    by_time = selector(mode="time", min_interval=0.1, max_interval=1.0)
    kept = [i for i in range(31) if by_time.is_keyframe(Frame(image, i * SECOND // 30))]
    assert kept == list(range(0, 31, 3))


def test_the_jitter_of_stamps_does_not_halve_the_rate():
    by_time = selector(mode="time", min_interval=0.1)
    jitter = np.random.default_rng(0).integers(-4_000_000, 4_000_000, 50)
    assert all(by_time.is_keyframe(Frame(view(), i * SECOND // 10 + int(jitter[i]))) for i in range(50))


def test_flow_adds_up_until_the_camera_has_moved_enough():
    flow = selector(mode="flow", min_flow=6.0, min_interval=0.0, max_interval=10.0)
    # 2 px of a 640-px image are 1 px of the thumbnail
    kept = [i for i in range(19) if flow.is_keyframe(Frame(view(2 * i), i * SECOND // 30))]
    assert kept[0] == 0 and kept[1] in (6, 7) and kept[2] - kept[1] in (6, 7)


def test_intervals_bound_the_flow():
    flow = selector(mode="flow", min_interval=0.2, max_interval=0.5)
    assert flow.is_keyframe(Frame(view(), 0))
    assert not flow.is_keyframe(Frame(view(40), SECOND // 10))  # moved, but too soon
    assert not flow.is_keyframe(Frame(view(), SECOND * 3 // 10))  # late enough, but has not moved
    assert flow.is_keyframe(Frame(view(), SECOND // 2))  # waited long enough
    flow.reset()
    assert flow.is_keyframe(Frame(view(), SECOND // 2))


def test_another_size_or_camera_is_a_keyframe():
    flow = selector(mode="flow")
    assert flow.is_keyframe(Frame(view(), 0))
    assert flow.is_keyframe(Frame(view(height=240, width=320), 1))
    assert flow.is_keyframe(Frame(view(height=240, width=320), 2, camera="other"))
    assert not flow.is_keyframe(Frame(view(height=240, width=320), 3, camera="other"))


def test_a_change_of_mode_while_running():
    flow = selector(mode="every")
    assert flow.is_keyframe(Frame(view(), 0))
    flow.config = Config().replace(**{"keyframe.mode": "flow"})
    assert flow.is_keyframe(Frame(view(), SECOND // 2))
    assert not flow.is_keyframe(Frame(view(), SECOND))


@pytest.mark.parametrize("shift", [0, 4, 12, 24])
def test_flow_measures_known_shifts(shift):
    flow = selector(mode="flow")
    flow.is_keyframe(Frame(view(), 0))
    assert flow.flow(thumbnail_of(view(shift))) == pytest.approx(shift / 2, abs=0.3)


@pytest.mark.parametrize(
    "image", [np.zeros((480, 640, 3), np.uint8), view(height=40, width=1000), view(height=20, width=20)]
)
def test_dark_narrow_and_tiny_images_are_no_trouble(image):
    flow = selector(mode="flow")
    assert flow.is_keyframe(Frame(image, 0))
    assert not flow.is_keyframe(Frame(image.copy(), SECOND // 2))


def test_a_look_at_a_frame_is_cheap():
    flow = selector(mode="flow", min_interval=0.0, max_interval=10.0)
    flow.is_keyframe(Frame(view(), 0))
    frames = [Frame(view(i % 3), i + 1) for i in range(15)]
    took = []
    for frame in frames:
        start = time.process_time()
        flow.is_keyframe(frame)
        took.append(time.process_time() - start)
    assert np.median(took) < 0.02  # some 2 ms; the rest is for a busy machine

"""What a run shows about its own result: images agree with a right result, and with no other."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from come_ros import geometry
from come_ros.types import Alignment, Frame, Refinement, Submap
from come_ros.verdict.evidence import Agreement, Evidence, View, agreement
from come_ros.verdict.judge import UNUSABLE, USABLE, judge

SIZE = (168, 126)
FOCAL = 150.0
STEP, AWAY = 0.15, 2.0  # the camera moves along a wall in front of it, m


def wall(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture with detail of several sizes, three times as wide as an image (H, 3 W, 3)."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(rng.uniform(0, 255, (size[1] // n, 3 * size[0] // n, 3)).astype(np.float32), (3 * size[0], size[1]))
        for n in (4, 9, 30)
    ]
    return np.mean(layers, axis=0).astype(np.uint8)


def walk(frames: int = 6, scale: int = 1, seed: int = 0, **wrong: float) -> Submap:
    """A window of a camera that moves sideways along a wall: images (scale times as large), true depth and poses. wrong: step, times the
    true one; depth, the same; turn, rad a frame."""
    size, focal = (SIZE[0] * scale, SIZE[1] * scale), FOCAL * scale
    picture = wall(seed, size)
    pixels = focal * STEP / AWAY
    images = []
    for i in range(frames):
        shift = np.array([[1, 0, -pixels * i], [0, 1, 0]], np.float64)
        images.append(cv2.warpAffine(picture, shift, size))
    k = np.array([[focal, 0, size[0] / 2 - 0.5], [0, focal, size[1] / 2 - 0.5], [0, 0, 1.0]])
    poses = np.stack(
        [
            geometry.transform(
                geometry.rotation_from_vector([0, wrong.get("turn", 0.0) * i, 0]),
                [STEP * i * wrong.get("step", 1.0), 0, 0],
            )
            for i in range(frames)
        ]
    )
    return Submap(
        frames=tuple(Frame(images[i], i * 10**8) for i in range(frames)),
        images=np.stack(images),
        depth=np.full((frames, size[1], size[0]), AWAY * wrong.get("depth", 1.0), np.float32),
        confidence=np.full((frames, size[1], size[0]), 2.0, np.float32),
        intrinsics=np.stack([k] * frames),
        odom_from_camera=poses,
        alignment=Alignment(True, 0, 1.0),
        refinement=Refinement(landmarks=200, observations=900, inliers=880, error_px=0.3, refined=1.0),
    )


def first_step(submap: Submap) -> Agreement:
    return agreement(
        *(View.of(submap.images[i], submap.depth[i], submap.intrinsics[i], submap.odom_from_camera[i]) for i in (0, 1))
    )


@pytest.mark.parametrize("scale", [1, 3])
def test_a_right_result_agrees_with_its_images(scale: int) -> None:
    found = first_step(walk(scale=scale))
    assert found.correlation > 0.95
    assert found.shared == pytest.approx(1 - FOCAL * STEP / AWAY / SIZE[0], abs=0.02) and found.depth < 1e-6


def test_the_agreement_does_not_depend_on_the_size_of_the_images() -> None:
    """Of a result that is somewhat wrong: right ones agree at any size."""
    large = walk(2, 3, turn=0.015)
    k = large.intrinsics[0]

    def at(width: int) -> float:
        scale = width / large.images.shape[2]
        size = (width, round(large.images.shape[1] * scale))
        smaller = k.copy()
        smaller[:2] *= scale
        smaller[:2, 2] += 0.5 * scale - 0.5
        images = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in large.images])
        depth = np.full(images.shape[:3], AWAY, np.float32)
        submap = dataclasses.replace(large, images=images, depth=depth, intrinsics=np.stack([smaller] * 2))
        return first_step(submap).correlation

    whole = at(SIZE[0])
    assert 0.3 < whole < 0.9
    assert [at(width) for width in (240, 250, 256, 336, 504)] == pytest.approx([whole] * 5, abs=0.05)


@pytest.mark.parametrize("wrong", [{"step": -1.0}, {"step": 3.0}, {"depth": 0.4}, {"turn": 0.2}])
def test_a_wrong_result_does_not(wrong: dict[str, float]) -> None:
    assert first_step(walk(**wrong)).correlation < 0.4


def test_other_light_is_no_disagreement() -> None:
    submap = walk()
    images = submap.images.copy()
    images[1] = (0.6 * images[1] + 20).astype(np.uint8)
    assert first_step(dataclasses.replace(submap, images=images)).correlation > 0.95


def test_a_blank_image_cannot_be_compared() -> None:
    submap = walk()
    blank = dataclasses.replace(submap, images=np.full_like(submap.images, 120))
    found = first_step(blank)
    assert np.isnan(found.correlation)
    evidence = Evidence()
    evidence.add(blank)
    assert evidence.facts().compared == 0 and np.isnan(evidence.facts().agreement)


def test_a_pixel_without_depth_is_left_out() -> None:
    submap = walk()
    submap.depth[:, :, :90] = np.nan
    found = first_step(submap)
    assert found.correlation > 0.95 and found.shared < 0.5
    submap.depth[:] = np.nan
    assert np.isnan(first_step(submap).correlation) and first_step(submap).shared == 0


def test_the_facts_of_a_walk() -> None:
    evidence = Evidence()
    evidence.add(walk(6))
    facts = evidence.facts()
    assert facts.keyframes == 6 and facts.agreement > 0.95 and facts.agreed == facts.compared == facts.held == 1
    assert (
        facts.extent == pytest.approx(STEP * np.std(range(6)) / AWAY) and facts.landmarks == 200 and facts.refused == 0
    )
    assert facts.confidence == 2
    assert judge(facts).level == USABLE


def test_images_that_show_nothing_in_common_are_told() -> None:
    submap = walk(12)
    images = np.stack([wall(i)[:, : SIZE[0]] for i in range(12)])
    evidence = Evidence()
    evidence.add(dataclasses.replace(submap, images=images))
    facts = evidence.facts()
    assert abs(facts.agreement) < 0.15 and facts.agreed < 0.2 and judge(facts).level == UNUSABLE


def test_windows_without_a_bundle_and_refused_ones() -> None:
    evidence = Evidence()
    evidence.add(walk(4), bundle=False)
    assert np.isnan(evidence.facts().held) and evidence.facts().refused == 0
    nothing = walk(4)
    evidence.add(
        dataclasses.replace(
            nothing, frames=(), images=nothing.images[:0], depth=nothing.depth[:0], confidence=nothing.confidence[:0],
            intrinsics=nothing.intrinsics[:0], odom_from_camera=nothing.odom_from_camera[:0],
        )
    )  # fmt: skip
    assert evidence.facts().refused == 0.5 and evidence.facts().keyframes == 4


def test_only_the_newest_count_and_a_new_world_begins_again() -> None:
    evidence = Evidence(most=5)
    evidence.add(walk(4))
    evidence.add(walk(4))
    assert evidence.facts().keyframes == 5
    evidence.add(dataclasses.replace(walk(3), world=1))
    assert evidence.facts().keyframes == 3
    evidence.reset()
    assert evidence.facts().keyframes == 0 and np.isnan(evidence.facts().refused)


def test_cameras_are_compared_with_themselves() -> None:
    left, right = walk(2, seed=1), walk(2, seed=2)
    both = dataclasses.replace(
        left,
        frames=tuple(Frame(s.images[i], i, f"camera {n}") for i in (0, 1) for n, s in enumerate((left, right))),
        images=np.stack([s.images[i] for i in (0, 1) for s in (left, right)]),
        **{
            name: np.repeat(getattr(left, name), 2, axis=0)
            for name in ("depth", "confidence", "intrinsics", "odom_from_camera")
        },
    )
    evidence = Evidence()
    evidence.add(both)
    assert evidence.facts().agreement > 0.95

"""Several cameras in one window: K x T frames in one call, poses held together by what is known of the cameras' places."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from fakes import Noise, Truth, TruthBackbone, aligned_error, trajectory, truth_of

from come_ros import geometry
from come_ros.camera.rig import hold_rig, rig_remark
from come_ros.config import Config
from come_ros.errors import ConfigError
from come_ros.outputs.motion import moving_frame
from come_ros.pipeline import ReconstructionPipeline
from come_ros.types import Frame, RigResidual

NAMES = ("front", "left", "right")
CONFIG = Config().replace(
    **{"keyframe.mode": "every", "cameras": "+".join(NAMES), "window.size": 4, "window.overlap": 2}
)
SETS = 9


def rig(seed: int = 0) -> np.ndarray:
    """(3, 4, 4) base_from_camera: three cameras that look about, some decimetres apart."""
    rng = np.random.default_rng(seed)
    turns = [geometry.rotation_from_vector([0, 0, yaw]) for yaw in (0.0, 0.9, -0.8)]
    return np.stack(
        [geometry.transform(turn @ geometry.BODY_FROM_OPTICAL[:3, :3], rng.uniform(-0.4, 0.4, 3)) for turn in turns]
    )


BASE_FROM_CAMERA = rig()
WORLD_FROM_BASE = trajectory("curve", SETS) @ geometry.inverse(geometry.BODY_FROM_OPTICAL)
TRUTH: Truth = truth_of((WORLD_FROM_BASE[:, None] @ BASE_FROM_CAMERA[None]).reshape(-1, 4, 4))


def sets(
    places: np.ndarray | None = BASE_FROM_CAMERA, base: str = "base_link", size: tuple[int, int] | None = None
) -> list[Frame]:
    """The first frames of all sets. size: (W, H) of the last camera's images."""
    found = []
    for t in range(SETS):
        frames = []
        for k, name in enumerate(NAMES):
            image = TRUTH.images[3 * t + k]
            if size and k == len(NAMES) - 1:
                image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
            stamp = int(TRUTH.stamps_ns[t]) + 1000 * k
            place = None if places is None else places[k]
            frames.append(Frame(image, stamp, name, base=base, base_from_camera=place))
        found.append(replace(frames[0], others=tuple(frames[1:])))
    return found


def poses_of(submaps) -> np.ndarray:
    return np.concatenate([s.odom_from_camera for s in submaps])


@pytest.mark.parametrize("known", [True, False])
def test_all_cameras_of_all_instants_go_through_the_model_together(known: bool) -> None:
    backbone = TruthBackbone(TRUTH)
    submaps = list(ReconstructionPipeline(CONFIG, backbone).run(sets(BASE_FROM_CAMERA if known else None)))
    assert [len(seen) for seen in backbone.seen] == [12, 12, 12, 12], "T sets of K"
    assert backbone.seen[0] == list(range(12)) and backbone.seen[1] == list(range(6, 18))
    frames = [f for s in submaps for f in s.frames]
    assert [f.camera for f in frames] == list(NAMES) * SETS and len(frames) == len(TRUTH)
    assert aligned_error(poses_of(submaps), TRUTH.world_from_camera)[0] < 1e-6
    ratio = np.concatenate([s.depth for s in submaps]) / TRUTH.depth
    assert ratio.max() / ratio.min() < 1.0001
    if known:
        assert max(s.rig.rotation for s in submaps) < 1e-6 > max(s.rig.direction for s in submaps)
        moved = [moving_frame(s, row) for s in submaps for row in range(0, len(s), 3)]
        assert {name for name, _ in moved} == {"base_link"}
        np.testing.assert_allclose(moved[0][1], np.eye(4), atol=1e-9)
    else:
        assert all(s.rig is None for s in submaps) and rig_remark(None)


def test_cameras_of_other_sizes_are_cut_to_the_first_ones() -> None:
    (submap, *_) = ReconstructionPipeline(CONFIG, TruthBackbone(TRUTH)).run(sets(size=(100, 75)))
    assert submap.images.shape == (12, 56, 70, 3) and submap.intrinsics.shape == (12, 3, 3)


def test_known_places_hold_the_cameras_together_and_lessen_the_noise() -> None:
    noise = Noise(rotation=0.03, position=0.05)
    errors = {}
    for known in (True, False):
        frames = sets(BASE_FROM_CAMERA if known else None)
        (submap, *_) = ReconstructionPipeline(
            CONFIG.replace(**{"window.size": SETS}), TruthBackbone(TRUTH, noise=noise, seed=3)
        ).run(frames)
        poses = submap.odom_from_camera
        errors[known] = aligned_error(poses, TRUTH.world_from_camera)[0]
        if known:
            between = geometry.inverse(poses[::3]) @ poses[1::3]
            theirs = geometry.inverse(BASE_FROM_CAMERA[0]) @ BASE_FROM_CAMERA[1]
            turn = np.tile(theirs[:3, :3], (SETS, 1, 1))
            np.testing.assert_allclose(between[:, :3, :3], turn, atol=1e-6)
            ways = between[:, :3, 3]
            np.testing.assert_allclose(np.cross(ways, theirs[:3, 3]), 0, atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(ways, axis=1), np.linalg.norm(ways[0]), rtol=1e-6)
            assert 0.005 < submap.rig.rotation < 0.1
    assert errors[True] < 0.8 * errors[False]


def test_wrong_extrinsics_are_told() -> None:
    wrong = BASE_FROM_CAMERA.copy()
    wrong[1:, :3, :3] = wrong[1:, :3, :3] @ geometry.BODY_FROM_OPTICAL[:3, :3].T  # body axes were given as optical ones
    (submap, *_) = ReconstructionPipeline(CONFIG, TruthBackbone(TRUTH)).run(sets(wrong))
    assert "differ by" in rig_remark(submap.rig) and not rig_remark(RigResidual(0.05, 0.1))
    assert np.isfinite(submap.odom_from_camera).all()


def test_cameras_in_one_place_and_broken_predictions() -> None:
    places = BASE_FROM_CAMERA.copy()
    places[:, :3, 3] = 0.1
    prediction = TruthBackbone(TRUTH).predict(TRUTH.images[:6])
    frames = tuple(f for each in sets(places)[:2] for f in each.all_cameras)
    held, residual = hold_rig(frames, 3, prediction)
    assert np.isnan(residual.direction) and np.isfinite(held.window_from_camera).all()
    np.testing.assert_allclose(held.window_from_camera[0, :3, 3], held.window_from_camera[1, :3, 3], atol=1e-12)
    broken = replace(prediction, window_from_camera=np.full((6, 4, 4), np.nan))
    assert hold_rig(frames, 3, broken) == (broken, None)
    assert hold_rig(frames[:1], 1, prediction) == (prediction, None), "one camera: nothing to hold"


@pytest.mark.parametrize("names", ["left", "left+left", "left+ri ght", "+".join("abcdefghi"), "left+", "/left+right"])
def test_names_that_are_none_are_refused(names: str) -> None:
    with pytest.raises(ConfigError, match="cameras is"):
        Config().replace(cameras=names)


def test_names_may_be_a_list_and_what_is_for_one_camera_is_refused() -> None:
    config = Config().replace(cameras=["left", "right"])
    assert config.camera_names == ("left", "right") and Config().camera_names == ()
    with pytest.raises(ConfigError, match="for one camera"):
        config.replace(**{"known.depth": True})

"""The bundle as a stage of the pipeline, on rooms whose tracks are known: what follows them, what does not, and when it must keep out."""

import dataclasses
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from fakes import Noise, Truth, TruthBackbone, aligned_error, trajectory, truth_of

from come_ros import geometry
from come_ros.config import Config
from come_ros.pipeline import ReconstructionPipeline
from come_ros.refinement import scene as window_scene
from come_ros.refinement.depth_correction import TERMS, carried
from come_ros.refinement.refine import Refiner
from come_ros.refinement.state import Outcome
from come_ros.types import F64, Frame, Observations, Prediction, Refinement, Submap

HEIGHT, WIDTH, FOCAL = 112, 140, 120.0
NOISE = Noise(pixel=0.05, frame=0.1, rotation=np.deg2rad(3.0), position=0.15)
SIGMA = 0.08  # px of tracks
BUNDLE = {"keyframe.mode": "every", "refine.mode": "bundle", "window.reuse": False}
NONE = {**BUNDLE, "refine.mode": "none"}


def room_points(count: int = 4000, seed: int = 0) -> F64:
    """Points on the walls, floor and ceiling of the room, (count, 3)."""
    rng = np.random.default_rng(seed)
    half = np.array([4.0, 3.0, 1.5])
    points = rng.uniform(-1, 1, (count, 3))
    axis = rng.integers(0, 3, count)
    points[np.arange(count), axis] = np.sign(points[np.arange(count), axis])
    return points * half


def with_tracks(
    truth: Truth,
    points: F64,
    sigma: float = SIGMA,
    spoil: Callable[[int, F64], F64] | None = None,
    intrinsics: bool = True,
) -> list[Frame]:
    """Frames that see `points` with noise. spoil: (index of the frame, pixels (n, 2)) -> what is seen instead."""
    rng = np.random.default_rng(1)
    frames = []
    for i, frame in enumerate(truth.frames(intrinsics)):
        seen = geometry.apply(geometry.inverse(truth.world_from_camera[i]), points)
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = seen[:, :2] / seen[:, 2:] * FOCAL + truth.intrinsics[:2, 2]
        inside = (seen[:, 2] > 0.1) & (pixels > 1).all(axis=1) & (pixels < [WIDTH - 2, HEIGHT - 2]).all(axis=1)
        pixels = pixels + rng.normal(0, sigma, pixels.shape)
        if spoil is not None:
            pixels = spoil(i, pixels)
        ids = np.flatnonzero(inside)
        pixels = pixels[ids]
        frames.append(dataclasses.replace(frame, observations=Observations(ids.astype(np.int64), pixels)))
    return frames


def run(
    truth: Truth,
    frames: list[Frame],
    parameters: dict = BUNDLE,
    noise: Noise = NOISE,
    spoil: Callable[[int, Prediction], Prediction] | None = None,
    **more: object,
) -> list[Submap]:
    config = Config().replace(**{**parameters, **more})
    backbone = TruthBackbone(truth, noise=noise, spoil=spoil)
    backbone.native_side = WIDTH
    pipeline = ReconstructionPipeline(config, backbone)
    submaps = []
    for frame in frames:
        pipeline.add_frame(frame)
        while (window := pipeline.take_window()) is not None:
            submaps.append(pipeline.reconstruct(window))
    while (window := pipeline.take_window(1)) is not None:
        submaps.append(pipeline.reconstruct(window))
    for submap in submaps:
        assert np.isfinite(submap.odom_from_camera).all()
        assert not np.isnan(submap.confidence).any()
    return submaps


def poses(submaps: list[Submap]) -> F64:
    return np.concatenate([s.odom_from_camera for s in submaps])


def step_errors(found: F64, true: F64) -> F64:
    """Angles (deg) by which the turns between consecutive frames are off."""
    ours, real = geometry.inverse(found[:-1]) @ found[1:], geometry.inverse(true[:-1]) @ true[1:]
    return np.rad2deg(geometry.rotation_angle(np.swapaxes(ours[:, :3, :3], 1, 2) @ real[:, :3, :3]))


def depth_error(submaps: list[Submap], truth: Truth) -> float:
    """AbsRel with one scale for the whole run."""
    ratio = np.log(np.concatenate([s.depth for s in submaps]) / truth.depth[: sum(map(len, submaps))])
    return float(np.mean(np.abs(np.exp(ratio - np.median(ratio)) - 1)))


def scene(kind: str, frames: int = 20, step: float = 0.12) -> Truth:
    return truth_of(trajectory(kind, frames, step), HEIGHT, WIDTH, FOCAL)


def test_exact_tracks_give_exact_poses_and_scale() -> None:
    truth = scene("curve")
    submaps = run(truth, with_tracks(truth, room_points(), sigma=0.0), noise=Noise(rotation=0.03, position=0.1))
    rms, angle, _ = aligned_error(poses(submaps), truth.world_from_camera)
    assert rms < 0.01 and np.rad2deg(angle) < 0.3
    assert depth_error(submaps, truth) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["curve", "line"])
def test_tracks_make_poses_and_depth_several_times_better(kind: str) -> None:
    truth = scene(kind)
    frames = with_tracks(truth, room_points())
    ours, network = run(truth, frames), run(truth, frames, NONE)
    ate, nets = (aligned_error(poses(s), truth.world_from_camera)[0] for s in (ours, network))
    assert ate < 0.3 * nets
    assert np.median(step_errors(poses(ours), truth.world_from_camera)) < 0.2 * np.median(
        step_errors(poses(network), truth.world_from_camera)
    )
    assert depth_error(ours, truth) < depth_error(network, truth)
    assert all(s.refinement.refined == 1.0 and s.refinement.reason == "" for s in ours)
    assert all(s.refinement.landmarks > 50 and s.refinement.error_px < 1.0 for s in ours)


def test_without_tracks_the_network_is_published_bit_for_bit_and_it_is_said_why() -> None:
    truth = scene("curve")
    ours, network = run(truth, truth.frames(True)), run(truth, truth.frames(True), NONE)
    for a, b in zip(ours, network, strict=True):
        for name in ("odom_from_camera", "depth", "confidence", "intrinsics"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert a.refinement.refined == 0.0 and "two keyframes" in a.refinement.reason


def test_few_tracks_do_not_move_the_network() -> None:
    truth = scene("curve")
    frames = with_tracks(truth, room_points(150))
    assert max(len(f.observations) for f in frames) < 30
    ours, network = run(truth, frames), run(truth, truth.frames(True), NONE)
    assert np.array_equal(poses(ours), poses(network))
    assert all(s.refinement.reason and s.refinement.refined == 0.0 for s in ours)


def test_the_shape_of_a_depth_is_carried_as_far_as_landmarks_support_it() -> None:
    fit = np.linspace(0.1, 0.7, TERMS)
    assert np.allclose(carried(fit, 1.0), fit)
    assert np.allclose(carried(fit, 0.0), [fit[0], *(fit[1:] / 2)])
    assert np.allclose(carried(fit, 0.5)[1:], 0.75 * fit[1:])


def wrong_tracks(share: float) -> Callable[[int, F64], F64]:
    """A share of the tracks jumps about the image."""

    def spoil(i: int, pixels: F64) -> F64:
        rng = np.random.default_rng(i)
        wrong = rng.random(len(pixels)) < share
        return np.where(wrong[:, None], rng.uniform([2, 2], [WIDTH - 3, HEIGHT - 3], pixels.shape), pixels)

    return spoil


def moving_object(i: int, pixels: F64) -> F64:
    """What is in the left third of the image drifts, all of it alike."""
    return np.where((pixels[:, :1] < WIDTH / 3), pixels + [0.8 * np.sin(i), 1.2 * np.cos(0.7 * i)], pixels)


def repeated_texture(i: int, pixels: F64) -> F64:
    """A fifth of the tracks locks on to the neighbouring tile, now and then."""
    rng = np.random.default_rng(i)
    return pixels + np.where((rng.random(len(pixels)) < 0.2)[:, None], [14.0, 0.0], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("curve", wrong_tracks(0.4)),
        ("curve", moving_object),
        ("curve", repeated_texture),
        ("rotation", None),
        ("static", None),
        ("line", wrong_tracks(0.2)),
    ],
    ids=["outliers", "moving object", "repeated texture", "pure rotation", "static", "straight with outliers"],
)
def test_what_spoils_tracks_never_makes_it_worse_than_the_network(kind: str, spoil: Callable | None) -> None:
    truth = scene(kind)
    frames = with_tracks(truth, room_points(), spoil=spoil)
    ours, network = run(truth, frames), run(truth, frames, NONE)
    turned, nets = (np.sqrt(np.mean(step_errors(poses(s), truth.world_from_camera) ** 2)) for s in (ours, network))
    assert turned < 1.05 * nets
    off = depth_error(ours, truth), depth_error(network, truth)
    # a camera that only turns sees no parallax: from keyframe to keyframe the scale is then carried by the network's depth, and wanders
    assert off[0] < (1.3 if kind == "rotation" else 1.05) * off[1] + 0.01
    if kind in ("rotation", "static"):  # the true path is a point: how far does ours stray, in depths of the scene
        strayed = [np.linalg.norm(poses(s)[:, :3, 3] - poses(s)[0, :3, 3], axis=1).max() for s in (ours, network)]
        assert strayed[0] <= 1.05 * strayed[1]
    else:
        ate, nets = (aligned_error(poses(s), truth.world_from_camera)[0] for s in (ours, network))
        assert ate < 1.05 * nets


@pytest.mark.slow
def test_a_plane_that_fills_the_image_is_followed() -> None:
    truth = scene("line", 16, 0.05)
    frames = with_tracks(truth, room_points(8000))
    wall = [
        dataclasses.replace(f, observations=Observations(f.observations.ids[on], f.observations.pixels[on]))
        for f, on in ((f, room_points(8000)[f.observations.ids, 0] > 3.99) for f in frames)
    ]
    assert min(len(f.observations) for f in wall) >= 40
    ours, network = run(truth, wall), run(truth, wall, NONE)
    assert np.median(step_errors(poses(ours), truth.world_from_camera)) < 0.3 * np.median(
        step_errors(poses(network), truth.world_from_camera)
    )


def test_the_same_image_again_and_a_frozen_camera_do_no_harm() -> None:
    truth = scene("curve", 16)
    places = truth.world_from_camera.copy()
    places[5], places[9:] = places[4], places[8]
    truth = truth_of(places, HEIGHT, WIDTH, FOCAL)
    frames = with_tracks(truth, room_points())
    for i in (5, *range(10, 16)):
        frames[i] = dataclasses.replace(frames[i], observations=frames[4 if i == 5 else 9].observations)
    found = poses(run(truth, frames))
    still = geometry.inverse(found[9:-1]) @ found[10:]
    assert np.rad2deg(geometry.rotation_angle(still[:, :3, :3])).max() < 0.1
    assert np.linalg.norm(still[:, :3, 3], axis=1).max() < 0.02


def test_a_window_that_the_alignment_refuses_is_saved_by_tracks() -> None:
    truth = scene("curve")
    turn = geometry.rotation_from_vector([0.5, 0.6, -0.4])

    def broken(window: int, prediction: Prediction) -> Prediction:
        if window != 2:
            return prediction
        wrong = prediction.window_from_camera.copy()
        wrong[::2, :3, :3] = turn @ wrong[::2, :3, :3]
        return dataclasses.replace(prediction, window_from_camera=wrong)

    frames = with_tracks(truth, room_points())
    refused = run(truth, frames, NONE, spoil=broken)
    assert [s.alignment.accepted for s in refused].count(False) == 1
    ours = run(truth, frames, spoil=broken)
    assert all(s.alignment.accepted for s in ours) and sum(map(len, ours)) == len(truth)
    assert aligned_error(poses(ours), truth.world_from_camera)[0] < 0.05
    assert [s.alignment.accepted for s in run(truth, truth.frames(True), spoil=broken)].count(False) == 1


def test_poses_that_are_not_finite_are_replaced_by_those_of_tracks() -> None:
    truth = scene("curve")

    def broken(window: int, prediction: Prediction) -> Prediction:
        if window != 2:
            return prediction
        return dataclasses.replace(prediction, window_from_camera=np.full_like(prediction.window_from_camera, np.nan))

    ours = run(truth, with_tracks(truth, room_points()), spoil=broken)
    assert sum(map(len, ours)) == len(truth)
    assert aligned_error(poses(ours), truth.world_from_camera)[0] < 0.05


@pytest.mark.parametrize("size", [2, 3])
def test_small_windows(size: int) -> None:
    truth = scene("curve", 14)
    frames = with_tracks(truth, room_points())
    more = {"window.size": size, "window.overlap": 1}
    ours, network = run(truth, frames, **more), run(truth, frames, NONE, **more)
    assert sum(map(len, ours)) == len(truth)
    ate, nets = (aligned_error(poses(s), truth.world_from_camera)[0] for s in (ours, network))
    assert ate < 0.5 * nets


def test_a_first_window_of_one_frame_is_left_to_the_network() -> None:
    truth = scene("curve", 1)
    (submap,) = run(truth, with_tracks(truth, room_points()))
    assert len(submap) == 1 and submap.refinement.refined == 0.0


def test_tracks_that_all_end_leave_a_gap_that_the_network_bridges() -> None:
    truth = scene("curve")
    frames = with_tracks(truth, room_points())
    for i in range(10, 20):
        seen = frames[i].observations
        frames[i] = dataclasses.replace(frames[i], observations=Observations(seen.ids + 10_000, seen.pixels))
    ours, network = run(truth, frames), run(truth, frames, NONE)
    ate, nets = (aligned_error(poses(s), truth.world_from_camera)[0] for s in (ours, network))
    assert ate < 1.05 * nets


@pytest.mark.parametrize("wrong", [0.85, 1.2])
def test_a_focal_length_that_nobody_gave_is_found(wrong: float) -> None:
    truth = scene("curve", 24)

    def guessed(window: int, prediction: Prediction) -> Prediction:
        k = prediction.intrinsics.copy()
        k[:, [0, 1], [0, 1]] *= wrong
        return dataclasses.replace(prediction, intrinsics=k)

    frames = with_tracks(truth, room_points(), intrinsics=False)
    submaps = run(truth, frames, spoil=guessed)
    scale = submaps[-1].images.shape[2] / WIDTH
    assert submaps[-1].intrinsics[-1, 0, 0] / scale == pytest.approx(FOCAL, rel=0.03)
    assert aligned_error(poses(submaps), truth.world_from_camera)[0] < 0.1


def pairs(truth: Truth, frames: list[Frame], points: F64, joined: bool) -> tuple[list[Frame], Truth]:
    """Each frame with one of a second camera 0.2 m next to it, which looks 10 deg to the right; its place is known if `joined`."""
    place = geometry.transform(geometry.rotation_from_vector([0, np.deg2rad(10), 0]), [0.2, 0, 0])
    other = truth_of(truth.world_from_camera @ place, HEIGHT, WIDTH, FOCAL, seed=5)
    sets = []
    for a, b in zip(frames, with_tracks(other, points), strict=True):
        seen = Observations(b.observations.ids + 10_000_000, b.observations.pixels)
        where = (np.eye(4), place) if joined else (None, None)
        b = dataclasses.replace(b, observations=seen, camera="right", base_from_camera=where[1])
        sets.append(dataclasses.replace(a, others=(b,), base_from_camera=where[0]))
    order = [t for pair in zip(range(len(truth)), range(len(truth), 2 * len(truth)), strict=True) for t in pair]
    fields = [
        np.concatenate([getattr(truth, n), getattr(other, n)])[order] for n in ("images", "depth", "world_from_camera")
    ]
    return sets, Truth(*fields, truth.intrinsics, np.repeat(truth.stamps_ns, 2))


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False])
def test_two_cameras_are_one_bundle(joined: bool) -> None:
    truth = scene("curve", 12)
    points = room_points()
    sets, both = pairs(truth, with_tracks(truth, points), points, joined)
    more = {"cameras": "left+right"}
    noise = Noise(pixel=0.05, rotation=np.deg2rad(3.0), position=0.1)
    ours, network = run(both, sets, noise=noise, **more), run(both, sets, NONE, noise=noise, **more)
    ate, nets = (aligned_error(poses(s), both.world_from_camera)[0] for s in (ours, network))
    assert ate < 0.5 * nets
    assert all(s.refinement.refined == 1.0 for s in ours)
    if joined:  # a rigid pair: the second camera never moves in the first one
        found = poses(ours)
        second_from_first = geometry.inverse(found[::2]) @ found[1::2]
        place = geometry.inverse(both.world_from_camera[0]) @ both.world_from_camera[1]
        assert (
            np.rad2deg(geometry.rotation_angle(second_from_first[:, :3, :3].swapaxes(1, 2) @ place[:3, :3])).max() < 0.5
        )


@pytest.mark.slow
def test_known_odometry_carries_where_there_are_few_tracks() -> None:
    truth = scene("curve")
    frames = with_tracks(truth, room_points())
    wheels = [
        dataclasses.replace(f, world_from_camera=pose) for f, pose in zip(frames, truth.world_from_camera, strict=True)
    ]
    # ten frames see nothing that was seen before
    for many in (frames, wheels):
        for i in range(10, 20):
            seen = many[i].observations
            many[i] = dataclasses.replace(many[i], observations=Observations(seen.ids + 10_000, seen.pixels))
    alone, helped = (
        aligned_error(poses(run(truth, many, **{"known.odometry": True})), truth.world_from_camera)[0]
        for many in (frames, wheels)
    )
    assert helped < 0.5 * alone


@pytest.mark.slow
def test_confidence_falls_where_landmarks_contradict_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    # walls are so smooth that the bundle would rather do without the network's relief than doubt it
    monkeypatch.setattr(window_scene, "COMMON", window_scene.COMMON * [1, 1, 1, 1, 1, 1, 1e-2])
    monkeypatch.setattr(window_scene, "OWN", window_scene.OWN * [1, 1, 1, 1, 1, 1, 1e-2])
    truth = scene("curve")
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    # two of four blocks are wrong, one too near, one too far: no smooth correction takes that out
    block = (row // 28 % 2) + 2 * (column // 28 % 2)
    factor = np.exp(np.select([block == 0, block == 3], [1.2, -1.2], 0.0)).astype(np.float32)

    def blocks(window: int, prediction: Prediction) -> Prediction:
        return dataclasses.replace(prediction, depth=prediction.depth * factor)

    submaps = run(truth, with_tracks(truth, room_points(8000)), noise=Noise(rotation=0.02), spoil=blocks)
    confidence = np.concatenate([s.confidence for s in submaps]).mean(axis=0)
    assert confidence[factor != 1].mean() < 0.9 * confidence[factor == 1].mean()


@pytest.mark.slow
def test_two_runs_give_the_same_bytes() -> None:
    truth = scene("curve", 12)
    frames = with_tracks(truth, room_points())
    a, b = run(truth, frames), run(truth, frames)
    for one, two in zip(a, b, strict=True):
        assert one.odom_from_camera.tobytes() == two.odom_from_camera.tobytes()
        assert one.depth.tobytes() == two.depth.tobytes() and one.confidence.tobytes() == two.confidence.tobytes()


def test_reset_begins_again_as_new() -> None:
    truth = scene("curve", 8)
    frames = with_tracks(truth, room_points())
    backbone = TruthBackbone(truth, scales=(1.0, 1.0), noise=Noise())
    pipeline = ReconstructionPipeline(Config().replace(**BUNDLE), backbone)
    found = []
    for _ in range(2):
        for frame in frames:
            pipeline.add_frame(frame)
        found.append(pipeline.reconstruct(pipeline.take_window()).odom_from_camera)
        pipeline.reset()
    assert np.array_equal(*found)


@pytest.mark.slow
def test_memory_is_flat_however_many_frames_come() -> None:
    """There and back again, with tracks that end after four frames, so that all landmarks are new ones, and at times with few of them."""
    truth = scene("curve", 10, 0.05)
    frames = with_tracks(truth, room_points(600))
    pipeline = ReconstructionPipeline(Config().replace(**BUNDLE), TruthBackbone(truth, noise=NOISE))
    sizes, landmarks = [], []
    for i in range(240):
        frame = frames[9 - abs(9 - i % 18)]
        few = slice(10 if i % 40 >= 24 else None)
        ids = frame.observations.ids[few] + 600 * ((frame.observations.ids[few] + i) // 4)
        order = np.argsort(ids)
        seen = Observations(ids[order], frame.observations.pixels[few][order])
        pipeline.add_frame(dataclasses.replace(frame, stamp_ns=10**9 + i * 10**8, observations=seen))
        if (window := pipeline.take_window()) is not None:
            landmarks.append(pipeline.reconstruct(window).refinement.landmarks)
        if i % 40 in (19, 39):
            sizes.append(len(pickle.dumps(pipeline._refiner)))
    assert np.mean(np.array(landmarks) > 50) > 0.4 and np.mean(np.array(landmarks) == 0) > 0.2
    assert sizes[-2] < 1.05 * sizes[0] and sizes[-1] < 1.05 * sizes[1]


def test_a_scale_that_is_set_later_reaches_the_bundle_with_the_next_world() -> None:
    config = Config.from_flat({**BUNDLE, "scale.mode": "fixed", "scale.fixed": 2.0})
    pipeline = ReconstructionPipeline(config, TruthBackbone(truth_of(np.eye(4)[None], HEIGHT, WIDTH, FOCAL)))
    pipeline.set_config(config.replace(**{"scale.fixed": 4.0}))
    refiner = pipeline._refiner
    assert isinstance(refiner, Refiner) and refiner._unit() == (0.25, 0.0)
    refiner.commit(Outcome(True, *[np.empty(0)] * 3, 1.0, np.empty(0), Refinement()))
    pipeline.set_config(config.replace(**{"scale.fixed": 8.0}))
    assert refiner._unit() == (0.25, 0.0)
    pipeline.reset()
    assert refiner._unit() == (0.125, 0.0)

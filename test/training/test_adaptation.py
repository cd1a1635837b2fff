"""Adapting a model to a recording: what the bundle teaches, losses that know no unit, and a run that keeps the best of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from models import ROUNDING, tiny

from come_ros.accelerators import NoAccelerator
from come_ros.geometry import inverse, project, transform_poses
from come_ros.training import adaptation
from come_ros.training.adaptation import Adaptation, Plan, losses
from come_ros.training.lessons import (
    FULL_PARALLAX,
    LEAST_PARALLAX,
    Keyframe,
    Lessons,
    _parallax,
    _with_points,
    plain_batch,
    truth_of,
)
from come_ros.training.rehearsal import Rehearsal, size_for
from come_ros.types import Frame, Observations

HEIGHT, WIDTH = 56, 70
K = np.array([[60.0, 0, 34.5], [0, 60.0, 27.5], [0, 0, 1]])


def keyframe(i: int = 0, **fields: Any) -> Keyframe:
    rng = np.random.default_rng(i)
    none, nothing = np.zeros(0, np.intp), np.zeros(0, np.float32)
    pose = np.eye(4)
    pose[:3, 3] = [0.1 * i, 0, 0]
    made = Keyframe(
        i, rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), pose, K, np.full((HEIGHT, WIDTH), 0.5, np.float16),
        np.zeros((HEIGHT, WIDTH), np.float16), none, none, nothing, nothing, 1, True,
    )  # fmt: skip
    return dataclasses.replace(made, **fields)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("vggt", seed=3, std=0.05)


def as_the_model_says(model: Any, count: int, unit: float = 1.0) -> list[Keyframe]:
    """Keyframes whose lesson is the model's own answer for their window, in another unit of length."""
    found = [keyframe(i) for i in range(count)]
    images = torch.from_numpy(np.stack([k.image for k in found])).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        out, _ = model(images, NoAccelerator(), ("camera", "depth"))
    depth = unit * out["depth"][0].numpy()
    poses = transform_poses(unit, np.eye(3), np.zeros(3), out["world_from_camera"][0].double().numpy())
    rows, columns = np.mgrid[3:HEIGHT:9, 4:WIDTH:9].reshape(2, -1)
    return [
        dataclasses.replace(
            k, world_from_camera=poses[i], intrinsics=out["intrinsics"][0].double().mean(0).numpy(),
            log_depth=np.log(depth[i]).astype(np.float16), log_confidence=out["depth_conf"][0, i].log().numpy().astype(np.float16),
            rows=rows, columns=columns, log_points=np.log(depth[i][rows, columns]), weight=np.ones(len(rows), np.float32),
        )
        for i, k in enumerate(found)
    ]  # fmt: skip


@pytest.mark.parametrize("unit", [1.0, 7.0])
def test_a_model_has_nothing_to_learn_from_itself_in_whatever_unit(model: Any, unit: float) -> None:
    window = as_the_model_says(model, 3, unit)
    with torch.no_grad():
        own = losses(model, plain_batch(window))
        turned = [
            dataclasses.replace(k, world_from_camera=k.world_from_camera @ _about_y(0.3 * i))
            for i, k in enumerate(window)
        ]
        other = losses(model, plain_batch(turned))
    rotation = own.pop("rotation"), other["rotation"]
    assert float(rotation[0]) < 0.2 and float(rotation[1]) == pytest.approx(np.degrees(0.45), abs=1), (
        "mean of 0.3 and 0.6"
    )
    assert {name: float(x) for name, x in own.items() if float(x) > 0.01} == {}  # depth is stored in half precision
    assert float(other["turn"]) > 0.02 and float(other["points"]) == pytest.approx(float(own["points"]), abs=1e-3)


def _about_y(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])


def test_runs_end_where_the_bundle_vouches_for_nothing_or_begins_again() -> None:
    found = [keyframe(i, supported=i not in (0, 5), run=1 if i < 9 else 2) for i in range(12)]
    lessons = Lessons.of(found)
    assert [[k.stamp_ns for k in run] for run in lessons.runs] == [[1, 2, 3, 4], [6, 7, 8], [9, 10, 11]]
    assert lessons.left_out == 2 and len(lessons) == 10
    assert [[k.stamp_ns for k in w] for w in lessons.windows(3)] == [[1, 2, 3], [6, 7, 8], [9, 10, 11]]
    assert Lessons.of([keyframe(supported=False)]).runs == ()


def test_a_batch_is_of_neighbours_and_a_mirrored_window_is_a_camera_in_the_mirror() -> None:
    lessons = Lessons.of([_with_a_point(i) for i in range(9)])
    rng, sizes, mirrored = np.random.default_rng(0), set(), 0
    for _ in range(30):
        batch = lessons.batch(rng, 8)
        b, s = batch["images"].shape[:2]
        sizes.add(s)
        assert (
            b == max(1, 8 // s)
            and batch["images"].dtype == torch.uint8
            and batch["depth"].shape == (b, s, HEIGHT, WIDTH)
        )
        moved = np.abs(np.diff(np.linalg.inv(batch["camera_from_first"].double())[:, :, 0, 3], axis=1))
        assert np.allclose(moved, moved[:, :1], atol=1e-5) and moved.min() > 0.09 and moved.max() < 0.21
        for i in range(b):  # the point of the first frame lies on itself in all others
            where = torch.nonzero(batch["weight"][i])
            pixel = where[where[:, 0] == 0][0, 1:].flip(0).double().numpy()
            z = float(batch["log_points"][i][tuple(where[0])].exp())
            k = batch["intrinsics"][i].double().numpy()
            point = z * np.linalg.inv(k) @ [*pixel, 1.0]
            for f in range(s):
                pose = batch["camera_from_first"][i, f].double().numpy()
                there = project(pose[:3, :3] @ point + pose[:3, 3], k)
                seen = where[where[:, 0] == f][0, 1:].flip(0).double().numpy()
                assert np.linalg.norm(there - seen) < 1.5, "both are rounded to pixels"
            mirrored += abs(float(k[0, 2]) - (WIDTH - 1 - 37.5)) < 1e-3
    assert {2, 3, 4, 6, 8} == sizes and 5 < mirrored < 100


def test_images_of_two_sizes_never_meet_in_a_batch() -> None:
    wide = [_with_a_point(i) for i in range(5)]
    tall = [
        dataclasses.replace(k, **{n: getattr(k, n)[:42] for n in ("image", "log_depth", "log_confidence")})
        for k in wide
    ]
    lessons = Lessons.of([*wide, *tall])
    assert [len(run) for run in lessons.runs] == [5, 5]
    rng = np.random.default_rng(2)
    assert {lessons.batch(rng, 8)["images"].shape[-2] for _ in range(20)} == {HEIGHT, 42}


def _with_a_point(i: int) -> Keyframe:
    """A keyframe that sees the point (0.4, 0.1, 2), with the principal point off the centre, at column 37.5."""
    k = K + [[0, 0, 3.0], [0, 0, 0], [0, 0, 0]]
    plain = keyframe(i, intrinsics=k)
    camera = inverse(plain.world_from_camera)
    column, row = np.rint(project(camera[:3, :3] @ [0.4, 0.1, 2] + camera[:3, 3], k)).astype(int)
    one = np.ones(1, np.float32)
    return dataclasses.replace(
        plain, rows=np.array([row]), columns=np.array([column]), log_points=np.log(2 * one), weight=one
    )


def test_points_teach_where_they_were_seen_from_far_apart_and_lie_where_they_are_seen() -> None:
    rng = np.random.default_rng(1)
    places = {(0, n): np.array([*rng.uniform(-0.5, 0.5, 2), 2.0]) for n in range(60)}
    places |= {(0, n): np.array([*rng.uniform(-9, 9, 2), 40.0]) for n in range(60, 90)}
    found = []
    for i in range(4):
        plain = keyframe(i)
        camera = inverse(plain.world_from_camera)
        pixels = np.stack([project(camera[:3, :3] @ p + camera[:3, 3], K) for p in places.values()])
        pixels[:5] += 4.0  # tracks that went astray
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        found.append((plain, Frame(image, i, observations=Observations(np.arange(90), pixels))))
    parallax = _parallax(found, places)
    assert len(parallax) == 90 and all(parallax[0, n] < LEAST_PARALLAX for n in range(60, 90)), "far points have none"
    taught = [_with_points(k, f, places, parallax) for k, f in found]
    assert all(k.supported and len(k.rows) == 55 for k in taught)
    assert np.allclose(np.exp(taught[2].log_points), 2.0, atol=1e-5)
    full = np.array([parallax[0, n] for n in range(5, 60)]) >= FULL_PARALLAX
    assert (taught[0].weight[full] == 1).all() and (taught[0].weight[~full] < 1).all()
    few = {name: p for name, p in places.items() if name[1] < 30}
    assert not _with_points(*found[0], few, _parallax(found, few)).supported, "25 fit"
    assert not _with_points(
        found[0][0], dataclasses.replace(found[0][1], observations=None), places, parallax
    ).supported


def test_the_bundle_as_truth_has_depth_at_its_points_only() -> None:
    none = truth_of([keyframe(i) for i in range(4)], "here", 2)
    assert none.depth is None and none.world_from_camera.shape == (4, 4, 4) and none.index == 2
    rows, columns = np.mgrid[5:50:10, 5:60:10].reshape(2, -1)
    one = np.ones(len(rows), np.float32)
    some = truth_of([keyframe(0, rows=rows, columns=columns, log_points=np.log(3 * one), weight=one)], "here", 0)
    assert (
        some.depth is not None
        and np.isfinite(some.depth).sum() == len(rows)
        and np.nanmax(some.depth) == pytest.approx(3)
    )


@pytest.fixture(scope="module")
def rehearsal() -> Rehearsal:
    return Rehearsal.of(tiny("vggt", seed=4, std=0.05), 4, 0, rooms=1, count=2)


def adapted(lessons: Lessons, validation: Sequence[Sequence[Keyframe]], rehearsal: Rehearsal, plan: Plan) -> Adaptation:
    run = Adaptation(tiny("vggt", seed=4, std=0.05), lessons, validation, rehearsal, plan, 0)
    while not run.done:
        if run.due:
            run.validate()
        else:
            run.gradients()
            run.descend()
    return run


@pytest.mark.slow
def test_a_model_learns_from_another_ones_answers_and_each_run_alike(model: Any, rehearsal: Rehearsal) -> None:
    found = as_the_model_says(model, 8)
    lessons, validation = Lessons.of(found[:6]), [found[4:8]]
    plan = Plan(steps=3, batch=4, warm_up=1, average=0.5)
    first, second = (adapted(lessons, validation, rehearsal, plan) for _ in range(2))
    assert first.learned and first.log[-1]["validation"] < 0.99 * first.log[0]["validation"]
    start = tiny("vggt", seed=4, std=0.05).state_dict()
    assert first.best is not None and second.best is not None
    moved = {name for name, x in first.best.state_dict().items() if not torch.equal(x, start[name])}
    still = ("aggregator.patch_embed.blocks", "aggregator.patch_embed.patch_embed", "point_head")
    assert moved and not any(name.startswith(still) for name in moved)
    for name, x in second.best.state_dict().items():
        assert torch.allclose(x, first.best.state_dict()[name], atol=100 * ROUNDING), name


@pytest.mark.slow
def test_what_is_kept_lies_between_before_and_the_average(model: Any, rehearsal: Rehearsal) -> None:
    found = as_the_model_says(model, 8)
    plan = Plan(steps=1, batch=4, warm_up=1, average=0.5)
    far, half = (
        adapted(Lessons.of(found[:6]), [found[4:8]], rehearsal, dataclasses.replace(plan, kept=kept)).best
        for kept in (1.0, 0.5)
    )
    assert far is not None and half is not None
    start, moved = tiny("vggt", seed=4, std=0.05), 0.0
    for old, new, between in zip(start.parameters(), far.parameters(), half.parameters(), strict=True):
        assert torch.allclose(between, (old + new) / 2, atol=1e-7)
        moved = max(moved, float((new - old).detach().abs().max()))
    assert moved > 1e-4


def test_rehearsed_is_what_the_model_said_before(rehearsal: Rehearsal) -> None:
    before = tiny("vggt", seed=4, std=0.05)
    batch = rehearsal.batch(np.random.default_rng(0))
    b, s, _, h, w = batch["images"].shape
    assert batch["images"].dtype == torch.uint8 and b * s <= 4 and (w, h) == size_for(before)
    assert batch["depth"].shape == (b, s, h, w) and not batch["weight"].any()
    with torch.no_grad():
        own = losses(before, batch)
        other = losses(tiny("vggt", seed=5, std=0.05), batch)
    for name in ("turn", "distance", "depth", "sure"):
        assert float(own[name]) < 0.02 and float(other[name]) > 2 * float(own[name]), name


def test_training_ends_when_nothing_is_gained_and_keeps_the_best(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(
        [(5.0, 0), (4.0, 0.05), (3.0, 0.05), (2.0, 0.2), (3.5, 0), (3.5, 0), (0.0, 0)]
    )  # loss, growth of the rotation's error

    def made_up(model: Any, batch: Any) -> dict[str, torch.Tensor]:
        if torch.is_grad_enabled():
            return dict.fromkeys(Plan().weights, next(model.parameters()).sum() * 0)
        value, harmed = next(told)
        names = {**dict.fromkeys(Plan().weights, 0.0), "depth": value / 0.3, "rotation": 3.0 * (1 + harmed)}
        return {name: torch.tensor(x) for name, x in names.items()}

    monkeypatch.setattr(adaptation, "losses", made_up)
    found = [keyframe(i) for i in range(6)]
    plan = Plan(steps=100, batch=4, patience=3)
    run = Adaptation(tiny("vggt"), Lessons.of(found), [found[:4]], rehearsal, plan, 0)
    assert not run.learned and run.best is None and not run.done
    run.validate()
    assert not run.learned, "the weights before are no result"
    while not run.done:
        run.gradients()
        run.descend()
        run.validate()
    assert run.learned and run.best_step == 2 and run.step == 5

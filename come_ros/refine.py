"""Holds what a network says of a window against the tracks of its images: a bundle adjustment with the published keyframes as constants.

The network gives every new keyframe a pose and a depth, a little wrong and in a scale that wanders. Tracks tie each to what was
published: the poses of the new keyframes, landmarks, and one smooth correction of each depth are estimated together (bundle.py), so that
scale and frame carry on without a similarity per window. How much the network counts is earned: its errors are estimated from how far it
lay from the bundle lately (agreement.py). A keyframe that too few tracks speak for keeps the network's answer, and the report says so.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import bundle
from .agreement import Agreement
from .camera.preprocess import CropResize, uncrop_intrinsics
from .config import Config
from .depth_correction import TERMS, DepthImage
from .geometry import inverse, is_finite_pose, rotation_angle
from .resection import Rays, resect
from .tracks import Observations
from .types import F32, F64, I64, Alignment, Frame, Landmarks, Prediction, Refinement

Ints = NDArray[np.intp]
Mask = NDArray[np.bool_]
Key = tuple[int, str]

KEPT = 16  # published keyframes of each camera whose observations still count
MIN_START = 8  # points that a first pose is taken from
# Gates of a keyframe: below them it keeps the network's answer
MIN_INLIERS = 30
MANY_INLIERS = 200  # from so many on the depth's shape is corrected as far as they want, below in proportion
MIN_SHARE = 0.6  # of what is seen in it
MIN_SPREAD = 0.04  # standard deviation of the inliers' pixels across the narrower way, of the image's longer side
MIN_SUPPORTED = 0.5  # share of the new keyframes that must pass where the network's window was refused

WIDE, KERNEL = 6.0, 2.0  # sigmas at which an observation counts half: first, while the start is rough, and in the end
OUTLIER = 4.0  # sigmas beyond which it is left out of the last solution
ITERATIONS = 12, 12
TOLERANCE = 1e-4
SHARED_SIGMA = 0.1  # the correction of what is shared with the last window says how the new one is to be corrected, up to that share
# Where the network's poses were refused the camera is only taken not to move much
STILL = np.deg2rad(20.0), 0.5
FOCAL_SIGMA, SETTLED_FOCAL = 0.25, 0.004  # of the logarithm
RIG_SIGMA = np.deg2rad(0.3), 0.003  # rad, m
ODOMETRY_SIGMA = np.deg2rad(0.5), 0.01  # of a step by wheels, m
UNIT_SIGMA = 1.0  # of the logarithm of the odometry's units per metre, before anything is measured
USUAL_DEPTH_M = 3.0  # of the scene, until then
WIDTH = 640.0  # that the pixel noise is about
DOUBT = 2.0  # sigmas of its depth by which a landmark may lie off before the confidence around it falls


@dataclass(frozen=True, eq=False)
class Proposal:
    """A window of S frames by the network, the last N of them new.

    plans: how each image was cut for it. alignment, odom_from_camera: (S, 4, 4), how the aligner lays it onto what was published; where
    that was refused the poses are the last one. depth, confidence: (N, H, W) of the new frames in odometry units, NaN where invalid.
    """

    frames: tuple[Frame, ...]
    new: int
    plans: list[CropResize]
    prediction: Prediction
    alignment: Alignment
    odom_from_camera: F64
    depth: F32
    confidence: F32


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is published of the N new frames. accepted: whether tracks vouch for the window. odom_from_camera: (N, 4, 4). depth, confidence:
    (N, H, W). scale: odometry units per window unit. refined: (N,) bool. covariance: (N, 6, 6) of each pose with the published ones as
    they are, position, then rotation (a vector from the left), in the odometry frame; NaN where not refined."""

    accepted: bool
    odom_from_camera: F64
    depth: F32
    confidence: F32
    scale: float
    refined: Mask
    covariance: F64
    report: Refinement
    landmarks: Landmarks | None = None
    state: _State | None = None


class Unrefined:
    """The network's answer as it is: `refine.mode: none`."""

    def refine(self, proposal: Proposal) -> Outcome:
        return as_proposed(proposal, Refinement(reason="refine.mode is none"))

    def commit(self, outcome: Outcome) -> None:
        pass

    def intrinsics(self, frame: Frame) -> F64 | None:
        return None

    def restart(self) -> None:
        pass

    def reset(self) -> None:
        pass


def as_proposed(proposal: Proposal, report: Refinement) -> Outcome:
    """Nothing is refined."""
    n = proposal.new
    return Outcome(
        accepted=False,
        odom_from_camera=proposal.odom_from_camera[len(proposal.odom_from_camera) - n :],
        depth=proposal.depth,
        confidence=proposal.confidence,
        scale=proposal.alignment.scale,
        refined=np.zeros(n, bool),
        covariance=np.full((n, 6, 6), np.nan),
        report=report,
    )


@dataclass(frozen=True, eq=False)
class _Published:
    """A keyframe that is published, with what is seen in it."""

    camera: str
    pose: F64
    intrinsics: F64 | None  # (4,) fx, fy, cx, cy as given; None: as estimated
    seen: Observations
    log_depth: F64  # (n,) of what is published there
    log_grid: F64  # the same on the grid of DepthImage


@dataclass(frozen=True, eq=False)
class _Focal:
    """Of a camera that nobody calibrated. intrinsics: (4,). sigma: of the logarithm of the focal length."""

    intrinsics: F64
    sigma: float


@dataclass(frozen=True, eq=False)
class _State:
    """What the next window needs to know; a new one comes with every window."""

    published: OrderedDict[Key, _Published] = field(default_factory=OrderedDict)
    ids: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    rays: Rays = field(default_factory=lambda: _no_rays())
    focals: dict[str, _Focal] = field(default_factory=dict)
    unit: tuple[float, float] | None = None  # and its sigma


class Refiner:
    """One thread. `refine` asks, `commit` remembers."""

    def __init__(self, config: Config, metric: bool) -> None:
        """metric: whether the odometry's unit is the metre."""
        self.config, self.metric = config, metric
        self.reset()

    def reset(self) -> None:
        """The world begins again, and the network has to earn its weight again."""
        self._state = _State()
        self._agreements: dict[str, Agreement] = {}

    def restart(self) -> None:
        """Forgets what is published: the next window stands for itself."""
        self._state = _State(focals=self._state.focals, unit=self._state.unit)

    def intrinsics(self, frame: Frame) -> F64 | None:
        """(3, 3) in pixels of the image of `frame`, as estimated; None if they are given with it, or unknown yet."""
        focal = self._state.focals.get(frame.camera)
        return None if frame.intrinsics is not None or focal is None else _matrix(focal.intrinsics)

    def commit(self, outcome: Outcome) -> None:
        """`outcome` is published."""
        if outcome.state is not None:
            self._state = outcome.state

    def agreement(self, camera: str) -> Agreement:
        """How far the network is trusted with that camera."""
        return self._agreements.setdefault(camera, Agreement())

    def refine(self, proposal: Proposal) -> Outcome:
        """The new frames as the bundle has them, or, where it cannot tell, as proposed."""
        scene = _Scene(self, proposal)
        scene.start()
        if not scene.worth_it:
            return self._left_alone(scene, "hardly any point is seen in two keyframes")
        solution = scene.solve(WIDE, ITERATIONS[0], rough=True)
        scene.prune(solution)
        if not scene.supported.any():
            return self._left_alone(scene, scene.reason)
        solution = scene.solve(KERNEL, ITERATIONS[1])
        return scene.result(solution)

    def _left_alone(self, scene: _Scene, reason: str) -> Outcome:
        """The network's answer; what is seen in it is remembered all the same."""
        outcome = as_proposed(scene.proposal, Refinement(reason=reason))
        return dataclasses.replace(outcome, state=scene.state_of(outcome.odom_from_camera, None, outcome.depth))


class _Corrected(NamedTuple):
    """Depth of one new frame before the bundle, with what it is expected to be corrected by."""

    image: DepthImage
    expected: F64  # (TERMS,)


class _Scene:
    """One window as a bundle adjustment. Frames: F = the published ones that are kept, then the new ones."""

    def __init__(self, refiner: Refiner, proposal: Proposal) -> None:
        self.refiner, self.proposal = refiner, proposal
        state = refiner._state
        self.state = state
        self.old = list(state.published.values())
        p = proposal
        self.fresh = p.frames[len(p.frames) - p.new :]
        self.first_new, self.count = len(self.old), len(self.old) + p.new
        self.cameras = [k.camera for k in self.old] + [f.camera for f in self.fresh]
        self.agreement = refiner.agreement(self.fresh[0].camera)
        self.depths = self._depths()
        self._intrinsics()
        self._observations()
        self.poses = np.concatenate(
            [np.array([k.pose for k in self.old]).reshape(-1, 4, 4), p.odom_from_camera[len(p.frames) - p.new :]]
        )
        self.trusted = p.alignment.accepted
        self.free = np.arange(self.count) >= self.first_new
        if not self.old:
            self.free[0] = False
        self.supported = np.zeros(p.new, bool)
        self.evidence = 1.0
        self.reason = ""

    # what is known of the new frames before the tracks are asked

    def _depths(self) -> list[_Corrected]:
        """A correction that the window's shared frames needed to agree with what is published of them is needed by its new ones, too."""
        p = self.proposal
        sigma = np.maximum(self.agreement.common, self.agreement.own)
        fits = []
        for i, frame in enumerate(p.frames[: len(p.frames) - p.new]):
            row, known = p.prediction.row(i), self.state.published.get((frame.stamp_ns, frame.camera))
            if row is None or known is None or not p.alignment.accepted:
                continue
            depth = p.prediction.depth[row] * np.float32(p.alignment.scale)
            fit = DepthImage.of(depth, p.plans[i]).fit(known.log_grid, 2 * sigma)
            if fit is not None:
                fits.append(fit)
        expected = np.median(fits, axis=0) if fits else np.zeros(TERMS)
        self.shared = len(fits)
        return [
            _Corrected(DepthImage.of(d, plan), expected)
            for d, plan in zip(p.depth, p.plans[len(p.plans) - p.new :], strict=True)
        ]

    def _intrinsics(self) -> None:
        """Cameras, each once for every set of intrinsics; those that nobody gave are unknown."""
        p, focals = self.proposal, dict(self.state.focals)
        for i, frame in enumerate(self.fresh):
            if frame.intrinsics is None and frame.camera not in focals:
                k = uncrop_intrinsics(
                    p.prediction.intrinsics[len(p.frames) - p.new + i], p.plans[len(p.plans) - p.new + i]
                )
                focals[frame.camera] = _Focal(_four(k), FOCAL_SIGMA)
        given = [k.intrinsics for k in self.old] + [
            None if f.intrinsics is None else _four(f.intrinsics) for f in self.fresh
        ]
        rows: dict[tuple[str, bytes], int] = {}
        values, sigmas, self.focal_of = [], [], {}
        self.camera = np.zeros(self.count, np.intp)
        for i, (name, k) in enumerate(zip(self.cameras, given, strict=True)):
            key = name, b"" if k is None else k.tobytes()
            if key not in rows:
                rows[key] = len(values)
                values.append(focals[name].intrinsics if k is None else k)
                sigmas.append(0.0 if k is not None or focals[name].sigma < SETTLED_FOCAL else focals[name].sigma)
                if k is None:
                    self.focal_of[name] = rows[key]
            self.camera[i] = rows[key]
        self.intrinsics, self.focal_sigma = np.array(values), np.array(sigmas)
        width = max(frame.image.shape[1] for frame in self.fresh)
        self.pixel = self.agreement.pixel * max(0.5, width / WIDTH)
        self.pixel_unit = max(0.5, width / WIDTH)
        self.longer_side = max(max(frame.image.shape[:2]) for frame in self.fresh)

    def _observations(self) -> None:
        """One table of all that is seen of points which a new frame sees, too."""
        nothing = Observations(np.empty(0, np.int64), np.empty((0, 2)))
        seen = [k.seen for k in self.old] + [f.observations or nothing for f in self.fresh]
        ids = np.concatenate([s.ids for s in seen])
        pixels = np.concatenate([s.pixels for s in seen])
        frame = np.repeat(np.arange(len(seen)), [len(s) for s in seen])
        sampled = [d.image.at(s.pixels) for d, s in zip(self.depths, seen[self.first_new :], strict=True)]
        self.sampled = sampled
        log_depth = np.concatenate(
            [k.log_depth for k in self.old]
            + [v + t @ d.expected for (v, t), d in zip(sampled, self.depths, strict=True)]
        )
        terms = np.concatenate(
            [np.zeros((len(ids) - sum(len(v) for v, _ in sampled), TERMS)), *(t for _, t in sampled)]
        )

        unique, row, times = np.unique(ids, return_inverse=True, return_counts=True)
        wanted = np.zeros(len(unique), bool)
        wanted[row[frame >= self.first_new]] = True
        keep = (wanted & (times >= 2))[row]
        self.frame, self.pixels, self.log_depth, self.terms = frame[keep], pixels[keep], log_depth[keep], terms[keep]
        self.ids, self.landmark = np.unique(ids[keep], return_inverse=True)
        # observations stand frame by frame: the first of each landmark is that in its oldest frame, which anchors it
        _, self.first = np.unique(self.landmark, return_index=True)
        self.anchor = self.frame[self.first]

    @property
    def worth_it(self) -> bool:
        return len(self.ids) >= MIN_START and bool(self.free.any())

    # start

    def start(self) -> None:
        """Poses by resection from the landmarks that are known, and a first depth of the others: by the network."""
        rays = np.ones((len(self.frame), 3))
        k = self.intrinsics[self.camera[self.frame]]
        rays[:, :2] = (self.pixels - k[:, 2:]) / k[:, :2]
        length = np.linalg.norm(rays, axis=1)
        n = len(self.ids)
        anchors, directions = np.zeros((n, 3)), np.zeros((n, 3))
        log_distance, variance = np.full(n, np.nan), np.full(n, np.nan)
        _, mine, theirs = np.intersect1d(self.ids, self.state.ids, assume_unique=True, return_indices=True)
        known = self.state.rays
        anchors[mine], directions[mine] = known.anchors[theirs], known.directions[theirs]
        log_distance[mine], variance[mine] = known.log_distance[theirs], known.variance[theirs]

        def fill(at: Ints, scale: float) -> None:
            """Landmarks that only the network knows, where the observations `at` see them."""
            pose, which = self.poses[self.frame[at]], self.landmark[at]
            anchors[which] = pose[:, :3, 3]
            directions[which] = np.einsum("nij,nj->ni", pose[:, :3, :3], rays[at] / length[at, None])
            log_distance[which] = self.log_depth[at] + scale + np.log(length[at])
            variance[which] = (2 * self.agreement.depth) ** 2

        for f in range(self.first_new):  # seen before, but in no second frame until now
            at = np.flatnonzero(self.frame == f)
            fill(at[np.isnan(log_distance[self.landmark[at]]) & np.isfinite(self.log_depth[at])], 0.0)
        self.start_scale = np.zeros(self.count)
        self.scene_depth = self._usual_depth(log_distance)
        scale = 0.0
        for f in range(self.first_new, self.count):
            at = np.flatnonzero(self.frame == f)
            expected, prior = self._expected(f)
            self.poses[f] = expected
            seen = at[np.isfinite(log_distance[self.landmark[at]])]
            if self.free[f] and len(seen) >= MIN_START:
                which = self.landmark[seen]
                points = Rays(anchors[which], directions[which], log_distance[which], variance[which])
                matrix = _matrix(self.intrinsics[self.camera[f]])
                fit = resect(points, self.pixels[seen], matrix, 2 * self.pixel, expected, prior)
                if np.isfinite(fit.world_from_camera).all():
                    self.poses[f] = fit.world_from_camera
                away = points.positions() - self.poses[f][:3, 3]
                z = (away @ self.poses[f][:3, :3])[:, 2]
                good = fit.inliers & (z > 0) & np.isfinite(self.log_depth[seen])
                if np.count_nonzero(good) >= MIN_START:
                    scale = float(np.median(np.log(z[good]) - self.log_depth[seen][good]))
            self.start_scale[f] = scale
            fill(at[np.isnan(log_distance[self.landmark[at]]) & np.isfinite(self.log_depth[at])], scale)
        self._set_landmarks(anchors, directions, log_distance)

    def _usual_depth(self, log_distance: F64) -> float:
        some = np.concatenate([log_distance[np.isfinite(log_distance)], self.log_depth[np.isfinite(self.log_depth)]])
        return float(np.exp(np.median(some))) if len(some) else 1.0

    def _before(self, f: int) -> int | None:
        """The frame of the same camera before frame `f`."""
        return next((i for i in range(f - 1, -1, -1) if self.cameras[i] == self.cameras[f]), None)

    def _network_step(self, a: int, f: int) -> F64 | None:
        """a_from_f by the network, in odometry units; None if it does not know both."""
        p = self.proposal
        position = {(frame.stamp_ns, frame.camera): i for i, frame in enumerate(p.frames)}
        keys = [*self.state.published, *((frame.stamp_ns, frame.camera) for frame in self.fresh)]
        i, j = position.get(keys[a]), position.get(keys[f])
        if i is None or j is None or not self.trusted:
            return None
        poses = p.prediction.window_from_camera[[i, j]].astype(np.float64)
        if not is_finite_pose(poses).all():
            return None
        step = inverse(poses[0]) @ poses[1]
        step[:3, 3] *= p.alignment.scale
        return np.asarray(step, np.float64)

    def _expected(self, f: int) -> tuple[F64, F64]:
        """Where frame `f` should be before it is looked at, and how sure that is, (6, 6)."""
        turn, shift = self.agreement.rotation, self.agreement.translation
        before = self._before(f)
        if before is None:
            pose = self.poses[f].copy()
        else:
            step = self._network_step(before, f)
            pose = self.poses[before] if step is None else self.poses[before] @ step
            if step is None:
                turn, shift = STILL
        shift = max(shift, 0.1) * self.scene_depth
        return pose, np.diag(np.repeat([(2 * shift) ** 2, (2 * turn) ** 2], 3))

    def _set_landmarks(self, anchors: F64, directions: F64, log_distance: F64) -> None:
        """Inverse depth in the anchor of each landmark."""
        pose = self.poses[self.anchor]
        points = anchors + np.exp(log_distance)[:, None] * directions
        z = np.einsum("ni,ni->n", pose[:, :3, 2], points - pose[:, :3, 3])
        usual = float(np.median(z[z > 0])) if (z > 0).any() else self.scene_depth
        with np.errstate(invalid="ignore"):
            self.log_inverse_depth = -np.log(np.where(z > 0.01 * usual, z, usual))

    # terms

    def solve(self, kernel: float, iterations: int, rough: bool = False) -> bundle.Solution:
        """With the observations that are still in."""
        a = self.agreement
        shape = np.where(np.arange(TERMS) == 0, 1.0, self.evidence)
        use = self.observed = np.flatnonzero(self.used & (self.frame != self.anchor[self.landmark]))
        with_depth = np.flatnonzero(self.used & np.isfinite(self.log_depth))
        # a network errs alike in all frames that see a point: together they count once
        times = np.bincount(self.landmark[with_depth], minlength=len(self.ids))
        problem = bundle.Problem(
            world_from_camera=self.poses,
            free=self.free,
            camera=self.camera,
            intrinsics=self.intrinsics,
            anchor=self.anchor,
            anchor_pixels=self.pixels[self.first],
            log_inverse_depth=self.log_inverse_depth,
            reprojections=bundle.Reprojections(
                self.frame[use], self.landmark[use], self.pixels[use], np.full(len(use), self.pixel), kernel
            ),
            depths=bundle.Depths(
                self.frame[with_depth],
                self.landmark[with_depth],
                self.log_depth[with_depth],
                self.terms[with_depth],
                a.depth * np.sqrt(times[self.landmark[with_depth]]),
                2.0,
            ),
            relatives=self._relatives(),
            corrected=np.arange(self.count) >= self.first_new,
            corrections=self.corrections,
            common_sigma=shape
            * a.common
            * (SHARED_SIGMA if self.shared else 1.0)
            * (1.0 if self.trusted or not self.old else 2.0),
            own_sigma=shape * a.own,
            log_focal_sigma=self.focal_sigma,
            unit=self.unit[0],
            unit_sigma=self.unit[1],
        )
        solution = bundle.solve(problem, iterations, 10 * TOLERANCE if rough else TOLERANCE, covariance=not rough)
        self.poses, self.log_inverse_depth = solution.world_from_camera, solution.log_inverse_depth
        self.corrections, self.intrinsics = solution.corrections, solution.intrinsics
        self.unit = solution.unit, self.unit[1]
        return solution

    @property
    def used(self) -> Mask:
        if not hasattr(self, "_used"):
            self._used = np.ones(len(self.frame), bool)
            self.corrections = np.zeros((self.count, TERMS))
            self.corrections[:, 0] = self.start_scale
            self.unit = (1.0, 0.0)
        return self._used

    def _relatives(self) -> tuple[bundle.Relatives, ...]:
        first, second, step, sigma = [], [], [], []
        for f in range(self.first_new, self.count):
            before = self._before(f)
            if before is None or not self.free[f]:
                continue
            by_network = self._network_step(before, f)
            turn, shift = STILL if by_network is None else (self.agreement.rotation, self.agreement.translation)
            first.append(before)
            second.append(f)
            step.append(np.eye(4) if by_network is None else by_network)
            sigma.append([turn, shift * self.scene_depth])
        if not first:
            return ()
        return (
            bundle.Relatives(
                np.array(first), np.array(second), np.array(step), np.array(sigma), np.zeros(len(first), bool), 2.0
            ),
        )

    # gates

    def prune(self, solution: bundle.Solution) -> None:
        """Leaves out what does not fit, and the frames that too little is left of."""
        error = np.linalg.norm(solution.residuals, axis=1)
        fresh = self.frame[self.observed] >= self.first_new
        if fresh.any():
            # the norm of two Gaussian coordinates has the median 1.18 sigma
            now = float(np.median(error[fresh])) / 1.1774 / self.pixel_unit
            self.agreement.learn("pixel", now)
            low, high = 0.15, 2.0
            self.pixel = float(np.sqrt(np.clip(now, low, high) * self.agreement.pixel)) * self.pixel_unit
        fits = error <= OUTLIER * self.pixel
        used = self._used
        used[self.observed[~fits]] = False
        # a landmark that no second frame speaks for says nothing
        good = np.bincount(self.landmark[self.observed[fits]], minlength=len(self.ids)) > 0
        used &= good[self.landmark]
        frame = self.frame[self.observed]
        inliers = np.bincount(frame[fits], minlength=self.count)[self.first_new :]
        total = np.bincount(frame, minlength=self.count)[self.first_new :]
        anchored = np.bincount(self.anchor[good], minlength=self.count)[self.first_new :]
        all_anchored = np.bincount(self.anchor, minlength=self.count)[self.first_new :]
        inliers, total = inliers + anchored, total + all_anchored
        spread = np.array([self._spread(f) for f in range(self.first_new, self.count)])
        self.supported = (inliers >= MIN_INLIERS) & (inliers >= MIN_SHARE * total) & (spread >= MIN_SPREAD)
        self.evidence = float(np.clip(np.median(inliers) / MANY_INLIERS, 0.05, 1.0))
        worst = int(np.argmin(inliers))
        if not self.supported.all():
            self.reason = (
                f"{int((~self.supported).sum())} of {len(inliers)} keyframes hold too few tracks "
                f"(fewest: {inliers[worst]} of {total[worst]} fit)"
            )
        # frames that nothing speaks for follow the network from their neighbours
        for f in np.flatnonzero(~self.supported) + self.first_new:
            used[self.frame == f] = False
        lost = ~used[self.first]
        used &= ~lost[self.landmark]

    def _spread(self, f: int) -> float:
        pixels = self.pixels[self._used & (self.frame == f)]
        if len(pixels) < 3:
            return 0.0
        return float(np.sqrt(max(0.0, np.linalg.eigvalsh(np.cov(pixels.T))[0]))) / self.longer_side

    # result

    def result(self, solution: bundle.Solution) -> Outcome:
        p, first = self.proposal, self.first_new
        error = np.linalg.norm(solution.residuals, axis=1)
        fits = error <= 3 * self.pixel
        accepted = bool(self.supported.mean() >= MIN_SUPPORTED)
        poses = self.poses[first:]
        total = np.array([d.expected for d in self.depths]) + self.corrections[first:]
        depth = np.stack([d.image.corrected(c) for d, c in zip(self.depths, total, strict=True)])
        self._learn(solution)
        report = Refinement(
            landmarks=len(np.unique(self.landmark[self.observed[fits]])),
            observations=len(self.observed),
            inliers=int(fits.sum()),
            error_px=float(np.median(error[fits])) if fits.any() else float("nan"),
            refined=float(self.supported.mean()),
            reason=self.reason,
            iterations=solution.iterations,
        )
        return Outcome(
            accepted=accepted,
            odom_from_camera=poses,
            depth=depth,
            confidence=p.confidence,
            scale=p.alignment.scale * float(np.exp(np.median(total[:, 0]))),
            refined=self.supported,
            covariance=np.full((p.new, 6, 6), np.nan),
            report=report,
            state=self.state_of(poses, solution, depth),
        )

    def _learn(self, solution: bundle.Solution) -> None:
        """What the network was off by, where tracks alone tell."""
        a = self.agreement
        information = solution.landmark_information
        d = np.flatnonzero(self._used & np.isfinite(self.log_depth))
        told = (self.frame[d] >= self.first_new) & (information[self.landmark[d]] > (2 / a.depth) ** 2)
        if np.count_nonzero(told) >= 30:
            a.learn("depth", 1.4826 * float(np.median(np.abs(solution.depth_residuals[told]))))
        turns, shifts = [], []
        for f in range(self.first_new, self.count):
            before = self._before(f)
            if before is None or not self.supported[f - self.first_new]:
                continue
            if before >= self.first_new and not self.supported[before - self.first_new]:
                continue
            by_network = self._network_step(before, f)
            if by_network is None:
                continue
            step = inverse(self.poses[before]) @ self.poses[f]
            turns.append(float(rotation_angle(by_network[:3, :3].T @ step[:3, :3])))
            shifts.append(float(np.linalg.norm(by_network[:3, 3] - step[:3, 3])) / self.scene_depth)
        if turns:
            # the norm of three Gaussian coordinates has the median 1.54 sigma
            a.learn("rotation", float(np.median(turns)) / 1.538)
            a.learn("translation", float(np.median(shifts)) / 1.538)

    def state_of(self, poses: F64, solution: bundle.Solution | None, depth: F32) -> _State:
        """What is known once this is published."""
        published = OrderedDict(self.state.published)
        p = self.proposal
        nothing = Observations(np.empty(0, np.int64), np.empty((0, 2)))
        for i, frame in enumerate(self.fresh):
            image = DepthImage.of(depth[i], p.plans[len(p.plans) - p.new + i])
            seen = frame.observations or nothing
            column, row = image.grid()
            with np.errstate(invalid="ignore", divide="ignore"):
                grid = np.log(image.depth[row, column].astype(np.float64))
            published[frame.stamp_ns, frame.camera] = _Published(
                frame.camera, poses[i].copy(), None if frame.intrinsics is None else _four(frame.intrinsics), seen,
                image.at(seen.pixels)[0], grid,
            )  # fmt: skip
        names = [k.camera for k in published.values()]
        while len(published) > KEPT * len(set(names)):
            published.popitem(last=False)
        focals = {}
        for name, c in self.focal_of.items():
            known = solution is None or self.focal_sigma[c] == 0
            focals[name] = _Focal(
                self.intrinsics[c], float(self.focal_sigma[c] if known else solution.log_focal_sigma[c])
            )
        focals = {**self.state.focals, **focals}
        if solution is None:
            return dataclasses.replace(self.state, published=published, focals=focals)
        # landmarks
        k = self.intrinsics[self.camera[self.anchor]]
        rays = np.ones((len(self.ids), 3))
        rays[:, :2] = (self.pixels[self.first] - k[:, 2:]) / k[:, :2]
        length = np.linalg.norm(rays, axis=1)
        pose = self.poses[self.anchor]
        good = np.bincount(self.landmark[self.observed], minlength=len(self.ids)) > 0
        information = solution.landmark_information + self.agreement.depth**-2.0
        mine = Rays(
            pose[good, :3, 3],
            np.einsum("nij,nj->ni", pose[:, :3, :3], rays / length[:, None])[good],
            (np.log(length) - self.log_inverse_depth)[good],
            1 / information[good],
        )
        ids = self.ids[good]
        alive = np.unique(np.concatenate([k.seen.ids for k in published.values()]))
        stay = ~np.isin(self.state.ids, self.ids) & np.isin(self.state.ids, alive)
        ids = np.concatenate([self.state.ids[stay], ids])
        order = np.argsort(ids)
        merged = Rays(
            *(np.concatenate([old[stay], new])[order] for old, new in zip(self.state.rays, mine, strict=True))
        )
        return _State(published, ids[order], merged, focals, self.state.unit)


def _four(intrinsics: F64) -> F64:
    """(4,) fx, fy, cx, cy of (3, 3)."""
    return np.array([intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]])


def _matrix(four: F64) -> F64:
    """(3, 3) of (4,)."""
    return np.array([[four[0], 0, four[2]], [0, four[1], four[3]], [0, 0, 1]])


def _no_rays() -> Rays:
    return Rays(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0))

"""One window as a bundle adjustment: its start, its terms, its outlier rejection and its result."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace

import numpy as np

from ..camera.preprocess import uncrop_intrinsics
from ..geometry import SIGMA_OF_MAD, inverse, is_finite_pose, rotation_angle, transform
from ..tracking.resection import Rays, best_resection, turn_between, two_views
from ..types import F32, F64, Observations, Refinement
from . import bundle
from .agreement import COMMON, LEAST, MOST, OWN, TRANSLATION, Agreement
from .depth_correction import TERMS, DepthImage, carried
from .motions import two_motions
from .problem import Depths, Ints, Problem, Reprojections, Solution, Steps
from .state import Focal, Outcome, Proposal, Published, State, four, intrinsics_matrix

KEPT = 16  # published keyframes per camera whose observations are used
MIN_START = 8  # fewest points for a first pose
SLACK = 5.0  # factor on the sigmas of the points' depths for a first pose, since errors of depths are correlated
TIGHT = 2.0  # the same where two motions are distinguished
# A keyframe below one of these limits keeps the network's result
MIN_INLIERS = 30
MIN_SHARE = 0.6  # of its observations
MIN_SPREAD = 0.04  # standard deviation of the inliers in the narrower direction, relative to the longer image side
MIN_SUPPORTED = 0.5  # least share of new keyframes above the limits for an accepted window
MANY_INLIERS = 200  # with fewer, the sigmas of the depth correction shrink with the square of their share

# Kernels of the network's depth, whose errors are alike over whole surfaces: landmarks that agree with it determine the poses, all of them
# the correction
POSE_KERNEL, DEPTH_KERNEL = 0.3, 2.0
WIDE, KERNEL = 6.0, 2.0  # sigmas at which an observation counts half: in the first, rough solution and in the last one
OUTLIER = 4.0  # sigmas beyond which an observation is left out of the last solution
ITERATIONS = 12, 12
TOLERANCE = 1e-4
SHARED = 0.1  # factor on the correction's sigma if shared frames show the network's current error
REFUSED = 2.0  # the same if the network's window was refused
# Sigmas of a step if the network's poses were refused or nearly unknown: the camera is assumed not to move much
STILL = np.deg2rad(20.0), 0.5  # rad, and of the scene's depth
FOCAL_SIGMA, SETTLED_FOCAL = 0.25, 0.004  # of the logarithm: at first, and when it counts as known
RIG_SIGMA = np.deg2rad(0.3), 0.003  # of extrinsics, rad and m
WHEEL_SIGMA = np.deg2rad(0.5), 0.01  # of a step by known odometry, rad and m
WHEEL_SLIP = 0.02  # and relative to its length
UNIT_SIGMA = 1.5  # of the logarithm of the odometry units per metre, before it is measured
USUAL_DEPTH_M = 3.0  # assumed depth of the scene until then
WIDTH = 640.0  # px, of the image to which the pixel noise refers
DOUBT = 2.5  # sigmas of depth: a landmark further off lowers the confidence around it
REACH = 0.08  # of that, relative to the image's width


class Scene:
    """The bundle of one window. Its F frames are the published ones that are kept, then the N new ones.

    supported: (N,) bool, whether enough tracks support each new frame. reason: why some are not supported, or "".
    """

    def __init__(
        self, proposal: Proposal, state: State, agreements: dict[str, Agreement], unit: tuple[float, float] | None
    ) -> None:
        """agreements: by camera; they are copied, and the copies are updated. unit: odometry units per metre and the sigma of its
        logarithm, None if it has to be measured."""
        p = self.proposal = proposal
        self.state = state
        self.agreements = {name: copy.deepcopy(a) for name, a in agreements.items()}
        self.fresh = p.frames[len(p.frames) - p.new :]
        self.fresh_plans = p.plans[len(p.plans) - p.new :]
        old = list(state.published.values())
        self.first_new, self.count = len(old), len(old) + p.new
        self.names = [k.camera for k in old] + [f.camera for f in self.fresh]
        self.keys = [*state.published, *((f.stamp_ns, f.camera) for f in self.fresh)]
        self.row = {(f.stamp_ns, f.camera): i for i, f in enumerate(p.frames)}
        self.trusted = p.alignment.accepted
        self.poses = np.concatenate(
            [np.array([k.pose for k in old]).reshape(-1, 4, 4), p.odom_from_camera[len(p.frames) - p.new :]]
        )
        self.free = np.arange(self.count) >= self.first_new
        if not old:
            self.free[0] = False
        self.fixed_unit = unit
        self.unit = unit or state.unit
        self.supported = np.zeros(p.new, bool)
        self.reason = ""
        self._evidence = 1.0
        widths = np.array([max(0.5, f.image.shape[1] / WIDTH) for f in self.fresh])
        self._per_width = float(widths.max())
        self.pixel = self._agreement(self.first_new).pixel * self._per_width
        self._expect_depths()
        self._place_cameras(old)
        self._gather(old)

    def _agreement(self, frame: int) -> Agreement:
        return self.agreements[self.names[frame]]

    def _of_frames(self, name: str) -> F64:
        """(F,) the sigma `name` of each frame's camera."""
        return np.array([getattr(self.agreements[n], name) for n in self.names])

    # known before the tracks are used

    def _expect_depths(self) -> None:
        """Expected corrections of the new depths: those that make the depths of shared frames agree with the published ones, as far as
        landmarks support these."""
        p = self.proposal
        fits: dict[str, list[F64]] = {}
        for i, frame in enumerate(p.frames[: len(p.frames) - p.new]):
            row, known = p.prediction.row(i), self.state.published.get((frame.stamp_ns, frame.camera))
            if row is None or known is None or not self.trusted:
                continue
            image = DepthImage.of(p.prediction.depth[row] * np.float32(p.alignment.scale), p.plans[i])
            fit = image.fit(known.log_grid, 2 * np.maximum(COMMON, OWN))
            if fit is not None:
                fits.setdefault(frame.camera, []).append(carried(fit, known.evidence))
        self.images = [DepthImage.of(d, plan) for d, plan in zip(p.depth, self.fresh_plans, strict=True)]
        self.shared = bool(fits)
        every = [fit for of_camera in fits.values() for fit in of_camera]
        usual = np.median(every, axis=0) if every else np.zeros(TERMS)
        self.expected = [np.median(fits[f.camera], axis=0) if f.camera in fits else usual for f in self.fresh]

    def _place_cameras(self, old: list[Published]) -> None:
        """Collects the cameras, one entry for each set of intrinsics. Intrinsics that were not given are estimated."""
        p, focals = self.proposal, dict(self.state.focals)
        for i, frame in enumerate(self.fresh):
            if frame.intrinsics is None and frame.camera not in focals:
                k = uncrop_intrinsics(p.prediction.intrinsics[len(p.frames) - p.new + i], self.fresh_plans[i])
                height, width = frame.image.shape[:2]
                if not (np.isfinite(k).all() and k[0, 0] > 0 and k[1, 1] > 0):
                    k = intrinsics_matrix(np.array([width, width, (width - 1) / 2, (height - 1) / 2], np.float64))
                focals[frame.camera] = Focal(four(k), FOCAL_SIGMA)
        given = [k.intrinsics for k in old]
        given += [None if f.intrinsics is None else four(f.intrinsics) for f in self.fresh]
        rows: dict[tuple[str, bytes], int] = {}
        values: list[F64] = []
        sigmas: list[float] = []
        self.focal_of: dict[str, int] = {}
        self.camera = np.zeros(self.count, np.intp)
        for i, (name, k) in enumerate(zip(self.names, given, strict=True)):  # type: ignore[assignment]
            key = name, b"" if k is None else k.tobytes()
            if key not in rows:
                rows[key] = len(values)
                values.append(focals[name].intrinsics if k is None else k)
                sigmas.append(0.0 if k is not None or focals[name].sigma < SETTLED_FOCAL else focals[name].sigma)
                if k is None:
                    self.focal_of[name] = rows[key]
            self.camera[i] = rows[key]
        self.intrinsics, self.focal_sigma = np.array(values), np.array(sigmas)

    def _gather(self, old: list[Published]) -> None:
        """Collects all observations of points that at least one new frame sees, frame by frame."""
        seen = [k.seen for k in old] + [f.observations or _NOTHING for f in self.fresh]
        ids = np.concatenate([s.ids for s in seen])
        pixels = np.concatenate([s.steady for s in seen])
        frame = np.repeat(np.arange(len(seen)), [len(s) for s in seen])
        sampled = [image.at(s.pixels) for image, s in zip(self.images, seen[self.first_new :], strict=True)]
        by_network = [v + t @ c for (v, t), c in zip(sampled, self.expected, strict=True)]
        log_depth = np.concatenate([k.log_depth for k in old] + by_network)
        constant = np.zeros((len(ids) - sum(len(v) for v in by_network), TERMS))
        terms = np.concatenate([constant, *(t for _, t in sampled)])

        unique, point, times = np.unique(ids, return_inverse=True, return_counts=True)
        wanted = np.zeros(len(unique), bool)
        wanted[point[frame >= self.first_new]] = True
        wanted &= ~np.isin(unique, self.state.moving)
        keep = (wanted & (times >= 2))[point]
        self.frame, self.pixels, self.log_depth, self.terms = frame[keep], pixels[keep], log_depth[keep], terms[keep]
        self.ids, self.landmark = np.unique(ids[keep], return_inverse=True)
        _, self.first = np.unique(self.landmark, return_index=True)
        self.anchor = self.frame[self.first]  # a landmark is anchored in the oldest frame that sees it
        self.used = np.ones(len(self.frame), bool)
        self.strayed = np.zeros(len(self.ids), bool)  # landmarks that follow another motion than the camera's
        self.observed = np.zeros(0, np.intp)
        k = self.intrinsics[self.camera[self.frame]]
        self.rays = np.ones((len(self.frame), 3))
        self.rays[:, :2] = (self.pixels - k[:, 2:]) / k[:, :2]

    @property
    def worth_it(self) -> bool:
        """Whether there is anything to solve."""
        return len(self.ids) >= MIN_START and bool(self.free.any())

    # start

    def start(self) -> None:
        """Start values: poses by resection from the known landmarks, and distances of the other landmarks from the network."""
        length = np.linalg.norm(self.rays, axis=1)
        n = len(self.ids)
        anchors, directions = np.zeros((n, 3)), np.zeros((n, 3))
        log_distance, variance = np.full(n, np.nan), np.full(n, np.nan)
        _, mine, theirs = np.intersect1d(self.ids, self.state.ids, assume_unique=True, return_indices=True)
        known = self.state.rays
        anchors[mine], directions[mine] = known.anchors[theirs], known.directions[theirs]
        log_distance[mine], variance[mine] = known.log_distance[theirs], known.variance[theirs]
        depth_sigma = self._of_frames("depth")

        def fill(at: Ints, scale: float) -> None:
            """Places landmarks that have no distance yet at the network's depth in the observations `at`."""
            at = at[np.isnan(log_distance[self.landmark[at]]) & np.isfinite(self.log_depth[at])]
            pose, which = self.poses[self.frame[at]], self.landmark[at]
            anchors[which] = pose[:, :3, 3]
            directions[which] = np.einsum("nij,nj->ni", pose[:, :3, :3], self.rays[at] / length[at, None])
            log_distance[which] = self.log_depth[at] + scale + np.log(length[at])
            variance[which] = (2 * depth_sigma[self.frame[at]]) ** 2

        of_frame = np.split(np.arange(len(self.frame)), np.searchsorted(self.frame, np.arange(1, self.count)))
        for f in range(self.first_new):  # points that only one published frame saw
            fill(of_frame[f], 0.0)
        self._depth = _usual(log_distance, self.log_depth)
        self.corrections = np.zeros((self.count, TERMS))
        scale = 0.0
        for f in range(self.first_new, self.count):
            at = of_frame[f]
            expected, prior = self._expected(f)
            if self.free[f]:
                self.poses[f] = expected
            seen = at[np.isfinite(log_distance[self.landmark[at]]) & ~self.strayed[self.landmark[at]]]
            if self.free[f] and len(seen) >= MIN_START:
                which = self.landmark[seen]
                points = Rays(anchors[which], directions[which], log_distance[which], SLACK**2 * variance[which])
                k = intrinsics_matrix(self.intrinsics[self.camera[f]])
                starts = [(expected, prior)]
                if (before := self._before(f)) is not None:
                    placed = anchors + np.exp(log_distance)[:, None] * directions
                    starts += self._by_tracks(f, at, of_frame[before], placed)
                places, sigma = self.pixels[seen], 2 * self.pixel
                pose, agreeing = best_resection(points, places, k, sigma, starts)
                tight = points._replace(variance=TIGHT**2 * variance[which])
                shape = self.fresh[f - self.first_new].image.shape
                moved = bool(len(self.state.moving) or self.strayed.any())
                motions = two_motions(tight, places, k, sigma, shape, pose, starts, self._unknown(), moved)
                moving = np.zeros(len(seen), bool)
                if motions is not None:
                    pose, agreeing, moving = motions
                    self.strayed[self.landmark[seen[moving]]] = True
                if np.count_nonzero(agreeing) >= MIN_SHARE * np.count_nonzero(~moving):
                    self.poses[f] = pose
                else:  # tracks that contradict each other do not determine a pose
                    agreeing = np.zeros(len(seen), bool)
                away = points.positions() - self.poses[f][:3, 3]
                z = away @ self.poses[f][:3, 2]
                good = agreeing & (z > 0) & np.isfinite(self.log_depth[seen])
                if np.count_nonzero(good) >= MIN_START:
                    scale = float(np.median(np.log(z[good]) - self.log_depth[seen][good]))
            self.corrections[f, 0] = scale
            fill(at, scale)
        self.used &= ~self.strayed[self.landmark]
        pose = self.poses[self.anchor]
        points_ = anchors + np.exp(log_distance)[:, None] * directions
        z = np.einsum("ni,ni->n", pose[:, :3, 2], points_ - pose[:, :3, 3])
        with np.errstate(invalid="ignore"):
            usual = float(np.median(z[z > 0])) if (z > 0).any() else self._depth
            self.log_inverse_depth = -np.log(np.where(z > 0.01 * usual, z, usual))

    def _before(self, f: int) -> int | None:
        """The frame of the same camera before frame `f`."""
        return next((i for i in range(f - 1, -1, -1) if self.names[i] == self.names[f]), None)

    def _network_pose(self, a: int, b: int) -> F64 | None:
        """a_from_b from the network, in odometry units; None if its window does not hold both frames or was refused."""
        p = self.proposal
        i, j = self.row.get(self.keys[a]), self.row.get(self.keys[b])
        if i is None or j is None or not self.trusted:
            return None
        poses = np.asarray(p.prediction.window_from_camera, np.float64)[[i, j]]
        if not is_finite_pose(poses).all():
            return None
        step = inverse(poses[0]) @ poses[1]
        step[:3, 3] *= p.alignment.scale
        return np.asarray(step, np.float64)

    def _expected(self, f: int) -> tuple[F64, F64]:
        """Predicted pose of frame `f` before its tracks are used, and the covariance (6, 6) of that. A learnt error of the network's
        translation can only increase it."""
        turn, shift = self._agreement(f).rotation, max(self._agreement(f).translation, TRANSLATION)
        before = self._before(f)
        pose = self.poses[f].copy()
        if before is not None:
            step = self._network_pose(before, f)
            pose = self.poses[before] @ (np.eye(4) if step is None else step)
            turn, shift = STILL if step is None else (turn, shift)
        return pose, np.diag(np.repeat([(2 * shift * self._depth) ** 2, (2 * turn) ** 2], 3))

    def _by_tracks(self, f: int, at: Ints, then: Ints, positions: F64) -> list[tuple[F64, F64]]:
        """Possible poses of frame `f` from its tracks since the frame before, each as from `_expected`: one if the camera only turned, and
        one from the two views alone. at, then: observations of both frames. positions: (L, 3) of the landmarks, NaN where unknown."""
        before = self._before(f)
        _, here, there = np.intersect1d(self.landmark[at], self.landmark[then], assume_unique=True, return_indices=True)
        if before is None or len(here) < MIN_START:
            return []
        at, then, pose = at[here], then[there], self.poses[before]
        away = positions[self.landmark[at]] - pose[:3, 3]
        unit = self.rays / np.linalg.norm(self.rays, axis=1, keepdims=True)
        turned = transform(turn_between(unit[then], unit[at]), np.zeros(3))
        tolerance = 3 * self.pixel / float(self.intrinsics[self.camera[f], 0])
        both = two_views(self.rays[then, :2], self.rays[at, :2], away @ pose[:3, 2], tolerance)
        prior = self._unknown()
        return [(pose @ step, prior) for step in (turned, both) if step is not None]

    def _unknown(self) -> F64:
        """(6, 6) covariance of a step about which nothing is known."""
        return np.diag(np.repeat([(STILL[1] * self._depth) ** 2, STILL[0] ** 2], 3))

    # terms

    def solve(self, kernel: float, iterations: int, rough: bool = False) -> Solution:
        """Solves the bundle with the observations in use. rough: as a start for the next solution."""
        measured, unit = self._measured()
        problem = self._problem(kernel, DEPTH_KERNEL if rough else POSE_KERNEL, measured, unit)
        solution = bundle.solve(problem, iterations, 10 * TOLERANCE if rough else TOLERANCE, covariance=not rough)
        self.poses, self.log_inverse_depth = solution.world_from_camera, solution.log_inverse_depth
        self.corrections, self.intrinsics = solution.corrections, solution.intrinsics
        if any(measured.metric) and self.fixed_unit is None:
            self.unit = solution.unit, solution.unit_sigma if not rough else unit[1]
        if not rough:  # solve again for the corrections, with fixed poses
            still = replace(
                problem, world_from_camera=self.poses, intrinsics=self.intrinsics, log_inverse_depth=self.log_inverse_depth,
                corrections=self.corrections, depths=replace(problem.depths, kernel=DEPTH_KERNEL),
                free=np.zeros_like(self.free), relatives=(), log_focal_sigma=0 * self.focal_sigma, unit_sigma=0.0,
            )  # fmt: skip
            self.corrections = bundle.solve(still, iterations, TOLERANCE, covariance=False).corrections
        return solution

    def _problem(self, kernel: float, depth_kernel: float, measured: Steps, unit: tuple[float, float]) -> Problem:
        """The bundle with the current values. kernel, depth_kernel: of the observations and of the network's depth."""
        use = self.observed = np.flatnonzero(self.used & (self.frame != self.anchor[self.landmark]))
        deep = np.flatnonzero(self.used & np.isfinite(self.log_depth))
        # the network's error is the same in all frames that see a point, so together they count once
        times = np.bincount(self.landmark[deep], minlength=len(self.ids))[self.landmark[deep]]
        spread = self._evidence**2  # of the scale, too: the depths of shared frames know it better than few tracks do
        common = spread * COMMON * (SHARED if self.shared else 1.0)
        if not self.trusted and self.first_new:
            common = common * REFUSED
        return Problem(
            world_from_camera=self.poses,
            free=self.free,
            camera=self.camera,
            intrinsics=self.intrinsics,
            anchor=self.anchor,
            anchor_pixels=self.pixels[self.first],
            log_inverse_depth=self.log_inverse_depth,
            reprojections=Reprojections(
                self.frame[use], self.landmark[use], self.pixels[use], np.full(len(use), self.pixel), kernel
            ),
            depths=Depths(
                self.frame[deep], self.landmark[deep], self.log_depth[deep], self.terms[deep],
                self._of_frames("depth")[self.frame[deep]] * np.sqrt(times), depth_kernel,
            ),
            relatives=tuple(r for r in (self._by_network().relatives(KERNEL), measured.relatives(np.inf)) if len(r.first)),
            corrected=np.arange(self.count) >= self.first_new,
            corrections=self.corrections,
            common_sigma=common,
            own_sigma=spread * OWN,
            log_focal_sigma=self.focal_sigma,
            unit=unit[0],
            unit_sigma=unit[1] if any(measured.metric) else 0.0,
        )  # fmt: skip

    def _by_network(self) -> Steps:
        """The network's steps from keyframe to keyframe of a camera, and between the cameras of a set if their extrinsics are unknown."""
        steps = Steps()
        for f in range(self.first_new, self.count):
            first = self._first_of_set(f)
            others = [self._before(f)]
            if first != f and self.fresh[f - self.first_new].base_from_camera is None:
                others.append(first)
            for before in others:
                if before is None or not (self.free[f] or self.free[before]):
                    continue
                step = self._network_pose(before, f)
                if step is None and before == first:
                    continue
                a = self._agreement(f)
                turn, shift = STILL if step is None else (a.rotation, a.translation)
                steps.add(before, f, np.eye(4) if step is None else step, turn, shift * self._depth)
        return steps

    def _first_of_set(self, f: int) -> int:
        """The first camera's frame in the set of the new frame `f`."""
        return f - (f - self.first_new) % self.proposal.cameras

    def _measured(self) -> tuple[Steps, tuple[float, float]]:
        """Extrinsics of the cameras of a set, and steps between sets from known odometry. And the start value of the unit, with its
        sigma."""
        p, steps = self.proposal, Steps()
        for f in range(self.first_new, self.count):
            frame, first = self.fresh[f - self.first_new], self._first_of_set(f)
            leader = self.fresh[first - self.first_new]
            if first != f and frame.base_from_camera is not None and leader.base_from_camera is not None:
                pose = inverse(leader.base_from_camera) @ frame.base_from_camera
                steps.add(first, f, np.asarray(pose, np.float64), *RIG_SIGMA, True)
            row = self.row[self.keys[f]]
            before = p.frames[row - p.cameras] if row >= p.cameras else None
            if first != f or before is None or frame.world_from_camera is None or before.world_from_camera is None:
                continue
            if (before.stamp_ns, before.camera) not in self.keys or not p.metric_odometry:
                continue
            step = np.asarray(inverse(before.world_from_camera) @ frame.world_from_camera, np.float64)
            turn, shift = WHEEL_SIGMA
            a = self.keys.index((before.stamp_ns, before.camera))
            steps.add(a, f, step, turn, shift + WHEEL_SLIP * float(np.linalg.norm(step[:3, 3])), True)
        return steps, self.unit or (self._depth / USUAL_DEPTH_M, UNIT_SIGMA)

    # outlier rejection

    def prune(self, solution: Solution) -> None:
        """Drops observations that do not fit, and all observations in frames that have too few left."""
        error = np.linalg.norm(solution.residuals, axis=1)
        fresh = self.frame[self.observed] >= self.first_new
        if fresh.any():
            # the norm of two Gaussian coordinates has the median 1.18 sigma
            now = float(np.clip(np.median(error[fresh]) / 1.1774 / self._per_width, LEAST["pixel"], MOST["pixel"]))
            a = self._agreement(self.first_new)
            a.learn("pixel", now)
            self.pixel = float(np.sqrt(now * a.pixel)) * self._per_width
        fits = error <= OUTLIER * self.pixel
        self.used[self.observed[~fits]] = False
        # a landmark needs a second frame
        good = np.bincount(self.landmark[self.observed[fits]], minlength=len(self.ids)) > 0
        self.used &= good[self.landmark]
        everywhere = np.concatenate([self.frame[self.observed], self.anchor[~self.strayed]])
        fitting = np.concatenate([self.frame[self.observed[fits]], self.anchor[good]])
        total = np.bincount(everywhere, minlength=self.count)[self.first_new :]
        inliers = np.bincount(fitting, minlength=self.count)[self.first_new :]
        spread = np.array([self._spread(f) for f in range(self.first_new, self.count)])
        self.supported = (inliers >= MIN_INLIERS) & (inliers >= MIN_SHARE * total) & (spread >= MIN_SPREAD)
        self._evidence = float(np.clip(np.median(inliers) / MANY_INLIERS, 0.05, 1.0))
        if not self.supported.all():
            worst = int(np.argmin(inliers))
            self.reason = (
                f"{np.count_nonzero(~self.supported)} of {len(inliers)} keyframes hold too few tracks: {inliers[worst]} of "
                f"{total[worst]} fit, but {MIN_INLIERS} and {MIN_SHARE:.0%} must, all over the image"
            )
        # frames without support are placed by the network, relative to the frame before
        for f in np.flatnonzero(~self.supported) + self.first_new:
            self.used[self.frame == f] = False
            if self.free[f]:
                self.poses[f] = self._expected(int(f))[0]
        self.used &= self.used[self.first][self.landmark]

    def _spread(self, f: int) -> float:
        pixels = self.pixels[self.used & (self.frame == f)]
        if len(pixels) < 3:
            return 0.0
        narrower = float(np.linalg.eigvalsh(np.cov(pixels.T))[0])
        return float(np.sqrt(max(0.0, narrower))) / max(self.fresh[f - self.first_new].image.shape[:2])

    # result

    def outcome(self, solution: Solution) -> Outcome:
        """The result of the last solution."""
        p, first = self.proposal, self.first_new
        error = np.linalg.norm(solution.residuals, axis=1)
        fits = error <= OUTLIER * self.pixel
        poses = self.poses[first:]
        total = np.array(self.expected) + self.corrections[first:]
        depth = np.stack([image.corrected(c) for image, c in zip(self.images, total, strict=True)])
        self._learn(solution)
        report = Refinement(
            landmarks=len(np.unique(self.landmark[self.observed[fits]])),
            observations=len(self.observed),
            inliers=int(np.count_nonzero(fits)),
            error_px=float(np.median(error[fits])) if fits.any() else float("nan"),
            refined=float(self.supported.mean()),
            reason=self.reason,
            iterations=solution.iterations,
        )
        return Outcome(
            accepted=bool(self.supported.mean() >= MIN_SUPPORTED),
            odom_from_camera=poses,
            depth=depth,
            confidence=self._doubted(solution),
            scale=p.alignment.scale * float(np.exp(np.median(total[:, 0]))),
            covariance=self._covariance(solution),
            report=report,
            state=self.state_of(poses, solution, depth),
            agreements=self.agreements,
        )

    def network_covariance(self) -> F64:
        """(N, 6, 6) covariance of poses from the network alone: the errors of its steps add up."""
        out = np.zeros((self.proposal.new, 6, 6))
        for i in range(self.proposal.new):
            a = self._agreement(self.first_new + i)
            steps = 1 + i // self.proposal.cameras
            out[i] = np.diag(np.repeat([steps * (a.translation * self._depth) ** 2, steps * a.rotation**2], 3))
        return out

    def _covariance(self, solution: Solution) -> F64:
        """The solver's covariance, converted from (rotation in the camera's axes, position) to (position, rotation) in the odometry
        frame."""
        out = np.zeros((self.proposal.new, 6, 6))
        for i, f in enumerate(np.flatnonzero(self.free)):
            block = solution.covariance[6 * i : 6 * i + 6, 6 * i : 6 * i + 6]
            to = np.zeros((6, 6))
            to[:3, 3:], to[3:, :3] = np.eye(3), self.poses[f, :3, :3]
            out[f - self.first_new] = to @ block @ to.T
        return out

    def _doubted(self, solution: Solution) -> F32:
        """The network's confidence, lowered around landmarks that do not lie at the corrected depth."""
        confidence = self.proposal.confidence
        deep = np.flatnonzero(self.used & np.isfinite(self.log_depth))
        sure = solution.landmark_information[self.landmark[deep]]
        sigma = np.sqrt(self._of_frames("depth")[self.frame[deep]] ** 2 + 1 / np.maximum(sure, 1e-6))
        off = np.abs(solution.depth_residuals) / sigma
        out = confidence
        for i, image in enumerate(self.images):
            at = (self.frame[deep] == self.first_new + i) & (off > DOUBT)
            if not at.any():
                continue
            if out is confidence:
                out = confidence.copy()
            out[i] = confidence[i] / image.around(self.pixels[deep[at]], off[at] / DOUBT, REACH)
        return out

    def _learn(self, solution: Solution) -> None:
        """Updates the agreements with the network's errors, where tracks alone determine the result."""
        deep = np.flatnonzero(self.used & np.isfinite(self.log_depth))
        frame, information = self.frame[deep], solution.landmark_information[self.landmark[deep]]
        for name, a in self.agreements.items():
            mine = [f for f in range(self.first_new, self.count) if self.names[f] == name]
            told = np.isin(frame, mine) & (information > (2 / a.depth) ** 2)
            if np.count_nonzero(told) >= MIN_INLIERS:
                a.learn("depth", SIGMA_OF_MAD * float(np.median(np.abs(solution.depth_residuals[told]))))
            turns, shifts = [], []
            for f in mine:
                before = self._before(f)
                step = None if before is None else self._network_pose(before, f)
                pair = [i - self.first_new for i in (f, before) if i is not None and i >= self.first_new]
                if before is None or step is None or not self.supported[pair].all():
                    continue
                refined = inverse(self.poses[before]) @ self.poses[f]
                turns.append(float(rotation_angle(step[:3, :3].T @ refined[:3, :3])))
                shifts.append(float(np.linalg.norm(step[:3, 3] - refined[:3, 3])) / self._depth)
            if turns:
                # the norm of three Gaussian coordinates has the median 1.54 sigma
                a.learn("rotation", float(np.median(turns)) / 1.538)
                a.learn("translation", float(np.median(shifts)) / 1.538)

    def state_of(self, poses: F64, solution: Solution | None, depth: F32) -> State:
        """The state once `poses` (N, 4, 4) and `depth` (N, H, W) are published. Without a solution the landmarks stay unchanged."""
        published = OrderedDict(self.state.published)
        for frame, pose, z, plan in zip(self.fresh, poses, depth, self.fresh_plans, strict=True):
            image, seen = DepthImage.of(z, plan), frame.observations or _NOTHING
            published[frame.stamp_ns, frame.camera] = Published(
                frame.camera, pose.copy(), None if frame.intrinsics is None else four(frame.intrinsics), seen,
                image.at(seen.pixels)[0], image.on_grid(), 0.0 if solution is None else self._evidence,
            )  # fmt: skip
        while len(published) > KEPT * self.proposal.cameras:
            published.popitem(last=False)
        focals = dict(self.state.focals)
        sigmas = self.focal_sigma if solution is None else solution.log_focal_sigma
        for name, c in self.focal_of.items():
            focals[name] = Focal(self.intrinsics[c], float(sigmas[c]))
        if solution is None:
            return State(published, self.state.ids, self.state.rays, focals, self.state.unit, self.state.moving)

        k = self.intrinsics[self.camera[self.anchor]]
        rays = np.ones((len(self.ids), 3))
        rays[:, :2] = (self.pixels[self.first] - k[:, 2:]) / k[:, :2]
        length, pose = np.linalg.norm(rays, axis=1), self.poses[self.anchor]
        good = np.bincount(self.landmark[self.observed], minlength=len(self.ids)) > 0
        information = solution.landmark_information + self._of_frames("depth")[self.anchor] ** -2.0
        mine = Rays(
            pose[good, :3, 3],
            np.einsum("nij,nj->ni", pose[:, :3, :3], rays / length[:, None])[good],
            (np.log(length) - self.log_inverse_depth)[good],
            1 / information[good],
        )
        alive = np.concatenate([k.seen.ids for k in published.values()])
        stay = ~np.isin(self.state.ids, self.ids) & np.isin(self.state.ids, alive)
        ids = np.concatenate([self.state.ids[stay], self.ids[good]])
        order = np.argsort(ids)
        both = zip(self.state.rays, mine, strict=True)
        merged = Rays(*(np.concatenate([before[stay], now])[order] for before, now in both))
        moving = np.union1d(self.state.moving, self.ids[self.strayed])
        moving = moving[np.isin(moving, alive)]
        return State(published, ids[order], merged, focals, None if self.fixed_unit else self.unit, moving)


_NOTHING = Observations(np.empty(0, np.int64), np.empty((0, 2)))


def _usual(log_distance: F64, log_depth: F64) -> float:
    some = np.concatenate([log_distance, log_depth])
    some = some[np.isfinite(some)]
    return float(np.exp(np.median(some))) if len(some) else 1.0

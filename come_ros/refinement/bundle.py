"""Bundle adjustment of one window: a pure, deterministic Levenberg-Marquardt with the landmarks eliminated by the Schur complement.

The unknowns are the poses of the free frames, the inverse depth of every landmark in its anchor frame (as a logarithm, so that depth stays
positive), a smooth correction of the network's log depth for each corrected frame, the focal lengths of uncalibrated cameras, and the
odometry's unit in metres if there are metric measurements. All other frames are constants.

A landmark l lies at X_l = R_a b / w + p_a, where w is its inverse depth and b = ((u - cx) / fx, (v - cy) / fy, 1) the ray of its pixel in
the anchor frame a. In frame i it is seen along Y = R_i^T (R_a b + w (p_a - p_i)), which stays finite for w -> 0 (Civera et al., T-RO
2008). Rotations are updated from the right, R <- R exp([r]x), positions in the world. Robust terms cost k^2 log(1 + s / k^2) for a squared
normalised residual s (Cauchy) and are solved by reweighting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..geometry import right_jacobian_inverse, rotation_from_vector, skew, vector_from_rotation
from ..types import F64
from .problem import Ints, Problem, Solution

MIN_DEPTH_RATIO = 1e-3  # least Y_z: points at or behind a camera are moved here, far from their pixel
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-4, 1e-9, 1e9


def solve(problem: Problem, max_iterations: int = 20, tolerance: float = 1e-5, covariance: bool = True) -> Solution:
    """Minimises the sum of all terms from the start in `problem`, until a step lowers the cost by less than a share `tolerance`.
    covariance: whether to compute the covariance and the landmark information; they are NaN otherwise.

    The result is never worse than the start: a step that does not lower the cost is rejected. Raises ValueError if the start is not
    finite.
    """
    layout = _Layout(problem)
    terms = layout.evaluate(layout.start())
    start_cost = terms.cost
    if not np.isfinite(start_cost):
        raise ValueError("the start of a bundle adjustment is not finite: leave out frames and landmarks that are not")
    damping, converged, iterations = FIRST_DAMPING, False, 0
    system = layout.system(terms)
    while iterations < max_iterations and not converged:
        iterations += 1
        step = system.step(damping)
        trial = layout.evaluate(layout.moved(terms.values, step))
        if trial.cost < terms.cost:
            converged = terms.cost - trial.cost <= tolerance * terms.cost
            terms, damping = trial, max(LEAST_DAMPING, 0.1 * damping)
            if covariance or (not converged and iterations < max_iterations):
                system = layout.system(terms)
        else:
            # a tiny step cannot lower the cost further
            converged = step.size < 1e-12 or damping >= MOST_DAMPING or trial.cost <= terms.cost * (1 + 1e-14)
            damping = min(MOST_DAMPING, 10 * damping)
    return layout.solution(terms, system if covariance else None, start_cost, iterations)


class _Values(NamedTuple):
    poses: F64  # (F, 4, 4)
    log_inverse_depth: F64  # (L,)
    corrections: F64  # (F, B)
    log_focal: F64  # (C,), relative to the given focal length
    log_unit: float


class _Step(NamedTuple):
    parameters: F64  # (P,)
    landmarks: F64  # (L,)

    @property
    def size(self) -> float:
        return float(max(np.abs(self.parameters).max(initial=0.0), np.abs(self.landmarks).max(initial=0.0)))


class _Block(NamedTuple):
    """N residuals of d rows, weighted and normalised, with their Jacobians with respect to K columns and to one landmark each."""

    residual: F64  # (N, d)
    jacobian: F64  # (N, d, K)
    columns: _Columns
    to_landmark: F64  # (N, d), empty without landmarks


class _Columns:
    """Positions of a block's Jacobians in the normal equations, fixed for the whole problem. Column P stands for constants and is
    dropped."""

    def __init__(self, columns: Ints, landmark: Ints | None, size: int) -> None:
        n = size + 1
        self.gradient = columns.ravel()
        self.hessian = (columns[:, :, None] * n + columns[:, None, :]).ravel()
        self.landmark = landmark
        self.mixed = None if landmark is None else (landmark[:, None] * n + columns).ravel()


class _Sights:
    """N lines of sight from frames to landmarks whose Jacobians have the same columns.

    rows: (N,) in the term they belong to. by_frame, by_anchor, by_correction, by_focal: whether the residual depends on these unknowns.
    Without the first two and the focal length, only the inverse depth varies, so both parts of Y = fixed + w way are computed once.
    """

    def __init__(
        self, layout: _Layout, rows: Ints, frame: Ints, landmark: Ints, by_frame: bool, by_anchor: bool, by_correction: bool,
        by_own_focal: bool,
    ) -> None:  # fmt: skip
        p = layout.problem
        self.rows, self.frame, self.landmark = rows, frame[rows], landmark[rows]
        self.anchor = p.anchor[self.landmark]
        self.by_frame, self.by_anchor, self.by_correction = by_frame, by_anchor, by_correction
        self.by_focal = bool(len(layout.focal))
        self.by_own_focal = by_own_focal and self.by_focal
        self.still = not (by_frame or by_anchor or self.by_focal)
        self.kept: tuple[F64, F64] | None = None
        columns = [np.zeros((len(rows), 0), np.intp)]
        if by_frame:
            columns.append(layout.pose_column[self.frame])
        if by_anchor:
            columns.append(layout.pose_column[self.anchor])
        if by_correction:
            columns.append(layout.correction_column[self.frame])
        if self.by_own_focal:
            columns.append(layout.focal_column[p.camera[self.frame]][:, None])
        if self.by_focal:
            columns.append(layout.focal_column[p.camera[self.anchor]][:, None])
        self.columns = _Columns(np.concatenate(columns, axis=1), self.landmark, layout.size)

    def look(self, view: _View) -> tuple[F64, F64]:
        """Y (N, 3), and its derivative with respect to the logarithm of the inverse depth (N, 3)."""
        if self.kept is None:
            back = np.swapaxes(view.rotations[self.frame], 1, 2)
            way = _rotated(back, view.positions[self.anchor] - view.positions[self.frame])
            kept = _rotated(back, view.turned[self.landmark]), way
            self.kept = kept if self.still else None
        else:
            kept = self.kept
        moved = view.inverse_depth[self.landmark, None] * kept[1]
        return kept[0] + moved, moved

    def jacobian(self, view: _View, to_y: F64, y: F64, basis: F64 | None, own_focal: F64 | None) -> F64:
        """Jacobian (N, d, K) of residuals. to_y: (N, d, 3), their derivative with respect to Y."""
        parts = [np.zeros((*to_y.shape[:2], 0))]
        if self.by_frame or self.by_anchor or self.by_focal:
            world = to_y @ np.swapaxes(view.rotations[self.frame], 1, 2)
            shift = world * view.inverse_depth[self.landmark, None, None]
        if self.by_frame:
            parts += [to_y @ skew(y), -shift]
        if self.by_anchor or self.by_focal:
            rays, in_anchor = view.rays[self.landmark], world @ view.rotations[self.anchor]
        if self.by_anchor:
            parts += [-in_anchor @ skew(rays), shift]
        if self.by_correction and basis is not None:
            parts.append(basis)
        if self.by_own_focal and own_focal is not None:
            parts.append(own_focal)
        if self.by_focal:  # a longer focal length moves the ray of a pixel towards the optical axis
            parts.append(in_anchor @ (rays * np.array([-1.0, -1.0, 0.0]))[:, :, None])
        return np.concatenate(parts, axis=2)


class _View(NamedTuple):
    """Quantities that all lines of sight share, for given values of the unknowns."""

    rotations: F64  # (F, 3, 3)
    positions: F64  # (F, 3)
    focal: F64  # (C, 2)
    rays: F64  # (L, 3) b
    turned: F64  # (L, 3) R_a b
    inverse_depth: F64  # (L,)


class _Sight(NamedTuple):
    """Values of one group of lines of sight."""

    y: F64
    by_depth: F64
    residual: F64  # (N, d), neither weighted nor normalised
    weight: F64  # (N,)


class _Terms(NamedTuple):
    cost: float
    values: _Values
    view: _View
    seen: list[_Sight]
    depths: list[_Sight]
    relatives: list[tuple[F64, F64, F64, F64, F64]]  # turn, its weight, shift, its weight, way
    to_prior: F64  # (P,) gradient of the priors


class _System:
    """Normal equations before the landmarks are eliminated."""

    def __init__(
        self, hessian: F64, gradient: F64, mixed: F64, landmark: F64, landmark_gradient: F64, information: F64
    ) -> None:
        self.hessian, self.gradient = hessian, gradient  # (P, P), (P,)
        self.mixed, self.landmark, self.landmark_gradient = mixed, landmark, landmark_gradient  # (L, P), (L,), (L,)
        self.information = information  # (L,), the part of `landmark` from the reprojections

    def step(self, damping: float) -> _Step:
        hessian = self.hessian.copy()
        diagonal = np.einsum("ii->i", hessian)
        diagonal += damping * np.maximum(diagonal, 1e-12)
        landmark = self.landmark * (1 + damping) + 1e-12
        scaled = self.mixed / landmark[:, None]
        schur = hessian - scaled.T @ self.mixed
        parameters = -_solved(schur, self.gradient - self.landmark_gradient @ scaled)
        return _Step(parameters, -(self.landmark_gradient + self.mixed @ parameters) / landmark)

    def covariance(self) -> F64:
        schur = self.hessian - (self.mixed / (self.landmark + 1e-12)[:, None]).T @ self.mixed
        scale = 1 / np.sqrt(np.maximum(np.diagonal(schur), 1e-12))
        scaled = 0.5 * (schur + schur.T) * scale[:, None] * scale[None, :]
        return np.linalg.pinv(scaled, hermitian=True) * scale[:, None] * scale[None, :]


def _solved(matrix: F64, vector: F64) -> F64:
    if not len(vector):
        return vector
    # scaled to a unit diagonal, since radians, metres and logarithms differ by orders of magnitude
    scale = 1 / np.sqrt(np.maximum(np.diagonal(matrix), 1e-12))
    scaled = matrix * scale[:, None] * scale[None, :]
    try:
        return scale * np.linalg.solve(scaled, scale * vector)
    except np.linalg.LinAlgError:
        return scale * np.linalg.lstsq(scaled, scale * vector, rcond=None)[0]


class _Layout:
    """Assigns a column to each unknown, and computes the terms as functions of the unknowns."""

    def __init__(self, problem: Problem) -> None:
        p = self.problem = problem
        self.free, self.corrected = np.flatnonzero(p.free), np.flatnonzero(p.corrected)
        self.terms = len(p.common_sigma)
        focal = np.flatnonzero(p.log_focal_sigma > 0) if len(p.log_focal_sigma) else np.zeros(0, np.intp)
        self.focal, self.unit = focal, p.unit_sigma > 0
        poses, corrections = 6 * len(self.free), self.terms * len(self.corrected)
        self.size = poses + corrections + len(focal) + int(self.unit)
        frames = len(p.free)
        self.pose_column = np.full((frames, 6), self.size)
        self.pose_column[self.free] = np.arange(poses).reshape(-1, 6)
        self.correction_column = np.full((frames, self.terms), self.size)
        self.correction_column[self.corrected] = poses + np.arange(corrections).reshape(-1, self.terms)
        self.focal_column = np.full(len(p.intrinsics), self.size)
        self.focal_column[focal] = poses + corrections + np.arange(len(focal))
        self.unit_column = self.size - 1 if self.unit else self.size

        # constant frames see most old landmarks: those observations constrain the depth only
        seen, d = p.reprojections, p.depths
        self.seen = self._grouped(seen.frame, seen.landmark, np.zeros(len(seen.frame), bool), own_focal=True)
        self.depths = self._grouped(d.frame, d.landmark, self._is_corrected(d.frame), own_focal=False)
        self.relative_columns = [
            _Columns(
                np.concatenate(
                    [
                        self.pose_column[r.first],
                        self.pose_column[r.second],
                        np.full((len(r.first), 1), self.unit_column),
                    ],
                    axis=1,
                ),
                None,
                self.size,
            )
            for r in p.relatives
        ]
        prior = np.zeros((self.size + 1, self.size + 1))
        n = len(self.corrected)
        for b in range(self.terms if n else 0):
            covariance = p.common_sigma[b] ** 2 * np.ones((n, n)) + p.own_sigma[b] ** 2 * np.eye(n)
            rows = self.correction_column[self.corrected, b]
            prior[np.ix_(rows, rows)] = np.linalg.inv(covariance)
        for c in focal:
            prior[self.focal_column[c], self.focal_column[c]] = p.log_focal_sigma[c] ** -2
        if self.unit:
            prior[self.unit_column, self.unit_column] = p.unit_sigma**-2
        self.prior = prior[: self.size, : self.size]

    def _is_corrected(self, frame: Ints) -> NDArray[np.bool_]:
        if not len(self.corrected):
            return np.zeros(len(frame), bool)
        return np.asarray(self.problem.corrected[frame], bool)

    def _grouped(self, frame: Ints, landmark: Ints, corrected: NDArray[np.bool_], own_focal: bool) -> list[_Sights]:
        """Lines of sight grouped by the unknowns that they depend on. One from a landmark's own anchor does not depend on the anchor's
        pose."""
        p = self.problem
        anchor = p.anchor[landmark]
        apart = frame != anchor
        keys = np.stack([p.free[frame] & apart, p.free[anchor] & apart, corrected], axis=1)
        groups = []
        for by_frame, by_anchor, by_correction in np.ndindex(2, 2, 2):
            rows = np.flatnonzero((keys == [by_frame, by_anchor, by_correction]).all(axis=1))
            if len(rows):
                flags = bool(by_frame), bool(by_anchor), bool(by_correction)
                groups.append(_Sights(self, rows, frame, landmark, *flags, own_focal))
        return groups

    def start(self) -> _Values:
        p = self.problem
        corrections = p.corrections if len(p.corrections) else np.zeros((len(p.free), self.terms))
        return _Values(p.world_from_camera, p.log_inverse_depth, corrections, np.zeros(len(p.intrinsics)), 0.0)

    def moved(self, values: _Values, step: _Step) -> _Values:
        poses, corrections, focal = values.poses.copy(), values.corrections.copy(), values.log_focal.copy()
        d = step.parameters
        move = d[: 6 * len(self.free)].reshape(-1, 6)
        poses[self.free, :3, :3] = poses[self.free, :3, :3] @ rotation_from_vector(move[:, :3])
        poses[self.free, :3, 3] += move[:, 3:]
        corrections[self.corrected] += d[self.correction_column[self.corrected]]
        focal[self.focal] += d[self.focal_column[self.focal]]
        unit = values.log_unit + (float(d[self.unit_column]) if self.unit else 0.0)
        return _Values(poses, values.log_inverse_depth + step.landmarks, corrections, focal, unit)

    def prior_values(self, values: _Values) -> F64:
        out = np.zeros(self.size)
        out[self.correction_column[self.corrected]] = values.corrections[self.corrected]
        out[self.focal_column[self.focal]] = values.log_focal[self.focal]
        if self.unit:
            out[self.unit_column] = values.log_unit
        return out

    def evaluate(self, values: _Values) -> _Terms:
        """All residuals with the weights that their kernels give them, and what they cost."""
        p = self.problem
        rotations = values.poses[:, :3, :3]
        focal = p.intrinsics[:, :2] * np.exp(values.log_focal)[:, None]
        cameras = p.camera[p.anchor]
        rays = np.ones((len(p.anchor), 3))
        rays[:, :2] = (p.anchor_pixels - p.intrinsics[cameras, 2:]) / focal[cameras]
        view = _View(
            rotations, values.poses[:, :3, 3], focal, rays, _rotated(rotations[p.anchor], rays),
            np.exp(np.clip(values.log_inverse_depth, -50, 50)),
        )  # fmt: skip
        v = self.prior_values(values)
        to_prior = self.prior @ v
        cost = float(v @ to_prior)

        seen = []
        for group in self.seen:
            y, by_depth = group.look(view)
            z = np.maximum(y[:, 2:], MIN_DEPTH_RATIO)
            camera = p.camera[group.frame]
            residual = focal[camera] * y[:, :2] / z + p.intrinsics[camera, 2:] - p.reprojections.pixels[group.rows]
            squares = (residual**2).sum(axis=1) / p.reprojections.sigma[group.rows] ** 2
            weight, robust = _cauchy(squares, p.reprojections.kernel)
            cost += robust
            seen.append(_Sight(y, by_depth, residual, weight))

        depths = []
        for group in self.depths:
            y, by_depth = group.look(view)
            z = np.maximum(y[:, 2], MIN_DEPTH_RATIO)
            residual = np.log(z) - values.log_inverse_depth[group.landmark] - p.depths.log_depth[group.rows]
            if group.by_correction:
                residual -= (p.depths.basis[group.rows] * values.corrections[group.frame]).sum(axis=1)
            weight, robust = _cauchy((residual / p.depths.sigma[group.rows]) ** 2, p.depths.kernel)
            cost += robust
            depths.append(_Sight(y, by_depth, residual[:, None], weight))

        relatives = []
        for r in p.relatives:
            back = np.swapaxes(rotations[r.first], 1, 2)
            unit = np.where(r.metric, p.unit * np.exp(values.log_unit), 1.0)
            turn = vector_from_rotation(np.swapaxes(r.first_from_second[:, :3, :3], 1, 2) @ back @ rotations[r.second])
            way = _rotated(back, view.positions[r.second] - view.positions[r.first]) / unit[:, None]
            shift = way - r.first_from_second[:, :3, 3]
            turn_weight, robust = _cauchy((turn**2).sum(axis=1) / r.sigma[:, 0] ** 2, r.kernel)
            shift_weight, robust_too = _cauchy((shift**2).sum(axis=1) / r.sigma[:, 1] ** 2, r.kernel)
            cost += robust + robust_too
            relatives.append((turn, turn_weight, shift, shift_weight, way))
        return _Terms(0.5 * cost, values, view, seen, depths, relatives, to_prior)

    def blocks(self, terms: _Terms) -> list[_Block]:
        """The weighted and normalised residuals with their Jacobians; reprojections first."""
        p, view = self.problem, terms.view
        blocks = []
        for group, sight in zip(self.seen, terms.seen, strict=True):
            root = np.sqrt(sight.weight) / p.reprojections.sigma[group.rows]
            z = np.maximum(sight.y[:, 2], MIN_DEPTH_RATIO)
            scale = view.focal[p.camera[group.frame]] * (root / z)[:, None]
            to_y = np.zeros((len(z), 2, 3))
            to_y[:, 0, 0], to_y[:, 1, 1] = scale[:, 0], scale[:, 1]
            ahead = np.where(sight.y[:, 2] < MIN_DEPTH_RATIO, 0.0, 1 / z)
            to_y[:, :, 2] = -scale * sight.y[:, :2] * ahead[:, None]
            own = (scale * sight.y[:, :2])[:, :, None] if group.by_own_focal else None
            jacobian = group.jacobian(view, to_y, sight.y, None, own)
            to_landmark = (to_y @ sight.by_depth[:, :, None])[:, :, 0]
            blocks.append(_Block(sight.residual * root[:, None], jacobian, group.columns, to_landmark))
        for group, sight in zip(self.depths, terms.depths, strict=True):
            root = np.sqrt(sight.weight) / p.depths.sigma[group.rows]
            ahead = sight.y[:, 2] >= MIN_DEPTH_RATIO
            to_y = np.zeros((len(root), 1, 3))
            to_y[:, 0, 2] = np.where(ahead, root / np.maximum(sight.y[:, 2], MIN_DEPTH_RATIO), 0.0)
            basis = -(root[:, None] * p.depths.basis[group.rows])[:, None, :] if group.by_correction else None
            jacobian = group.jacobian(view, to_y, sight.y, basis, None)
            to_landmark = to_y[:, 0, 2] * sight.by_depth[:, 2] - root
            blocks.append(_Block(sight.residual * root[:, None], jacobian, group.columns, to_landmark[:, None]))
        for r, columns, (turn, turn_weight, shift, shift_weight, way) in zip(
            p.relatives, self.relative_columns, terms.relatives, strict=True
        ):
            first, second = view.rotations[r.first], view.rotations[r.second]
            back = np.swapaxes(first, 1, 2)
            unit = np.where(r.metric, p.unit * np.exp(terms.values.log_unit), 1.0)[:, None, None]
            by_turn, by_shift = np.zeros((len(turn), 3, 13)), np.zeros((len(turn), 3, 13))
            by_turn[:, :, 6:9] = right_jacobian_inverse(turn)
            by_turn[:, :, 0:3] = -by_turn[:, :, 6:9] @ np.swapaxes(second, 1, 2) @ first
            by_shift[:, :, 0:3] = skew(way)
            by_shift[:, :, 3:6], by_shift[:, :, 9:12] = -back / unit, back / unit
            by_shift[:, :, 12] = np.where(r.metric[:, None], -way, 0.0)
            for residual, jacobian, weight, sigma in (
                (turn, by_turn, turn_weight, r.sigma[:, 0]),
                (shift, by_shift, shift_weight, r.sigma[:, 1]),
            ):
                root = np.sqrt(weight) / sigma
                blocks.append(
                    _Block(residual * root[:, None], jacobian * root[:, None, None], columns, np.zeros((0, 3)))
                )
        return blocks

    def system(self, terms: _Terms) -> _System:
        """Sums up the blocks. Each entry of a Jacobian product has a fixed position, so the order of the sums is fixed, too."""
        n, landmarks = self.size + 1, len(self.problem.anchor)
        hessian, gradient = np.zeros(n * n), np.zeros(n)
        mixed, landmark, landmark_gradient = np.zeros(landmarks * n), np.zeros(landmarks), np.zeros(landmarks)
        information = np.zeros(landmarks)
        for i, block in enumerate(self.blocks(terms)):
            columns, j, r = block.columns, block.jacobian, block.residual
            if j.shape[2]:
                products = np.einsum("ndi,ndj->nij", j, j)
                hessian += np.bincount(columns.hessian, products.ravel(), n * n)
                gradient += np.bincount(columns.gradient, np.einsum("ndi,nd->ni", j, r).ravel(), n)
            if columns.landmark is not None:
                to = block.to_landmark
                landmark += np.bincount(columns.landmark, (to**2).sum(axis=1), landmarks)
                if i < len(self.seen):
                    information = landmark.copy()
                landmark_gradient += np.bincount(columns.landmark, (to * r).sum(axis=1), landmarks)
                if j.shape[2]:
                    mixed += np.bincount(columns.mixed, np.einsum("ndi,nd->ni", j, to).ravel(), landmarks * n)  # type: ignore[arg-type]
        return _System(
            hessian.reshape(n, n)[:-1, :-1] + self.prior,
            gradient[:-1] + terms.to_prior,
            mixed.reshape(landmarks, n)[:, :-1],
            landmark,
            landmark_gradient,
            information,
        )

    def solution(self, terms: _Terms, system: _System | None, start_cost: float, iterations: int) -> Solution:
        p, values = self.problem, terms.values
        poses = 6 * len(self.free)
        covariance = np.full((self.size, self.size), np.nan)
        information = np.full(len(p.anchor), np.nan)
        if system is not None:
            covariance = system.covariance()
            information = system.information
        focal_sigma = np.zeros(len(p.intrinsics))
        focal_sigma[self.focal] = np.sqrt(np.diagonal(covariance)[self.focal_column[self.focal]])
        intrinsics = p.intrinsics.copy()
        intrinsics[:, :2] *= np.exp(values.log_focal)[:, None]
        residuals = np.zeros((len(p.reprojections.frame), 2))
        for group, sight in zip(self.seen, terms.seen, strict=True):
            residuals[group.rows] = sight.residual
        depth_residuals = np.zeros(len(p.depths.frame))
        for group, sight in zip(self.depths, terms.depths, strict=True):
            depth_residuals[group.rows] = sight.residual[:, 0]
        return Solution(
            world_from_camera=values.poses,
            log_inverse_depth=values.log_inverse_depth,
            corrections=values.corrections,
            intrinsics=intrinsics,
            unit=p.unit * float(np.exp(values.log_unit)),
            cost=terms.cost,
            start_cost=start_cost,
            covariance=covariance[:poses, :poses],
            log_focal_sigma=focal_sigma,
            unit_sigma=float(np.sqrt(covariance[-1, -1])) if self.unit else 0.0,
            landmark_information=information,
            residuals=residuals,
            depth_residuals=depth_residuals,
            iterations=iterations,
        )


def _rotated(rotations: F64, vectors: F64) -> F64:
    """R v for rotations (N, 3, 3) and vectors (N, 3)."""
    return np.einsum("nij,nj->ni", rotations, vectors)


def _cauchy(squares: F64, kernel: float) -> tuple[F64, float]:
    """Weight of each term (N,), and the sum of their costs."""
    if np.isinf(kernel):
        return np.ones_like(squares), float(squares.sum())
    ratio = squares / kernel**2
    return 1 / (1 + ratio), float(kernel**2 * np.log1p(ratio).sum())

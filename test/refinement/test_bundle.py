import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import least_squares

from come_ros.geometry import inverse, rotation_angle, rotation_from_vector, transform
from come_ros.refinement import bundle
from come_ros.refinement.problem import Depths, Problem, Relatives, Reprojections

FRAMES, LANDMARKS, TERMS = 4, 14, 3
K = np.array([[300.0, 310.0, 160.0, 120.0]])


def problem_of(
    seed: int,
    *,
    noise: float = 0.5,
    free: int = 2,
    landmarks: int = LANDMARKS,
    kernel: float = 2.0,
    focal: bool = False,
    unit: bool = False,
    outliers: int = 7,
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A random scene whose last `free` frames are unknown, the true poses and the true corrections of the depth."""
    rng = np.random.default_rng(seed)
    truth = transform(rotation_from_vector(rng.normal(0, 0.1, (FRAMES, 3))), rng.normal(0, 0.3, (FRAMES, 3)))
    points = np.c_[rng.uniform(-2, 2, (landmarks, 2)), rng.uniform(3, 6, landmarks)]
    seen = np.einsum("fji,flj->fli", truth[:, :3, :3], points - truth[:, None, :3, 3])
    pixels, z = seen[..., :2] / seen[..., 2:] * K[0, :2] + K[0, 2:], seen[..., 2]
    anchor = np.where(np.arange(landmarks) % 3 == 0, FRAMES - 2, 0)
    frame, landmark = np.nonzero(np.arange(FRAMES)[:, None] != anchor)
    unknown = np.arange(FRAMES) >= FRAMES - free
    observed = pixels[frame, landmark] + rng.normal(0, noise, (len(frame), 2))
    if noise:
        observed[::outliers] += rng.normal(0, 15, observed[::outliers].shape)
    deep, of = np.nonzero(np.tile(unknown[:, None], (1, landmarks)))
    basis = rng.normal(0, 1, (len(deep), TERMS))
    basis[:, 0] = 1
    corrections = np.where(unknown[:, None], rng.normal(0, 0.1, (FRAMES, TERMS)), 0.0)
    log_depth = np.log(z[deep, of]) - (basis * corrections[deep]).sum(axis=1)
    log_depth += rng.normal(0, 0.1, len(deep)) * (noise > 0)
    first = np.arange(FRAMES - 1)
    error = rng.normal(0, 0.02, (2, FRAMES - 1, 3)) * (noise > 0)
    steps = inverse(truth[first]) @ truth[first + 1] @ transform(rotation_from_vector(error[0]), error[1])
    start = truth.copy()
    wrong = transform(rotation_from_vector(rng.normal(0, 0.03, (FRAMES, 3))), rng.normal(0, 0.05, (FRAMES, 3)))
    start[unknown] = start[unknown] @ wrong[unknown]
    return (
        Problem(
            world_from_camera=start,
            free=unknown,
            camera=np.zeros(FRAMES, np.intp),
            intrinsics=K * [[1.02 if focal else 1.0] * 2 + [1.0, 1.0]],
            anchor=anchor,
            anchor_pixels=pixels[anchor, np.arange(landmarks)],
            log_inverse_depth=-np.log(z[anchor, np.arange(landmarks)]) + rng.normal(0, 0.1, landmarks),
            reprojections=Reprojections(frame, landmark, observed, np.full(len(frame), 0.7), kernel),
            depths=Depths(deep, of, log_depth, basis, np.full(len(deep), 0.1), 1.5 * kernel),
            relatives=(
                Relatives(
                    first, first + 1, steps, np.tile([0.05, 0.1], (FRAMES - 1, 1)), unit & (first % 2 == 0), kernel
                ),
            ),
            corrected=unknown,
            corrections=np.zeros((FRAMES, TERMS)),
            common_sigma=np.full(TERMS, 0.3),
            own_sigma=np.full(TERMS, 0.1),
            log_focal_sigma=np.array([0.1 if focal else 0.0]),
            unit_sigma=0.2 if unit else 0.0,
        ),
        truth,
        corrections,
    )


CASES = pytest.mark.parametrize(
    "options",
    [{}, {"focal": True}, {"unit": True}, {"kernel": np.inf, "focal": True, "unit": True}],
    ids=["robust", "focal", "unit", "plain"],
)


def poses_at(problem: Problem, step: np.ndarray) -> np.ndarray:
    """The poses after a step (6 n,) of the free ones."""
    poses, move = problem.world_from_camera.copy(), step.reshape(-1, 6)
    poses[problem.free, :3, :3] = poses[problem.free, :3, :3] @ rotation_from_vector(move[:, :3])
    poses[problem.free, :3, 3] += move[:, 3:]
    return poses


def dense_residuals(problem: Problem, x: np.ndarray) -> np.ndarray:
    """All residuals, written down from the docstrings and not from the code: the sum of their squares is twice the cost.

    x: the poses' steps, the corrections of the free frames, the focal length and the unit where unknown, the landmarks.
    """
    p, n = problem, int(problem.free.sum())
    step, rest = x[: 6 * n], x[6 * n :]
    corrections = p.corrections.copy()
    corrections[p.corrected] += rest[: n * TERMS].reshape(n, TERMS)
    rest = rest[n * TERMS :]
    log_focal = rest[0] if p.log_focal_sigma[0] else 0.0
    rest = rest[int(p.log_focal_sigma[0] > 0) :]
    log_unit = rest[0] if p.unit_sigma else 0.0
    depth = np.exp(-(p.log_inverse_depth + rest[int(p.unit_sigma > 0) :]))
    poses, k = poses_at(p, step), p.intrinsics[0].copy()
    k[:2] *= np.exp(log_focal)
    rays = np.c_[(p.anchor_pixels - k[2:]) / k[:2], np.ones(len(depth))] * depth[:, None]
    points = np.einsum("nij,nj->ni", poses[p.anchor, :3, :3], rays) + poses[p.anchor, :3, 3]

    def in_camera(frame: np.ndarray, landmark: np.ndarray) -> np.ndarray:
        return np.einsum("nji,nj->ni", poses[frame, :3, :3], points[landmark] - poses[frame, :3, 3])

    def robust(r: np.ndarray, kernel: float) -> np.ndarray:
        squares = (r**2).sum(axis=1)
        if np.isinf(kernel):
            return r.ravel()
        return (r * np.sqrt(kernel**2 * np.log1p(squares / kernel**2) / np.maximum(squares, 1e-300))[:, None]).ravel()

    out, seen, d = [], p.reprojections, p.depths
    y = in_camera(seen.frame, seen.landmark)
    out.append(robust((y[:, :2] / y[:, 2:] * k[:2] + k[2:] - seen.pixels) / seen.sigma[:, None], seen.kernel))
    z = in_camera(d.frame, d.landmark)[:, 2]
    off = np.log(z) - d.log_depth - (d.basis * corrections[d.frame]).sum(axis=1)
    out.append(robust((off / d.sigma)[:, None], d.kernel))
    for r in p.relatives:
        for a, b, given, sigma, metric in zip(r.first, r.second, r.first_from_second, r.sigma, r.metric, strict=True):
            step_ = inverse(poses[a]) @ poses[b]
            turn = given[:3, :3].T @ step_[:3, :3]
            angle = rotation_angle(turn)
            axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
            vector = axis / 2 * (angle / np.sin(angle) if angle > 1e-9 else 1.0)
            unit = p.unit * np.exp(log_unit) if metric else 1.0
            out.append(robust(vector[None] / sigma[0], r.kernel))
            out.append(robust((step_[:3, 3] / unit - given[:3, 3])[None] / sigma[1], r.kernel))
    for b in range(TERMS):
        covariance = p.common_sigma[b] ** 2 * np.ones((n, n)) + p.own_sigma[b] ** 2 * np.eye(n)
        out.append(np.linalg.cholesky(np.linalg.inv(covariance)).T @ corrections[p.corrected, b])
    if p.log_focal_sigma[0]:
        out.append(np.array([log_focal / p.log_focal_sigma[0]]))
    if p.unit_sigma:
        out.append(np.array([log_unit / p.unit_sigma]))
    return np.concatenate(out)


def unknowns(problem: Problem) -> int:
    n = int(problem.free.sum())
    return n * (6 + TERMS) + int(problem.log_focal_sigma[0] > 0) + int(problem.unit_sigma > 0) + len(problem.anchor)


@CASES
def test_agrees_with_a_dense_solver_that_knows_nothing_of_ours(options: dict) -> None:
    problem, _, _ = problem_of(len(options), **options)
    ours = bundle.solve(problem, 300, 1e-15)
    theirs = least_squares(
        lambda x: dense_residuals(problem, x), np.zeros(unknowns(problem)), x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14
    )  # fmt: skip
    assert ours.cost == pytest.approx(theirs.cost, rel=1e-8)
    n = 6 * int(problem.free.sum())
    assert np.abs(poses_at(problem, theirs.x[:n]) - ours.world_from_camera).max() < 1e-6
    corrections = theirs.x[n : n + TERMS * n // 6].reshape(-1, TERMS)
    assert np.abs(corrections - ours.corrections[problem.corrected]).max() < 1e-6


@CASES
def test_the_gradient_is_that_of_finite_differences(options: dict) -> None:
    problem, _, _ = problem_of(3, **options)
    layout = bundle._Layout(problem)
    start = layout.start()
    system = layout.system(layout.evaluate(start))
    ours = np.concatenate([system.gradient, system.landmark_gradient])

    def cost(x: np.ndarray) -> float:
        return layout.evaluate(layout.moved(start, bundle._Step(x[: layout.size], x[layout.size :]))).cost

    e = 1e-6 * np.eye(len(ours))
    numeric = np.array([(cost(row) - cost(-row)) / 2e-6 for row in e])
    assert np.abs(ours - numeric).max() < 1e-6 * np.abs(numeric).max()


def test_every_jacobian_is_that_of_finite_differences() -> None:
    problem, _, _ = problem_of(4, kernel=np.inf, focal=True, unit=True)
    layout = bundle._Layout(problem)
    start = layout.start()
    width = layout.size + 1

    def rows(block: bundle._Block) -> tuple[np.ndarray, np.ndarray]:
        """Residuals and their Jacobian by all unknowns."""
        count, d, k = block.jacobian.shape
        by_all = np.zeros((count, d, width + len(problem.anchor)))
        columns = block.columns.gradient.reshape(count, k)
        for i in range(count):
            np.add.at(by_all[i].T, columns[i], block.jacobian[i].T)
            if block.columns.landmark is not None:
                by_all[i, :, width + block.columns.landmark[i]] += block.to_landmark[i]
        return block.residual, np.delete(by_all, layout.size, axis=2)

    ours = [rows(block) for block in layout.blocks(layout.evaluate(start))]
    steps = 1e-6 * np.eye(layout.size + len(problem.anchor))
    for column, step in enumerate(steps):
        ahead, behind = (
            layout.blocks(layout.evaluate(layout.moved(start, bundle._Step(*np.split(s, [layout.size])))))
            for s in (step, -step)
        )
        for (_, jacobian), a, b in zip(ours, ahead, behind, strict=True):
            numeric = (a.residual - b.residual) / 2e-6
            assert np.abs(jacobian[:, :, column] - numeric).max() < 1e-5 * max(1.0, np.abs(jacobian).max())


def test_exact_data_give_exact_poses_scale_and_corrections() -> None:
    problem, truth, corrections = problem_of(5, noise=0.0, kernel=np.inf)
    # the priors of the corrections pull at them, so they are made weak
    problem = dataclasses.replace(problem, common_sigma=np.full(TERMS, 1e4), own_sigma=np.full(TERMS, 1e4))
    solution = bundle.solve(problem, 100, 1e-16)
    assert np.abs(solution.world_from_camera - truth).max() < 1e-6
    assert np.abs(solution.corrections - corrections).max() < 1e-5
    assert solution.cost < 1e-8 * solution.start_cost


def test_two_in_five_outliers_do_not_move_the_poses() -> None:
    problem, truth, _ = problem_of(6, noise=0.3, landmarks=120, outliers=1)
    rng = np.random.default_rng(0)
    seen = problem.reprojections
    clean, _, _ = problem_of(6, noise=0.0, landmarks=120)
    pixels = clean.reprojections.pixels + rng.normal(0, 0.3, seen.pixels.shape)
    wrong = rng.random(len(pixels)) < 0.4
    pixels[wrong] = rng.uniform([0, 0], [320, 240], (int(wrong.sum()), 2))
    problem = dataclasses.replace(
        problem, reprojections=Reprojections(seen.frame, seen.landmark, pixels, seen.sigma, 2.0)
    )
    found = bundle.solve(problem, 60).world_from_camera
    assert np.rad2deg(rotation_angle(np.swapaxes(found[:, :3, :3], 1, 2) @ truth[:, :3, :3])).max() < 0.5
    assert np.abs(found[:, :3, 3] - truth[:, :3, 3]).max() < 0.05


def test_a_constant_frame_stays_where_it_is_bit_for_bit() -> None:
    problem, _, _ = problem_of(7)
    found = bundle.solve(problem)
    constant = ~problem.free
    assert np.array_equal(found.world_from_camera[constant], problem.world_from_camera[constant])


def test_no_step_is_taken_that_costs_more() -> None:
    for seed in range(5):
        problem, _, _ = problem_of(seed, noise=3.0)
        solution = bundle.solve(problem, 3)
        assert np.isfinite(solution.cost) and solution.cost <= solution.start_cost


def test_the_covariance_is_what_noise_does_to_the_poses() -> None:
    problem, _, _ = problem_of(8, noise=0.0, kernel=np.inf, landmarks=80)
    solution = bundle.solve(problem, 50, 1e-12)
    rng = np.random.default_rng(1)
    seen, n = problem.reprojections, int(problem.free.sum())
    # pixels alone scatter here; depth and steps are exact, so the spread is at most the covariance and not far below it
    draws = []
    for _ in range(25):
        pixels = seen.pixels + rng.normal(0, 0.7, seen.pixels.shape)
        noisy = dataclasses.replace(problem, reprojections=Reprojections(seen.frame, seen.landmark, pixels, seen.sigma))
        found = bundle.solve(noisy, 30, 1e-10).world_from_camera
        draws.append((found - solution.world_from_camera)[problem.free, :3, 3].ravel())
    places = np.arange(6 * n).reshape(n, 6)[:, 3:].ravel()
    ratio = np.std(draws, axis=0) / np.sqrt(np.diagonal(solution.covariance)[places])
    assert (ratio < 1.3).all() and (ratio > 0.3).all()


def test_what_is_not_finite_is_refused() -> None:
    problem, _, _ = problem_of(9)
    problem.log_inverse_depth[0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        bundle.solve(problem)


SCRIPT = """
import sys, hashlib, numpy as np
sys.path.insert(0, "test/refinement")
from test_bundle import problem_of
from come_ros.refinement import bundle
problem, _, _ = problem_of(11, landmarks=300, focal=True)
solution = bundle.solve(problem)
print(hashlib.sha256(solution.world_from_camera.tobytes() + solution.covariance.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_bytes_on_one_thread_and_on_two() -> None:
    found = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.strip())
    assert len(found) == 1 and len(next(iter(found))) == 64

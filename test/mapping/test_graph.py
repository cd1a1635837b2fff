"""The keyframe graph: derivatives, a loop that takes drift away, a wrong loop that is switched off, and the time that it takes."""

from __future__ import annotations

import time

import numpy as np
import pytest

from come_ros import geometry
from come_ros.mapping.graph import (
    DIMENSIONS,
    Edges,
    Similarities,
    jacobians,
    moved,
    news,
    optimise,
    residuals,
    root_information,
)


def ring(
    count: int, seed: int = 0, drift: float = 0.02, scale_drift: float = 0.0
) -> tuple[Similarities, Similarities, Edges]:
    """Nodes round a circle and a half, as they are and as noisy steps add up, and the edges of those steps."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 3 * np.pi, count)
    turn = geometry.rotation_from_vector(np.outer(angle, [0.0, 0.0, 1.0]))
    places = 3 * np.stack([np.cos(angle), np.sin(angle), 0.1 * np.sin(3 * angle)], axis=1)
    real = Similarities.of(geometry.transform(turn, places))
    first, second = np.arange(count - 1), np.arange(1, count)
    step = real.at(first).inverse().after(real.at(second))
    noise = rng.normal(0, drift, (count - 1, DIMENSIONS)) * [0.3, 0.3, 0.3, 1, 1, 1, 0]
    noise[:, 6] = scale_drift
    step = moved(step, noise)
    nodes = real.at(slice(1))
    for i in range(count - 1):
        nodes = nodes.joined(nodes.at(slice(i, i + 1)).after(step.at(slice(i, i + 1))))
    root = np.tile(root_information(0.3 * drift, drift, max(drift, abs(scale_drift))), (count - 1, 1, 1))
    return real, nodes, Edges(first, second, step, root, np.zeros(count - 1, bool))


def closing(real: Similarities, a: int, b: int) -> Edges:
    z = real.at([a]).inverse().after(real.at([b]))
    return Edges.one(a, b, z, root_information(0.002, 0.01, 0.01), True)


def worst(nodes: Similarities, real: Similarities) -> float:
    return float(np.linalg.norm(nodes.translation - real.translation, axis=1).max())


def test_jacobians_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(3)
    n = 6
    nodes = Similarities(
        rng.normal(0, 0.3, n), geometry.rotation_from_vector(rng.normal(0, 1, (n, 3))), rng.normal(0, 2, (n, 3))
    )
    first, second = np.array([0, 1, 2, 3, 4, 0]), np.array([1, 2, 3, 4, 5, 5])
    z = moved(nodes.at(first).inverse().after(nodes.at(second)), rng.normal(0, 0.2, (n, DIMENSIONS)))
    root = rng.normal(0, 1, (n, DIMENSIONS, DIMENSIONS))
    edges = Edges(first, second, z, root, np.zeros(n, bool))
    ours = np.zeros((n, DIMENSIONS, n, DIMENSIONS))
    by_first, by_second = jacobians(nodes, edges)
    for e in range(n):
        ours[e, :, first[e]] += by_first[e]
        ours[e, :, second[e]] += by_second[e]
    h = 1e-6
    for node in range(n):
        for axis in range(DIMENSIONS):
            step = np.zeros((n, DIMENSIONS))
            step[node, axis] = h
            numeric = (residuals(moved(nodes, step), edges) - residuals(moved(nodes, -step), edges)) / (2 * h)
            np.testing.assert_allclose(ours[:, :, node, axis], numeric, atol=1e-6)


def test_a_similarity_and_its_inverse_cancel() -> None:
    rng = np.random.default_rng(1)
    some = Similarities(
        rng.normal(0, 0.5, 4), geometry.rotation_from_vector(rng.normal(0, 1, (4, 3))), rng.normal(0, 2, (4, 3))
    )
    np.testing.assert_allclose(some.after(some.inverse()).matrices(), np.tile(np.eye(4), (4, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(some.after(some).matrices(), some.matrices() @ some.matrices(), atol=1e-12)


def test_a_loop_takes_most_of_the_drift_away() -> None:
    real, drifted, chain = ring(60)
    edges = chain.joined(closing(real, 0, 40)).joined(closing(real, 19, 59))
    fixed = np.arange(60) == 0
    found = optimise(drifted, edges, fixed, free_scale=False)
    assert worst(found.nodes, real) < 0.35 * worst(drifted, real)
    assert found.trust.min() > 0.9 and found.cost[1] < found.cost[0]
    assert not found.nodes.log_scale.any() and np.array_equal(found.nodes.translation[0], real.translation[0])


def test_scale_that_drifts_comes_back_only_where_it_is_free() -> None:
    real, drifted, chain = ring(60, drift=1e-3, scale_drift=0.005)
    edges = chain.joined(closing(real, 0, 40))
    fixed = np.arange(60) == 0
    free, held = (optimise(drifted, edges, fixed, free_scale=f) for f in (True, False))
    assert abs(free.nodes.log_scale[40]) < 0.03 < 0.15 < drifted.log_scale[40]
    assert worst(free.nodes, real) < 0.5 * worst(drifted, real)
    assert np.array_equal(held.nodes.log_scale, drifted.log_scale)


def test_a_wrong_loop_among_right_ones_is_switched_off() -> None:
    real, drifted, chain = ring(60)
    right = chain
    for i in (0, 2, 6):
        right = right.joined(closing(real, i, i + 40))
    wrong = closing(real, 4, 44)
    wrong.measured.translation[0] += [1.0, 0.0, 0.0]
    fixed = np.arange(60) == 0
    found = optimise(drifted, right.joined(wrong), fixed, False)
    assert found.trust[-1] < 0.1 < 0.9 < found.trust[-4:-1].min()
    assert worst(found.nodes, optimise(drifted, right, fixed, False).nodes) < 0.1 * worst(drifted, real)


@pytest.mark.parametrize("free_scale", [False, True])
def test_drift_is_no_surprise_but_another_place_is_one(free_scale: bool) -> None:
    fixed = np.arange(60) == 0
    usual = []
    for seed in range(12):
        real, drifted, chain = ring(60, seed)
        usual.append(news(drifted, chain, closing(real, 0, 40), fixed, free_scale).surprise)
    loop = closing(real, 0, 40)
    solved = optimise(drifted, chain.joined(loop), fixed, free_scale)
    before, after = (
        news(n, e, loop, fixed, free_scale).gain for n, e in ((drifted, chain), (solved.nodes, chain.joined(loop)))
    )
    assert before > 10 and after < 1, "what is known already is no news"
    assert 3 < np.mean(usual) < 12 and max(usual) < 25, "about one for each dimension"
    wrong = closing(real, 5, 30)._replace(second=np.array([52]))
    assert news(drifted, chain, wrong, fixed, free_scale).surprise > 100


def test_without_a_loop_nothing_moves_and_nothing_fixed_is_an_error() -> None:
    _, drifted, chain = ring(10)
    found = optimise(drifted, chain, np.arange(10) == 0, True)
    np.testing.assert_allclose(found.nodes.translation, drifted.translation, atol=1e-9)
    assert found.nodes is not None and optimise(drifted, Edges.none(), np.arange(10) == 0, True).iterations == 0
    with pytest.raises(ValueError, match="no node of the graph is fixed"):
        optimise(drifted, chain, np.zeros(10, bool), True)


def test_two_hundred_keyframes_are_cheap_and_give_the_same_bits_again() -> None:
    real, drifted, chain = ring(200, scale_drift=0.002)
    edges = chain
    for i in range(0, 60, 4):
        edges = edges.joined(closing(real, i, i + 133))
    optimise(drifted, chain, np.arange(200) == 0, True)  # imports
    begun = time.process_time()
    found = optimise(drifted, edges, np.arange(200) == 0, True)
    took = time.process_time() - begun
    again = optimise(drifted, edges, np.arange(200) == 0, True)
    assert np.array_equal(found.nodes.translation, again.nodes.translation) and found.iterations == again.iterations
    assert worst(found.nodes, real) < 0.4 * worst(drifted, real)
    assert took < 1.0, "a busy machine has a factor of ten to the 0.1 s that the issue asks for"
    print(f"{took:.3f} s, {found.iterations} iterations")

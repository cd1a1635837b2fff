"""The keyframe graph: finds the poses that best fit all measured relative poses, along the path and across loops.

Levenberg-Marquardt on the sparse normal equations (SciPy's SuperLU: one thread, the same bits every time). A node is a similarity
map_from_keyframe, x -> scale * rotation @ x + translation; it is rigid if scales are known. Edges that may be wrong have the loss of
dynamic covariance scaling, the closed form of switchable constraints (Agarwal et al., ICRA 2013; Suenderhauf and Protzel, IROS 2012),
wide at first and then narrower (graduated non-convexity: Yang et al., RA-L 2020).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import geometry
from ..types import F64

ITERATIONS = 30
TOLERANCE, ROUGH = 1e-6, 1e-2  # relative decrease of the cost at which to stop: in the end, and under a wider loss
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-4, 1e-9, 1e9
SWITCH = 16.0  # squared sigmas (7 are expected) above which a switchable edge counts less and less
NARROWING = 10.0  # the loss starts as wide as the worst edge, else drift would switch off the loop that corrects it
DIMENSIONS = 7  # rotation, translation, log scale


@dataclass(frozen=True, eq=False)
class Similarities:
    """N similarities x -> exp(log_scale) * rotation @ x + translation. log_scale: (N,). rotation: (N, 3, 3). translation: (N, 3)."""

    log_scale: F64
    rotation: F64
    translation: F64

    @staticmethod
    def of(poses: ArrayLike, scale: float = 1.0) -> Similarities:
        """From rigid transforms (N, 4, 4), each with that scale."""
        poses = np.asarray(poses, np.float64).reshape(-1, 4, 4)
        return Similarities(np.full(len(poses), np.log(scale)), poses[:, :3, :3].copy(), poses[:, :3, 3].copy())

    def __len__(self) -> int:
        return len(self.log_scale)

    def at(self, rows: Any) -> Similarities:
        """The similarities of some rows: an index array, a mask or a slice."""
        return Similarities(self.log_scale[rows], self.rotation[rows], self.translation[rows])

    @property
    def scale(self) -> F64:
        """(N,)"""
        return np.exp(self.log_scale)

    def poses(self) -> F64:
        """(N, 4, 4) rigid: rotation and translation, without the scale."""
        return geometry.transform(self.rotation, self.translation)

    def matrices(self) -> F64:
        """(N, 4, 4) with the scale in the upper left block."""
        return geometry.transform(self.scale[:, None, None] * self.rotation, self.translation)

    def after(self, first: Similarities) -> Similarities:
        """x -> self(first(x)), row by row."""
        moved = self.scale[:, None] * np.einsum("nij,nj->ni", self.rotation, first.translation)
        return Similarities(self.log_scale + first.log_scale, self.rotation @ first.rotation, moved + self.translation)

    def inverse(self) -> Similarities:
        turn = np.swapaxes(self.rotation, 1, 2)
        moved = np.einsum("nij,nj->ni", turn, self.translation)
        return Similarities(-self.log_scale, turn, -moved * np.exp(-self.log_scale)[:, None])

    def joined(self, more: Similarities) -> Similarities:
        """These, then `more`."""
        return Similarities(
            np.concatenate([self.log_scale, more.log_scale]),
            np.concatenate([self.rotation, more.rotation]),
            np.concatenate([self.translation, more.translation]),
        )


class Edges(NamedTuple):
    """E measurements of node `second` (E,) in the frame of node `first` (E,).

    measured: E similarities first_from_second. root: (E, 7, 7) square roots W of the information matrices W^T W of the errors in rotation
    (rad), translation (units of the first node) and log scale. switchable: (E,) bool, whether the edge may be entirely wrong.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    measured: Similarities
    root: F64
    switchable: NDArray[np.bool_]

    @staticmethod
    def none() -> Edges:
        nothing = np.empty(0, np.intp)
        return Edges(
            nothing,
            nothing,
            Similarities.of(np.empty((0, 4, 4))),
            np.empty((0, DIMENSIONS, DIMENSIONS)),
            np.empty(0, bool),
        )

    @staticmethod
    def one(first: int, second: int, measured: Similarities, root: F64, switchable: bool = False) -> Edges:
        """A single edge. measured: one similarity. root: (7, 7)."""
        return Edges(np.array([first]), np.array([second]), measured, root[None], np.array([switchable]))

    def at(self, rows: Any) -> Edges:
        """Those of some rows: an index array, a mask or a slice."""
        return Edges(
            self.first[rows], self.second[rows], self.measured.at(rows), self.root[rows], self.switchable[rows]
        )

    def joined(self, more: Edges) -> Edges:
        """These, then `more`."""
        return Edges(
            np.concatenate([self.first, more.first]), np.concatenate([self.second, more.second]),
            self.measured.joined(more.measured), np.concatenate([self.root, more.root]),
            np.concatenate([self.switchable, more.switchable]),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Solution:
    """nodes: the best fit. trust: (E,) 0 .. 1, weight of each edge; 1 if it is not switchable. cost: robust sum of squares, before and
    after. iterations: number of linear systems solved."""

    nodes: Similarities
    trust: F64
    cost: tuple[float, float]
    iterations: int


def parts(count: int, edges: Edges) -> NDArray[np.intp]:
    """(count,) number of the connected part of the graph that each of `count` nodes belongs to."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    tied = coo_matrix((np.ones(len(edges.first)), (edges.first, edges.second)), shape=(count, count))
    return np.asarray(connected_components(tied, directed=False)[1], np.intp)


def root_information(rotation: ArrayLike, translation: ArrayLike, log_scale: float) -> F64:
    """(7, 7) for Edges.root, of independent errors. rotation: sigma in rad. translation: sigma, one or three. log_scale: sigma."""
    sigmas = np.concatenate([np.broadcast_to(rotation, 3), np.broadcast_to(translation, 3), [log_scale]]).astype(
        np.float64
    )
    return np.diag(1.0 / sigmas)


def residuals(nodes: Similarities, edges: Edges) -> F64:
    """(E, 7) whitened errors: rotation, translation, log scale."""
    return np.einsum("eij,ej->ei", edges.root, _errors(nodes, edges))


def _errors(nodes: Similarities, edges: Edges) -> F64:
    a, b, z = nodes.at(edges.first), nodes.at(edges.second), edges.measured
    turn = np.swapaxes(a.rotation, 1, 2)
    rotation = geometry.vector_from_rotation(np.swapaxes(z.rotation, 1, 2) @ turn @ b.rotation)
    shift = np.einsum("eij,ej->ei", turn, b.translation - a.translation) * np.exp(-a.log_scale)[:, None]
    scale = b.log_scale - a.log_scale - z.log_scale
    return np.concatenate([rotation, shift - z.translation, scale[:, None]], axis=1)


def jacobians(nodes: Similarities, edges: Edges) -> tuple[F64, F64]:
    """Derivatives (E, 7, 7) of `residuals` with respect to the steps of `moved`, for the first and for the second node of each edge."""
    a, b = nodes.at(edges.first), nodes.at(edges.second)
    turn = np.swapaxes(a.rotation, 1, 2)
    way = b.translation - a.translation
    shrink = np.exp(-a.log_scale)[:, None, None]
    by_turn = geometry.right_jacobian_inverse(_errors(nodes, edges)[:, :3]) @ np.swapaxes(b.rotation, 1, 2)
    first, second = np.zeros((2, len(edges.first), DIMENSIONS, DIMENSIONS))
    first[:, :3, :3], second[:, :3, :3] = -by_turn, by_turn
    first[:, 3:6, :3] = shrink * turn @ geometry.skew(way)
    first[:, 3:6, 3:6], second[:, 3:6, 3:6] = -shrink * turn, shrink * turn
    first[:, 3:6, 6] = -shrink[:, 0] * np.einsum("eij,ej->ei", turn, way)
    first[:, 6, 6], second[:, 6, 6] = -1.0, 1.0
    return edges.root @ first, edges.root @ second


def moved(nodes: Similarities, step: F64) -> Similarities:
    """`nodes` after steps (N, 7): a rotation vector applied from the left, and increments of translation and log scale."""
    return Similarities(
        nodes.log_scale + step[:, 6],
        geometry.rotation_from_vector(step[:, :3]) @ nodes.rotation,
        nodes.translation + step[:, 3:6],
    )


def _robust(squares: F64, switchable: NDArray[np.bool_], width: float) -> tuple[F64, float]:
    """Switches (E,) of edges with the squared errors `squares` (E,), and their cost. width: squared sigmas, see SWITCH."""
    switch = np.where(switchable, np.minimum(1.0, 2 * width / (width + squares)), 1.0)
    return switch, float((switch**2 * squares + width * (1 - switch) ** 2).sum())


def optimise(nodes: Similarities, edges: Edges, fixed: NDArray[np.bool_], free_scale: bool) -> Solution:
    """Finds the nodes that best fit `edges`. fixed: (N,) bool, nodes that do not move; at least one in each connected part. free_scale:
    whether to estimate scales, else they are fixed. Raises ValueError if nothing is fixed."""
    if not fixed.any():
        raise ValueError("no node of the graph is fixed, but one must be: its frame would be arbitrary")
    problem = _Problem(edges, fixed, free_scale)
    squares = (residuals(nodes, edges) ** 2).sum(axis=1)
    _, start = _robust(squares, edges.switchable, SWITCH)
    iterations = 0
    if problem.unknowns and len(edges.first):
        width = max(SWITCH, float(squares[edges.switchable].max(initial=0.0)))
        while True:
            last = width <= SWITCH
            nodes, spent = problem.descend(nodes, width, TOLERANCE if last else ROUGH)
            iterations += spent
            if last:
                break
            width = max(SWITCH, width / NARROWING)
    switch, cost = _robust((residuals(nodes, edges) ** 2).sum(axis=1), edges.switchable, SWITCH)
    # rounding errors would grow from closure to closure
    nodes = replace(nodes, rotation=geometry.nearest_rotation(nodes.rotation))
    return Solution(nodes, switch, (start, cost), iterations)


class News(NamedTuple):
    """Comparison of a new edge with the known ones. surprise: squared distance between the new edge and the pose that the known edges give
    its two nodes, in sigmas of both together; 7 is expected if the edge is right (6 if scales are known). gain: variance of the pose
    from the known edges divided by that of the new edge, mean over its dimensions."""

    surprise: float
    gain: float


def news(nodes: Similarities, edges: Edges, loop: Edges, fixed: NDArray[np.bool_], free_scale: bool) -> News:
    """Compares a single new edge `loop` with the known `edges`."""
    problem = _Problem(edges, fixed, free_scale)
    both = np.concatenate(jacobians(nodes, loop), axis=2)[0]  # (7, 14)
    wide = np.zeros((DIMENSIONS, problem.unknowns + 1))
    np.add.at(wide.T, _Problem(loop, fixed, free_scale).columns[0], both.T)
    errors = residuals(nodes, edges)
    switch, _ = _robust((errors**2).sum(axis=1), edges.switchable, SWITCH)
    normal, _ = problem.system(nodes, errors, switch)
    known = wide[:, :-1] @ _factorised(normal, LEAST_DAMPING).solve(wide[:, :-1].T.copy())
    error = residuals(nodes, loop)[0]
    surprise = error @ np.linalg.solve(np.eye(DIMENSIONS) + known, error)
    return News(float(surprise), float(np.trace(known)) / (DIMENSIONS if free_scale else DIMENSIONS - 1))


def _factorised(normal: Any, damping: float) -> Any:
    from scipy.sparse import diags
    from scipy.sparse.linalg import splu

    damped = normal + diags(damping * np.maximum(normal.diagonal(), 1e-9), format="csc")
    return splu(damped, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


class _Problem:
    """The unknowns, and the position of each edge in the matrix."""

    def __init__(self, edges: Edges, fixed: NDArray[np.bool_], free_scale: bool) -> None:
        self.edges = edges
        self.free = np.repeat(~fixed[:, None], DIMENSIONS, axis=1)
        self.free[:, 6] &= free_scale
        self.unknowns = int(np.count_nonzero(self.free))
        place = np.full(self.free.shape, self.unknowns)  # fixed values get one extra column, which is dropped
        place[self.free] = np.arange(self.unknowns)
        self.columns = np.concatenate([place[edges.first], place[edges.second]], axis=1)  # (E, 14)
        rows, columns = np.repeat(self.columns, 2 * DIMENSIONS, axis=1), np.tile(self.columns, (1, 2 * DIMENSIONS))
        self.inside = (rows < self.unknowns) & (columns < self.unknowns)
        self.rows, self.cols = rows[self.inside], columns[self.inside]

    def descend(self, nodes: Similarities, width: float, tolerance: float) -> tuple[Similarities, int]:
        """Levenberg-Marquardt under a loss of that width. Returns the nodes and the number of linear systems solved."""
        edges = self.edges
        errors = residuals(nodes, edges)
        switch, cost = _robust((errors**2).sum(axis=1), edges.switchable, width)
        damping, iterations = FIRST_DAMPING, 0
        while iterations < ITERATIONS:
            normal, right = self.system(nodes, errors, switch)
            while iterations < ITERATIONS:
                iterations += 1
                step = np.zeros(self.free.shape)
                step[self.free] = _factorised(normal, damping).solve(right)
                trial = moved(nodes, step)
                tried = residuals(trial, edges)
                other, lower = _robust((tried**2).sum(axis=1), edges.switchable, width)
                if np.isfinite(lower) and lower <= cost:
                    break
                damping *= 10
                if damping > MOST_DAMPING:
                    return nodes, iterations
            else:
                return nodes, iterations
            settled = cost - lower <= tolerance * cost
            nodes, errors, switch, cost = trial, tried, other, lower
            damping = max(LEAST_DAMPING, damping / 10)
            if settled:
                break
        return nodes, iterations

    def system(self, nodes: Similarities, errors: F64, switch: F64) -> tuple[Any, F64]:
        """Normal matrix (sparse) and right side (unknowns,)."""
        from scipy.sparse import csc_matrix  # takes half a second to import, and only a world with a loop needs it

        both = np.concatenate(jacobians(nodes, self.edges), axis=2) * switch[:, None, None]  # (E, 7, 14)
        blocks = (np.swapaxes(both, 1, 2) @ both)[self.inside.reshape(-1, 2 * DIMENSIONS, 2 * DIMENSIONS)]
        normal = csc_matrix((blocks, (self.rows, self.cols)), shape=(self.unknowns, self.unknowns))
        right = np.zeros(self.unknowns + 1)
        np.add.at(right, self.columns, -np.einsum("eij,ei->ej", both, errors * switch[:, None]))
        return normal, right[:-1]


def jacobians_of_points(s: Similarities, there: F64, here: F64) -> tuple[tuple[F64, F64], tuple[F64, F64]]:
    """Points `there` (n, 3) moved by one similarity, with their derivatives (n, 3, 7) with respect to the steps of `moved`; and points
    `here` (m, 3) moved by its inverse, with their derivatives (m, 3, 7)."""
    scale, turn = s.scale[0], s.rotation[0]
    way = scale * there @ turn.T
    forward = np.zeros((len(there), 3, DIMENSIONS))
    forward[:, :, :3], forward[:, :, 3:6], forward[:, :, 6] = -geometry.skew(way), np.eye(3), way
    left = here - s.translation[0]
    back = left @ turn / scale
    backward = np.zeros((len(here), 3, DIMENSIONS))
    backward[:, :, :3] = turn.T @ geometry.skew(left) / scale
    backward[:, :, 3:6], backward[:, :, 6] = -turn.T / scale, -back
    return (way + s.translation[0], forward), (back, backward)

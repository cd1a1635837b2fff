"""The map's keyframes: selects them, connects them by edges, and computes the pose of the odometry frame in the map.

Odometry is never rewritten: a loop moves `map_from_odom`, and with it everything attached to the keyframes. Without loops the map equals
the odometry to the last bit. A loop is accepted if the views agree (loops.py), if it is plausible given the drift, and if the same view
fits no other place: two doors that look alike prove nothing.

The keyframes of a saved map come first in the graph. Until the present session is located in that map (relocalise.py), the two are separate
parts of the graph. Then the sightings become edges between them, and everything works as within one session. In `localize` mode the nodes
of the saved map are fixed.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..geometry import finite_median, inverse, rotation_angle
from ..tracking.drift import by_network
from ..types import F64, Alignment, Frame, Submap
from . import relocalise
from .aside import Call, directly
from .graph import DIMENSIONS, Edges, Similarities, news, optimise, parts, root_information
from .keyframe import Keyframe, thumbnail_of
from .lengths import LEAST_CHANGE, smoothed
from .loops import Match, compare
from .relocalise import Search, session_in_map
from .saved_map import SavedMap
from .view import view_of

# The map keeps a keyframe of the windows if the camera moved or turned this far since the last one that it kept
LEAST_WAY, LEAST_TURN = 0.1, np.deg2rad(8.0)  # of the scene's depth; rad
RECENT = 4  # newest keyframes that are not candidates for a loop
ALIKE, NEAR = 3, 2  # number of candidates by appearance, and by position
LEAST_ALIKE = 0.1  # least cosine of two place descriptors, after subtracting their mean
MOST_ANGLE, MOST_WAY = np.deg2rad(50.0), 1.0  # candidates by position: largest angle, and distance in scene depths
MOST_SURPRISE = 50.0  # squared sigmas; drift and matches have heavier tails than their sigmas say
LEAST_GAIN = 1.0  # see graph.News: loops share errors of depth, so a loop that repeats known ones improves nothing
ELSEWHERE = np.deg2rad(20.0), 0.5  # rad, scene depths: a larger difference means another place, not an inexact match
LEAST_AGREED = 2  # keyframes of a saved map that must agree before the odometry is doubted
LEAST_TRUST = 0.5  # of a new loop in the solution, else the loop is removed again
# Errors of a step: share of the angle turned, rad; share of the distance moved, and of the depth, since a wrong turn looks like a motion
TURN_SHARE, LEAST_ROTATION, WAY_SHARE, DEPTH_SHARE = 0.02, 0.001, 0.15, 0.006
# and of its log scale: without a bundle; with one, per distance in scene depths, per rad turned, and at least
NETWORK_SCALE, WAY_SCALE, TURN_SCALE, LEAST_SCALE = 0.1, 0.03, 0.03, 0.002
LOST = 1.0, 1.0  # rad, and scene depths: error of a step across which neither windows nor tracks share anything
LEAST_SHARED = 30  # fewest tracks from one keyframe of the windows to the next; with fewer the step is not trusted


@dataclass(frozen=True, eq=False)
class Corrections:
    """Pose of the odometry frame in the map at each of K keyframes of the present session.

    stamps_ns: (K,), ascending. map_from_odom: K similarities; the last one is rigid. version: grows with every loop; while it is 0, all
    similarities are the identity. earlier: the same for each earlier session: those of a saved map, and those that ended when stamps jumped
    back. located: whether the present session has been located in the saved map (True without one); until then its poses are in a frame of
    its own. unit: length of the map's present unit in units of the saved map. saved: number of sessions in the saved map.
    """

    stamps_ns: NDArray[np.int64]
    map_from_odom: Similarities
    version: int = 0
    earlier: tuple[Corrections, ...] = ()
    located: bool = True
    unit: float = 1.0
    saved: int = 0

    def of(self, session: int) -> Corrections:
        """The corrections of that session, see Keyframe.session."""
        return self.earlier[session] if session < len(self.earlier) else self

    def knows(self, session: int) -> bool:
        """Whether the pose of that session in the map is known."""
        return self.located or session < self.saved

    @staticmethod
    def none() -> Corrections:
        return Corrections(np.empty(0, np.int64), Similarities.of(np.empty((0, 4, 4))))

    def latest(self) -> F64:
        """(4, 4) rigid."""
        return self.map_from_odom.poses()[-1] if self.version else np.eye(4)


@dataclass
class LoopCounts:
    """offered: number of pairs of keyframes compared. accepted: number of loops closed. refused: number of others, by reason."""

    offered: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Mapper:
    """Builds the map from published submaps. One thread calls it. The same submaps give the same map.

    keyframes: first those of the saved map, then those of the present session. located: whether the two are connected; True without a
    saved map.
    """

    def __init__(
        self,
        metric: bool,
        most_keyframes: int,
        loops: bool = True,
        saved: SavedMap | None = None,
        localize: bool = False,
        call: Call = directly,
    ) -> None:
        """metric: whether lengths are in metres, so that scales are not estimated. saved: the map to start in. localize: whether the saved
        map stays unchanged; its keyframes then do not count towards most_keyframes. call: runs what takes long."""
        self._call = call
        self.free_scale, self.most, self.loops = not metric, most_keyframes, loops
        self.saved, self.localize = saved, localize and saved is not None
        self.reset()

    def reset(self) -> None:
        """Starts a new world, again in the saved map if there is one."""
        saved = self.saved
        self.counts = LoopCounts()
        self.keyframes: list[Keyframe] = [] if saved is None else list(saved.keyframes)
        self.nodes = Similarities.of(np.empty((0, 4, 4))) if saved is None else saved.nodes
        known = Edges.none() if saved is None or self.localize else saved.edges
        self.chain, self.closed = known.at(~known.switchable), known.at(known.switchable)
        self.known = len(self.keyframes)  # number of keyframes of the saved map
        self.first = self.known  # row of the first keyframe of the present session
        self.session = 0 if saved is None else saved.sessions
        self.located = saved is None
        self.search = Search()
        self.unit = 0.0  # log of Corrections.unit
        self.corrections = Corrections.none()
        self._ambiguous: set[tuple[int, int]] = set()  # keys of views that look like another place
        self._since: list[F64] = []  # poses since the last keyframe of the map
        self._unsure = np.zeros(3)  # variances of rotation, position and log scale since then, in addition to drift
        self._newest_ns = 0
        self._tracks: NDArray[np.int64] | None = None  # ids in the last keyframe of the windows
        if saved is not None:
            self._publish(False)

    def add(self, submap: Submap, row: int, trusted: Callable[[Submap, int], NDArray[np.bool_]] | None = None) -> bool:
        """Adds a published keyframe. trusted: returns the pixels (H, W) whose depth is saved; None: no depth is kept. Returns whether the
        map moved: a loop was closed, or the session was located in the saved map."""
        frame, pose, depth = submap.frames[row], submap.odom_from_camera[row], submap.depth[row]
        usual = self.pass_by(submap, row)
        if len(self.keyframes) == self.known:
            self.nodes = self.nodes.joined(Similarities.of(pose))
        else:
            last = self.keyframes[-1].odom_from_camera
            step = inverse(last) @ pose
            turn, way = float(rotation_angle(step[:3, :3])), float(np.linalg.norm(step[:3, 3]))
            if turn < LEAST_TURN and way < LEAST_WAY * usual and len(self.keyframes) > self.first:
                return False
            self._link(last, usual)
        place = None if submap.places is None else submap.places[row]
        view = self._call(view_of, frame.image, depth, submap.intrinsics[row], place) if self.loops else None
        thumbnail = None if trusted is None else thumbnail_of(submap, row, trusted(submap, row))
        self.keyframes.append(Keyframe(frame.stamp_ns, pose.copy(), view, thumbnail, self.session, submap.scale))
        self._since, self._unsure = [], np.zeros(3)
        changed = self._follow_scale()
        if self.loops:
            changed |= self._close() if self.located else self._find()
        if len(self.keyframes) - (self.known if self.localize else 0) > self.most:
            self._thin()
        self._publish(changed)
        return changed

    def pass_by(self, submap: Submap, row: int) -> float:
        """Takes note of a published keyframe, for the step to the next one that is added. Returns its median depth."""
        frame, usual = submap.frames[row], finite_median(submap.depth[row], 1.0)
        if row == 0:
            self._unsure = self._unsure + _doubt(submap.alignment, submap.refinement.refined > 0, usual)
        self._unsure = self._unsure + self._leap(frame, usual)
        if len(self.keyframes) > self.known:
            self._since.append(submap.odom_from_camera[row])
            if frame.stamp_ns <= self._newest_ns:  # on_time_jump is keep_pose
                self.first, self.session = len(self.keyframes), self.session + 1
        self._newest_ns = frame.stamp_ns
        return usual

    def save(self, places: str, metres: float, sigma: float, voxel: float) -> SavedMap | None:
        """The map as a value to be saved; None if no keyframe can be saved. Arguments as in SavedMap."""
        good = [i for i, k in enumerate(self.keyframes) if k.view is not None and k.thumbnail is not None]
        if not good:
            return None
        kept = copy.copy(self)  # this mapper keeps all its keyframes
        kept.search = Search()
        kept._renumber(good)
        return SavedMap(tuple(kept.keyframes), kept.nodes, kept.edges, places, metres, sigma, voxel)

    @property
    def edges(self) -> Edges:
        return self.chain.joined(self.closed)

    def _link(self, last: F64, usual: float) -> None:
        """Adds the newest keyframe as a node, and the step to it as an edge."""
        newest = len(self.keyframes)
        way = np.stack([last, *self._since])
        steps = inverse(way[:-1]) @ way[1:]
        gone = float(np.linalg.norm(steps[:, :3, 3], axis=1).sum())
        turned = float(rotation_angle(steps[:, :3, :3]).sum())
        sigmas = (
            np.hypot(TURN_SHARE * turned, LEAST_ROTATION),
            np.hypot(WAY_SHARE * gone, usual * np.hypot(DEPTH_SHARE, TURN_SHARE * turned)),
            LEAST_SCALE + WAY_SCALE * gone / usual + TURN_SCALE * turned,
        )
        rotation, position, scale = np.sqrt(np.square(sigmas) + self._unsure)
        step = Similarities.of(inverse(last) @ way[-1])
        root = root_information(rotation, position, scale)
        self.chain = self.chain.joined(Edges.one(newest - 1, newest, step, root))
        # the newest keyframe has scale 1, see _publish
        self.nodes = self.nodes.joined(self.nodes.at([newest - 1]).after(step))

    def _follow_scale(self) -> bool:
        """Where lengths are measured all the time, each keyframe has the scale that it had then. Returns whether that moved the map. A
        saved map, and sessions of their own, hold the scale themselves."""
        count = len(self.keyframes)
        if not self.free_scale or not self.keyframes[-1].scale.follows or self.saved is not None:
            return False
        if not np.array_equal(self.chain.first, np.arange(count - 1)):
            return False
        scales = [k.scale for k in self.keyframes]
        lengths = np.array([np.log(s.correction) if s.follows else np.nan for s in scales])
        steps = np.diff(smoothed(lengths, np.array([s.sigma for s in scales])))
        since = np.concatenate([[0.0], np.cumsum(steps - self.chain.measured.log_scale)])
        if np.abs(since).max() < LEAST_CHANGE:
            return False
        self.chain = self.chain._replace(measured=replace(self.chain.measured, log_scale=steps))
        # as along the chain alone, which loops then hold as before
        way = np.diff(self.nodes.translation, axis=0) * np.exp(since[:-1, None])
        place = self.nodes.translation[0] + np.concatenate([np.zeros((1, 3)), np.cumsum(way, axis=0)])
        self.nodes = Similarities(self.nodes.log_scale + since, self.nodes.rotation, place)
        if len(self.closed.first):
            self.nodes = self._call(optimise, self.nodes, self.edges, self._fixed(), self.free_scale).nodes
        return True

    def _leap(self, frame: Frame, usual: float) -> F64:
        """(3,) variances, as those of `_doubt`, that are added if `frame` shares too few tracks with the last one: the camera was covered
        or carried to another place, and the window connects views that do not belong together."""
        seen, before = frame.observations, self._tracks
        self._tracks = None if seen is None else seen.ids
        if seen is None or before is None or np.isin(seen.ids, before, assume_unique=True).sum() >= LEAST_SHARED:
            return np.zeros(3)
        return _lost(usual)

    def _fixed(self) -> NDArray[np.bool_]:
        """(K,) bool, the nodes that stay: the first one of each connected part of the graph, and in localize mode the whole saved map."""
        count = len(self.keyframes)
        fixed = np.arange(count) < (self.known if self.localize else 0)
        part = parts(count, self.edges)
        held = np.zeros(count, bool)
        held[part[fixed]] = True
        firsts = np.unique(part, return_index=True)[1]
        fixed[firsts[~held[part[firsts]]]] = True
        return fixed

    def _find(self) -> bool:
        """Searches for the newest keyframe in the saved map. Returns whether the session is now located."""
        here = self.keyframes[-1].view
        assert here is not None
        found = self._compared(self._alike(np.arange(self.known), relocalise.ALIKE))
        self.search.add(len(self.keyframes) - 1, found)
        agreed = self.search.agreed(self.nodes, here.usual_depth)
        if not agreed:
            return False
        moved = session_in_map(agreed[0], self.nodes)
        if not self.free_scale:
            moved = Similarities.of(moved.poses())
        own = self.nodes.at(slice(self.known, None))
        rows = np.zeros(len(own), np.intp)
        nodes = self.nodes.at(slice(self.known)).joined(moved.at(rows).after(own))
        closed = self.closed
        for sighting in agreed:
            closed = closed.joined(_edge(sighting.there, sighting.here, sighting.match))
        edges = self.chain.joined(closed)
        before, self.closed = self.closed, closed
        solution = self._call(optimise, nodes, edges, self._fixed(), self.free_scale)
        if solution.trust[-len(agreed)] < LEAST_TRUST:
            self.closed = before
            self.search.refused["does not fit the graph"] += 1
            return False
        self.nodes, self.located = solution.nodes, True
        return True

    def _compared(self, rows: list[int]) -> list[tuple[int, Match]]:
        """Compares the newest keyframe with each of `rows`."""
        here = self.keyframes[-1].view
        assert here is not None
        seen = [(i, view) for i in rows if (view := self.keyframes[i].view) is not None]
        return [(i, self._call(compare, there, here)) for i, there in seen]

    def _close(self) -> bool:
        """Searches for loops of the newest keyframe. Returns whether any was closed."""
        found: list[tuple[int, Match]] = []
        for i, match in self._compared(self._candidates()):
            self.counts.offered += 1
            if match.reason:
                self.counts.refused[match.reason] += 1
            else:
                found.append((i, match))
        fixed = self._fixed()
        edges = self.edges
        loops, inexact = [], []
        for i, match in found:
            loop = _edge(i, len(self.keyframes) - 1, match)
            said = self._call(news, self.nodes, edges, loop, fixed, self.free_scale)
            if said.surprise > MOST_SURPRISE:
                if self._elsewhere(loop):
                    self.counts.refused["another place that looks the same"] += len(found)
                    self._ambiguous |= {self.keyframes[-1].key, *(self.keyframes[j].key for j, _ in found)}
                    return False
                inexact.append((i, match))
            elif said.gain < LEAST_GAIN:
                self.counts.refused["known already"] += 1
            else:
                loops.append(loop)
                edges = edges.joined(loop)  # further loops must agree with this one
        if not loops and (corrected := self._corrected(inexact)):
            loops, inexact = corrected, []
        if inexact:
            self.counts.refused["not exact enough"] += len(inexact)
        believed = len(loops)
        loops = [e for e in loops if not self._is_ambiguous(e)]
        if believed > len(loops):
            self.counts.refused["a place that looks like another one"] += believed - len(loops)
        if not loops:
            return False
        closed = self.closed
        for loop in loops:
            closed = closed.joined(loop)
        edges = self.chain.joined(closed)
        solution = self._call(optimise, self.nodes, edges, fixed, self.free_scale)
        trust = solution.trust[len(self.chain.first) :]
        if trust.min() < LEAST_TRUST:
            self.counts.refused["does not fit the graph"] += len(loops)
            return False
        self.closed, self.nodes = closed, solution.nodes
        self.counts.accepted += len(loops)
        return True

    def _corrected(self, inexact: list[tuple[int, Match]]) -> list[Edges]:
        """Edges of matches that contradict the odometry, but not by so much that they may show another place: if several keyframes of the
        saved map agree, the odometry is wrong, as after a turn that was too fast for it. The last step is then no longer trusted."""
        saved = [(i, match) for i, match in inexact if i < self.known]
        here = self.keyframes[-1].view
        usual = 1.0 if here is None else here.usual_depth
        agreed = Search.of(len(self.keyframes) - 1, saved).agreed(self.nodes, usual)
        if len(agreed) < LEAST_AGREED:
            return []
        doubted = np.sqrt(1 / np.diag(self.chain.root[-1]) ** 2 + np.repeat(_lost(usual), (3, 3, 1)))
        self.chain = self.chain._replace(root=np.concatenate([self.chain.root[:-1], np.diag(1 / doubted)[None]]))
        return [_edge(s.there, s.here, s.match) for s in agreed]

    def _elsewhere(self, loop: Edges) -> bool:
        """Whether `loop` places the newest keyframe far from its pose in the graph."""
        here, view = self.nodes.at([-1]), self.keyframes[-1].view
        there = self.nodes.at(loop.first).after(loop.measured)
        way = float(np.linalg.norm(there.translation - here.translation))
        turn = float(rotation_angle(there.rotation[0].T @ here.rotation[0]))
        return turn > ELSEWHERE[0] or way > ELSEWHERE[1] * (1.0 if view is None else view.usual_depth)

    def _is_ambiguous(self, loop: Edges) -> bool:
        ends = (int(loop.first[0]), int(loop.second[0]))
        return any(self.keyframes[i].key in self._ambiguous for i in ends)

    def _candidates(self) -> list[int]:
        """Earlier keyframes that may show the same place as the newest one: the most similar ones, and those nearby."""
        here = self.keyframes[-1].view
        rows = np.arange(max(self.known, len(self.keyframes) - 1 - RECENT))
        if here is None or len(here) == 0 or not len(rows):
            return []
        best = self._alike(rows, ALIKE)
        newest = self.nodes.at([-1])
        angle = rotation_angle(np.swapaxes(self.nodes.rotation[rows], 1, 2) @ newest.rotation)
        way = np.linalg.norm(self.nodes.translation[rows] - newest.translation, axis=1)
        cost = angle / MOST_ANGLE + way / (here.usual_depth * newest.scale[0] * MOST_WAY)
        near = [int(rows[i]) for i in np.argsort(cost, kind="stable")[:NEAR] if cost[i] < 1]
        return list(dict.fromkeys([*best, *near]))

    def _alike(self, rows: NDArray[np.intp], most: int) -> list[int]:
        """The keyframes of `rows` whose place descriptors are most similar to the newest one's, best first, at most `most`."""
        here = self.keyframes[-1].view
        known = [(int(i), v.place) for i in rows if (v := self.keyframes[i].view) is not None]
        if here is None or len(here) == 0 or not known:
            return []
        places = np.stack([place for _, place in known])
        if places.shape[1] != len(here.place):  # the backbone's images have another size now
            return []
        centre = places.mean(axis=0) if len(places) > 2 * ALIKE else np.zeros(places.shape[1])
        alike = _cosine(places - centre, here.place - centre)
        return [known[i][0] for i in np.argsort(-alike, kind="stable")[:most] if alike[i] >= LEAST_ALIKE]

    def _publish(self, changed: bool) -> None:
        """Updates the corrections. The newest keyframe gets scale 1: the map's unit is the odometry's current unit.

        The first keyframe stays where it is; in a saved map the origin does, so that coordinates differ from its own by a factor only."""
        if changed:
            held = self.nodes.translation[0] if self.saved is None else np.zeros(3)
            shrink = self.nodes.log_scale[-1]
            self.nodes = Similarities(
                self.nodes.log_scale - shrink, self.nodes.rotation,
                held + np.exp(-shrink) * (self.nodes.translation - held),
            )  # fmt: skip
            self.unit += shrink
        version = self.corrections.version + int(changed)
        earlier = tuple(self._of_session(i) for i in range(self.session))
        own = self.keyframes[self.first :]
        poses = Similarities.of(np.stack([k.odom_from_camera for k in own]) if own else np.empty((0, 4, 4)))
        if version:
            moved = self.nodes.at(slice(self.first, None)).after(poses.inverse())
        else:
            moved = Similarities.of(np.tile(np.eye(4), (len(own), 1, 1)))
        self.corrections = Corrections(
            np.array([k.stamp_ns for k in own], np.int64), moved, version, earlier, self.located,
            float(np.exp(self.unit)), 0 if self.saved is None else self.saved.sessions,
        )  # fmt: skip

    def _of_session(self, session: int) -> Corrections:
        """Pose of the odometry frame of an earlier session in the map."""
        rows = [i for i in range(self.first) if self.keyframes[i].session == session]
        poses = Similarities.of(np.array([self.keyframes[i].odom_from_camera for i in rows]).reshape(-1, 4, 4))
        stamps = np.array([self.keyframes[i].stamp_ns for i in rows], np.int64)
        return Corrections(stamps, self.nodes.at(rows).after(poses.inverse()), 1)

    def _thin(self) -> None:
        """Drops every second keyframe of the older half, those without a loop first. In localize mode the saved map stays whole."""
        count, own = len(self.keyframes), self.known if self.localize else 0
        half = own + (count - own) // 2
        held = set(self.closed.first.tolist()) | set(self.closed.second.tolist())
        every_second = {i for i in range(own, half) if (i - own) % 2}
        drop = every_second - held or every_second  # if all of them have loops, these are dropped too
        self._renumber([i for i in range(count) if i not in drop])

    def _renumber(self, kept: list[int]) -> None:
        """Keeps only the keyframes of the rows `kept` (ascending), with the edges between them."""
        count = len(self.keyframes)
        if len(kept) == count:
            return
        row = np.full(count, -1)
        row[kept] = np.arange(len(kept))
        self.closed = self.closed.at((row[self.closed.first] >= 0) & (row[self.closed.second] >= 0))
        self.closed = self.closed._replace(first=row[self.closed.first], second=row[self.closed.second])
        poses = Similarities.of(np.stack([k.odom_from_camera for k in self.keyframes]))
        variances = np.zeros((count, DIMENSIONS))
        variances[self.chain.first] = 1 / np.einsum("eii->ei", self.chain.root) ** 2
        tied = np.zeros(count, bool)
        tied[self.chain.first] = True
        lengths = np.zeros(count)
        lengths[self.chain.first] = self.chain.measured.log_scale
        chain = Edges.none()
        for i, j in itertools.pairwise(kept):
            if tied[i:j].all():  # not if they belong to different runs
                root = np.diag(1 / np.sqrt(variances[i:j].sum(axis=0)))
                step = poses.at([i]).inverse().after(poses.at([j]))
                step = replace(step, log_scale=lengths[i:j].sum(keepdims=True))
                chain = chain.joined(Edges.one(int(row[i]), int(row[j]), step, root))
        self.chain = chain
        self.search.renumber(row)
        self.nodes = self.nodes.at(kept)
        self.keyframes = [self.keyframes[i] for i in kept]
        self.known = int(np.searchsorted(kept, self.known))
        self.first = int(np.searchsorted(kept, self.first))
        self._ambiguous = self._ambiguous & {
            k.key for k in self.keyframes
        }  # a new set: `save` renumbers a shallow copy


def _edge(first: int, second: int, match: Match) -> Edges:
    """The edge of a match of two keyframes. Its lengths are in the odometry's unit at `first`."""
    assert match.first_from_second is not None
    return Edges.one(first, second, match.first_from_second, root_information(*match.sigma), True)


def _lost(usual: float) -> F64:
    """(3,) variances of rotation, position and log scale of a step that nothing is known about."""
    return np.array([LOST[0] ** 2, (LOST[1] * usual) ** 2, LOST[1] ** 2])


def _doubt(alignment: Alignment, refined: bool, usual: float) -> F64:
    """(3,) variances of rotation, position and log scale that a window adds to drift."""
    if alignment.shared == 0:
        return _lost(usual)
    if refined:
        return np.zeros(3)
    covariance = by_network(alignment, usual)
    return np.array([covariance[5, 5], covariance[0, 0], NETWORK_SCALE**2 + alignment.depth_residual**2])


def _cosine(many: F64, one: F64) -> F64:
    """(n,) cosines between the rows of `many` (n, d) and `one` (d,)."""
    lengths = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    return np.asarray(many @ one / np.where(lengths > 0, lengths, 1.0), np.float64)

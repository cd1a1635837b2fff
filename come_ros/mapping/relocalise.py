"""Locates a session in a saved map, only if several views agree and none contradicts them.

Each keyframe of the present session is compared with the saved keyframes of the most similar place descriptors (loops.compare: feature
descriptors, then two kinds of geometry). Each match is a sighting: it determines the pose of the whole session in the map. The inliers of
sightings that agree are summed; sightings that disagree, as in a corridor of equal doors, count against them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..geometry import rotation_angle
from ..types import F64
from .graph import Similarities
from .loops import Match

ALIKE = 6  # number of saved keyframes that a view is compared with
REMEMBERED = 12  # number of newest keyframes whose sightings count
# Largest difference between the poses of the newest keyframe by two sightings that agree: rad, scene depths, log scale
AGREE_TURN, AGREE_WAY, AGREE_SCALE = np.deg2rad(10.0), 0.25, 0.4
LEAST_INLIERS = 70  # of all sightings that agree: about three weak ones, or one strong one
MOST_AGAINST = 0.25  # inliers of sightings that disagree, as a share of those that agree


@dataclass(frozen=True, eq=False)
class Sighting:
    """Keyframe `here` (row) of the present session matches keyframe `there` (row) of the saved map."""

    there: int
    here: int
    match: Match


@dataclass
class Search:
    """State of the search. compared: number of pairs of views compared. seen: number of sightings among them. refused: number of others, by
    reason. keyframes: number of keyframes of the present session that were tried."""

    compared: int = 0
    seen: int = 0
    keyframes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    sightings: list[Sighting] = field(default_factory=list)

    @staticmethod
    def of(here: int, found: list[tuple[int, Match]]) -> Search:
        """The search with the comparisons of a single keyframe."""
        out = Search()
        out.add(here, found)
        return out

    def add(self, here: int, found: list[tuple[int, Match]]) -> None:
        """Adds the comparisons of keyframe `here`: (row of the saved keyframe, match), including refused ones."""
        self.keyframes += 1
        self.compared += len(found)
        for there, match in found:
            if match.reason:
                self.refused[match.reason] += 1
            else:
                self.sightings.append(Sighting(there, here, match))
                self.seen += 1
        self.sightings = [s for s in self.sightings if s.here > here - REMEMBERED]

    def renumber(self, row: NDArray[np.intp]) -> None:
        """Updates rows of keyframes: `row` holds the new one at the old one, -1 if the keyframe was dropped."""
        self.sightings = [
            Sighting(int(row[s.there]), int(row[s.here]), s.match)
            for s in self.sightings
            if row[s.there] >= 0 and row[s.here] >= 0
        ]

    def agreed(self, nodes: Similarities, usual_depth: float) -> list[Sighting]:
        """The sightings that together locate the session, the strongest first; empty if the evidence is not enough. nodes: of all
        keyframes, the last of which was just added. usual_depth: of its view, in its unit."""
        if not self.sightings or self.sightings[-1].here != len(nodes) - 1:
            return []
        strength = np.array([s.match.inliers for s in self.sightings])
        together = agreement(self.newest_by_each(nodes), usual_depth)
        best = int((together * strength).sum(axis=1).argmax())
        support = int(strength[together[best]].sum())
        against = int(strength[~together[best]].sum())
        if support < LEAST_INLIERS or against > MOST_AGAINST * support:
            return []
        rows = np.flatnonzero(together[best])
        return [self.sightings[i] for i in rows[np.argsort(-strength[rows], kind="stable")]]

    def newest_by_each(self, nodes: Similarities) -> Similarities:
        """map_from_keyframe of the newest keyframe according to each sighting."""
        there = nodes.at([s.there for s in self.sightings])
        here = nodes.at([s.here for s in self.sightings])
        between = _joined([s.match.first_from_second for s in self.sightings])
        newest = nodes.at(np.full(len(self.sightings), len(nodes) - 1))
        return there.after(between).after(here.inverse().after(newest))


def session_in_map(sighting: Sighting, nodes: Similarities) -> Similarities:
    """One similarity, map_from_session, according to a sighting: from the frame of the present session's nodes to the map's."""
    assert sighting.match.first_from_second is not None
    there, here = nodes.at([sighting.there]), nodes.at([sighting.here])
    return there.after(sighting.match.first_from_second).after(here.inverse())


def agreement(placed: Similarities, usual_depth: float) -> NDArray[np.bool_]:
    """(n, n) bool: which of n similarities map_from_keyframe of one keyframe agree. usual_depth: of its view, in its unit."""
    turn = np.swapaxes(placed.rotation, 1, 2)[:, None] @ placed.rotation[None]
    way = np.linalg.norm(placed.translation[:, None] - placed.translation[None], axis=2)
    usual: F64 = usual_depth * np.sqrt(placed.scale[:, None] * placed.scale[None])
    scale = np.abs(placed.log_scale[:, None] - placed.log_scale[None])
    return (rotation_angle(turn) < AGREE_TURN) & (way < AGREE_WAY * usual) & (scale < AGREE_SCALE)


def _joined(all_of: list[Similarities | None]) -> Similarities:
    parts = [s for s in all_of if s is not None]
    return Similarities(
        *(np.concatenate([getattr(s, n) for s in parts]) for n in ("log_scale", "rotation", "translation"))
    )

"""Chooses the edge of the TF tree that the node publishes: never one that gives a frame a second parent, or closes a loop."""

from __future__ import annotations

from collections.abc import Iterable

LISTEN_S = 1.0


class TfEdge:
    """Observes the parents of frames, and decides once: "forward" (odom -> moving frame), "inverse" (moving frame -> odom) or "off".

    mode: tf.mode. frame: the fixed one, named by the parameter `parameter`. `conflict`: why nothing is published, in one line, or "".
    """

    def __init__(self, mode: str, frame: str, parameter: str = "odom_frame") -> None:
        self.mode, self.frame, self.parameter = mode, frame, parameter
        self.choice = "off" if mode == "off" else ""
        self.conflict = ""
        self._parents: dict[str, set[str]] = {}  # of each child, as others publish them
        self._ours: set[tuple[str, str]] = set()  # our own edges come back to us

    def observe(self, edges: Iterable[tuple[str, str]]) -> None:
        """(parent, child) pairs as seen on /tf and /tf_static, our own among them."""
        for parent, child in edges:
            parent, child = parent.lstrip("/"), child.lstrip("/")
            if (parent, child) not in self._ours:
                self._parents.setdefault(child, set()).add(parent)

    def decide(self, moving: str, waited_s: float) -> str:
        """What to publish for the frame `moving` now, `waited_s` after its first image: a direction, "off", or "" while still
        listening."""
        if not self.choice:
            if waited_s < LISTEN_S:
                return ""
            self.choice = self.mode if self.mode != "auto" else "inverse" if moving in self._parents else "forward"
        if self.choice == "off":
            return "off"
        forward = self.choice == "forward"
        parent, child = (self.frame, moving) if forward else (moving, self.frame)
        # listeners still hold edges that we sent before, such as one to a camera with another name
        holders = self._parents.get(child, set()) | {p for p, c in self._ours if c == child and p != parent}
        if holders or self._above(parent, child):
            # not inverted: with our old edge that would be a loop
            owner = ", ".join(sorted(holders or {child}))
            fix = (
                "set tf.mode to auto or inverse"
                if forward
                else f"set {self.parameter} to a name that no other node uses"
            )
            self.conflict = (
                f"TF conflict, so no TF is published: {parent} -> {child} cannot be added, {child} is held by {owner}; "
                f"{fix}, and restart"
            )
            self.choice = "off"
            return "off"
        self._ours.add((parent, child))
        return self.choice

    def _above(self, frame: str, ancestor: str) -> bool:
        """Whether others' edges lead from `frame` up to `ancestor`."""
        seen, todo = set(), [frame]
        while todo:
            frame = todo.pop()
            if frame == ancestor:
                return True
            if frame not in seen:
                seen.add(frame)
                todo += self._parents.get(frame, ())
        return False

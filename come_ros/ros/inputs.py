"""A subscription whose QoS follows its publishers, and a description of incompatible ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSCompatibility, QoSPolicyKind, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.qos_overriding_options import QoSOverridingOptions

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

log = logging.getLogger("come_ros")

OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)


class Input:
    """A subscription that can be opened and closed, and, if reliability is "auto", follows its publishers.

    reliability: best_effort, reliable, or auto: reliable while there are publishers and all of them are. Parameters
    qos_overrides.<topic>.subscription... win over it.
    """

    def __init__(
        self, node: LifecycleNode, kind: type, topic: str, callback: Callable[[Any], None], reliability: str, depth: int
    ) -> None:
        self.topic, self.conflict = topic, ""
        self._node, self._kind, self._callback = node, kind, callback
        self._wish, self._depth = reliability, depth
        self._subscription: Any = None
        self._qos: QoSProfile | None = None

    def open(self) -> None:
        """Subscribes. Forgets earlier incompatible offers."""
        self.conflict = ""
        reliable = self._all_reliable() if self._wish == "auto" else self._wish == "reliable"
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        self._wanted = reliable
        # overrides change it in place, so each subscription has its own
        self._qos = QoSProfile(depth=self._depth, reliability=reliability)
        self._subscription = self._node.create_subscription(
            self._kind,
            self.topic,
            self._callback,
            self._qos,
            qos_overriding_options=QoSOverridingOptions(self._overridable()),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=lambda _: self.follow()),
        )

    def close(self) -> None:
        """Unsubscribes."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription, self.conflict = None, ""

    def follow(self) -> None:
        """Checks the current publishers and sets `conflict`: a description of the incompatible ones, or "". Call it regularly,
        since publishers come and go."""
        if self._subscription is None or self._qos is None:
            return
        if self._wish == "auto" and self._all_reliable() != self._wanted:
            log.info(
                "%s: its publishers are %s, so the subscription is too",
                self.topic,
                "best effort" if self._wanted else "reliable",
            )
            self.close()
            self.open()
        before, self.conflict = self.conflict, self._find_conflict()
        if self.conflict and not before:
            log.warning("%s", self.conflict)

    @property
    def qos(self) -> str:
        """The last requested QoS."""
        return qos_text(self._qos) if self._qos is not None and self._subscription is not None else self._wish

    def publishers(self) -> int:
        """Number of publishers whose messages reach the node if rclpy reports it, else of all publishers."""
        matched = getattr(self._subscription, "get_publisher_count", None)
        return matched() if matched else self._node.count_publishers(self.topic)

    def _overridable(self) -> list[QoSPolicyKind]:
        """The policies that may be overridden. A declared parameter would keep the first reliability, so under "auto" it is
        declared only if it is given."""
        # there is no public access to the parameters given at the start, see parameters.py
        given = f"qos_overrides.{self.topic}.subscription.reliability" in self._node._parameter_overrides
        return [p for p in OVERRIDABLE if self._wish != "auto" or given or p != QoSPolicyKind.RELIABILITY]

    def _all_reliable(self) -> bool:
        offered = self._node.get_publishers_info_by_topic(self.topic)
        return bool(offered) and all(p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in offered)

    def _find_conflict(self) -> str:
        """A description of both profiles, and the fix."""
        assert self._qos is not None
        for other in self._node.get_publishers_info_by_topic(self.topic):
            fits, reason = qos_check_compatible(other.qos_profile, self._qos)
            if fits == QoSCompatibility.ERROR:
                durability = "DURABILITY" in reason.upper()
                fix = "leave its durability volatile" if durability else "set input.reliability to best_effort or auto"
                return (
                    f"the QoS of {self.topic} is incompatible, its messages cannot arrive: the node requests {qos_text(self._qos)}, "
                    f"{_name(other)} offers {qos_text(other.qos_profile)}: {fix}, and remove other overrides"
                )
        return ""


class OutputConflicts:
    """Subscriptions that are incompatible with the node's topics: topic -> both profiles, and the fix."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._found: dict[str, str] = {}

    def callbacks(self, topic: str) -> PublisherEventCallbacks:
        """Event callbacks for the publisher of ~/`topic`."""
        return PublisherEventCallbacks(incompatible_qos=lambda _: self._look(topic))

    def text(self) -> str:
        """A description of the existing conflicts; "" if there are none."""
        for topic in list(self._found):
            self._look(topic)
        return "; ".join(self._found.values())

    def _look(self, topic: str) -> None:
        name = self._node.resolve_topic_name(f"~/{topic}")
        ours = [p.qos_profile for p in self._node.get_publishers_info_by_topic(name)]
        for other in self._node.get_subscriptions_info_by_topic(name) if ours else ():
            if qos_check_compatible(ours[0], other.qos_profile)[0] == QoSCompatibility.ERROR:
                text = (
                    f"{_name(other)} asks for {qos_text(other.qos_profile)} on {name}, but the node offers {qos_text(ours[0])}: "
                    f"it receives nothing; change its QoS, or set qos_overrides.{name}.publisher"
                )
                if topic not in self._found:
                    log.warning("%s", text)
                self._found[topic] = text
                return
        self._found.pop(topic, None)


def _name(endpoint: Any) -> str:
    """Name of the endpoint's node, which is discovered a little later than the endpoint."""
    return "an unknown node" if "UNKNOWN" in endpoint.node_name else endpoint.node_name


def qos_text(qos: QoSProfile) -> str:
    """Such as "reliable volatile 5"; without a depth where DDS does not tell it."""
    text = f"{qos.reliability.name.lower()} {qos.durability.name.lower()}"
    return f"{text} {qos.depth}" if qos.depth else text

"""Config dataclasses <-> ROS parameters, by looping over `Config.parameters()`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from ..config import Config
from ..errors import ConfigError
from ..parameter import Parameter
from ..parameter_file import FOREIGN

_QOS = {
    "reliability": ("reliable", "best_effort", "system_default"),
    "durability": ("volatile", "transient_local", "system_default"),
    "history": ("keep_last", "keep_all", "system_default"),
}


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """Meaning, range and read-only flag, as shown by ROS tools."""
    out = ParameterDescriptor(
        description=parameter.doc,
        additional_constraints=parameter.range_text() if parameter.choices else "",
        read_only=not parameter.dynamic,
        # so that `param set` and YAML accept 1 for 1.0; Config rejects every other type
        dynamic_typing=parameter.type is float,
    )
    if parameter.low is not None and parameter.high is not None:
        if parameter.type is float:
            out.floating_point_range = [
                FloatingPointRange(from_value=float(parameter.low), to_value=float(parameter.high), step=0.0)
            ]
        elif parameter.type is int:
            out.integer_range = [IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high), step=1)]
    return out


def declare_parameters(node: Node) -> Config:
    """Declares every parameter on `node` and returns the Config they make. Raises ConfigError on unknown or invalid ones."""
    # rclpy checks one by one, with its own words and refusing 1 for 1.0, so the given values pass through Config first. There is
    # no public way to list them; the attribute is the same from Humble on.
    given: dict[str, RosParameter[Any]] = node._parameter_overrides
    for name, p in given.items():
        if name.startswith("qos_overrides."):
            _check_qos(name, p.value)
    values = {name: p.value for name, p in given.items() if not name.startswith(FOREIGN)}
    config = Config.from_flat(values)
    for parameter in config.parameters():
        node.declare_parameter(parameter.name, config.get(parameter.name), descriptor(parameter), ignore_override=True)
    return config


def _check_qos(name: str, value: Any) -> None:
    """Raises ConfigError if a QoS override is invalid: rclpy would fail later, or ignore it."""
    match = re.fullmatch(r"qos_overrides\.(/[^.]*)\.(publisher|subscription)(_\w+)?\.(\w+)", name)
    policies = (*_QOS, "depth")
    if match is None or match[4] not in policies:
        raise ConfigError(
            f"{name} is not a QoS override: write qos_overrides./TOPIC.publisher.POLICY or qos_overrides./TOPIC.subscription.POLICY, "
            f"POLICY one of {', '.join(policies)}"
        )
    if match[4] == "depth":
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"{name} is {value!r}, but must be a whole number of 1 or more: the messages that a queue holds"
            )
    elif value not in _QOS[match[4]]:
        raise ConfigError(f"{name} is {value!r}, but must be one of {', '.join(_QOS[match[4]])}")


def follow_parameters(node: Node, config: Config, changed: Callable[[Config], None]) -> None:
    """Calls `changed` with the new Config after each accepted change; a rejected one is answered with the reason, and changes
    nothing."""
    current = config
    known = {p.name for p in config.parameters()}

    def on_set(given: list[RosParameter[Any]]) -> SetParametersResult:
        nonlocal current
        ours: dict[str, Any] = {p.name: p.value for p in given if p.name in known}
        if not ours:
            return SetParametersResult(successful=True)
        try:
            current = current.replace(**ours)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        changed(current)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(on_set)

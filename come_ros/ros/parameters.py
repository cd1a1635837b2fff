"""Config dataclasses <-> ROS parameters, by looping over `Config.parameters()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from ..config import Config, Parameter
from ..errors import ConfigError

_FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides.")  # declared by rclpy itself


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """Meaning, range and read-only flag as ROS tools show them."""
    out = ParameterDescriptor(
        description=parameter.doc,
        additional_constraints=parameter.range_text() if parameter.choices else "",
        read_only=not parameter.dynamic,
        # so that `param set` and YAML may say 1 for 1.0; Config refuses every other type
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
    given: dict[str, RosParameter] = node._parameter_overrides
    values = {name: p.value for name, p in given.items() if not name.startswith(_FOREIGN)}
    config = Config.from_flat(values)
    for parameter in config.parameters():
        node.declare_parameter(parameter.name, config.get(parameter.name), descriptor(parameter), ignore_override=True)
    return config


def follow_parameters(node: Node, config: Config, changed: Callable[[Config], None]) -> None:
    """Calls `changed` with the new Config after each accepted change; a refused one gets its reason back, and changes nothing."""
    current = config
    known = {p.name for p in config.parameters()}

    def on_set(given: list[RosParameter]) -> SetParametersResult:
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

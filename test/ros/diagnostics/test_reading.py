"""What `come_ros monitor` makes of the statuses of a node."""

from __future__ import annotations

import json
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from ros.diagnostics.test_statuses import METRES, VIEW, Clock, made

from come_ros.ros.diagnostics.counters import FrameCounters
from come_ros.ros.diagnostics.keys import STATUSES
from come_ros.ros.diagnostics.reading import LEVELS, number, read, worst
from come_ros.ros.diagnostics.statuses import statuses
from come_ros.ros.programs.monitor import facts, text


def array(**view: object) -> DiagnosticArray:
    clock = Clock()
    telemetry = made(clock)
    clock.now += 3.0
    ours = statuses(replace(VIEW, **view), METRES, telemetry, FrameCounters().snapshot())
    return DiagnosticArray(status=[DiagnosticStatus(name="camera: driver", level=b"\2"), *ours])


def test_every_value_is_there_and_numbers_are_numbers() -> None:
    seen = read(array())
    told = json.loads(json.dumps(facts("/come", 1_500_000_000, seen, ["/other"])))
    assert (told["node"], told["time"], told["mixed_with"]) == ("/come", 1.5, ["/other"])
    assert all(set(told[name]) >= set(STATUSES[name]) - {"depth", "odometry", "base_frame", "extrinsics", "sync"}
               for name in ("input", "output"))  # fmt: skip
    assert told["input"]["received"] == 0 and told["output"]["agreement"] is None
    assert told["inference"]["state"] == "active"
    assert read(DiagnosticArray(status=[DiagnosticStatus(name="camera: driver")])) == {}
    assert [number(word) for word in ("3", "2.5", "nan", "inf", "fast", "")] == [3, 2.5, None, None, "fast", ""]


def test_the_lines_hold_rates_latency_and_faults_and_every_key_they_name_exists() -> None:
    lines = text("/come", read(array()), [])
    assert "?" not in lines and "/come  active" in lines and "0.0 Hz in" in lines and "latency" in lines
    assert "WARN      input: no image for 3 s on /image: check" in lines and "MIXED" not in lines
    assert "MIXED     /other" in text("/come", read(array()), ["/other"])


def test_the_level_is_that_of_the_worst_status() -> None:
    assert LEVELS[worst(read(array()))] == "WARN"
    assert LEVELS[worst(read(array(fault="cannot configure: no weights")))] == "ERROR"

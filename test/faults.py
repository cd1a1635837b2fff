"""The fault matrix: what goes wrong, what the node then does, and the tests that show it.

python test/faults.py [FILE]     runs them and writes the outcomes (default: test/benchmark/robustness/results/fault_matrix.md)
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from benchmark.stamped import write_result

ROOT = Path(__file__).resolve().parents[1]


class Row(NamedTuple):
    """condition, and the behaviour promised. tests: file::function, relative to test/."""

    condition: str
    behaviour: str
    tests: tuple[str, ...]


MATRIX = (
    Row(
        "torch or CUDA missing, or of the wrong ABI",
        "configure fails with one line and the pip command; device: cuda:N that is not available fails",
        (
            "ros/test_faults.py::test_without_torch_configure_fails_in_one_line_with_the_command",
            "ros/test_faults.py::test_a_device_that_is_not_available_is_a_failure",
        ),
    ),
    Row(
        "weights file missing",
        "configure fails with the path; once that is fixed, it can be tried again",
        (
            "ros/test_node.py::test_a_missing_checkpoint_fails_configure_in_one_line",
            "ros/test_lifecycle.py::test_a_failed_configure_can_be_fixed_and_tried_again",
        ),
    ),
    Row(
        "no camera_info",
        "goes on with predicted intrinsics after 1 s; WARN",
        ("ros/test_faults.py::test_without_camera_info_it_goes_on_with_predicted_intrinsics_and_a_warning",),
    ),
    Row(
        "camera_info of another size, or K = 0",
        "ignored as if missing; WARN with both sizes",
        ("ros/test_node.py::test_compressed_images_and_an_unmatched_camera_info",),
    ),
    Row(
        "encoding unsupported, data cut off, bad JPEG",
        "dropped as decode; ERROR names the encoding and those that can be read",
        (
            "ros/test_node.py::test_bad_frames_are_counted_told_and_survived",
            "ros/test_stream.py::test_damaged_compressed_images_are_dropped",
        ),
    ),
    Row(
        "resolution, encoding or frame_id change",
        "the window before is finished, a new one continues from the last pose; INFO; no frame lost",
        (
            "ros/test_stream.py::test_every_fault_of_a_stream_is_said_and_counted",
            "ros/test_worker.py::test_a_change_in_mid_stream_loses_no_frame",
        ),
    ),
    Row(
        "camera stops, and comes back",
        "input WARN after 2 s, ERROR after 5 s; then on from the last pose, its variance unknown",
        ("ros/test_faults.py::test_a_camera_that_stops_is_missed_and_goes_on_where_it_was",),
    ),
    Row(
        "time goes back (bag in a loop), stands still; zero stamps",
        "on_time_jump; dropped as time; the time of arrival, WARN once",
        (
            "ros/test_node.py::test_time_jumps_restart_the_world",
            "test_pipeline.py::test_a_jump_back_is_met_as_on_time_jump_says",
            "ros/test_qos.py::test_zero_stamps_without_clock_take_the_system_time",
        ),
    ),
    Row(
        "memory of the device is full",
        "caches freed, the window tried again a step lower, after 60 s clean a step back; at the last step ERROR, the node stays up",
        (
            "ros/test_lifecycle.py::test_short_memory_makes_windows_smaller_and_is_said",
            "ros/test_lifecycle.py::test_when_nothing_fits_the_node_stays_up_and_says_so",
            "test_governor.py::test_memory_goes_down_at_once_and_up_after_a_minute_without_failure",
        ),
    ),
    Row(
        "sticky CUDA error",
        "deactivated, ERROR, exit code 70; never tried again",
        (
            "ros/test_lifecycle.py::test_a_lost_device_ends_the_process_with_code_70",
            "ros/test_worker.py::test_a_lost_device_ends_the_thread_and_says_so_once",
        ),
    ),
    Row(
        "inference slower than the input",
        "the newest win, dropped_busy; one window waits at most; overlap from frames really used",
        (
            "ros/test_node.py::test_a_slow_model_gets_the_newest_frames_and_old_results_are_dropped",
            "ros/test_worker.py::test_the_newest_win_and_the_others_are_busy",
        ),
    ),
    Row(
        "TF base_frame -> camera missing",
        "after tf.lookup_timeout: odometry of the camera, no TF, WARN",
        ("ros/test_tf.py::test_a_robot_without_the_camera_gets_odometry_of_the_camera_and_no_tf",),
    ),
    Row(
        "TF conflict",
        "no second parent; ERROR once; odometry goes on",
        ("ros/test_tf.py::test_no_second_parent_even_if_asked_for",),
    ),
    Row(
        "degenerate motion: pure rotation, standing still",
        "the scale stays, no NaN in any pose",
        ("test_alignment.py::test_twenty_windows_give_back_the_trajectory",
         "test_alignment.py::test_shared_frames_without_valid_depth_leave_the_scale_as_it_was"),
    ),
    Row(
        "alignment residual above the gate",
        "the window is refused and counted, the pose kept; three in a row begin a new chain there, WARN",
        (
            "test_pipeline.py::test_refused_windows_leave_a_hole_and_the_chain_recovers",
            "test_pipeline.py::test_three_refused_in_a_row_start_again_where_the_camera_was",
        ),
    ),
    Row(
        "parameter out of range",
        "refused with a reason, nothing changed; at the start the node does not start",
        (
            "ros/test_node.py::test_dynamic_parameters_take_effect_and_wrong_ones_are_refused_with_a_reason",
            "ros/test_node.py::test_a_wrong_parameter_stops_the_start",
        ),
    ),
    Row(
        "QoS that does not fit",
        "WARN with both profiles until it does",
        (
            "ros/test_qos.py::test_what_does_not_fit_is_shown_with_both_profiles_until_it_does",
            "ros/test_qos.py::test_who_asks_our_topics_for_more_than_they_offer_is_named",
        ),
    ),
    Row(
        "disk full, or a bad path, in save_map",
        "success is false, with a message; nothing is left behind",
        ("ros/test_services.py::test_save_map_says_what_stands_against_it_and_leaves_nothing",),
    ),
    Row(
        "SIGINT, SIGTERM",
        "ends within 3 s with code 0, no traceback, also in a pass or while weights load",
        (
            "ros/test_node.py::test_a_signal_ends_a_running_pass",
            "ros/test_node.py::test_a_signal_ends_the_loading_of_weights",
        ),
    ),
)  # fmt: skip


def outcomes() -> dict[str, str]:
    """Test -> passed, failed or skipped; the worst of its cases."""
    names = sorted({test for row in MATRIX for test in row.tests})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        subprocess.run([*command, *(f"test/{name}" for name in names)], cwd=ROOT, check=False)
        found: dict[str, set[str]] = {}
        for case in ET.parse(report).iter("testcase"):
            name = f"{case.get('file', '').removeprefix('test/')}::{case.get('name', '').partition('[')[0]}"
            failed = case.find("failure") is not None or case.find("error") is not None
            outcome = "failed" if failed else "skipped" if case.find("skipped") is not None else "passed"
            found.setdefault(name, set()).add(outcome)
    return {
        name: next((o for o in ("failed", "skipped", "passed") if o in found.get(name, ())), "not run")
        for name in names
    }


def main() -> int:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "test/benchmark/robustness/results/fault_matrix.md"
    seen = outcomes()
    lines = [
        "# Fault matrix", "", "Made by `python test/faults.py`, which ran these tests.",
        f"{platform.machine()}, Python {platform.python_version()}.", "",
        "| what goes wrong | what the node does | test | outcome |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in MATRIX:
        condition, behaviour = row.condition, row.behaviour
        for test in row.tests:
            lines.append(f"| {condition} | {behaviour} | `{test}` | {seen[test]} |")
            condition = behaviour = ""
    write_result(target.parent, target.stem, text="\n".join(lines) + "\n")
    print(
        f"{target}: {', '.join(f'{n} {o}' for o in ('passed', 'failed', 'skipped', 'not run') if (n := list(seen.values()).count(o)))}"
    )
    return int(set(seen.values()) != {"passed"})


if __name__ == "__main__":
    sys.exit(main())

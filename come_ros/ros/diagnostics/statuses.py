"""The three statuses on /diagnostics, built from plain values. Every warning carries its fix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from ...alignment import MAX_DEPTH_RESIDUAL
from ...config import Config
from ...governor import State
from ...mapping.mapper import LoopCounts
from ...outputs.world import Whereabouts
from ...scale.decide import MAP
from ...thread_governor import ThreadState
from ...types import NO_SCALE, DeviceMemory, Scale
from ...verdict.judge import LEAST_KEYFRAMES, UNUSABLE, USABLE, Facts, Verdict, judge
from .counters import Counts, drops_text
from .telemetry import Telemetry

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
SILENT_WARN_S, SILENT_ERROR_S = 2.0, 5.0
LEAST_RECEIVED = 3  # images, before it is said that none was used
CLOCK_S = 5.0
HIGH_RESIDUAL = 0.7 * MAX_DEPTH_RESIDUAL  # share of the gate that refuses a window


@dataclass(frozen=True)
class NodeView:
    """Values that only the node knows. state: lifecycle label, or "paused". clock: "system", "sim" or "sim without /clock".
    governor, threads, memory: of the pipeline, None while there is none (threads: or where they do not follow the load; memory: or
    on the CPU). elsewhere: where images are, while none come. twin: what to do about another node of our name. lately: seconds,
    and the counts of these."""

    state: str
    topic: str
    publishers: int
    qos: str
    clock: str
    tf: str
    tf_conflict: str = ""
    fault: str = ""
    worker_alive: bool = True
    lost: str = ""
    elsewhere: str = ""
    twin: str = ""
    lately: tuple[float, Counts] | None = None
    qos_conflict: str = ""
    output_conflict: str = ""
    loops: LoopCounts | None = None
    keyframes: int = 0
    whereabouts: Whereabouts | None = None
    scale: Scale = NO_SCALE
    governor: State | None = None
    threads: ThreadState | None = None
    memory: DeviceMemory | None = None
    backbone: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"


def statuses(view: NodeView, config: Config, telemetry: Telemetry, counts: Counts) -> list[DiagnosticStatus]:
    """`come: input`, `come: inference`, `come: output`."""
    hardware = view.backbone.get("device", view.device)
    return [
        _status("input", hardware, _input_values(view, telemetry, counts), _input_faults(view, telemetry, counts)),
        _status(
            "inference",
            hardware,
            _inference_values(view, config, telemetry),
            _inference_faults(view, config, telemetry),
        ),
        _status("output", hardware, _output_values(view, config, telemetry), _output_faults(view, config, telemetry)),
    ]


Fault = tuple[bytes, str]


def _status(name: str, hardware: str, values: Mapping[str, object], faults: Iterable[Fault]) -> DiagnosticStatus:
    """The worst problem sets the level; the message lists all problems, the worst first."""
    faults = sorted(faults, key=lambda fault: fault[0], reverse=True)
    return DiagnosticStatus(
        level=faults[0][0] if faults else OK,
        name=f"come: {name}",
        message="; ".join(text for _, text in faults) or "ok",
        hardware_id=hardware,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _input_values(view: NodeView, telemetry: Telemetry, counts: Counts) -> dict[str, object]:
    return {
        "topic": view.topic,
        "publishers": view.publishers,
        "qos": view.qos,
        "encoding": telemetry.encoding,
        "size": telemetry.size,
        "converters": telemetry.converters,
        "fps_in": f"{telemetry.rates().fps_in:.1f}",
        "received": counts.received,
        "used": counts.used,
        "pending": counts.pending,
        **{f"dropped_{reason}": frames for reason, frames in counts.dropped.items()},
        "camera_info": telemetry.camera_info,
        **telemetry.known,
        "clock": view.clock,
    }


def _input_faults(view: NodeView, telemetry: Telemetry, counts: Counts) -> Iterable[Fault]:
    if view.state != "active":
        return
    if silent := silence_fault(view, telemetry):
        yield silent
    elif unused := _unused(view):
        yield WARN, unused
    if bad := telemetry.recent("decode"):
        yield ERROR, bad
    if view.qos_conflict:
        yield WARN, view.qos_conflict
    if counts.received and telemetry.camera_info != "ok":
        yield WARN, telemetry.camera_info
    for topic, state in telemetry.known.items():
        if counts.received and state != "ok":
            yield WARN, f"{topic}: {state}"
    if "without" in view.clock:
        yield (
            WARN,
            "use_sim_time is set but nothing comes on /clock: play the bag with --clock, or set use_sim_time to false",
        )


def silence_fault(view: NodeView, telemetry: Telemetry) -> Fault | None:
    """That nothing comes, why that may be, and what to do; None while images come, whatever becomes of them."""
    silence = telemetry.silence_s()
    if view.state != "active" or silence < SILENT_WARN_S:
        return None
    if not view.publishers:
        return (
            WARN,
            f"no image for {silence:.0f} s, nobody publishes on {view.topic}: {view.elsewhere or 'start the camera'}",
        )
    if silence < SILENT_ERROR_S:
        return WARN, f"no image for {silence:.0f} s on {view.topic}: check that the camera runs"
    return ERROR, (
        f"no image for {silence:.0f} s, though {view.publishers} publish on {view.topic}: check that the camera runs, "
        f"publishes reliable or with the large-message profile, and that its QoS matches input.reliability"
    )


def _unused(view: NodeView) -> str:
    """That images come, but nothing comes of them; "" where that is not so."""
    seconds, lately = view.lately or (0.0, None)
    if lately is None or lately.used or lately.received < LEAST_RECEIVED:
        return ""
    text, fix = drops_text(lately.dropped)
    if not text or sum(lately.dropped.values()) < lately.received / 2 or lately.dropped["not_keyframe"] > 0:
        return ""
    return f"{lately.received} images came in {seconds:.0f} s, but none was used; dropped: {text}: {fix}"


def _inference_values(view: NodeView, config: Config, telemetry: Telemetry) -> dict[str, object]:
    rates, governor, threads, memory = telemetry.rates(), view.governor, view.threads, view.memory
    stream = telemetry.stream
    used_mb, free_mb = ("nan", "nan") if memory is None else (f"{memory.used:.0f}", f"{memory.free:.0f}")
    return {
        "state": view.state,
        "device": view.device,
        "backbone": config.backbone,
        "accelerator": config.accelerator.name,
        "kernels": config.kernels,
        **view.backbone,
        "window": governor.size if governor else config.window.size,
        "overlap": config.window.shared,
        "resolution": telemetry.resolution,
        "max_side": governor.effort.side if governor else config.input.max_side,
        "merge_ratio": f"{governor.effort.ratio if governor else config.accelerator.ratio:g}",
        "kept_ratio": f"{telemetry.kept_ratio:.3f}",
        "read_ratio": f"{telemetry.read_ratio:.3f}",
        "encoder_reused": f"{telemetry.reused:.3f}",
        "encoder_saved_ms": f"{telemetry.saved_ms:.1f}",
        "stream_frames": f"{stream.frames} of {stream.most_frames}" if stream else "none",
        "stream_window": f"{stream.local} of {stream.window}" if stream else "none",
        "stream_mib": f"{stream.mib:.1f} of {stream.most_mib:.1f}" if stream else "none",
        "latency_ms_mean": f"{rates.latency_ms_mean:.1f}",
        "latency_ms_p95": f"{rates.latency_ms_p95:.1f}",
        "latency_target_ms": f"{config.latency_target_ms:g}",
        "governor_level": f"{governor.level} of {governor.levels}" if governor else "0",
        "threads": f"{threads.threads} of {threads.most}" if threads else config.threads or "all",
        "slowdown": f"{threads.slowdown:.2f}" if threads else "nan",
        "fps_out": f"{rates.fps_out:.2f}",
        "vram_used_mb": used_mb,
        "vram_free_mb": free_mb,
        "oom_count": governor.oom_count if governor else 0,
        "ladder_step": f"{governor.ladder_step} of {governor.ladder_steps}" if governor else "0",
    }


def _inference_faults(view: NodeView, config: Config, telemetry: Telemetry) -> Iterable[Fault]:
    if view.lost:
        yield (
            ERROR,
            f"the device is lost ({view.lost}): the process ends, restart it; if it comes again, check the driver",
        )
    elif not view.worker_alive:
        yield ERROR, "the worker thread is dead: restart the node, and report its log"
    if view.fault:
        yield ERROR, view.fault
    for kind in ("inference", "worker"):
        if failure := telemetry.recent(kind):
            yield ERROR, f"{failure}: see the log of the node"
    governor = view.governor
    if governor is None:
        return
    if governor.exhausted:
        yield (
            ERROR,
            (
                "out of memory with the smallest possible window: free memory on the device, lower input.max_side, or take smaller weights"
            ),
        )
    elif governor.ladder_step:
        yield (
            WARN,
            (
                f"memory was short {governor.oom_count} times, so windows are smaller than asked for (step {governor.ladder_step} of "
                f"{governor.ladder_steps}): free memory on the device, or lower window.size or input.max_side"
            ),
        )
    target = config.latency_target_ms
    if 0 < target < telemetry.rates().latency_ms_p95:
        fix = (
            "all settings are at their limits: raise latency_target_ms, lower input.max_side, or take a faster device or smaller weights"
            if governor.limited
            else "the governor is reducing the cost of a window: wait, or lower window.size"
        )
        yield (
            WARN,
            f"results take {telemetry.rates().latency_ms_p95:.0f} ms (p95), longer than latency_target_ms ({target:g}): {fix}",
        )


def _output_values(view: NodeView, config: Config, telemetry: Telemetry) -> dict[str, object]:
    alignment = telemetry.alignment
    facts, verdict = _judged(view, telemetry)
    return {
        "verdict": verdict.level if verdict else "none",
        "verdict_reason": verdict.reason if verdict else "none",
        "verdict_advice": (verdict.advice if verdict else "") or "none",
        "agreement": f"{facts.agreement:.2f}",
        "path_extent": f"{facts.extent:.3f}",
        "frame": config.odom_frame,
        "map_frame": config.world_frame,
        "tf_mode": view.tf,
        "last_stamp": f"{telemetry.last_stamp_ns // 10**9}.{telemetry.last_stamp_ns % 10**9:09d}",
        "age_ms_p95": f"{telemetry.rates().latency_ms_p95:.1f}",
        "points": "not subscribed" if telemetry.points < 0 else telemetry.points,
        "align_residual": "nan" if alignment is None else f"{alignment.depth_residual:.4f}",
        "align_shared": "nan" if alignment is None else alignment.shared,
        **_refinement_values(config, telemetry),
        **_scale_values(view, config, telemetry),
        "intrinsics_source": telemetry.intrinsics_source,
        "resets": telemetry.resets,
        **_loop_values(view),
        **_pose_values(telemetry),
    }


def _scale_values(view: NodeView, config: Config, telemetry: Telemetry) -> dict[str, object]:
    scale = view.scale
    metre, own = "metre", "the model's own"
    place = view.whereabouts
    if place is None or place.located:
        map_in_metres = scale.in_metres or (scale.known and config.has_map_frame)
    else:  # the map has the saved one's unit until the session is found in it
        map_in_metres = math.isfinite(place.metres)
    age_s = (telemetry.last_stamp_ns - scale.stamp_ns) * 1e-9 if scale.stamp_ns else float("nan")
    return {
        "scale": f"{scale.metres:.6g}",
        "scale_source": scale.source,
        "scale_sigma": f"{scale.sigma:.4f}",
        "scale_age_s": f"{max(0.0, age_s):.1f}" if scale.stamp_ns else "nan",
        "scale_by_source": "; ".join(
            f"{s.name} {s.metres:.4g} sigma {s.sigma:.3f} ({s.readings} readings)" for s in scale.sources
        ) or "none",
        "scale_left_out": ", ".join(f"{n} {reason}" for reason, n in scale.left_out) or "none",
        "scale_conflict": scale.conflict or "none",
        "odom_unit": metre if scale.in_metres else own,
        "map_unit": metre if map_in_metres else own,
    }  # fmt: skip


def _judged(view: NodeView, telemetry: Telemetry) -> tuple[Facts, Verdict | None]:
    """What is known of the newest keyframes, and the verdict on them; None where they are too few."""
    facts = replace(telemetry.evidence.facts(), loops=view.loops.accepted if view.loops else 0)
    return facts, judge(facts) if facts.keyframes >= LEAST_KEYFRAMES else None


def _refinement_values(config: Config, telemetry: Telemetry) -> dict[str, object]:
    """Values of the bundle of the last window."""
    went = telemetry.refinement
    return {
        "refine_mode": config.refine.mode,
        "refined": f"{went.refined:.2f}",
        "refine_reason": went.reason or "ok",
        "landmarks": went.landmarks,
        "landmark_inliers": f"{went.inliers} of {went.observations}",
        "reprojection_px": f"{went.error_px:.2f}",
        "refine_ms": f"{telemetry.refine_ms:.1f}",
    }


def _loop_values(view: NodeView) -> dict[str, object]:
    """Of the map's graph."""
    loops = view.loops or LoopCounts()
    most = ", ".join(f"{n} {reason}" for reason, n in dict(loops.refused).items())
    place = view.whereabouts
    return {
        "map_keyframes": view.keyframes, "map_loaded": "none" if place is None else place.keyframes,
        "map_located": "none" if place is None else place_text(place), "map_scale": "nan" if place is None else f"{place.unit:.3g}",
        "loops_offered": loops.offered, "loops_closed": loops.accepted,
        "loops_refused": most or "none",
    }  # fmt: skip


def place_text(place: Whereabouts) -> str:
    """Whether the camera was found in the saved map."""
    tried = f"{place.looked} keyframes, {place.compared} pairs of views compared"
    if place.located:
        return f"yes, after {place.after_s:.1f} s, {tried}"
    return f"no: {tried}, most often: {place.reason}" if place.looked else "no: no keyframe yet"


def _pose_values(telemetry: Telemetry) -> dict[str, object]:
    """Values of odometry at the camera's rate."""
    rates, last = telemetry.pose_rates(), telemetry.last_located
    return {
        "pose_hz": f"{rates.hz:.1f}",
        "pose_latency_ms": f"{rates.latency_ms:.1f}",
        "pose_latency_ms_p95": f"{rates.latency_ms_p95:.1f}",
        "pose_cost_ms": f"{rates.cost_ms:.1f}",
        "pose_points": "nan" if last is None else last.points,
        "pose_inliers": "nan" if last is None else last.inliers,
        "pose_error_px": "nan" if last is None else f"{last.error:.2f}",
        "pose_priority": {None: "nan", True: "raised", False: "normal"}[telemetry.goes_first],
        "pose_lost": telemetry.lost,
        "shutter_readout_ms": "nan" if last is None else f"{last.readout_ms:.1f}",
    }


def lost_in_map(place: Whereabouts | None) -> str:
    """That the camera was not found in the saved map yet, and what to do; "" where that is not so."""
    if place is None or place.located or not place.looked:
        return ""
    return (
        f"not found in the map {place.path} yet ({place_text(place)}), so no pose in it is published: move the camera to a place that "
        f"the map shows"
    )


def _output_faults(view: NodeView, config: Config, telemetry: Telemetry) -> Iterable[Fault]:
    if view.tf_conflict:
        yield ERROR, view.tf_conflict
    last = telemetry.last_located
    if last is not None and last.lost and view.state == "active":
        yield (
            WARN,
            (
                f"the pose is lost, {last.inliers} of {last.points} points fit, and only carried on until a window finds it: move the "
                f"camera slower, or give it more light or texture"
            ),
        )
    if (fault := lost_in_map(view.whereabouts)) and view.state == "active":
        yield WARN, fault
    if old := telemetry.recent("old"):
        yield WARN, f"{old}, longer than max_data_age: lower window.size or input.max_side, or raise max_data_age"
    if refused := telemetry.recent("rejected"):
        yield WARN, f"a window was refused ({refused}): move the camera slower, or raise the frame rate"
    if telemetry.alignment is not None and telemetry.alignment.depth_residual > HIGH_RESIDUAL:
        yield (
            WARN,
            (
                f"windows fit each other badly (residual {telemetry.alignment.depth_residual:.2f}): move the camera slower, or raise "
                f"window.overlap"
            ),
        )
    verdict = _judged(view, telemetry)[1]
    if verdict is not None and verdict.level != USABLE and view.state == "active":
        # doubtful is a remark, and no lamp that is always yellow: a camera that stands still is no fault
        yield WARN if verdict.level == UNUSABLE else OK, f"verdict: {verdict.line}"
    if view.twin:
        yield WARN, view.twin
    if view.output_conflict:
        yield WARN, view.output_conflict
    scale = view.scale
    if scale.conflict:
        yield (
            WARN,
            f"sources of the scale disagree: {scale.conflict}: check their units, extrinsics and scale.height, or choose one by scale.mode",
        )
    if not scale.in_metres:
        # as it is with one camera: no fault, and so no warning that never ends
        yield OK, _unit_remark(scale, config)


def _unit_remark(scale: Scale, config: Config) -> str:
    """Why lengths of odometry are no metres, and what to do about it."""
    if scale.source == MAP:
        return f"the scale is that of the loaded map: {config.odom_frame} keeps the model's own unit, {config.world_frame} is in metres"
    if not config.scale_sources:
        return (
            "the scale is unknown, lengths are in the model's own unit: for metres set scale.mode to depth, odometry, rig or height, or to "
            "fixed with scale.fixed"
        )
    if not scale.known:
        why = ", ".join(f"{n} {reason}" for reason, n in scale.left_out) or "nothing measured yet"
        return f"the scale is not known yet ({why}), lengths are in the model's own unit: see scale_by_source"
    return (
        f"the scale became known after this world began: {config.odom_frame} keeps the model's own unit, "
        f"{config.world_frame} is in metres; set scale.restart to true for metres in both"
        if config.has_map_frame
        else f"the scale became known after this world began: {config.odom_frame} keeps the model's own unit; set scale.restart to true"
    )

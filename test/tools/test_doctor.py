"""`come_ros doctor` finds seeded faults, says the fix of each, and its exit code says whether a run can work.

`python test/tools/test_doctor.py [FILE]` writes what it says of each fault as a table.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from come_ros.config import Config
from come_ros.ros.environment import profile_variable
from come_ros.tools import cli, doctor
from come_ros.tools.doctor import checks, running_system
from come_ros.tools.doctor.checks import FAIL, OK, WARN

ROOT = Path(__file__).resolve().parents[2]

SEEN: dict[str, Any] = {
    "images": {"/cam/image_raw": "sensor_msgs/msg/Image"},
    "topic": "/cam/image_raw",
    "kind": "sensor_msgs/msg/Image",
    "camera_info_topic": "/cam/camera_info",
    "publishers": [["driver", "best_effort", "volatile"]],
    "received": 3,
    "encoding": "rgb8",
    "size": "640x480",
    "frame_id": "cam_optical_frame",
    "stamps_ns": [[10**18 + i * 10**8, 10**18 + i * 10**8 + 10**7] for i in range(3)],
    "unreadable": "",
    "camera_info": {"received": 3, "remark": ""},
    "tf": {"cam_optical_frame": ["base_link"]},
    "clock": {"publishers": 0, "ticks": 0},
    "nodes": ["/driver", "/come_ros_probe"],
}
"""A system in which all is well."""

Patch = pytest.MonkeyPatch
Found = list[checks.Finding]


def seen(**changes: Any) -> Found:
    """What is said of SEEN with some facts changed; options of judge begin with an underscore."""
    options = {k[1:]: changes.pop(k) for k in list(changes) if k.startswith("_")}
    config = Config().replace(**options.pop("config", {}))
    return list(
        running_system.judge(
            {**SEEN, **changes}, config, options.get("topic", SEEN["topic"]), options.get("sim_time", False)
        )
    )


def old_python(patch: Patch, folder: Path) -> Found:
    patch.setattr(sys, "version_info", (3, 8, 10))
    return list(checks.python())


def no_pillow(patch: Patch, folder: Path) -> Found:
    patch.setattr(checks.importlib, "import_module", refuse(("PIL",), ModuleNotFoundError("No module named 'PIL'")))
    return list(checks.libraries())


def no_torch(patch: Patch, folder: Path) -> Found:
    error = ImportError("libcudart.so.12: cannot open shared object file")
    patch.setattr(checks.importlib, "import_module", refuse(("torch",), error))
    return list(checks.torch())


def torch_of_another_gpu(patch: Patch, folder: Path) -> Found:
    def ones(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    cuda = types.SimpleNamespace(is_available=lambda: True, get_device_properties=lambda _: None)
    fake = types.SimpleNamespace(
        __version__="2.9", get_num_threads=lambda: 2, cuda=cuda, ones=ones, version=types.SimpleNamespace(cuda="12.8"),
        device=lambda _: None,
    )  # fmt: skip
    cuda.get_device_properties = ones
    patch.setattr(checks.importlib, "import_module", refuse(("cupy",), ImportError("cupy"), {"torch": fake}))
    path = folder / "nvidia-smi"
    path.write_text("#!/bin/sh\necho 470.57.02\n")
    path.chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return list(checks.torch(Config(device="cuda:0")))


def cut_weights(patch: Patch, folder: Path) -> Found:
    from safetensors.numpy import save

    (folder / "model.safetensors").write_bytes(save({"a": np.zeros(100, np.float16)})[:-1])
    return list(checks.weights(Config(weights=str(folder / "model.safetensors"))))


def malicious_weights(patch: Patch, folder: Path) -> Found:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {folder / 'owned'}",)

    (folder / "model.pt").write_bytes(pickle.dumps(Evil()))
    found = list(checks.weights(Config(weights=str(folder / "model.pt"))))
    assert not (folder / "owned").exists(), "code in a weights file was run"
    return found


def missing_weights(patch: Patch, folder: Path) -> Found:
    return list(checks.weights(Config(weights=str(folder / "none.safetensors"))))


def missing_messages(patch: Patch, folder: Path) -> Found:
    find = checks.importlib.util.find_spec
    patch.setattr(checks.importlib.util, "find_spec", lambda name: None if name == "nav_msgs" else find(name))
    return list(checks.messages())


def broken_cv_bridge(patch: Patch, folder: Path) -> Found:
    """As its C module does under another NumPy: it takes the process down."""
    (folder / "cv_bridge.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    patch.syspath_prepend(str(folder))
    patch.setenv("PYTHONPATH", str(folder))
    return list(checks.messages())


def missing_profile(patch: Patch, folder: Path) -> Found:
    patch.setenv(profile_variable(), "/nowhere/profile.xml")
    return list(checks.profile())


def wrong_rmw(patch: Patch, folder: Path) -> Found:
    patch.setenv("RMW_IMPLEMENTATION", "rmw_of_nobody_cpp")
    return list(checks.ros())


def little_shared_memory(patch: Patch, folder: Path) -> Found:
    usage = types.SimpleNamespace(free=10 * checks.MIB, total=64 * checks.MIB)
    patch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    return list(checks.shared_memory())


def little_memory(patch: Patch, folder: Path) -> Found:
    patch.setattr(checks, "free_memory", lambda: 300 * checks.MIB)
    said = {"base_mib": 100, "frame_mib": 30, "size": "518x392", "device": "cpu"}
    done = types.SimpleNamespace(stdout=json.dumps(said))
    patch.setattr(checks.subprocess, "run", lambda *_, **__: done)
    return list(checks.largest_window(Config()))


def refuse(names: tuple[str, ...], error: Exception, instead: dict[str, Any] | None = None) -> Callable[[str], Any]:
    real = checks.importlib.import_module

    def load(name: str) -> Any:
        if name in names:
            raise error
        return (instead or {}).get(name) or real(name)

    return load


FAULTS: dict[str, tuple[Callable[[Patch, Path], Found], str, str]] = {
    "Python is too old": (old_python, FAIL, "3.10"),
    "a library is missing": (no_pillow, FAIL, "pip install pillow"),
    "torch's CUDA libraries are missing": (no_torch, FAIL, "pip install torch"),
    "torch is not built for this GPU, and the driver is old": (torch_of_another_gpu, FAIL, "nvidia-smi"),
    "the weights file is cut off": (cut_weights, FAIL, "again"),
    "the weights file holds code": (malicious_weights, FAIL, "again"),
    "the weights file is not there": (missing_weights, FAIL, "path of the file"),
    "a message package is missing": (missing_messages, FAIL, "source its setup.bash"),
    "cv_bridge crashes at import": (broken_cv_bridge, WARN, "numpy<2"),
    "the DDS profile names no file": (missing_profile, FAIL, f"unset {profile_variable()}"),
    "the RMW is not installed": (wrong_rmw, FAIL, "unset RMW_IMPLEMENTATION"),
    "/dev/shm is small": (little_shared_memory, WARN, "--shm-size"),
    "the window does not fit into memory": (little_memory, WARN, "window.size to 4"),
    "nobody publishes the topic": (lambda *_: seen(kind="", images={"/other": ""}), FAIL, "remap `image`"),
    "the topic is compressed": (
        lambda *_: seen(kind="sensor_msgs/msg/CompressedImage"), FAIL, "set image_transport to compressed"),
    "QoS: reliable is asked for, best effort is offered": (
        lambda *_: seen(_config={"input.reliability": "reliable"}), FAIL, "best_effort or auto"),
    "images do not arrive": (lambda *_: seen(received=0, stamps_ns=[]), FAIL, "DDS profile"),
    "the encoding is unknown": (
        lambda *_: seen(unreadable="encoding 'sepia' cannot be read: it must be one of rgb8"), FAIL, "one of those"),
    "camera_info is missing": (lambda *_: seen(camera_info={"received": 0, "remark": ""}), WARN, "remap `camera_info`"),
    "camera_info is of another size": (
        lambda *_: seen(camera_info={"received": 1, "remark": "camera_info is for 320x240 px, the image has 640x480"}),
        WARN, "calibrate"),
    "a frame has two parents": (lambda *_: seen(tf={"cam": ["odom", "base_link"]}), FAIL, "let one node"),
    "the world frame is taken": (lambda *_: seen(tf={"visual_odom": ["map"]}), FAIL, "set odom_frame"),
    "use_sim_time without /clock": (lambda *_: seen(_sim_time=True), FAIL, "--clock"),
    "the camera's clock is wrong": (
        lambda *_: seen(stamps_ns=[[10**18, 10**18 + 5 * 10**9], [10**18 + 1, 10**18 + 6 * 10**9]]), WARN, "chrony"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found_with_its_fix(name: str, monkeypatch: Patch, tmp_path: Path) -> None:
    if name == "the RMW is not installed":
        pytest.importorskip("rclpy")
    if "messages" in FAULTS[name][0].__name__ or "cv_bridge" in name:
        pytest.importorskip("sensor_msgs")
    seed, level, fix = FAULTS[name]
    found = seed(monkeypatch, tmp_path)
    bad = [f for f in found if f.level != OK]
    assert max((f.level for f in bad), key=(OK, WARN, FAIL).index) == level, found
    assert any(fix in f.fix for f in bad), bad
    assert all(f.fix for f in bad if f.subject not in ("CUDA", "CuPy")), "a finding without a fix"


def test_nothing_is_said_against_a_system_in_which_all_is_well() -> None:
    assert {f.level for f in seen()} == {OK}
    assert {f.subject for f in seen()} == {"QoS", "images", "stamps", "camera_info", "TF", "clock"}


def test_the_exit_code_says_whether_a_run_can_work(monkeypatch: Patch, capsys) -> None:
    found = [checks.Finding(WARN, "a", "b", "c")]
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(found))
    assert cli.main(["doctor"]) == 0
    found.append(checks.Finding(FAIL, "d", "e", "f"))
    assert cli.main(["doctor", "--json"]) == 1
    said = capsys.readouterr().out
    assert json.loads(said[said.index("[") :])[-1] == {"level": "FAIL", "subject": "d", "text": "e", "fix": "f"}
    assert cli.main(["doctor", "--set", "window.size=99"]) == 1, "a wrong parameter is an error"


def test_it_says_whether_a_stream_of_the_published_model_fits(monkeypatch: Patch, tmp_path: Path) -> None:
    """Not tried on a CPU, so told from the sizes; for small ones see test_causal.py."""
    pytest.importorskip("torch")
    weights = tmp_path / "lingbot-map-long.pt"
    with open(weights, "wb") as file:
        file.truncate(checks.SLOW_WEIGHTS + 1)  # takes no space
    monkeypatch.setattr(checks, "_cuda", lambda: False)
    monkeypatch.setattr(checks, "free_memory", lambda: 10000 * checks.MIB)
    config = Config(backbone="lingbot", weights=str(weights))
    _, large = checks.largest_window(config)
    assert large.level == WARN and "set stream.memory to 8000" in large.fix
    # 72 frames of 1042 tokens, and what stays of 320: 48 x 1024 numbers of 4 bytes each
    said = float(large.text.split(" MiB")[0].split()[-1])
    assert said == pytest.approx(
        (72 * 1042 + 320 * 6) * 48 * 1024 * 4 / 2**20 + 320 * 4 * 4 * 2 * 2048 * 4 / 2**20, rel=2e-3
    )
    _, small = checks.largest_window(config.replace(**{"stream.window": 8, "input.max_side": 252}))
    assert small.level == OK and "252x196 px take up to" in small.text
    _, bounded = checks.largest_window(config.replace(**{"stream.memory": 7000}))
    assert bounded.level == OK and "up to 7000 MiB" in bounded.text


@pytest.mark.slow
def test_a_trial_pass_tells_what_a_frame_costs() -> None:
    pytest.importorskip("torch")
    finding = next(checks.largest_window(Config()))
    assert finding.level == OK and "frames are safe" in finding.text
    failed = next(checks.largest_window(Config(weights="/none.safetensors")))
    assert failed.level == FAIL and "/none.safetensors does not exist" in failed.text


def test_it_runs_without_rclpy_torch_and_anything_else(monkeypatch: Patch) -> None:
    real = builtins.__import__
    hidden = ("torch", "rclpy", "cv2", "PIL", "yaml", "safetensors", "cupy", "tqdm")

    def load(name: str, *more: Any, **options: Any) -> Any:
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *more, **options)

    for name in [n for n in sys.modules if n.partition(".")[0] in hidden]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", load)
    monkeypatch.setattr(checks.importlib, "import_module", lambda name: load(name))
    find = checks.importlib.util.find_spec
    monkeypatch.setattr(
        checks.importlib.util, "find_spec", lambda name: None if name in (*hidden, *checks.MESSAGES) else find(name)
    )
    found = list(checks.examine(Config(), argparse.Namespace(quick=True)))
    assert {f.subject for f in found if f.level == FAIL} >= {"torch", "OpenCV", "Pillow", "messages"}


@pytest.mark.ros
def test_the_running_system_is_looked_at(monkeypatch: Patch) -> None:
    """A camera of this process, seen by the probe of another."""
    rclpy = pytest.importorskip("rclpy")
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import CameraInfo, Image

    from come_ros.ros import messages

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("camera", context=context)
    images, infos = (
        node.create_publisher(Image, "/seen/image_raw", 5),
        node.create_publisher(CameraInfo, "/seen/camera_info", 5),
    )
    k = np.array([[50.0, 0, 39.5], [0, 50, 29.5], [0, 0, 1]])

    def publish() -> None:
        head = messages.header(node.get_clock().now().nanoseconds, "cam")
        images.publish(messages.image_message(np.zeros((60, 80, 3), np.uint8), head))
        infos.publish(messages.camera_info_message(k, 40, 30, head))

    timer = node.create_timer(0.05, publish)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    command = [sys.executable, "-m", "come_ros.ros.programs.probe", "--topic", "/seen/image_raw", "--seconds", "4"]
    with spinning(executor):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    node.destroy_timer(timer)
    node.destroy_node()
    context.try_shutdown()
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (
        facts["received"]
        and facts["camera_info"]["received"]
        and facts["publishers"] == [["camera", "reliable", "volatile"]]
    )
    found = {f.subject: f for f in running_system.judge(facts, Config(), "/seen/image_raw")}
    assert found["images"].level == OK and found["images"].text.startswith("80x60 rgb8 of cam, ")
    assert found["camera_info"].level == WARN and "40x30" in found["camera_info"].text
    assert found["QoS"].level == OK


@contextlib.contextmanager
def spinning(executor: Any) -> Iterator[None]:
    import threading

    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        executor.shutdown()


def table() -> str:
    """What is said of each fault."""
    import tempfile

    rows = ["| seeded fault | level | message | fix |", "|---|---|---|---|"]
    for name, (seed, _, _) in FAULTS.items():
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            for f in seed(patch, Path(folder)):
                if f.level != OK and f.fix:
                    said = (
                        f"{f.subject}: {f.text}".replace(folder, "...")
                        .replace(sys.executable, "python")
                        .replace("|", "\\|")
                    )
                    rows.append(f"| {name} | {f.level} | {said} | {f.fix} |")
                    name = ""
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "test"))
    from benchmark.stamped import write_result

    text = f"# What `come_ros doctor` says of seeded faults\n\nMade by `python test/tools/test_doctor.py`.\n\n{table()}"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "test/benchmark/robustness/results/doctor_faults.md"
    write_result(target.parent, target.stem, text=text)
    print(text)


def test_nodes_that_share_a_name_are_told() -> None:
    (finding,) = [f for f in seen(nodes=["/come", "/come", "/r1/come", "/_daemon", "/_daemon"]) if f.subject == "nodes"]
    assert finding.level == WARN and "2 nodes are called /come" in finding.text and "__node:=" in finding.fix
    assert not [f for f in seen() if f.subject == "nodes"]

"""Check this machine: what come_ros finds, what is missing, and how to mend it.

Each line is OK, WARN (works, but worse than it could) or FAIL (something cannot work), with the fix below it.
Nothing is changed, downloaded or sent; a ROS node is started for a moment, seen on this machine only.

examples:
  come_ros doctor                 as a table; exit code 1 if anything is FAIL
  ros2 run come_ros come_ros doctor       the same from a ROS workspace
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__

OK, WARN, FAIL = "OK", "WARN", "FAIL"
MODELS = Path(__file__).resolve().parents[1] / "models"
MESSAGES = ("sensor_msgs", "nav_msgs", "geometry_msgs", "std_srvs", "diagnostic_msgs", "lifecycle_msgs")
MIB = 2**20
# a participant with the large-message profile takes 16 MiB: camera driver, node, RViz and recorder together
SHARED_MEMORY_WANTED = 64 * MIB
MEMORY_WANTED = 2048 * MIB
_PIP_ROS = "install ROS 2 and source its setup.bash, or `make venv` in a checkout (ROS from pip)"
_TRY_ROS = "import rclpy; rclpy.init(); rclpy.create_node('come_ros_doctor').destroy_node(); rclpy.shutdown()"


class Finding(NamedTuple):
    """One line of the report. level: OK, WARN or FAIL; fix: what to do about it, "" if nothing."""

    level: str
    subject: str
    text: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: there is nothing to choose."""


def run(options: argparse.Namespace) -> int:
    """Prints the findings; 1 if anything is FAIL."""
    print(f"come_ros {__version__} in {MODELS.parent}")
    worst = OK
    for finding in examine():
        print(f"  {finding.level:4}  {finding.subject:14} {finding.text}")
        if finding.fix:
            print(f"{'':22} fix: {finding.fix}")
        worst = max(worst, finding.level, key=(OK, WARN, FAIL).index)
    print({OK: "All is well.", WARN: "Works, with the warnings above.", FAIL: "Something above cannot work."}[worst])
    return int(worst == FAIL)


def examine() -> Iterator[Finding]:
    """Every check, in the order in which one would mend things."""
    for check in (python, libraries, torch, weights, ros, messages, profile, shared_memory, memory):
        yield from check()


def python() -> Iterator[Finding]:
    text = f"{platform.python_version()} ({sys.executable})"
    old = sys.version_info < (3, 10)
    yield Finding(FAIL if old else OK, "Python", text, "use Python 3.10 or newer" if old else "")


def libraries() -> Iterator[Finding]:
    """What the pipeline imports beside torch."""
    for subject, module, package, apt in (
        ("NumPy", "numpy", "numpy", "python3-numpy"),
        ("Pillow", "PIL", "pillow", "python3-pil"),
        ("PyYAML", "yaml", "PyYAML", "python3-yaml"),
        ("OpenCV", "cv2", "opencv-python-headless", "python3-opencv"),
        ("safetensors", "safetensors", "safetensors", ""),
        ("tqdm", "tqdm", "tqdm", "python3-tqdm"),
    ):
        found = _load(module)
        if isinstance(found, Exception):
            fix = f"pip install {package}" + (f", or on a ROS machine: apt install {apt}" if apt else "")
            yield Finding(FAIL, subject, f"cannot be imported: {_first_line(found)}", fix)
        else:
            yield Finding(OK, subject, getattr(found, "__version__", "found"))


def torch() -> Iterator[Finding]:
    """torch, whether a CUDA device really computes, and CuPy."""
    found = _load("torch")
    if isinstance(found, Exception):
        yield Finding(FAIL, "torch", f"cannot be imported: {_first_line(found)}", "pip install torch")
        return
    yield Finding(OK, "torch", f"{found.__version__}, {found.get_num_threads()} CPU threads")
    if found.cuda.is_available():
        try:
            device = found.cuda.get_device_properties(0)
            found.ones(8, device="cuda").sum().item()
            capability = f"compute capability {device.major}.{device.minor}"
            yield Finding(OK, "CUDA", f"{device.name}, {device.total_memory / MIB:.0f} MiB, {capability}")
        except Exception as error:  # the driver raises many kinds
            yield Finding(
                WARN, "CUDA", f"found, but does not compute: {_first_line(error)}", "check the driver: nvidia-smi"
            )
    elif Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists():  # desktop, Jetson
        built = f"is built for CUDA {found.version.cuda}" if found.version.cuda else "is built without CUDA"
        text = f"there is an NVIDIA GPU, but torch {built} and cannot use it"
        yield Finding(WARN, "CUDA", text, "install a torch that fits the driver")
    else:
        yield Finding(WARN, "CUDA", "no NVIDIA GPU: the model runs on the CPU, slower")
    cupy = _load("cupy")
    if not isinstance(cupy, Exception):
        yield Finding(OK, "CuPy", f"{cupy.__version__}, for the kernels of token merging")
    elif found.cuda.is_available():
        text = f"cannot be imported: {_first_line(cupy)}; token merging runs on torch alone"
        yield Finding(WARN, "CuPy", text, f"pip install cupy-cuda{(found.version.cuda or '12').partition('.')[0]}x")
    else:
        yield Finding(OK, "CuPy", "not installed; only a GPU has a use for it")


def weights() -> Iterator[Finding]:
    """The bundled models: there, and readable to the end."""
    files = sorted(MODELS.glob("*.safetensors"))
    if not files:
        fix = "reinstall come_ros; until then give a checkpoint with the parameter `weights`"
        yield Finding(FAIL, "weights", f"no bundled model in {MODELS}", fix)
    for file in files:
        content = file.read_bytes()
        text = f"{file.name}, {len(content) / MIB:.1f} MiB, sha256 {hashlib.sha256(content).hexdigest()}"
        try:
            from safetensors.numpy import load

            yield Finding(OK, "weights", f"{text}, {len(load(content))} tensors")
        except Exception as error:  # safetensors raises its own kinds; missing safetensors is reported above
            yield Finding(FAIL, "weights", f"{text}: unreadable ({_first_line(error)})", "reinstall come_ros")


def ros() -> Iterator[Finding]:
    """rclpy, by starting a node in a process of its own: a wrong RMW ends the process instead of raising."""
    if importlib.util.find_spec("rclpy") is None:
        yield Finding(FAIL, "rclpy", "not found: the live node cannot start (training and offline tools can)", _PIP_ROS)
        return
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    rmw = environment.get("RMW_IMPLEMENTATION", "the default RMW")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY_ROS], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        said = f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    except subprocess.TimeoutExpired:
        done, said = None, "no end within 30 s"
    where = os.environ.get("ROS_DISTRO") or f"pip wheels, ros-rclpy {_version('ros-rclpy')}"
    if done is not None and done.returncode == 0:
        yield Finding(OK, "rclpy", f"{where}; a node starts with {rmw}, domain {environment.get('ROS_DOMAIN_ID', '0')}")
    else:
        fix = "unset RMW_IMPLEMENTATION, or install that RMW" if "RMW_IMPLEMENTATION" in environment else _PIP_ROS
        yield Finding(FAIL, "rclpy", f"{where}; a node does not start with {rmw}: {said}", fix)


def messages() -> Iterator[Finding]:
    missing = [name for name in MESSAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding(FAIL, "messages", f"not found: {', '.join(missing)}", _PIP_ROS)
    else:
        yield Finding(OK, "messages", ", ".join(MESSAGES))
    if importlib.util.find_spec("tf2_msgs") is None:
        text = "not found: odometry is published, but nothing on /tf"
        yield Finding(WARN, "tf2_msgs", text, "apt install ros-$ROS_DISTRO-tf2-msgs (there is no pip wheel of it)")
    else:
        yield Finding(OK, "tf2_msgs", "found")
    bridge = _load("cv_bridge")
    if isinstance(bridge, ModuleNotFoundError):
        yield Finding(OK, "cv_bridge", "not installed; come_ros decodes images itself")
    elif isinstance(bridge, Exception):
        yield Finding(OK, "cv_bridge", f"does not import ({_first_line(bridge)}); come_ros decodes images itself")
    else:
        yield Finding(OK, "cv_bridge", "found")


def profile() -> Iterator[Finding]:
    """The Fast DDS profile without which best-effort images are mostly lost."""
    from ..ros.environment import PROFILE, PROFILE_VARIABLES, config_file, large_message_profile

    chosen = [(name, os.environ[name]) for name in PROFILE_VARIABLES if os.environ.get(name)]
    for name, path in chosen:
        if Path(path).is_file():
            yield Finding(OK, "DDS profile", f"{name}={path}")
        else:
            fix = f"unset {name}: come_ros then uses its own"
            yield Finding(FAIL, "DDS profile", f"{name} names {path}, which is no file", fix)
    if not chosen and config_file(PROFILE):
        for name, path in large_message_profile().items():
            yield Finding(OK, "DDS profile", f"{path}; give the camera driver the same: export {name}={path}")
    elif not chosen:
        fix = "reinstall come_ros (share/come_ros/config), or let the camera publish reliable"
        yield Finding(WARN, "DDS profile", f"{PROFILE} not found: large best-effort images get lost", fix)


def shared_memory() -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Finding(WARN, "/dev/shm", "not there: large best-effort images get lost", "mount a tmpfs on /dev/shm")
        return
    usage = shutil.disk_usage(folder)
    segments = [p.stat().st_size for p in folder.glob("fastdds_*")]
    held = f"{len(segments)} files of DDS hold {sum(segments) / MIB:.0f} MiB"
    text = f"{usage.free / MIB:.0f} of {usage.total / MIB:.0f} MiB free, {held}"
    if usage.free >= SHARED_MEMORY_WANTED:
        yield Finding(OK, "/dev/shm", text)
    else:
        fix = "in Docker: --shm-size=256m or --ipc=host; leftovers of killed programs: fastdds shm clean"
        yield Finding(WARN, "/dev/shm", f"{text}; each DDS program takes 16", fix)


def memory() -> Iterator[Finding]:
    """What may still be taken: free on the machine, and left under a container's limit."""
    with open("/proc/meminfo", encoding="ascii") as fh:
        rows = dict(line.split(":") for line in fh)
    free = int(rows["MemAvailable"].split()[0]) * 1024
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    low = free < MEMORY_WANTED
    fix = "close something, or make the windows smaller (window.size, input.max_side)" if low else ""
    yield Finding(WARN if low else OK, "memory", f"{free / MIB:.0f} MiB free, {os.cpu_count()} CPU cores", fix)


def _load(name: str) -> Any:
    """The module, or what importing it raised: binary modules raise all kinds if their ABI does not fit."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        return error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"

"""The doctor's checks: each yields findings, with a fix for every problem."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import ConfigError
from ...plugins import ACCELERATORS, BACKBONES, READERS, is_network
from ...progress import doing
from .running_system import FAIL, OK, WARN, Finding, judge

DEFAULT = Config()
MODELS = Path(__file__).resolve().parents[2] / "models"
MESSAGES = ("sensor_msgs", "nav_msgs", "geometry_msgs", "std_srvs", "diagnostic_msgs", "lifecycle_msgs")
MIB = 2**20
# a participant with the large-message profile takes 16 MiB: camera driver, node, RViz and recorder together
SHARED_MEMORY_WANTED = 64 * MIB
MEMORY_WANTED = 2048 * MIB
SAFE_SHARE = 0.8  # share of the free memory: other processes need some too
SLOW_WEIGHTS = 1024 * MIB
LEAST_DRIVER = {
    "11": 450,
    "12": 525,
    "13": 580,
}  # of a CUDA's major version, by NVIDIA's table of minor version compatibility
_PIP_ROS = "install ROS 2 and source its setup.bash, or `make venv` in a checkout (ROS from pip)"
_TRY_ROS = "import rclpy; rclpy.init(); rclpy.create_node('come_ros_doctor').destroy_node(); rclpy.shutdown()"


def examine(config: Config, options: argparse.Namespace) -> Iterator[Finding]:
    """Runs every check, in the order in which problems should be fixed."""
    yield from python()
    yield from libraries()
    yield from torch(config)
    yield from weights(config)
    for check in (plug_ins, messages, profile, shared_memory, memory, cores):
        yield from check()
    if options.quick:
        return
    yield from largest_window(config)
    before = None
    for finding in ros():
        yield (before := finding)
    if before is not None and before.level == OK:
        yield from camera(config, options)


def python() -> Iterator[Finding]:
    text = f"{platform.python_version()} ({sys.executable})"
    old = sys.version_info < (3, 10)
    yield Finding(FAIL if old else OK, "Python", text, "use Python 3.10 or newer" if old else "")


def libraries() -> Iterator[Finding]:
    """The packages that the pipeline imports besides torch."""
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


def torch(config: Config = DEFAULT) -> Iterator[Finding]:
    """torch, whether a CUDA device computes and its driver fits, and CuPy with our kernels."""
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
        except Exception as error:  # the driver raises many kinds of exceptions
            level = FAIL if config.device.startswith("cuda") else WARN
            text = f"found, but does not compute: {_first_line(error)}"
            yield Finding(
                level, "CUDA", text, "install a torch that is built for this GPU, and check the driver: nvidia-smi"
            )
        yield from _driver(found.version.cuda or "")
    elif Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists():  # desktop, Jetson
        built = f"is built for CUDA {found.version.cuda}" if found.version.cuda else "is built without CUDA"
        text = f"there is an NVIDIA GPU, but torch {built} and cannot use it"
        level = FAIL if config.device.startswith("cuda") else WARN
        yield Finding(
            level, "CUDA", text, "install a torch that fits the driver (pytorch.org, or NVIDIA's wheels on Jetson)"
        )
        yield from _driver(found.version.cuda or "")
    elif config.device.startswith("cuda"):
        text = f"device is {config.device}, but there is no NVIDIA GPU"
        yield Finding(FAIL, "CUDA", text, "set device to auto or cpu; in a container: --gpus all")
    else:
        yield Finding(WARN, "CUDA", "no NVIDIA GPU: the model runs on the CPU, slower")
    yield from _kernels(config, found)


def _driver(cuda: str) -> Iterator[Finding]:
    """Whether the driver is new enough for the CUDA that torch is built with."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        driver = said.splitlines()[0].strip()
        newest = int(driver.partition(".")[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        yield Finding(
            WARN, "driver", "nvidia-smi does not report its version", "check that it runs (not needed on Jetson)"
        )
        return
    least = LEAST_DRIVER.get(cuda.partition(".")[0], 0)
    if newest < least:
        text = f"{driver}, but CUDA {cuda} of this torch needs {least} or newer"
        yield Finding(FAIL, "driver", text, "update the driver, or install a torch built for an older CUDA")
    else:
        yield Finding(OK, "driver", f"{driver}, torch is built for CUDA {cuda or '(none)'}")


def _kernels(config: Config, torch: Any) -> Iterator[Finding]:
    """CuPy and whether it compiles our kernels."""
    cupy = _load("cupy")
    gpu = torch.cuda.is_available()
    fix = f"pip install cupy-cuda{(torch.version.cuda or '12').partition('.')[0]}x"
    if isinstance(cupy, Exception):
        text = "not installed" if isinstance(cupy, ModuleNotFoundError) else f"cannot be imported: {_first_line(cupy)}"
        if config.kernels == "cupy":
            yield Finding(FAIL, "CuPy", f"{text}, but kernels is cupy", f"{fix}, or set kernels to auto")
        elif gpu:
            yield Finding(WARN, "CuPy", f"{text}; token merging runs on torch alone", fix)
        else:
            yield Finding(OK, "CuPy", f"{text}; it is used on a GPU only")
        return
    yield Finding(OK, "CuPy", f"{cupy.__version__}, for the kernels of token merging")
    if not gpu:
        return
    from ...kernels import choose

    try:
        choose("cupy", torch.device("cuda"))
        yield Finding(OK, "kernels", "compiled")
    except Exception as error:  # of CuPy, NVRTC and the driver
        yield Finding(
            FAIL if config.kernels == "cupy" else WARN,
            "kernels",
            _first_line(error),
            "install CuPy and torch of one CUDA",
        )


def weights(config: Config = DEFAULT) -> Iterator[Finding]:
    """The model that will run: whether it exists and is complete, its checksum and its licence."""
    if not is_network(config.backbone):
        yield Finding(OK, "weights", f"none are checked: the backbone {config.backbone} reads its own, if it has any")
        return
    if config.weights:
        files = [Path(config.weights).expanduser()]
        if not files[0].is_file():
            text = f"{files[0]} does not exist"
            yield Finding(
                FAIL, "weights", text, "give the path of the file, or leave weights empty for the bundled model"
            )
            return
    else:
        files = sorted(MODELS.glob("*.safetensors"))
    if not files:
        fix = "reinstall come_ros; until then give a checkpoint with the parameter `weights`"
        yield Finding(FAIL, "weights", f"no bundled model in {MODELS}", fix)
    for file in files:
        text = f"{file.name}, {_size(file.stat().st_size)}, sha256 {_sha256(file)[:12]}..."
        try:
            tensors, licence = _contents(file)
        except Exception as error:  # safetensors raises its own kinds; missing safetensors is reported above
            fix = "copy or download it again" if config.weights else "reinstall come_ros"
            yield Finding(FAIL, "weights", f"{text}: unreadable ({_first_line(error)})", fix)
            continue
        licence = licence or ("Apache-2.0" if not config.weights else "")
        if licence:
            yield Finding(OK, "weights", f"{text}, {tensors} tensors, licence {licence}")
        else:
            text += f", {tensors} tensors; its licence is not in the file"
            fix = "read the licence where you got it: facebook/VGGT-1B is for non-commercial use (README, Licences)"
            yield Finding(WARN, "weights", text, fix)


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count / 1024:.0f} KiB"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as fh:
        while block := fh.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def _contents(file: Path) -> tuple[int, str]:
    """The number of tensors, and the licence stated in the file. Raises an exception if the file is incomplete."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="np") as opened:  # it checks the length against the header
            metadata = opened.metadata() or {}
            return len(opened.keys()), metadata.get("license", metadata.get("licence", ""))
    from ...weights import read_checkpoint

    return len(read_checkpoint(str(file))[0]), ""


def largest_window(config: Config) -> Iterator[Finding]:
    """Two trial passes in a separate process, with fewer and with more frames: the cost of one frame, and how many fit."""
    size = (
        Path(config.weights).expanduser().stat().st_size
        if config.weights and Path(config.weights).expanduser().is_file()
        else 0
    )
    if not is_network(config.backbone):
        return
    if size > SLOW_WEIGHTS and not _cuda():
        yield Finding(
            OK,
            "window",
            "not tried: a pass of such weights takes minutes on a CPU (about 6 GiB for 2 frames of VGGT-1B)",
        )
        if config.backbone == "lingbot":
            yield _stream(config, *_expected_stream(config), free_memory() / MIB)
        return
    command = [sys.executable, "-m", "come_ros.tools.doctor.trial", json.dumps(config.to_flat())]
    try:
        with doing("two trial passes of the model"):
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        said = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        yield Finding(
            FAIL,
            "window",
            "the model does not run: a trial pass gave no result",
            "see the lines above, or start the node and read its log",
        )
        return
    if "error" in said:
        yield Finding(
            FAIL, "window", f"the model does not run: {said['error']}", said.get("fix", "see the lines above")
        )
        return
    free = said.get("free_mib", free_memory() / MIB)
    most = int(min(64, max(0.0, (SAFE_SHARE * free - said["base_mib"]) / max(said["frame_mib"], 1e-3))))
    took = (
        f"{config.window.size} frames of {said['size']} px take {said['seconds']:.2g} s on {said['device']}; "
        if "seconds" in said
        else ""
    )
    text = (
        f"{took}it needs {said['base_mib']:.0f} MiB + {said['frame_mib']:.0f} MiB per frame, and {free:.0f} MiB are free: at most {most} "
        f"frames are safe"
    )
    if most >= config.window.size:
        yield Finding(OK, "window", text)
    else:
        fix = (
            f"set window.size to {most} or less, or lower input.max_side"
            if most >= 2
            else "free memory, or lower input.max_side"
        )
        level = WARN if most >= 2 else FAIL
        yield Finding(level, "window", f"{text}; window.size is {config.window.size}", fix)
    if "stream_mib" in said:
        yield _stream(config, said["stream_mib"], said["size"], free)


def _expected_stream(config: Config) -> tuple[float, str]:
    """Most memory of the kept keys of the published model in fp32, MiB, and the image size, for images of 4:3."""
    from ...backbones.lingbot import VARIANTS, stream_mib
    from ...camera.preprocess import patch_grid_size

    sizes = VARIANTS["stream"]
    side = config.input.max_side or sizes.native_side
    width, height = patch_grid_size(4 * side, 3 * side, side, sizes.patch)
    patches = (width // sizes.patch) * (height // sizes.patch)
    return stream_mib(sizes, patches, config.window.size, config.stream), f"{width}x{height}"


def _stream(config: Config, most: float, size: str, free: float) -> Finding:
    """Whether the kept keys of a causal backbone fit."""
    text = (
        f"the keys and values of a stream of {size} px take up to {most:.0f} MiB (stream.window is {config.stream.window}, stream.most "
        f"{config.stream.most}); {free:.0f} MiB are free"
    )
    safe = int(SAFE_SHARE * free)
    if most <= safe:
        return Finding(OK, "stream", text)
    return Finding(WARN, "stream", text, f"set stream.memory to {safe}, or lower stream.window or input.max_side")


def _cuda() -> bool:
    torch = _load("torch")
    return not isinstance(torch, Exception) and bool(torch.cuda.is_available())


def ros() -> Iterator[Finding]:
    """rclpy, by starting a node in a separate process: a wrong RMW ends the process instead of raising an exception."""
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
        distro = os.environ.get("ROS_DISTRO")
        there = (
            f"apt install ros-{distro}-tf2-msgs"
            if distro
            else "ROS from pip has no such package: use a ROS installation if you need /tf"
        )
        yield Finding(WARN, "tf2_msgs", text, there)
    else:
        yield Finding(OK, "tf2_msgs", "found")
    for name in ("cv_bridge", "sensor_msgs_py"):
        if importlib.util.find_spec(name) is None:
            yield Finding(OK, name, "not installed; come_ros converts messages itself")
        elif broken := _import_elsewhere(name):
            text = f"is broken ({broken}); come_ros converts messages itself, other nodes may not"
            yield Finding(
                WARN, name, text, "install the NumPy that it was built with (pip install 'numpy<2' on Humble and Jazzy)"
            )
        else:
            yield Finding(OK, name, "found")


def profile() -> Iterator[Finding]:
    """The Fast DDS profile, without which most best-effort images are lost."""
    from ...ros.environment import PROFILE, PROFILE_VARIABLES, config_file, large_message_profile, profile_variable

    chosen = [(name, os.environ[name]) for name in PROFILE_VARIABLES if os.environ.get(name)]
    for name, path in chosen:
        if name != profile_variable() == PROFILE_VARIABLES[1]:  # the other way round, Fast DDS 3 reads the old name too
            fix = f"unset {name}, and export {profile_variable()}={path}"
            yield Finding(WARN, "DDS profile", f"{name} is not read by the Fast DDS of this ROS", fix)
        elif Path(path).is_file():
            yield Finding(OK, "DDS profile", f"{name}={path}")
        else:
            fix = f"unset {name}: come_ros then uses its own"
            yield Finding(FAIL, "DDS profile", f"{name} names {path}, which is not a file", fix)
    if not chosen and config_file(PROFILE):
        for name, path in large_message_profile().items():
            yield Finding(OK, "DDS profile", f"{path}; give the camera driver the same: export {name}={path}")
    elif not chosen:
        fix = "reinstall come_ros (share/come_ros/config), or let the camera publish reliable"
        yield Finding(WARN, "DDS profile", f"{PROFILE} not found: large best-effort images get lost", fix)


def shared_memory() -> Iterator[Finding]:
    from ...ros.environment import SHARED_MEMORY as folder
    from ...ros.environment import shared_memory as segments_of_dds

    if not folder.is_dir():
        yield Finding(WARN, "/dev/shm", "not there: large best-effort images get lost", "mount a tmpfs on /dev/shm")
        return
    usage = shutil.disk_usage(folder)
    segments = [p.stat().st_size for p in segments_of_dds()]
    held = f"{len(segments)} files of DDS hold {sum(segments) / MIB:.0f} MiB"
    text = f"{usage.free / MIB:.0f} of {usage.total / MIB:.0f} MiB free, {held}"
    if usage.free >= SHARED_MEMORY_WANTED:
        yield Finding(OK, "/dev/shm", text)
    else:
        fix = "in Docker: --shm-size=256m or --ipc=host; leftovers of killed programs: fastdds shm clean"
        yield Finding(WARN, "/dev/shm", f"{text}; each DDS program takes 16", fix)


def memory() -> Iterator[Finding]:
    """The free memory."""
    free = free_memory()
    low = free < MEMORY_WANTED
    fix = "close other programs, or make the windows smaller (window.size, input.max_side)" if low else ""
    yield Finding(WARN if low else OK, "memory", f"{free / MIB:.0f} MiB free", fix)


def cores() -> Iterator[Finding]:
    """The number of cores, and whether other processes use them."""
    count, load = os.cpu_count() or 1, os.getloadavg()[0]
    text = f"{count} cores, load {load:.1f} over the last minute"
    if load > max(1.0, count / 2):
        fix = "a model on the CPU is slower next to other processes: close them, or set threads to the cores that are left"
        yield Finding(WARN, "CPU", text, fix)
    else:
        yield Finding(OK, "CPU", text)


def plug_ins() -> Iterator[Finding]:
    """Accelerators, backbones and readers of other packages that are found by their entry points."""
    for registry in (ACCELERATORS, BACKBONES, READERS):
        for name in registry.others:
            try:
                registry.load(name)
                yield Finding(OK, "plug-in", f"{registry.kind} {name}, {registry.others[name].value}")
            except ConfigError as error:
                yield Finding(WARN, "plug-in", str(error), "fix or uninstall that package")


def free_memory() -> int:
    """Bytes: free on the machine, and left under a container's limit."""
    with open("/proc/meminfo", encoding="ascii") as fh:
        rows = dict(line.split(":") for line in fh)
    free = int(rows["MemAvailable"].split()[0]) * 1024
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return free


def camera(config: Config, options: argparse.Namespace) -> Iterator[Finding]:
    """The camera, TF and /clock of the running ROS system, as seen by a separate process."""
    command = [sys.executable, "-m", "come_ros.ros.programs.probe", "--seconds", str(options.seconds)]
    command += ["--topic", options.topic] * bool(options.topic)
    command += ["--camera-info", options.camera_info] * bool(options.camera_info)
    try:
        with doing("listening to the ROS system"):
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds + 60, check=False)
        seen = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        yield Finding(FAIL, "camera", "the ROS system cannot be examined", "see `rclpy` and `messages` above")
        return
    yield from judge(seen, config, options.topic, options.sim_time)


def _import_elsewhere(name: str) -> str:
    """The exception raised by importing a third-party module in a separate process, which it may crash; "" on success."""
    script = f"import {name}" + ("; from cv_bridge import CvBridge; CvBridge()" if name == "cv_bridge" else "")
    try:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "no end within 60 s"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _load(name: str) -> Any:
    """The module, or the exception of importing it: binary modules raise all kinds if their ABI does not match."""
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

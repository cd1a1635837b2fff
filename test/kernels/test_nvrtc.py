"""Every kernel is compiled for the GPUs that come_ros is meant for, by NVIDIA's run-time compiler from pip; no GPU is needed."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from pathlib import Path

import pytest

from come_ros.kernels import compiled

from .conftest import missing

ARCHITECTURES = {"sm_87": "Jetson Orin", "sm_90": "H100", "sm_110": "Jetson Thor"}
FILES = sorted(set(compiled.KERNELS.values()))
CUPY_ADDS = ("-ftz=true",)
NAMES = ("libnvrtc-builtins", "libnvrtc")  # the first is looked up by the second, not by path: it must be there already


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """libnvrtc of the package nvidia-cuda-nvrtc."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    found = {name: path for place in places for name in NAMES for path in place.glob(f"cu*/lib/{name}.so.*")}
    if len(found) < len(NAMES):
        missing(
            "no NVRTC to compile the kernels: pip install nvidia-cuda-nvrtc, in the version of .ci/requirements-common.txt"
        )
    return [ctypes.CDLL(str(found[name])) for name in NAMES][-1]


def compile_source(text: str, architecture: str) -> tuple[bytes, str]:
    """Machine code and PTX. Fails with the compiler's own words."""
    lib, program = nvrtc(), ctypes.c_void_p()
    assert not lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    try:
        options = [*compiled.OPTIONS, *CUPY_ADDS, f"-arch={architecture}"]
        result = lib.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
        )
        log = _read(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        assert not result and "warning" not in log, f"NVRTC for {architecture}:\n{log}"
        code = _read(lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN, program)
        return code, _read(lib.nvrtcGetPTXSize, lib.nvrtcGetPTX, program).decode()
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _read(measure, read, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    assert not measure(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    assert not read(program, content)
    return content.raw


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_kernels_compile(file, architecture):
    code, ptx = compile_source(compiled.source(file), architecture)
    assert code.startswith(b"\x7fELF")
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", ptx, re.DOTALL))
    assert set(entries) == {name for name, home in compiled.KERNELS.items() if home == file}
    for name, body in entries.items():
        if name.endswith(("_x4", "_x8", "_16")):  # packs travel in one access
            assert re.search(r"ld\.global\S*\.v4", body) and re.search(r"st\.global\S*\.v4", body), name


def test_what_is_wrong_is_said():
    with pytest.raises(AssertionError, match="undefined"):
        compile_source('extern "C" __global__ void f() { undefined(); }', "sm_90")

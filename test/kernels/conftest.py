"""The kernels of cuda/ on the host: built by g++, run through ctypes exactly as CuPy would be told to run them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from come_ros.kernels import compiled

HERE = Path(__file__).resolve().parent


def missing(reason: str) -> None:
    """Skips the test, saying why; CI has everything, so there it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class Host:
    """Stands in for the GPU: takes what compiled.py would launch."""

    def __init__(self, library: str) -> None:
        self.library = ctypes.CDLL(library)

    def launch(self, kernel: compiled.Launch, device: object = None, descending: bool = False) -> None:
        """Every thread of every block, one after another, in ascending or descending order."""
        entry = ctypes.cast(self.library[kernel.name], ctypes.c_void_p)
        words = (ctypes.c_uint64 * len(kernel.words))(*kernel.words)
        grid, block = (ctypes.c_uint * 2)(*kernel.grid), (ctypes.c_uint * 2)(*kernel.block)
        trouble = self.library.host_launch(entry, words, len(words), grid, block, int(descending))
        assert not trouble, {1: "some threads never reach a barrier", 2: "host_launch knows no such kernel"}[trouble]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    compiler = shutil.which("g++")
    if compiler is None:
        missing("no g++ to build the kernels for the host: apt install g++")
    library = str(tmp_path_factory.mktemp("kernels") / "host.so")
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    command += [f"-I{compiled._folder()}", "-o", library, str(HERE / "host_build.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.fail(f"g++ cannot build the kernels:\n{done.stderr}", pytrace=False)
    return Host(library)

"""What C libraries print about images is caught where they write it; nothing else is."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import come_ros.camera.quiet as quiet_module
from come_ros.camera.quiet import quiet
from come_ros.datasets.image_file import read_picture
from come_ros.errors import DatasetError


def png() -> bytes:
    return cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))[1].tobytes()


def broken_png() -> bytes:
    data = bytearray(png())
    data[data.index(b"IDAT") + 400] ^= 0xFF
    return bytes(data)


def test_lines_of_libraries_are_caught_and_others_pass(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet() as said:
        os.write(
            2,
            b"libpng error: IDAT: CRC error\n[INFO] [1.0] [come]: a line of ROS\nCorrupt JPEG data: 3 extraneous bytes\n",
        )
        print("a line of Python", file=sys.stderr, flush=True)
    assert said == ["libpng error: IDAT: CRC error", "Corrupt JPEG data: 3 extraneous bytes"]
    # pytest's sys.stderr has a way of its own, so the order is not that of a program
    assert sorted(capfd.readouterr().err.splitlines()) == ["[INFO] [1.0] [come]: a line of ROS", "a line of Python"]
    os.write(2, b"libpng error: outside\n")
    assert capfd.readouterr().err == "libpng error: outside\n"


def test_what_was_caught_does_not_pile_up(capfd: pytest.CaptureFixture[str]) -> None:
    for i in range(30):
        with quiet():
            os.write(2, b"libpng error: " + 100_000 * b"x" + b"\nline %d\n" % i)
    assert capfd.readouterr().err == "".join(f"line {i}\n" for i in range(30))
    assert Path(f"/proc/self/fd/{collector()}").stat().st_size <= (1 << 20) + 200_000


def collector() -> int:
    assert quiet_module._collector is not None
    return quiet_module._collector._file.fileno()


def test_many_threads_decode_and_talk(capfd: pytest.CaptureFixture[str]) -> None:
    def work(name: int) -> None:
        for i in range(200):
            with quiet():
                os.write(2, b"libpng error: IDAT: CRC error\n")
                os.sched_yield()
            os.write(2, b"thread %d says %d\n" % (name, i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"thread {name} says {i}" for name in range(4) for i in range(200))


def test_without_stderr_images_are_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    program = "import sys; from come_ros.datasets.image_file import read_picture; print(read_picture(sys.argv[1]).image.shape)"
    program = program.replace("sys.argv[1]", "__import__('pathlib').Path(sys.argv[1])")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.png")], stdout=subprocess.PIPE, text=True, check=True,
        preexec_fn=lambda: os.close(2),
    )  # fmt: skip
    assert done.stdout.strip() == "(60, 80, 3)"


def test_the_place_of_a_closed_stderr_stays_free() -> None:
    program = "import os; from come_ros.camera.quiet import quiet\nwith quiet(): pass\n"
    program += "print(os.path.lexists('/proc/self/fd/2') and os.readlink('/proc/self/fd/2'))"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True, preexec_fn=lambda: os.close(2)
    )
    assert "memfd" not in done.stdout


@pytest.mark.parametrize("where", ["begin", "end"])
def test_a_signal_halfway_loses_nothing_that_is_printed_later(where: str) -> None:
    """It comes between the descriptor's change and the count's."""
    cut = {"begin": "os.dup2", "end": "quiet._collector._restore"}[where]
    program = f"""
import os
from come_ros.camera import quiet
with quiet.quiet(): pass
kept = {cut}
def halfway(*arguments):
    if {where == "begin"}:
        kept(*arguments)
    raise KeyboardInterrupt
{cut} = halfway
try:
    with quiet.quiet(): pass
except KeyboardInterrupt: pass
{cut} = kept
for i in range(2):
    with quiet.quiet():
        os.write(2, b"libpng error: x\\n")
    os.write(2, b"line %d\\n" % i)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.replace("libpng error: x\n", "") == "line 0\nline 1\n"


def damaged(kind: str) -> bytes:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8))
    stream = io.BytesIO()
    if kind == "icc.png":
        noise.save(stream, "PNG", icc_profile=bytes(200))
        return stream.getvalue()
    if kind == "png":
        return broken_png()
    noise.save(stream, {"jpg": "JPEG", "tif": "TIFF"}[kind], **({"compression": "jpeg"} if kind == "tif" else {}))
    data = bytearray(stream.getvalue())
    middle = len(data) // 2
    data[middle : middle + 60] = bytes(60)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "icc.png", "jpg", "tif"])
def test_a_damaged_file_costs_one_line_of_ours_at_most(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(damaged(kind))
    cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert capfd.readouterr().err, "this damage makes no library talk: it is no test"
    try:
        read_picture(path)
    except DatasetError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    assert capfd.readouterr() == ("", "")

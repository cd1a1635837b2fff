"""Files that are whole or not there; what is written can be read by others."""

import io
import os

import numpy as np
import pytest

from come_ros.errors import OutputError
from come_ros.files import whole_file, write_pcd, write_ply, write_safetensors, write_tum
from come_ros.outputs.cloud import POINT_DTYPE


def cloud(n):
    out = np.zeros(n, POINT_DTYPE)
    out["x"], out["conf"] = np.arange(n), 2.5
    out["rgb"] = np.full(n, 0x010203, np.uint32).view(np.float32)
    return out


def test_a_fault_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as stream:
        stream.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"no/such/place\.ply"):
        write_ply(tmp_path / "no/such/place.ply", cloud(1))


def test_a_full_disk_is_said(monkeypatch, tmp_path):
    # /dev/full says ENOSPC to every write
    monkeypatch.setattr("builtins.open", lambda *_: io.open("/dev/full", "wb"))  # noqa: SIM115, UP020
    with pytest.raises(OutputError, match="No space"), whole_file(tmp_path / "a") as stream:
        stream.write(b"x" * 100_000)


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_ply_and_pcd_hold_the_points(tmp_path, n):
    write_ply(tmp_path / "a.ply", cloud(n))
    head, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    assert f"element vertex {n}\n".encode() in head and len(body) == n * 19
    rows = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3), ("conf", "<f4")])
    np.testing.assert_array_equal(rows["xyz"][:, 0], np.arange(n))
    assert (rows["rgb"] == [1, 2, 3]).all() and (rows["conf"] == 2.5).all()
    write_pcd(tmp_path / "a.pcd", cloud(n))
    head, _, body = (tmp_path / "a.pcd").read_bytes().partition(b"DATA binary\n")
    assert b"FIELDS x y z rgb conf\n" in head and body == cloud(n).tobytes()


def test_tum_keeps_nanoseconds(tmp_path):
    write_tum(tmp_path / "t.tum", {1_700_000_000_123_456_789: np.eye(4), 5: np.eye(4)})
    assert (tmp_path / "t.tum").read_text().splitlines() == [
        "0.000000005 0.000000000 0.000000000 0.000000000 0.000000000 0.000000000 0.000000000 1.000000000",
        "1700000000.123456789 0.000000000 0.000000000 0.000000000 0.000000000 0.000000000 0.000000000 1.000000000",
    ]


def test_weights_can_be_read_by_whom_the_umask_lets(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    before = os.umask(0o022)
    try:
        write_safetensors(tmp_path / "w.safetensors", {"a": torch.arange(3)}, {"made_by": "a test"})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644
    assert load_file(tmp_path / "w.safetensors")["a"].tolist() == [0, 1, 2]

"""Recordings of all storages, whole and damaged, by their content: what is there is read, what is not is said, with what helps."""

from __future__ import annotations

import io
import shutil
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

import recordings
import yaml
from recordings import IMAGES, write, write_mcap, write_ros1

from come_ros.datasets.rosbag import Bag
from come_ros.datasets.storage import StorageError, is_recording, open_recording

COUNT = 8


def stamps(path: Path) -> list[int]:
    """Of all images that a reader gives, as numbers of the images that were written."""
    with Bag(path) as bag:
        frames = list(bag.iter_frames())
        for frame in frames:
            number = (frame.stamp_ns - recordings.START_NS) // recordings.STEP_NS
            np.testing.assert_array_equal(frame.image, recordings.picture(number))
        return [(frame.stamp_ns - recordings.START_NS) // recordings.STEP_NS for frame in frames]


ALL = list(range(COUNT))


@pytest.mark.parametrize("compression", ["", "file", "message"])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_bags_of_rosbag2(tmp_path: Path, storage: str, compression: str) -> None:
    folder = write(tmp_path / "bag", COUNT, storage, compression=compression)
    (file,) = (p for p in folder.iterdir() if p.name != "metadata.yaml")
    assert stamps(folder) == stamps(file) == stamps(folder / "metadata.yaml") == ALL
    renamed = tmp_path / "some name without a suffix"
    shutil.copy(file, renamed)
    if compression != "file":
        assert is_recording(renamed) and stamps(renamed) == ALL
    (folder / "metadata.yaml").unlink()
    assert stamps(folder) == ALL


@pytest.mark.parametrize(
    "options",
    [
        {}, {"use_chunking": False}, {"chunk_size": 4000}, {"use_statistics": False}, {"use_summary_offsets": False},
        {"repeat_channels": False}, {"repeat_schemas": False}, {"enable_crcs": False},
    ],
)  # fmt: skip
@pytest.mark.parametrize("index", ["ALL", "NONE", "CHUNK", "MESSAGE"])
def test_mcap_with_any_index_or_none(tmp_path: Path, options: dict[str, object], index: str) -> None:
    from mcap.writer import IndexType

    path = write_mcap(tmp_path / "a.mcap", COUNT, index_types=IndexType[index], **options)
    assert stamps(path) == ALL
    with open_recording(path) as recording:
        assert [c.count for c in recording.channels] == [COUNT] and not recording.damage


ODD = {
    "protobuf": ("protobuf", "foxglove.ImageAnnotations", "protobuf", b"\x0a\x04test", b"\x08\x01"),
    "json": ("json", "Note", "jsonschema", b'{"type": "object"}', b"{}"),
    "schemaless": ("json", "", "", b"", b"{}"),
    "idl": ("cdr", "my_msgs::msg::Lateral", "omgidl", b"module my_msgs { broken", b"\0\1\0\0" + bytes(4)),
    "no definition": ("cdr", "my_msgs/msg/Secret", "", b"", b"\0\1\0\0"),
    "cut definition": ("cdr", "my_msgs/msg/Odd", "ros2msg", b"std_msgs/Header header\nfloat6", b""),
    "latin-1 definition": ("cdr", "my_msgs/msg/Odd", "ros2msg", b"# Winkel f\xfcr x\nfloat64 x", b""),
    "missing type": ("cdr", "my_msgs/msg/Odd", "ros2msg", b"other_msgs/Missing thing\n", b""),
    "unknown encoding": ("flatbuffer", "X", "flatbuffer", b"\0", b"\0"),
    "latin-1 name": ("cdr", "my_msgs/msg/Odd", "\xfc", b"\xff\xfe", b"\xff"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("profile", ["ros2", ""])
def test_an_unrelated_topic_does_not_matter(tmp_path: Path, name: str, profile: str) -> None:
    assert stamps(write_mcap(tmp_path / "a.mcap", COUNT, ODD[name], profile)) == ALL


def test_a_file_without_ros_messages_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"holds no ROS messages, but /odd \(json\)") as caught:
        Bag(write_mcap(tmp_path / "a.mcap", 3, ODD["json"], images_too=False))
    assert "convert it to a ROS 2 bag" in str(caught.value)


def test_ros_1_messages_in_mcap(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a.mcap", COUNT, ros1=True, profile="ros1")
    assert stamps(path) == ALL
    with Bag(path) as bag:
        raw = [data for _, _, data in bag.iter_raw(IMAGES)]
    message = recordings.store().deserialize_cdr(raw[3], recordings.IMAGE)
    assert message.header.stamp.nanosec == 3 * recordings.STEP_NS and len(raw) == COUNT


def chunks_of(path: Path) -> list[tuple[int, int]]:
    """Start and length of each chunk."""
    from mcap.reader import make_reader

    summary = make_reader(io.BytesIO(path.read_bytes())).get_summary()
    assert summary is not None
    return [(c.chunk_start_offset, c.chunk_length) for c in summary.chunk_indexes]


def test_a_damaged_chunk_costs_its_own_messages_only(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a.mcap", COUNT, chunk_size=1000)  # each image has its own
    content = bytearray(path.read_bytes())
    start, length = chunks_of(path)[2]
    content[start + 60 : start + length] = b"\xee" * (length - 60)
    for whole in (True, False):  # with the index, and by a scan
        path.write_bytes(content if whole else content[:-8] + bytes(8))
        assert stamps(path) == [0, 1, 3, 4, 5, 6, 7]
        with open_recording(path) as recording:
            assert len(list(recording.messages(IMAGES))) == COUNT - 1
            assert "1 of 8 chunks cannot be unpacked" in recording.damage


@pytest.mark.parametrize("chunked", [True, False])
def test_a_recording_that_was_cut_off(tmp_path: Path, chunked: bool) -> None:
    path = write_mcap(tmp_path / "a.mcap", COUNT, use_chunking=chunked, chunk_size=4000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with open_recording(path) as recording:
        assert "has no end" in recording.damage and 2 <= sum(c.count for c in recording.channels) <= 4
    assert stamps(path) in (ALL[:2], ALL[:3], ALL[:4])


def test_the_last_chunk_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    from mcap.writer import CompressionType

    for packing in CompressionType:
        path = write_mcap(tmp_path / "a.mcap", COUNT, compression=packing)  # one chunk
        ((start, length),) = chunks_of(path)
        path.write_bytes(path.read_bytes()[: start + length * 3 // 4])
        with open_recording(path) as recording:
            assert "has no end" in recording.damage
            if packing is CompressionType.NONE:
                assert stamps(path) == ALL[:5]


@pytest.mark.parametrize("packing", ["", "bz2", "lz4"])
def test_ros_1_bags(tmp_path: Path, packing: str) -> None:
    for definition in (None, "float64 x\n", "Header header\nfloat6", "", "other_msgs/Thing t\n"):
        path = write_ros1(tmp_path / "a.bag", COUNT, packing, definition)
        assert stamps(path) == ALL
    content = bytearray(path.read_bytes())
    at = content.find(b"index_pos=") + len(b"index_pos=")
    (end,) = struct.unpack_from("<Q", content, at)
    content[at : at + 8] = bytes(8)
    active = tmp_path / "run.bag.active"
    active.write_bytes(content[:end])  # as a recorder that was killed leaves it
    with open_recording(active) as recording:
        assert recording.is_ros1 and "has no end" in recording.damage
    if packing:  # this writer puts connections behind the chunks; rosbag record puts them into the chunks
        return
    with Bag(write_ros1(tmp_path / "a.bag", COUNT)) as bag:
        assert bag.is_ros1 and not bag.damage


def test_a_ros_1_bag_that_was_cut_off(tmp_path: Path) -> None:
    path = write_ros1(tmp_path / "a.bag", COUNT)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with open_recording(path) as recording:
        assert "has no end" in recording.damage


def split(folder: Path, storage: str) -> tuple[Path, list[Path]]:
    """A bag of two files."""
    suffix = {"mcap": ".mcap", "sqlite3": ".db3"}[storage]
    half = COUNT // 2
    folder.mkdir()
    files = []
    for part in range(2):
        made = write(
            folder.parent / f"part{part}", half, storage,
            messages=lambda i: [(IMAGES, recordings.image(recordings.picture(i), i))], first=part * half,
        )  # fmt: skip
        files.append(folder / f"x_{part}{suffix}")
        shutil.copy(next(made.glob(f"*{suffix}")), files[-1])
    about = yaml.safe_load((made / "metadata.yaml").read_text())
    about["rosbag2_bagfile_information"].update(relative_file_paths=[f.name for f in files], message_count=COUNT)
    (folder / "metadata.yaml").write_text(yaml.safe_dump(about))
    return folder, files


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_split_bags_are_what_their_metadata_says_minus_what_is_missing(tmp_path: Path, storage: str) -> None:
    folder, (first, second) = split(tmp_path / "bag", storage)
    with open_recording(folder) as recording:
        assert not recording.damage
    assert stamps(folder) == ALL

    kept = second.read_bytes()
    second.write_bytes(b"")
    assert stamps(folder) == ALL[:4]
    with open_recording(folder) as recording:
        assert "is empty (0 bytes)" in recording.damage and "4 of 8 messages are there" in recording.damage
    second.write_bytes(kept)

    renamed = first.rename(folder / f"kitchen{first.suffix}")
    with open_recording(folder) as recording:
        assert not recording.damage
    assert stamps(folder) == ALL

    renamed.unlink()
    assert stamps(folder) == ALL[4:]
    with open_recording(folder) as recording:
        assert f"1 of 2 files of {folder} are missing ({first.name}): copy them too" in recording.damage
        assert "4 of 8 messages are there" in recording.damage

    second.unlink()
    with pytest.raises(StorageError, match=r"listed in its metadata.yaml, but not there: copy it too"):
        open_recording(folder)


def test_a_damaged_metadata_is_not_needed(tmp_path: Path) -> None:
    folder = write(tmp_path / "bag", COUNT)
    for text in (
        b"",
        b"rosbag2_bagfile_information: [",
        b"\xff\xfe\0",
        b"a: 1\n",
        b"rosbag2_bagfile_information:\n  version: 9\n",
    ):
        (folder / "metadata.yaml").write_bytes(text)
        assert stamps(folder) == ALL
        with open_recording(folder) as recording:
            assert "metadata.yaml is damaged" in recording.remark and "ros2 bag reindex" in recording.remark
            assert not recording.damage, "nothing is known to be lost"


def test_a_recorder_that_was_killed_while_it_packed_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "bag", COUNT, compression="file")
    (packed,) = folder.glob("*.zstd")
    plain = write(tmp_path / "other", COUNT)
    packed.unlink()
    shutil.copy(next(plain.glob("*.mcap")), folder / packed.name.removesuffix(".zstd"))
    assert stamps(folder) == ALL
    with open_recording(folder) as recording:
        assert not recording.damage


def test_messages_in_a_write_ahead_log_are_read(tmp_path: Path) -> None:
    file = next(write(tmp_path / "bag", COUNT, "sqlite3").glob("*.db3"))
    crash = tmp_path / "crash.db3"
    shutil.copy(file, crash)
    database = sqlite3.connect(crash, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA wal_autocheckpoint=0")
    row = database.execute(
        "SELECT topic_id, data FROM messages WHERE topic_id = (SELECT id FROM topics WHERE name = ?)", (IMAGES,)
    )
    topic, _ = row.fetchone()
    message = recordings.image(recordings.picture(COUNT), COUNT)
    data = bytes(recordings.store().serialize_cdr(message, recordings.IMAGE))
    stamp = recordings.START_NS + COUNT * recordings.STEP_NS
    database.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", (topic, stamp, data))
    left = tmp_path / "left.db3"
    for suffix in ("", "-wal"):
        shutil.copy(f"{crash}{suffix}", f"{left}{suffix}")
    database.close()
    before = {p: p.read_bytes() for p in tmp_path.glob("left*")}
    assert stamps(left) == [*ALL, COUNT]
    assert {p: p.read_bytes() for p in tmp_path.glob("left*")} == before, "the recording itself is never changed"


def test_a_database_without_its_index_of_times(tmp_path: Path) -> None:
    file = next(write(tmp_path / "bag", COUNT, "sqlite3").glob("*.db3"))
    database = sqlite3.connect(file)
    database.executescript(
        "DROP INDEX IF EXISTS timestamp_idx; DROP TABLE IF EXISTS schema; DROP TABLE IF EXISTS metadata"
    )
    database.close()
    assert stamps(file) == ALL


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (bytes(500), "starts with zeros: the disk was full"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x1f\x8b" + bytes(20), "unpack it with gunzip"),
        (b"PK\x03\x04" + bytes(20), "zip archive: unpack it"),
        (b"something else", "neither MCAP, nor SQLite, nor a ROS 1 bag"),
        (b"\x89MCAP0\r\n", "nothing of it is left"),
        (b"#ROSBAG V1.2\n" + bytes(50), "its format is 1.2, not 2.0: `rosbag fix`"),
        (b"SQLite format 3\0" + bytes(200), "may save what is left|has no tables"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "its compression is damaged"),
    ],
)
def test_each_failure_has_its_own_advice(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "a.mcap"
    file.write_bytes(content)
    with pytest.raises(Exception, match=told) as caught:
        Bag(file)
    assert "\n" not in str(caught.value) and "a.mcap" in str(caught.value)


def test_folders_of_bags_that_do_not_belong_together(tmp_path: Path) -> None:
    for name in ("a.bag", "b.bag"):
        write_ros1(tmp_path / name, 2)
    with pytest.raises(StorageError, match=r"holds 2 ROS 1 bags \(a.bag, b.bag\): give one of them"):
        open_recording(tmp_path)
    (tmp_path / "b.bag").unlink()
    assert stamps(tmp_path) == [0, 1]


@pytest.mark.parametrize("count", [7, 2**63, 2**64 - 1])
def test_counts_that_do_not_add_up_are_counted_again(tmp_path: Path, count: int) -> None:
    path = recordings.write_mcap(tmp_path / "a.mcap", 8, enable_crcs=False)
    data = bytearray(path.read_bytes())
    before = struct.pack("<IHQ", 10, 1, 8)  # of the statistics: bytes, channel, its messages
    assert data.count(before) == 1
    at = data.index(before)
    data[at : at + len(before)] = struct.pack("<IHQ", 10, 1, count)
    path.write_bytes(data)
    with Bag(path) as bag:
        assert len(bag) == len(list(bag.iter_frames())) == 8


def test_an_error_of_sqlite_whose_text_is_no_text_is_one_line(tmp_path: Path) -> None:
    """Bytes of a damaged schema in SQLite's own message are no UTF-8, and Python raises UnicodeDecodeError in place of its error."""
    import sqlite3

    from come_ros.datasets.storage.parts import StorageError
    from come_ros.datasets.storage.sqlite import SqliteFile

    path = tmp_path / "bag.db3"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE topics (id, name, type, serialization_format)")
    database.execute("CREATE TABLE messages (id, topic_id, timestamp, data)")
    database.commit()
    database.close()
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE topics", b"CRE\xee\xff TABLE topics", 1))
    with pytest.raises(StorageError, match="cannot be read as a bag"):
        SqliteFile(path)

"""The examples on the pages for a reader, a backbone and an output topic of one's own run as they are printed."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from come_ros.datasets.sequence import open_sequence
from come_ros.testing import BackboneContract, ReaderContract

ROOT = Path(__file__).resolve().parents[1]


def examples(page: str, heading: str) -> list[str]:
    """The Python blocks under that heading, without the indentation of a list."""
    text = (ROOT / page).read_text(encoding="utf-8")
    _, found, section = text.partition(f"# {heading}\n")
    assert found, f"{page} has no section {heading!r}"
    section = re.split(r"^#{1,2} ", section, maxsplit=1, flags=re.MULTILINE)[0]
    return [
        textwrap.dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    ]


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package that Python finds."""
    pytest.importorskip("torch")
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] == "my_package"]:
        del sys.modules[name]


READER = "come_ros/tools/README.md", "Read another kind of recording"
STEP_NS = 50_000_000


def write_euroc(folder: Path, count: int = 4) -> Path:
    """A EuRoC sequence of `count` images. The camera moves 0.1 m along x per image and sits 1 m in front of the body's origin."""
    camera, truth = folder / "mav0" / "cam0", folder / "mav0" / "state_groundtruth_estimate0"
    (camera / "data").mkdir(parents=True)
    truth.mkdir()
    stamps = [1_403_636_579_763_555_584 + i * STEP_NS for i in range(count)]
    rng = np.random.default_rng(0)
    for stamp in stamps:
        Image.fromarray(rng.integers(0, 256, (48, 64), np.uint8)).save(camera / "data" / f"{stamp}.png")
    (camera / "data.csv").write_text("#timestamp [ns],filename\n" + "".join(f"{s},{s}.png\r\n" for s in stamps))
    (camera / "sensor.yaml").write_text(
        "T_BS:\n  cols: 4\n  rows: 4\n  data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1]\n"
        "intrinsics: [60, 61, 32, 24]\ndistortion_coefficients: [-0.1, 0.01, 0, 0]\n"
    )
    rows = "".join(f"{s},{0.1 * i},2.0,3.0,1.0,0.0,0.0,0.0,0,0,0\n" for i, s in enumerate(stamps))
    (truth / "data.csv").write_text("#timestamp,p_RS_R_x [m],p_RS_R_y [m]\n" + rows)
    return folder


class TestReaderOfThePage(ReaderContract):
    @pytest.fixture
    def source(self, my_package: Path, tmp_path: Path) -> str:
        code, test = examples(*READER)
        (my_package / "euroc.py").write_text(code)
        made: dict[str, Any] = {}
        exec(compile(test, "test_euroc.py", "exec"), made)
        printed = made["TestEuroc"].source.__wrapped__(None)
        return printed.replace("/data/MH_01_short", str(write_euroc(tmp_path / "MH_01")))

    def test_it_reads_what_the_sequence_holds(self, source: str) -> None:
        with open_sequence(source) as recording:
            frames, truth = list(recording.iter_frames()), recording.truth()
        assert recording.kind == "EuRoC sequence" and len(frames) == 4
        assert frames[1].stamp_ns - frames[0].stamp_ns == STEP_NS
        np.testing.assert_array_equal(frames[0].intrinsics, [[60, 0, 32], [0, 61, 24], [0, 0, 1]])
        np.testing.assert_allclose([pose[:3, 3] for pose in truth.values()], [[0.1 * i, 2, 4] for i in range(4)])

    def test_a_damaged_image_is_counted_and_a_sequence_without_calibration_refused(self, source: str) -> None:
        from come_ros.errors import DatasetError

        folder = Path(source.rpartition("::")[2])
        next((folder / "mav0" / "cam0" / "data").iterdir()).write_bytes(b"no image")
        with open_sequence(source) as recording:
            assert (len(list(recording.iter_frames())), recording.unreadable) == (3, 1)
        (folder / "mav0" / "cam0" / "sensor.yaml").unlink()
        with pytest.raises(DatasetError, match=r"sensor\.yaml is missing: give the folder of a whole sequence"):
            open_sequence(source)


BACKBONE = "come_ros/models/README.md", "Write your own backbone"


@pytest.fixture
def floor(my_package: Path) -> Path:
    code, *_ = examples(*BACKBONE)
    (my_package / "floor.py").write_text(code)
    return my_package


class TestBackboneOfThePage(BackboneContract):
    @pytest.fixture
    def make(self, floor: Path) -> Any:
        made: dict[str, Any] = {}
        exec(compile(examples(*BACKBONE)[1], "test_floor.py", "exec"), made)
        return made["TestFloor"].make.__wrapped__(None)

    def test_its_parameter_moves_the_floor(self, floor: Path) -> None:
        from come_ros.backbones import load_backbone
        from come_ros.config import Config
        from come_ros.config_text import with_words

        images = np.zeros((2, 120, 160, 3), np.uint8)
        near, far = (
            load_backbone(with_words(Config(), ["backbone=my_package.floor:Floor", f"backbone_params.height={h}"]))
            for h in (0.5, 1.0)
        )
        np.testing.assert_allclose(2 * near.predict(images).depth, far.predict(images).depth, rtol=1e-6)
        assert far.description["parameters"] == "0" and far.metric


def test_the_network_of_the_page_is_found_and_has_its_sizes(my_package: Path) -> None:
    import torch

    from come_ros.plugins import BACKBONES, is_network

    (my_package / "mine.py").write_text(examples(*BACKBONE)[2])
    kind = BACKBONES.load("my_package.mine:Mine")
    assert is_network("my_package.mine:Mine") and not is_network("fake")
    with torch.device("meta"):
        assert kind(kind.published_sizes({})).shape.trunk == ("frame", "global") * 12


def test_the_output_topic_of_the_page_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    from rosbags.typesys import Stores, get_typestore

    from come_ros.config import Config
    from come_ros.datasets.bag_writer import rosbags_messages
    from come_ros.outputs import topics
    from come_ros.outputs.reporter import Reporter
    from come_ros.types import Alignment, Frame, Submap

    monkeypatch.setattr(topics, "OUTPUTS", dict(topics.OUTPUTS))
    monkeypatch.setattr("come_ros.outputs.reporter.OUTPUTS", topics.OUTPUTS)
    method, line = examples("come_ros/ros/README.md", "Add an output topic")
    space = dict(vars(topics))
    exec(method, space)
    monkeypatch.setattr(topics.FrameMessages, "nearest", space["nearest"], raising=False)
    exec(line, space)
    assert "nearest" in topics.OUTPUTS

    class Sink:
        """Keeps the messages of that topic."""

        published: list[Any] = []  # noqa: RUF012

        def frame(self, topic: str, made: topics.FrameMessages) -> None:
            if topic == "nearest":
                self.published.append(topics.OUTPUTS[topic].build(made))

        def moved(self, motion: Any, config: Config) -> None: ...

        def new_world(self) -> None: ...

    image = np.full((2, 4, 6, 3), 90, np.uint8)
    depth = np.full((2, 4, 6), 3.0, np.float32)
    depth[0, 1, 2], depth[1] = 0.5, np.nan
    submap = Submap(
        frames=tuple(Frame(image[0], i + 1) for i in range(2)), images=image, depth=depth,
        confidence=np.full((2, 4, 6), 2, np.float32), intrinsics=np.tile(np.eye(3), (2, 1, 1)),
        odom_from_camera=np.tile(np.eye(4), (2, 1, 1)), alignment=Alignment(True, 0, 1.0),
    )  # fmt: skip
    config = Config().replace(**{"cloud.edge_filter": False})
    reporter = Reporter(Sink(), rosbags_messages(get_typestore(Stores.ROS2_JAZZY)), config, metric=False)
    for row in range(2):
        reporter.add_row(submap, row, config)
    first, second = (message.data for message in Sink.published)
    assert first == 0.5 and np.isnan(second)

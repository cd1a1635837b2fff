"""Accelerators, backbones and readers of other packages: found by entry point or as module:Class, with parameters of their own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from come_ros.config import Config, parameters
from come_ros.config_text import load_config, with_accelerator, with_words
from come_ros.datasets.part import Part
from come_ros.datasets.sequence import open_sequence
from come_ros.errors import ComeRosError, ConfigError, DatasetError
from come_ros.plugins import ACCELERATORS, BACKBONES, READERS
from come_ros.testing import AcceleratorContract, ReaderContract

ROOT = Path(__file__).resolve().parents[1]

MODULE = """
from dataclasses import dataclass

from come_ros.accelerators import Accelerator
from come_ros.parameter import parameter


class Every(Accelerator):
    name = "every"

    @dataclass(frozen=True)
    class Parameters:
        step: int = parameter(2, "patches between those that are read", low=1, high=8, dynamic=True)
        file: str = parameter("", "a file of its own")
        strict: bool = parameter(False, "whether to be strict")

    @classmethod
    def create(cls, config, shape, weights):
        made = cls()
        made.step = config.accelerator.params.step
        return made


class Plain(Accelerator):
    name = "plain"


class NotOne:
    pass


class Fails(Accelerator):
    @classmethod
    def create(cls, config, shape, weights):
        return {}["no such key"]


class Loose(Accelerator):
    @dataclass
    class Parameters:
        step: int = parameter(2, "patches")


class Undeclared(Accelerator):
    @dataclass(frozen=True)
    class Parameters:
        step: int = 2
"""


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module plugin_of_somebody with those classes, some broken ones, and a distribution with entry points."""
    pytest.importorskip("torch")
    (tmp_path / "plugin_of_somebody.py").write_text(MODULE)
    (tmp_path / "plugin_that_fails.py").write_text("raise RuntimeError('no licence\\nfor this')\n")
    (tmp_path / "plugin_that_needs.py").write_text("import a_package_that_nobody_has\n")
    folder = tmp_path / "other-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[come_ros.accelerators]\nevery = plugin_of_somebody:Every\nbroken = plugin_that_fails:X\ncome = plugin_of_somebody:Plain\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (ACCELERATORS, READERS):
        registry.__dict__.pop("others", None)
    yield
    for registry in (ACCELERATORS, READERS):
        registry.__dict__.pop("others", None)
    for name in [n for n in sys.modules if n.startswith("plugin_")]:
        del sys.modules[name]


def test_built_in_names_lead_to_classes_of_that_name() -> None:
    for registry in (ACCELERATORS, BACKBONES, READERS):
        for name in registry.own:
            assert registry.load(name).name == name
            assert registry.parameters_of(name) is None


def test_an_entry_point_is_chosen_by_its_name() -> None:
    config = with_words(Config(), ["accelerator.name=every", "accelerator.ratio=0.25"])
    assert ACCELERATORS.load(config.accelerator.name).__name__ == "Every"
    assert config.accelerator.params.step == 2
    assert "every" in ACCELERATORS.allowed()


def test_a_built_in_name_cannot_be_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    assert ACCELERATORS.load("come").__name__ == "CoMe" and "come" not in ACCELERATORS.others
    assert "the accelerator come of plugin_of_somebody:Plain is left out" in caplog.text


def test_own_parameters_are_like_all_others(tmp_path: Path) -> None:
    config = with_words(
        Config(),
        ["accelerator.name=plugin_of_somebody:Every", "accelerator.params.step=3", "accelerator.params.file=1.5"],
    )
    assert (config.accelerator.params.step, config.accelerator.params.file) == (3, "1.5")
    assert config.get("accelerator.params.step") == config.to_flat()["accelerator.params.step"] == 3
    assert config == with_accelerator(Config(), "plugin_of_somebody:Every:step=3,file=1.5")
    assert config == Config.from_flat(config.to_flat())
    assert config.replace(**{"window.size": 6}).accelerator == config.accelerator
    file = tmp_path / "my.yaml"
    file.write_text("/**:\n  ros__parameters:\n    accelerator: {name: every, params: {step: 3, strict: true}}\n")
    assert load_config(str(file)).accelerator.params.strict is True
    names = [p.name for p in config.parameters()]
    assert names[: len(list(parameters()))] == [p.name for p in parameters()]
    own = {p.name: p for p in config.parameters() if p.name.startswith("accelerator.params.")}
    assert [*own] == ["accelerator.params.step", "accelerator.params.file", "accelerator.params.strict"]
    assert own["accelerator.params.step"].dynamic and not own["accelerator.params.file"].dynamic


def test_they_go_with_their_plug_in() -> None:
    config = with_accelerator(Config(), "every:step=3")
    other = config.replace(**{"accelerator.name": "come"})
    assert other.accelerator.params is None and not any("params" in name for name in other.to_flat())
    assert with_accelerator(config, "plugin_of_somebody:Plain").accelerator.params is None
    assert with_accelerator(config, "every:ratio=0.25").accelerator.params.step == 3  # the same one keeps them


def test_a_short_name_means_the_plug_ins_own_first() -> None:
    with pytest.raises(ConfigError, match="the accelerator every has no parameter 'stp'; did you mean 'step'"):
        with_accelerator(Config(), "every:stp=3")
    with pytest.raises(ConfigError, match="the accelerator come has no parameter 'rato'; did you mean 'ratio'"):
        with_accelerator(Config(), "come:rato=0.5")
    assert with_accelerator(Config(), "come:kernels=torch,ratio=0.25").kernels == "torch"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["accelerator.name=every", "accelerator.params.step=9"], "accelerator.params.step is 9, but must lie in 1 .. 8"),
        (["accelerator.name=every", "accelerator.params.step=two"], "accelerator.params.step is 'two' (str), but must be"),
        (["accelerator.name=every", "accelerator.params.stp=3"], "did you mean 'accelerator.params.step'?"),
        (["accelerator.params.step=3"], "accelerator.name is none, which has no parameters of its own"),
        (["accelerator.name=evry"], "must be one of none, come, tome, good_token_hunting, pace, fast, temporal, subscene, regime, random, "
         "every, broken"),
        (["accelerator.name=plugin_of_somebody:Evry"], "has no class 'Evry'"),
        (["accelerator.name=plugin_of_nobody:Every"], "there is no module 'plugin_of_nobody': install it into this Python"),
        (["accelerator.name=plugin_that_needs:X"], "there is no module 'a_package_that_nobody_has': install that"),
        (["accelerator.name=broken"], "the accelerator broken (plugin_that_fails:X): RuntimeError: no licence for this"),
        (["accelerator.name=plugin_of_somebody:NotOne"], "class NotOne must inherit from come_ros.accelerators.Accelerator"),
        (["accelerator.name=plugin_of_somebody:Loose"], "frozen=True"),
        (["accelerator.name=plugin_of_somebody:Undeclared"], "declare step of its Parameters with come_ros.parameter.parameter"),
        (["backbone=plugin_of_somebody:Every"], "must inherit from"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        with_words(Config(), words)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_it_is_made_with_its_parameters(tmp_path: Path) -> None:
    from come_ros.accelerators import make_accelerator, registered

    made = make_accelerator(with_accelerator(Config(), "every:step=3"), None, "")  # type: ignore[arg-type]
    assert type(made).__name__ == "Every" and made.step == 3  # type: ignore[attr-defined]
    found = registered()
    assert found["every"] is type(made) and "broken" not in found
    with pytest.raises(ConfigError, match="plugin_of_somebody:Fails cannot be made: KeyError: 'no such key'"):
        make_accelerator(with_accelerator(Config(), "plugin_of_somebody:Fails"), None, "")  # type: ignore[arg-type]


BACKBONE = """
from dataclasses import dataclass

from come_ros.backbones.backbone import Backbone
from come_ros.backbones.fake import FakeBackbone
from come_ros.backbones.vggt import VGGT
from come_ros.parameter import parameter
from come_ros.plugins import BACKBONES


class Mine(VGGT):
    name, landmark, weights_from = "mine", "a.key.that.no.file.holds", "their page"


class Whole(FakeBackbone, Backbone):
    name = "whole"

    @dataclass(frozen=True)
    class Parameters:
        delay: float = parameter(0.0, "seconds of a window", low=0.0, high=1.0)

    @classmethod
    def create(cls, config):
        return cls(delay_s=config.backbone_params.delay)
"""


def test_backbones_of_others_are_loaded(tmp_path: Path) -> None:
    from come_ros.backbones import load_backbone
    from come_ros.backbones.checkpoint import load_model, save_checkpoint
    from come_ros.errors import CheckpointError
    from come_ros.testing.models import TINY

    (tmp_path / "plugin_backbones.py").write_text(BACKBONE)
    mine = BACKBONES.load("plugin_backbones:Mine")
    path = str(tmp_path / "mine.safetensors")
    save_checkpoint(path, mine(TINY["vggt"]))
    assert type(load_model("plugin_backbones:Mine", path)) is mine
    config = Config().replace(backbone="plugin_backbones:Mine", weights=path, device="cpu")
    assert load_backbone(config).predict(np.zeros((2, 56, 70, 3), np.uint8)).depth.shape == (2, 56, 70)
    with pytest.raises(CheckpointError, match="holds weights of the backbone mine"):
        load_model("vggt", path)
    with pytest.raises(CheckpointError, match=r"set the parameter weights to a file \(their page\)"):
        load_backbone(config.replace(weights=""))

    words = ["backbone=plugin_backbones:Whole", "backbone_params.delay=0.25"]
    assert load_backbone(with_words(Config(), words)).delay_s == 0.25  # type: ignore[attr-defined]


READER = """
from dataclasses import dataclass

import numpy as np

from come_ros.parameter import parameter
from come_ros.datasets.sequence import Recording
from come_ros.types import Frame


class Rows(Recording):
    name, kind = "rows", "rows of grey values"

    @dataclass(frozen=True)
    class Parameters:
        rate: float = parameter(10.0, "images per second", low=0.1, high=1000.0)

    @classmethod
    def accepts(cls, path):
        return path.suffix == ".rows"

    def __init__(self, path, own):
        self.rows = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
        self.step_ns, self.count = int(1e9 / own.rate), len(self.rows)

    def iter_frames(self):
        for i, row in enumerate(self.rows):
            image = np.repeat(np.uint8([row])[..., None], 3, axis=2)
            yield Frame(np.repeat(image, 40, axis=0), 1 + i * self.step_ns)

    def iter_depth(self):
        for frame in self.iter_frames():
            yield frame.stamp_ns, np.full(frame.image.shape[:2], 2.0, np.float32)
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A recording that only that reader knows; its entry point is installed."""
    (tmp_path / "plugin_reader.py").write_text(READER)
    with open(tmp_path / "other-1.0.dist-info" / "entry_points.txt", "a") as file:
        file.write("[come_ros.datasets]\nrows = plugin_reader:Rows\n")
    READERS.__dict__.pop("others", None)
    path = tmp_path / "some.rows"
    path.write_text("\n".join(" ".join(str((7 * i + 3 * j) % 256) for j in range(56)) for i in range(5)))
    return path


def test_what_a_reader_leaves_out_is_known_at_once(rows: Path) -> None:
    with open_sequence(f"rows::{rows}", part=Part(most=2)) as part:
        frames = part.iter_frames()
        next(frames)
        part._whole.unreadable, part._whole.damage = 3, "its end is missing"
        assert (part.unreadable, part.damage) == (3, "its end is missing")


class TestReaderOfSomebody(ReaderContract):
    @pytest.fixture(params=["recognised", "named", "module:Class, with a parameter"])
    def source(self, request: pytest.FixtureRequest, rows: Path) -> str:
        reader = {"recognised": "", "named": "rows::"}.get(request.param, "plugin_reader:Rows:rate=25::")
        return f"{reader}{rows}"


class TestImageFolder(ReaderContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for i in range(3):
            Image.fromarray(np.full((30, 40, 3), 50 * i, np.uint8)).save(folder / f"{i}.png")
        return folder


def test_a_part_and_options_of_a_readers_recording(rows: Path) -> None:
    with open_sequence(f"plugin_reader:Rows:rate=25::{rows}", part=Part(every=2, most=2)) as part:
        assert [f.stamp_ns for f in part.iter_frames()] == [1, 1 + 2 * 40_000_000]
    with pytest.raises(ConfigError, match="--fps 5 has no effect"):
        open_sequence(rows, fps=5)
    with pytest.raises(ConfigError, match="has no parameter 'rat'; did you mean 'rate'"):
        open_sequence(f"rows:rat=5::{rows}")
    with pytest.raises(ConfigError, match="there is no dataset reader 'lines'"):
        open_sequence(f"lines::{rows}")
    rows.write_text("seven")
    with pytest.raises(
        DatasetError, match=r"the dataset reader rows cannot open .*: ValueError: invalid literal"
    ) as raised:
        open_sequence(rows)
    assert "\n" not in str(raised.value)


def test_a_broken_reader_leaves_other_recordings_alone(
    rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plugin_reader.py").write_text("import a_package_that_nobody_has\n")
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "1.png")
    assert open_sequence(folder).count == 1
    assert "there is no module 'a_package_that_nobody_has'" in caplog.text


@pytest.mark.slow
def test_a_command_reads_it(rows: Path, tmp_path: Path) -> None:
    from come_ros.tools import cli

    words = [
        "--set",
        "backbone=fake",
        "--set",
        "keyframe.mode=every",
        "--set",
        "window.size=2",
        "--set",
        "window.overlap=1",
    ]
    assert (
        cli.main(["bag", f"plugin_reader:Rows:rate=25::{rows}", "-o", str(tmp_path / "out"), "--no-view", *words]) == 0
    )
    assert (tmp_path / "out" / "map.ply").stat().st_size > 100


def test_a_command_ends_with_that_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from come_ros.tools import cli

    assert cli.main(["bag", str(tmp_path), "-o", str(tmp_path / "out"), "--set", "accelerator.name=broken"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("come_ros bag: cannot import the accelerator broken")


class TestTheExampleOfThePage(AcceleratorContract):
    """come_ros/accelerators/README.md, "Write your own accelerator": the code as it is printed there."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> Any:
        page = (ROOT / "come_ros" / "accelerators" / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
        code, test = (text for language, text in blocks if language == "python")
        (tmp_path / "my_accelerators").mkdir()
        (tmp_path / "my_accelerators" / "__init__.py").touch()
        (tmp_path / "my_accelerators" / "stride.py").write_text(code)
        made: dict[str, Any] = {}
        exec(compile(test, "test_stride.py", "exec"), made)
        (parameters_file,) = (text for language, text in blocks if language == "yaml")
        (tmp_path / "my.yaml").write_text(
            parameters_file.replace("name: stride", "name: my_accelerators.stride:Stride")
        )
        assert load_config(str(tmp_path / "my.yaml")).accelerator.params.step == 4
        yield made["TestStride"].make.__wrapped__(None)
        for name in [n for n in sys.modules if n.startswith("my_accelerators")]:
            del sys.modules[name]


BAD_READERS = """
import numpy as np

from come_ros.datasets import Recording
from come_ros.types import Frame

IMAGE = np.zeros((40, 56, 3), np.uint8)


class Good(Recording):
    kind = "three images"

    def __init__(self, path):
        pass

    def iter_frames(self):
        return (Frame(IMAGE, i) for i in range(1, 4))


class NoKind(Good):
    def __init__(self, path):
        self.hidden = True

    def __getattribute__(self, name):
        if name == "kind":
            raise AttributeError(name)
        return super().__getattribute__(name)


class Pairs(Good):
    def iter_frames(self):
        yield 1, IMAGE


class Seconds(Good):
    def iter_frames(self):
        yield Frame(IMAGE, 1.5)


class Four(Good):
    def iter_frames(self):
        yield Frame(IMAGE, 1, "camera", np.ones(4))


class Breaks(Good):
    def iter_frames(self):
        yield Frame(IMAGE, 1)
        raise KeyError("two")


class Millimetres(Good):
    def iter_depth(self):
        yield 1, np.ones((40, 56), np.uint16)


class Rotations(Good):
    def truth(self):
        return {1: np.eye(3)}
"""


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("NoKind", "iter_frames", "cannot be used: NoKind lacks kind: set them in the class or in __init__"),
        ("Pairs", "iter_frames", "gave tuple, but iter_frames must give come_ros.types.Frame"),
        ("Seconds", "iter_frames", "gave the stamp 1.5 (float), but iter_frames must give an int in ns"),
        ("Four", "iter_frames", "gave intrinsics of shape (4,) and type float64, but iter_frames must give None or (3, 3) float64"),
        ("Breaks", "iter_frames", "failed in iter_frames: KeyError: 'two'"),
        ("Millimetres", "iter_depth", "gave depth of shape (40, 56) and type uint16, but iter_depth must give (H, W) float32 in metres"),
        ("Rotations", "truth", "gave a pose of shape (3, 3) and type float64, but truth must give (4, 4) float64"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_reader_is_one_line(tmp_path: Path, name: str, method: str, message: str) -> None:
    (tmp_path / "plugin_readers.py").write_text(BAD_READERS)
    with pytest.raises(ComeRosError) as raised, open_sequence(f"plugin_readers:{name}::{tmp_path}") as recording:
        list(getattr(recording, method)())
    assert str(raised.value) == f"the dataset reader plugin_readers:{name} {message}"


def test_a_reader_needs_no_more_than_its_kind_and_images(tmp_path: Path) -> None:
    (tmp_path / "plugin_readers.py").write_text(BAD_READERS)
    with open_sequence(f"plugin_readers:Good::{tmp_path}") as recording:
        assert recording.count is None and len(list(recording.iter_frames())) == 3


BAD_BACKBONES = """
from dataclasses import dataclass, replace

import numpy as np

from come_ros.backbones import Backbone
from come_ros.parameter import parameter
from come_ros.types import Prediction


class Flat(Backbone):
    name, patch_size, native_side, device = "flat", 14, 56, "cpu"

    @dataclass(frozen=True)
    class Parameters:
        depth: float = parameter(2.0, "depth of all pixels", low=0.1, high=10.0)

    def __init__(self, depth=2.0):
        self.depth = depth

    @classmethod
    def create(cls, config):
        return cls(config.backbone_params.depth)

    def predict(self, images, stop=None, known=None, step=None):
        depth = np.full(images.shape[:3], self.depth, np.float32)
        eyes = [np.tile(np.eye(n), (len(images), 1, 1)) for n in (4, 3)]
        return Prediction(images, depth, depth, *eyes)


class NoSide(Flat):
    def __getattribute__(self, name):
        if name == "native_side":
            raise AttributeError(name)
        return super().__getattribute__(name)


class Nothing(Flat):
    def predict(self, images, stop=None, known=None, step=None):
        return None


class Doubles(Flat):
    def predict(self, images, stop=None, known=None, step=None):
        p = super().predict(images)
        return replace(p, depth=p.depth.astype(float))


class Flatter(Flat):
    def predict(self, images, stop=None, known=None, step=None):
        p = super().predict(images)
        return replace(p, window_from_camera=p.window_from_camera[:, :3])
"""


def backbone_of(tmp_path: Path, name: str, *words: str) -> Any:
    from come_ros.backbones import load_backbone

    (tmp_path / "plugin_bad_backbones.py").write_text(BAD_BACKBONES)
    return load_backbone(with_words(Config(), [f"backbone=plugin_bad_backbones:{name}", *words]))


def test_a_backbone_describes_itself_without_being_asked_to(tmp_path: Path) -> None:
    description = backbone_of(tmp_path, "Flat").description
    assert (description["backbone"], description["accelerator"], description["device"]) == ("flat", "none", "cpu")


def test_a_backbone_that_lacks_something_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComeRosError, match="plugin_bad_backbones:NoSide cannot be used: NoSide lacks native_side: set"):
        backbone_of(tmp_path, "NoSide")
    with pytest.raises(ConfigError, match=r"accelerator\.name is come, but the backbone .*:Flat has no accelerators"):
        backbone_of(tmp_path, "Flat", "accelerator.name=come")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nothing", "returned NoneType: its predict must return come_ros.types.Prediction"),
        ("Doubles", r"returned depth of shape \(2, 42, 56\) and type float64, but .* \(2, 42, 56\) float32 for images"),
        ("Flatter", r"returned window_from_camera of shape \(2, 3, 4\) and type float64, but .* \(2, 4, 4\) float64"),
    ],
)
def test_a_prediction_that_is_not_one_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    from come_ros.backbones.backbone import check_prediction

    images = np.zeros((2, 42, 56, 3), np.uint8)
    good, bad = (backbone_of(tmp_path, which).predict(images) for which in ("Flat", name))
    check_prediction(good, images, "flat")
    with pytest.raises(ComeRosError, match=f"the backbone flat {message}"):
        check_prediction(bad, images, "flat")


@pytest.mark.slow
def test_eval_scores_a_backbone_without_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from come_ros.tools import cli

    (tmp_path / "plugin_bad_backbones.py").write_text(BAD_BACKBONES)
    given = [
        "eval",
        "rooms",
        "--windows",
        "1",
        "--set",
        "backbone=plugin_bad_backbones:Flat",
        "-o",
        str(tmp_path / "out"),
    ]
    assert cli.main([*given, "--set", "backbone_params.depth=3"]) == 0
    assert "backbone_params.depth=3" in (tmp_path / "out" / "metrics.md").read_text()
    assert (tmp_path / "out" / "windows.png").exists()
    assert cli.main([*given[:-1], str(tmp_path / "other"), "--accelerator", "come"]) == 1
    assert "--accelerator come needs a model with tokens" in capsys.readouterr().err

"""Parameters that another one keeps from being read: what is declared is what happens, and the tools and the node report it."""

import dataclasses
import logging

import pytest

from come_ros.accelerators import make_accelerator
from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.config import Config, parameters
from come_ros.config_groups import AcceleratorParameters
from come_ros.plugins import ACCELERATORS


@dataclasses.dataclass(frozen=True)
class Watched(AcceleratorParameters):
    """Notes which of its parameters are read."""

    def __getattribute__(self, name: str) -> object:
        if name in AcceleratorParameters.__dataclass_fields__:
            READ.add(name)
        return super().__getattribute__(name)


READ: set[str] = set()


@pytest.fixture(scope="module")
def shape():
    return load_vggt(bundled_weights()).shape


@pytest.mark.parametrize("name", ACCELERATORS.own)
def test_what_an_accelerator_reads_is_what_its_parameters_declare(name: str, shape) -> None:
    config = Config().replace(**{"accelerator.name": name})
    watched = Watched(**{f.name: getattr(config.accelerator, f.name) for f in dataclasses.fields(config.accelerator)})
    made = make_accelerator(config, shape, bundled_weights())
    READ.clear()
    config = object.__new__(Config)
    config.__dict__.update(Config().replace(**{"accelerator.name": name}).__dict__, accelerator=watched)
    type(made).create(config, shape, bundled_weights())
    made.configured(config)
    declared = {p.name.partition(".")[2]: p.only for p in parameters() if p.name.startswith("accelerator.")}
    if name == "random":
        assert made.configured(Config().replace(**{"accelerator.edge_weight": 9.0})).edge_weight == 0
    for parameter, only in declared.items():
        if only is not None and (name, parameter) != (
            "random",
            "edge_weight",
        ):  # read with come's others, and left at 0
            assert (parameter in READ) == (name in only[1]), (name, parameter)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scale.fixed": 2.0}, "scale.fixed has no effect while scale.mode is auto, only with fixed"),
        ({"scale.fixed": 2.0, "scale.mode": "fixed"}, None),
        ({"scale.restart": True, "scale.mode": "none"}, "while scale.mode is none"),
        ({"accelerator.group": "2x2"}, "accelerator.group has no effect while accelerator.name is none, only with come or random"),
        ({"accelerator.group": "2x2", "accelerator.name": "tome"}, "while accelerator.name is tome"),
        ({"accelerator.group": "2x2", "accelerator.name": "come+good_token_hunting"}, None),
        ({"accelerator.frames": 3, "accelerator.name": "come+good_token_hunting"}, None),
        ({"accelerator.group": "2x2", "accelerator.name": "come_ros.accelerators.tome:ToMe"}, None),
        ({"stream.window": 16}, "stream.window has no effect while backbone is vggt, only with lingbot"),
        ({"stream.window": 16, "backbone": "lingbot"}, None),
        ({"stream.group": "3x3", "stream.reduce": "evict", "backbone": "lingbot"}, "only with groups or random"),
        ({"keyframe.min_flow": 3.0, "keyframe.mode": "every"}, "while keyframe.mode is every"),
        ({}, None),
    ],
)  # fmt: skip
def test_a_parameter_that_is_not_read_is_named_with_the_reason(given, told) -> None:
    found = Config().replace(**given).without_effect()
    assert (found == []) if told is None else (len(found) == 1 and told in found[0])


def test_tools_report_it(caplog) -> None:
    import argparse

    from come_ros.tools.arguments import configuration

    options = argparse.Namespace(params=None, weights=None, set=["scale.fixed=2"])
    with caplog.at_level(logging.WARNING):
        configuration(options)
    assert caplog.text.count("scale.fixed has no effect while scale.mode is auto") == 1

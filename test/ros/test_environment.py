"""What DDS is told: the large-message profile, by the name that this Fast DDS knows, and never over the user's own."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from come_ros.ros import environment


@pytest.mark.parametrize(
    ("distro", "version"), [("humble", 2), ("jazzy", 2), ("kilted", 3), ("lyrical", 3), ("rolling", 3)]
)
def test_the_profile_is_set_by_the_name_of_its_fast_dds(monkeypatch, distro, version):
    monkeypatch.setenv("ROS_DISTRO", distro)
    name = environment.PROFILE_VARIABLES[3 - version]
    assert list(environment.large_message_profile({})) == [name]
    for own in environment.PROFILE_VARIABLES:
        given = {own: "/my/profile.xml"}
        environment.use_large_message_profile(given)
        assert given == {own: "/my/profile.xml"}


def test_shipped_files_are_found_installed_as_well(monkeypatch, tmp_path):
    assert environment.config_file("come.yaml").is_file()
    assert environment.config_file("nothing.xml") is None
    (tmp_path / "share/come_ros/config").mkdir(parents=True)
    (tmp_path / "share/come_ros/config/only_installed.xml").touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")
    assert environment.config_file("only_installed.xml").parent == tmp_path / "share/come_ros/config"


def test_isolation_keeps_to_this_machine_and_a_free_domain(tmp_path):
    made = environment.isolated_dds_environment(log_dir=tmp_path)
    assert made["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST" and made["ROS_LOG_DIR"] == str(tmp_path)
    assert 1 <= int(made["ROS_DOMAIN_ID"]) <= 100
    assert environment.isolated_dds_environment(7)["ROS_DOMAIN_ID"] == "7"


def test_a_domain_in_use_is_not_taken(monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
        participant.bind(("", 7400 + 250 * 42))
        monkeypatch.setattr(environment.random.SystemRandom, "sample", lambda self, *_: [42, 43])
        assert environment.free_domain_id() != 42


def test_a_domain_belongs_to_the_process_that_got_it_until_its_end(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(environment, "_held", [])
    monkeypatch.setattr(environment.random.SystemRandom, "sample", lambda self, *_: [99, 98])
    script = f"""
import random, sys, tempfile
from come_ros.ros import environment
tempfile.tempdir = {str(tmp_path)!r}
random.SystemRandom.sample = lambda self, *_: [99, 98]
print(environment.free_domain_id(), flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    got = int(other.stdout.readline())
    mine = environment.free_domain_id()
    assert {got, mine} == {98, 99}
    other.communicate()
    again = environment.free_domain_id()
    assert again == got, "which is free again"

"""`come_ros completion`: the script, in a real shell, completes commands, options, choices, parameters and files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("shtab", reason="shtab is not installed: pip install '.[tools]'")

from come_ros.config import parameters
from come_ros.tools import cli, completion

TRY = """source "$0"
COMP_WORDS=(come_ros "$@"); COMP_CWORD=$#; COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
function=$(complete -p come_ros | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function come_ros "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """shell -> its script."""
    folder, found = tmp_path_factory.mktemp("completion"), {}
    for shell in completion.SHELLS:
        with pytest.MonkeyPatch.context() as patch, open(folder / shell, "w") as stream:
            patch.setattr(sys, "stdout", stream)
            assert cli.main(["completion", shell]) == 0
        found[shell] = folder / shell
    return found


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    done = subprocess.run(
        ["bash", "-c", TRY, str(script), *words], capture_output=True, text=True, timeout=30, check=True
    )
    return sorted(done.stdout.split())


@pytest.mark.slow
def test_bash_completes_what_can_be_typed(scripts: dict[str, Path], tmp_path: Path) -> None:
    bash = scripts["bash"]
    assert set(completed(bash, "")) >= set(cli.COMMANDS)
    assert completed(bash, "exp") == ["export"]
    assert "--overwrite" in completed(bash, "export", "--")
    assert completed(bash, "export", "out", "--to", "c") == ["colmap", "confidence"]
    assert completed(bash, "completion", "z") == ["zsh"]
    names = [f"{p.name}=" for p in parameters() if p.name.startswith("window.")]
    assert (
        completed(bash, "bag", "x", "--set", "window.") == completed(bash, "node", "--set", "window.") == sorted(names)
    )
    (tmp_path / "my.yaml").touch()
    assert completed(bash, "bag", "x", "--params", f"{tmp_path}/m") == [f"{tmp_path}/my.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(shell: str, scripts: dict[str, Path]) -> None:
    text = scripts[shell].read_text()
    assert all(name in text for name in cli.COMMANDS)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: only the names in its script were checked")
    subprocess.run([shell, "-n", str(scripts[shell])], check=True, timeout=30)


def test_without_the_package_it_says_what_to_install(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert "pip install shtab" in capsys.readouterr().err


def test_a_shell_must_be_named(capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["completion"])
    assert end.value.code == 2 and "shell" in capsys.readouterr().err

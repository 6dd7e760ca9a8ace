"""`gr00t-trt COMMAND`: every command exists and explains itself; a wrong one is answered with the nearest."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gr00t_trt.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags(name: str, capsys) -> None:
    assert callable(importlib.import_module(f"gr00t_trt.{name}.program").main)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_without_a_command_the_commands_are_listed(capsys) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)


def test_a_wrong_command_is_answered_with_the_nearest(capsys) -> None:
    assert main(["rum"]) == 2
    assert "run" in capsys.readouterr().err


def test_the_console_script_and_the_module_are_the_same() -> None:
    script = shutil.which("gr00t-trt", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package is not installed, so there is no gr00t-trt")
    outputs = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
        for command in ([script], [sys.executable, "-m", "gr00t_trt"])
    ]
    assert outputs[0] == outputs[1]

"""`gr00t-trt COMMAND`: every command exists and explains itself; a wrong one is answered with the nearest."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gr00t_trt
from gr00t_trt.__main__ import COMMANDS, home, main
from gr00t_trt.common.install import install, install_extra


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags(name: str, capsys) -> None:
    assert callable(importlib.import_module(f"gr00t_trt.{home(name)}.program").main)
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


def test_the_version_names_package_commit_and_libraries_without_importing_them() -> None:
    code = "import sys; from gr00t_trt.__main__ import main; main(['--version']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert lines["gr00t_trt"].startswith(gr00t_trt.__version__)
    assert lines["torch"] == importlib.metadata.version("torch")


def test_bash_completes_commands_and_flags(tmp_path: Path, capsys) -> None:
    if shutil.which("bash") is None or importlib.util.find_spec("shtab") is None:
        pytest.skip("needs bash and shtab")
    assert main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    for typed, completed in (("pla", "plans"), ("run --engine_d", "--engine_dir"), ("serve --http_p", "--http_port")):
        words = ["gr00t-trt", *typed.split()]
        code = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; COMP_LINE='gr00t-trt {typed}'"
        code = f"source {script}; {code}; _shtab_gr00t_trt; echo ${{COMPREPLY[@]}}"
        assert subprocess.run(["bash", "-c", code], capture_output=True, text=True).stdout.split() == [completed]


def test_without_shtab_the_command_that_installs_it_is_named(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print_completion", "zsh"]) == 2
    assert capsys.readouterr().err.splitlines()[1].strip() == install_extra("completion")


def test_an_install_command_starts_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Path(gr00t_trt.__file__).parents[1]
    monkeypatch.chdir(checkout)
    assert install_extra("serve").endswith("pip install -e '.[serve]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    assert install_extra("serve", "onnx").endswith("pip install 'gr00t_trt[serve,onnx]'")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", _missing)
    assert install_extra("serve").endswith(f"pip install -e '{checkout}[serve]'")
    assert install("lerobot[feetech]").endswith("pip install 'lerobot[feetech]'")


def _missing(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)

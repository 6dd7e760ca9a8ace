"""README and docs: every command is run, or at least parsed where it needs what is not here; links lead somewhere."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gr00t_trt.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_HERE = {
    "GPU": ("--benchmark cuda_event", "--cuda_graph", "rtx_4090_5090", "torch_tensorrt --precision fp16"),
    "a Jetson": ("--config jetson_",),
    "a robot": ("--robot.type so",),
    "a placeholder": ("CHECKPOINT", "DATASET", "OUT", "SECRET", "PLAN", "FILE", "HOST"),
    "much time": ("--compare all", "--backend auto"),
}
"""Why a command is only parsed -> what it has in it."""


def commands() -> list[tuple[str, str]]:
    """Page and command line of everything in a code block that starts one of our programs."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```(?:\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                line = re.sub(r"\s+#.*", "", line).strip().removeprefix(".venv/bin/")
                if line.startswith(("gr00t-trt ", "python run_groot_torchtrt.py")):
                    found.append((page.name, line))
    return list(dict.fromkeys(found))


def why_not(command: str) -> str | None:
    if "run_groot_torchtrt.py" in command and "--model_path" not in command and "--print_plan" not in command:
        return "the released model"
    return next((why for why, marks in NOT_HERE.items() if any(mark in command for mark in marks)), None)


def words_of(command: str) -> list[str]:
    """The words that a shell would make of it, without where its output goes."""
    words = shlex.split(command.partition(" > ")[0])
    return [found for w in words for found in (sorted(map(str, ROOT.glob(w))) if "*" in w else [w])]


def argv_of(command: str) -> list[str]:
    """What starts it as a process of its own."""
    return [sys.executable, "-m", "gr00t_trt", *words_of(command)[1:]]


def status_of(words: list[str], patch: pytest.MonkeyPatch) -> int:
    """How a command ends, carried out in this process: most of a short one would be the import of PyTorch.

    All but a simulation, which sets what MuJoCo looks at when it is imported.
    """
    program, *argv = words
    if argv[0] == "simulate" and "--help" not in argv:
        own = [sys.executable, "-m", "gr00t_trt", *argv]
        return subprocess.run(own, env=environment(), stdout=subprocess.DEVNULL, timeout=280).returncode
    try:
        if program == "gr00t-trt":
            return main(argv)
        assert program == "python"
        patch.setattr(sys, "argv", argv)
        runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "compile_configs", tmp_path / "compile_configs")
    shutil.copytree(ROOT / "bench" / "records", tmp_path / "bench" / "records")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


SLOW = ("--config fp16 --model_path", "--print_trtexec", "finetune --base_model_path synthetic")
RUN = [
    pytest.param(page, command, marks=pytest.mark.documented if any(mark in command for mark in SLOW) else ())
    for page, command in commands()
    if why_not(command) is None and " serve " not in command
]
PARSED = [(page, command) for page, command in commands() if why_not(command) is not None]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("page", "command"), RUN)
def test_commands_run(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of(words_of(command), monkeypatch) == 0, f"{page}: {command}"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("page", "command"), PARSED)
def test_commands_that_need_more_are_parsed(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With an option that ends any program before it loads something: an unknown flag or name still is an error."""
    words = [word.replace("CHECKPOINT", "synthetic").replace("DATASET", "synthetic") for word in words_of(command)]
    assert status_of([*words, "--help"], monkeypatch) == 0, f"{page}: {command}"
    explained = capsys.readouterr().out
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    unknown = [flag for flag in flags if not re.search(rf"{re.escape(flag)}\b", explained)]
    assert not unknown, f"{page}: {command}: {unknown}"


@pytest.fixture
def server(folder: Path) -> Iterator[int]:
    """The documented server, on ports that are free."""
    (command,) = {c for _, c in commands() if "--server" in c and "synthetic" in c and "http" not in c}
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [*argv_of(command), "--port", str(port)], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready tcp://")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_the_served_action(server: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (command,) = {c for _, c in commands() if "--client" in c and "serve" in c and "CHECKPOINT" not in c}
    assert status_of([*words_of(command), "--port", str(server)], monkeypatch) == 0
    assert "action.left_arm: (16, 7)" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{page.name}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings], target


def test_every_program_is_documented() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in COMMANDS if f"gr00t-trt {name}" not in text and name != "run"]
    assert not missing


def test_no_line_of_the_front_page_is_wide_and_it_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    code = "\n".join(re.findall(r"^```.*?\n(.*?)^```", "\n".join(lines), re.S | re.M)).splitlines()
    assert max(map(len, code)) <= 120, "a code block wider than the page scrolls"


def test_the_api_page_says_what_the_docstrings_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    status = status_of(["python", "docs/make_api.py", "--check"], monkeypatch)
    assert status == 0, capsys.readouterr().out

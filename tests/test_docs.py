"""README and docs: every command is run, or at least parsed where it needs what is not here; links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gr00t_trt.__main__ import COMMANDS

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


def argv_of(command: str) -> list[str]:
    words = shlex.split(command.partition(" > ")[0])
    ours = [sys.executable, "-m", "gr00t_trt"]
    expanded = [found for w in words[1:] for found in (sorted(map(str, ROOT.glob(w))) if "*" in w else [w])]
    return [sys.executable, str(ROOT / words[1]), *words[2:]] if words[0] == "python" else [*ours, *expanded]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "compile_configs", tmp_path / "compile_configs")
    shutil.copytree(ROOT / "bench" / "records", tmp_path / "bench" / "records")
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


@pytest.mark.parametrize(("page", "command"), RUN)
def test_commands_run(page: str, command: str, folder: Path) -> None:
    done = subprocess.run(argv_of(command), cwd=folder, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{page}: {command}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize(("page", "command"), PARSED)
def test_commands_that_need_more_are_parsed(page: str, command: str, folder: Path) -> None:
    """With an option that ends any program before it loads something: an unknown flag or name still is an error."""
    words = [word.replace("CHECKPOINT", "synthetic").replace("DATASET", "synthetic") for word in argv_of(command)]
    done = subprocess.run([*words, "--help"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{page}: {command}\n{done.stderr[-2000:]}"
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    unknown = [flag for flag in flags if not re.search(rf"{re.escape(flag)}\b", done.stdout)]
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


def test_the_served_action(server: int, folder: Path) -> None:
    (command,) = {c for _, c in commands() if "--client" in c and "serve" in c and "CHECKPOINT" not in c}
    argv = [*argv_of(command), "--port", str(server)]
    done = subprocess.run(argv, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "action.left_arm: (16, 7)" in done.stdout


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


def test_the_api_page_says_what_the_docstrings_say() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_api.py", "--check"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout

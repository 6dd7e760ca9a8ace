"""`gr00t-trt COMMAND ...`: one name for every program of the package; `python -m gr00t_trt.COMMAND` is the same."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console

from .common.command import run_program
from .errors import UsageError, unknown

COMMANDS: Mapping[str, str] = {
    "run": "compile, check and time the model: what run_groot_torchtrt.py does",
    "export": "write the submodules as ONNX files and check them",
    "measure": "measure the model in many forms, each against eager PyTorch, in one record",
    "report": "records as one HTML page, and as pictures",
    "serve": "answer robots and simulators over ZeroMQ or HTTP, or ask a server once",
    "rollout": "let a policy drive a robot, real or simulated: latencies, loop times, jitter",
    "simulate": "let a policy act in a simulated world: success rate, videos",
    "evaluate": "compare a policy's actions with recorded episodes: errors, plots, latencies",
    "engines": "list and prune the engines that earlier runs built",
}
"""Name -> what it does in a few words; `gr00t_trt/NAME/program.py` is the program."""


def usage() -> str:
    """What can be typed, one line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: gr00t-trt COMMAND ...", "", *lines, "", "gr00t-trt COMMAND --help explains its flags"])


def main(argv: Sequence[str] | None = None) -> int:
    """Call the command that is named first; returns its exit status, 2 for a name that is none."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in COMMANDS:
        program = importlib.import_module(f".{argv[0]}.program", __package__)
        return int(program.main(argv[1:]))
    return run_program(_refuse, argv)


def _refuse(argv: Sequence[str], _: Console) -> int:
    raise unknown(UsageError, "no such command", argv[0], COMMANDS)


if __name__ == "__main__":
    sys.exit(main())

"""`gr00t-trt COMMAND ...`: one name for every program of the package; `python -m gr00t_trt COMMAND` is the same."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from . import __version__
from .common.command import run_program
from .common.completion import SHELLS, print_completion
from .errors import UsageError, nearest

COMMANDS: Mapping[str, str] = {
    "run": "compile, check and time the model: what run_groot_torchtrt.py does",
    "export": "write the submodules as ONNX files and check them",
    "measure": "measure the model in many forms, each against eager PyTorch, in one record",
    "report": "records as one HTML page, and as pictures",
    "serve": "answer robots and simulators over ZeroMQ or HTTP, or ask a server once",
    "bundle": "write a compiled and checked policy into one folder that a server starts from",
    "deploy-weights": "give a running service the weights of another checkpoint, without a restart",
    "rollout": "let a policy drive a robot, real or simulated: latencies, loop times, jitter",
    "simulate": "let a policy act in a simulated world: success rate, videos",
    "evaluate": "compare a policy's actions with recorded episodes: errors, plots, latencies",
    "finetune": "train on demonstrations, from a checkpoint to a checkpoint: the published flags",
    "metadata": "statistics of a dataset, as a checkpoint's metadata.json",
    "calibrate": "how large every layer's input gets in recorded frames: for int8, fp8 and nvfp4",
    "bisect": "where a submodule that misses its accuracy gate leaves eager fp32: the layer or operator",
    "plans": "the plans that come with the package, for --config",
    "engines": "list and prune the engines that earlier runs built",
}
"""Name -> what it does in a few words; `home` says where it is."""

ROOMS: Mapping[str, str] = {
    "bisect": "tools.bisect",
    "bundle": "deploy.bundle",
    "calibrate": "tools.calibrate",
    "deploy-weights": "serve.deploy_weights",
    "metadata": "tools.metadata",
}
"""The programs that are not `gr00t_trt/NAME` but in a room with others."""

OPTIONS: Mapping[str, str] = {
    "--help": "this list; gr00t-trt COMMAND --help explains a command's flags",
    "--version": "of this package, PyTorch and TensorRT",
    "--print_completion": f"{' or '.join(SHELLS)}: a script that completes commands and flags in that shell",
}


def usage() -> str:
    """What can be typed, one line per command and option."""
    width = max(map(len, (*COMMANDS, *OPTIONS)))
    commands, options = ([f"  {n:<{width}}  {text}" for n, text in table.items()] for table in (COMMANDS, OPTIONS))
    return "\n".join(["usage: gr00t-trt COMMAND ...", "", *commands, "", *options])


def main(argv: Sequence[str] | None = None) -> int:
    """Call the command that is named first; returns its exit status, 2 for a name that is none."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv[0].replace("_", "-") if argv else ""
    if name in COMMANDS:
        return int(_program(name).main(argv[1:]))
    return run_program(_options, argv)


def home(name: str) -> str:
    """The folder of a program below the package, dotted; ``program.py`` in it has `main`."""
    return ROOMS.get(name, name)


def _program(name: str) -> Any:
    return importlib.import_module(f".{home(name)}.program", __package__)


def _parser(name: str) -> argparse.ArgumentParser:
    """A program's flags, which are in a file of their own where there are many."""
    program = _program(name)
    parser = getattr(program, "parser", None) or importlib.import_module(f".{home(name)}.flags", __package__).parser
    found: argparse.ArgumentParser = parser()
    return found


def version_lines() -> list[str]:
    """What a bug report should begin with, PyTorch and TensorRT by their distributions: neither is imported."""
    from .record.environment import ROOT, distributions, git_state

    git = git_state(ROOT)
    commit = f", commit {git.commit[:12]}{', changed since' if git.dirty else ''}" if git.commit else ""
    lines = [f"gr00t_trt {__version__}{commit}", f"Python {platform.python_version()}"]
    for name in distributions():
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name == "torch":
                lines.append("torch: not installed")
    return lines


def _options(argv: Sequence[str], _: Console) -> int:
    first, *rest = argv or ("",)
    option = {"-h": "--help", "-V": "--version"}.get(first, first.replace("-", "_").replace("__", "--", 1))
    if option == "--version":
        print("\n".join(version_lines()))
    elif option == "--print_completion":
        print_completion(rest, {name: _parser(name) for name in COMMANDS}, COMMANDS)
    elif option == "--help" or not first:
        print(usage())
    else:
        close = nearest(first, (*COMMANDS, *OPTIONS))
        fix = f"did you mean {close}?" if close else "gr00t-trt --help lists the commands"
        raise UsageError(f"no such command: {first}", fix=fix)
    return 0 if first else 2


if __name__ == "__main__":
    sys.exit(main())

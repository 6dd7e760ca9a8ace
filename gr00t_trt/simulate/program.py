"""The command line of simulations: published flags, episodes played, success rates, videos, datasets, a record."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from ..common.command import Parser, check_least, parse_flags, run_program, setting
from ..common.paths import check_output_folder, is_file, is_folder
from ..common.progress import progress
from ..errors import UsageError
from ..evaluate.policies import check_policy_flags, policy_flags, print_plan
from ..evaluate.timeline import open_timeline, rerun_flag
from ..policy.flags import Default, check_range
from ..record.files import deliver, record_flags, record_path
from .candidates import KNOWN, candidates
from .defaults import DEFAULT_ENV, defaults_of
from .results import render
from .suite import STEPS, SUITES, environments

EPILOG = """\
examples:
  see what success looks like, nothing needed:
    gr00t-trt simulate --scripted --n_episodes 4 --video_dir videos
  a model in this process:
    gr00t-trt simulate --model_path CHECKPOINT --use_torch_tensorrt --n_episodes 50
  does compiling it cost success? The same scenes and noise for both:
    gr00t-trt simulate --model_path CHECKPOINT --compare eager,inductor:bf16 --n_episodes 100
  demonstrations to fine-tune on:
    gr00t-trt simulate --scripted --jolts 0.15 --n_episodes 150 --seed 1000 --save_dataset DATASET --keep successes
  as published, against a running server (gr00t-trt serve):
    gr00t-trt simulate --client --env_name gr1_unified/PnPCupToDrawerClose_GR1ArmsAndWaistFourierHands_Env \\
        --n_episodes 50 --n_envs 5 --max_episode_steps 720 --n_action_steps 16 --video_dir videos

Episode i has the seed --seed + i: its scene and the policy's noise follow from it, whatever --n_envs. Videos are H.264,
named by episode, instruction and result: episode0003_pick-up-the-cube_success1.mp4; one of the same name is replaced.
exit status: 0 done, whatever the success rate; 1 no episode was finished or kept, or a replayed one ended differently;
2 bad input, 130 interrupted, 141 nobody reads the output
"""


def parser() -> argparse.ArgumentParser:
    """All flags, with the published defaults."""
    what = "Let a policy act in a simulated world and count how often it succeeds."
    p = Parser(prog="gr00t-trt simulate", description=what, epilog=EPILOG)
    g = p.add_argument_group("who acts")
    g.add_argument("--client", action="store_true", help="ask a server; so it is without --model_path too")
    g.add_argument("--scripted", action="store_true", help=f"no model: the expert that comes with {DEFAULT_ENV}")
    g.add_argument("--replay", metavar="DATASET", help="the actions of what --save_dataset recorded, in its scenes")
    g.add_argument("--compare", metavar="A,B,...", help=f"several policies in the same episodes, each {KNOWN}")
    g.add_argument("--server", action="store_true", help="refused: the service is `gr00t-trt serve`")
    g = p.add_argument_group("where")
    help = "gymnasium id, or module:id [%(default)s]"
    g.add_argument("--env_name", default=Default(DEFAULT_ENV), metavar="ID", help=help)
    g.add_argument("--suite", metavar="NAME", help=f"several environments in one table: {', '.join(SUITES)}")
    help = "episodes to finish, in each environment [2; all of --replay]"
    g.add_argument("--n_episodes", type=int, metavar="N", help=help)
    setting(g, "n_envs", 1, "environments side by side, each in a process of its own from 2 on")
    setting(g, "n_action_steps", 16, "low-level steps that are executed of each prediction")
    help = "low-level steps after which an episode has failed [1440; --suite: 720; the default one: 150]"
    g.add_argument("--max_episode_steps", type=int, metavar="N", help=help)
    help = "probability of a push to the joints in each step, in the default environment"
    setting(g, "jolts", 0.0, help, metavar="P")
    help = "record every episode there; what is compared has folders of its own [not recorded]"
    g.add_argument("--video_dir", metavar="DIR", help=help)
    own = defaults_of(DEFAULT_ENV)
    policy_flags(p, data_config=own.data_config, embodiment_tag=own.embodiment_tag)
    g = p.add_argument_group("results")
    g.add_argument("--save_dataset", metavar="DIR", help="write the episodes as a LeRobot v2.1 dataset [not written]")
    g.add_argument("--keep", choices=("all", "successes"), help="which episodes go into it [all]")
    rerun_flag(g)
    record_flags(g)
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked as far as they can be without a simulator. Raises: UsageError."""
    args = parse_flags(parser(), argv)
    if args.server:
        raise UsageError("--server: a simulation is a client", fix="start the service with `gr00t-trt serve --server`")
    actors = [f"--{name}" for name in ("client", "scripted", "replay", "model_path") if getattr(args, name)]
    if len(actors) > 1:
        raise UsageError(f"{' and '.join(actors)} exclude each other", fix="name one policy")
    _check_together(args)
    named = defaults_of(args.env_name if args.suite is None else environments(args.suite)[0])
    for flag in ("data_config", "embodiment_tag"):
        if isinstance(getattr(args, flag), Default):
            setattr(args, flag, Default(getattr(named, flag)))
    if args.max_episode_steps is None:
        args.max_episode_steps = STEPS.get(args.suite, named.max_episode_steps)
    if args.n_episodes is None and not args.replay:
        args.n_episodes = 2
    check_policy_flags(args)
    check_least(args, n_envs=1, n_action_steps=1, max_episode_steps=1)
    if args.n_episodes is not None:
        check_least(args, n_episodes=1)
        check_range("seed", args.seed + args.n_episodes)
    check_new_folder(args.save_dataset, "--save_dataset")
    if not 0 <= args.jolts <= 1:
        raise UsageError(f"--jolts: {args.jolts:g} is no probability", known="0 to 1")
    return args


def check_new_folder(path: str | None, flag: str) -> None:
    """Raises: UsageError for one that is there already: recordings are never written over."""
    if path is not None and (is_file(path, flag) or is_folder(path, flag)):
        raise UsageError(f"{flag} {path}: it is there already", known="a folder that does not exist")
    check_output_folder(path, flag)


EXCLUDED = {
    "compare": ("scripted", "replay", "save_dataset", "rerun"),
    "suite": ("scripted", "replay", "save_dataset", "rerun", "jolts"),
    "replay": ("save_dataset", "rerun", "jolts"),
}
"""Flag -> those that mean nothing, or something else, beside it."""


def _check_together(args: argparse.Namespace) -> None:
    for flag, others in EXCLUDED.items():
        beside = [other for other in others if getattr(args, other)]
        if getattr(args, flag) and beside:
            raise UsageError(f"--{flag} and --{beside[0]} exclude each other", fix="leave one of them out")
    for flag in ("suite", "replay"):
        if getattr(args, flag) and not isinstance(args.env_name, Default):
            raise UsageError(f"--{flag} names the environment, and so does --env_name", fix="leave one of them out")
    if args.replay and not is_folder(args.replay, "--replay"):
        raise UsageError(f"--replay {args.replay}: no such folder", known="a dataset of simulate --save_dataset")
    if args.keep and not args.save_dataset:
        raise UsageError(f"--keep {args.keep}: nothing is kept", fix="add --save_dataset DIR")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the record's path (or the record, with --json) to stdout."""
    return run_program(_main, argv, interrupted="interrupted; videos of finished episodes are kept, no record is")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse(argv)
    if args.print_plan:
        if args.compare:
            raise UsageError("--print_plan: a comparison has several plans", fix="leave --compare or --print_plan out")
        print_plan(args, ["simulate", *argv])
        return 0
    chosen = candidates(args) if not (args.scripted or args.replay) else []
    from .job import run_replay, run_simulation

    path = record_path(args, f"simulate {args.suite or args.replay or args.env_name}")
    timeline = open_timeline(args.rerun, "simulate")
    began = time.monotonic()
    # Simulators print, and what reads our stdout expects a path or JSON there.
    with contextlib.redirect_stdout(sys.stderr), progress(console) as steps, timeline or contextlib.nullcontext():
        record, failed = (
            run_replay(args, argv, steps) if args.replay else run_simulation(args, argv, chosen, timeline, steps)
        )
    record.wall_s = time.monotonic() - began
    record.exit_reason = failed or "done"
    render(record, console)
    if failed:
        console.print(failed, style="red", markup=False, highlight=False, soft_wrap=True)
    deliver(record, path, args)
    return 1 if failed else 0

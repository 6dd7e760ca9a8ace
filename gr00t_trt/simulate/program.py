"""The command line of simulations: published flags, episodes played, success rate, videos, a record."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.command import Parser, check_least, parse_flags, run_program, setting
from ..common.progress import Steps, progress
from ..errors import UsageError
from ..evaluate.about import About, record_of
from ..evaluate.policies import Policy, check_policy_flags, open_policy, policy_flags, print_plan
from ..evaluate.timeline import open_timeline, rerun_flag
from ..record.files import deliver, record_flags, record_path
from ..record.samples import Samples
from ..record.schema import Inputs, Record
from ..serve.api_token import redacted

if TYPE_CHECKING:
    from .episodes import Outcome

DEFAULT_ENV = "gr00t_trt/TableTop-v0"

EPILOG = """\
examples:
  see what success looks like, nothing needed:
    gr00t-trt simulate --scripted --n_episodes 4 --video_dir videos
  a model in this process:
    gr00t-trt simulate --model_path CHECKPOINT --use_torch_tensorrt --n_episodes 10
  as published, against a running server (gr00t-trt serve):
    gr00t-trt simulate --client --env_name gr1_unified/PnPCupToDrawerClose_GR1ArmsAndWaistFourierHands_Env \\
        --n_episodes 50 --n_envs 5 --max_episode_steps 720 --n_action_steps 16 --video_dir videos

Every environment plays a share of the episodes that is fixed beforehand. Videos are H.264, named by episode,
instruction and result: episode0003_place-the-pear-on-the-plate_success1.mp4; one of the same name is replaced.
exit status: 0 done, whatever the success rate; 2 bad input, 130 interrupted, 141 nobody reads the output
"""


def parser() -> argparse.ArgumentParser:
    """All flags, with the published defaults."""
    what = "Let a policy act in a simulated world and count how often it succeeds."
    p = Parser(prog="gr00t-trt simulate", description=what, epilog=EPILOG)
    g = p.add_argument_group("who acts")
    g.add_argument("--client", action="store_true", help="ask a server; so it is without --model_path too")
    g.add_argument("--scripted", action="store_true", help="no model: a script that solves the table-top scene")
    g.add_argument("--server", action="store_true", help="refused: the service is `gr00t-trt serve`")
    g = p.add_argument_group("where")
    setting(g, "env_name", DEFAULT_ENV, "gymnasium id", metavar="ID")
    setting(g, "n_episodes", 2, "episodes to finish")
    setting(g, "n_envs", 1, "environments side by side, each in a process of its own from 2 on")
    setting(g, "n_action_steps", 16, "low-level steps that are executed of each prediction")
    setting(g, "max_episode_steps", 1440, "low-level steps after which an episode has failed")
    g.add_argument("--video_dir", metavar="DIR", help="record every episode there [not recorded]")
    policy_flags(p, data_config="fourier_gr1_arms_waist", embodiment_tag="gr1")
    g = p.add_argument_group("results")
    rerun_flag(g)
    record_flags(g)
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked as far as they can be without a simulator. Raises: UsageError."""
    args = parse_flags(parser(), argv)
    if args.server:
        raise UsageError("--server: a simulation is a client", fix="start the service with `gr00t-trt serve --server`")
    actors = [f"--{name}" for name in ("client", "scripted", "model_path") if getattr(args, name)]
    if len(actors) > 1:
        raise UsageError(f"{' and '.join(actors)} exclude each other", fix="name one policy")
    check_policy_flags(args)
    check_least(args, n_episodes=1, n_envs=1, n_action_steps=1, max_episode_steps=1)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the record's path (or the record, with --json) to stdout."""
    return run_program(_main, argv, interrupted="interrupted; videos of finished episodes are kept, no record is")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse(argv)
    if args.print_plan:
        print_plan(args, ["simulate", *argv])
        return 0
    from .environments import abandon, find, make_vector
    from .episodes import play, share
    from .watched import WatchedPolicy

    path = record_path(args, f"simulate {args.env_name}")
    timeline = open_timeline(args.rerun, "simulate")
    began = time.monotonic()
    # Simulators print, and what reads our stdout expects a path or JSON there.
    with contextlib.redirect_stdout(sys.stderr), progress(console) as steps:
        find(args.env_name)
        policy, about = _policy(args, steps)
        config = policy.get_modality_config()
        quotas = share(args.n_episodes, min(args.n_envs, args.n_episodes))
        steps.step(f"making {len(quotas)} x {args.env_name}")
        envs = make_vector(
            args.env_name,
            quotas,
            max_episode_steps=args.max_episode_steps,
            video_dir=Path(args.video_dir) if args.video_dir else None,
            n_action_steps=args.n_action_steps,
            video_offsets=config["video"].delta_indices if "video" in config else [0],
            state_offsets=config["state"].delta_indices if "state" in config else [0],
        )
        try:
            steps.step("playing episodes")
            asked = policy if timeline is None else WatchedPolicy(policy, timeline, args.n_action_steps)
            outcomes, latencies = play(envs, asked, quotas, seed=args.seed, advance=steps.advance)
            envs.close()
        except BaseException:
            abandon(envs)
            raise
        finally:
            if timeline is not None:
                timeline.close()
    record = _record(args, ["simulate", *redacted(argv)], about, quotas, outcomes, latencies)
    record.wall_s = time.monotonic() - began
    record.exit_reason = "done"
    render(record, console)
    deliver(record, path, args)
    return 0


def _policy(args: argparse.Namespace, steps: Steps) -> tuple[Policy, About]:
    if not args.scripted:
        return open_policy(args, steps)
    from .scripted import ScriptedPolicy

    if args.env_name != DEFAULT_ENV:
        raise UsageError(f"--scripted knows nothing of {args.env_name}", known=DEFAULT_ENV)
    return ScriptedPolicy(), About({"model": "scripted"})


def _record(
    args: argparse.Namespace,
    command: Sequence[str],
    about: About,
    quotas: Sequence[int],
    outcomes: Sequence[Outcome],
    latencies: Sequence[float],
) -> Record:
    inputs = Inputs(batch_size=len(quotas), seed=args.seed, dataset=args.env_name)
    record = record_of(args, command, [about], inputs=inputs)
    if len(quotas) < args.n_envs:
        record.skip(f"--n_envs {args.n_envs}", f"{len(quotas)} are enough for {args.n_episodes} episodes")
    record.simulation = {
        "policy": about.facts,
        "environment": args.env_name,
        "n_envs": len(quotas),
        "n_action_steps": args.n_action_steps,
        "max_episode_steps": args.max_episode_steps,
        "success_rate": float(np.mean([outcome.success for outcome in outcomes])),
        "episodes": [asdict(outcome) for outcome in outcomes],
        "latency_ms": Samples(tuple(latencies), device=about.where).to_dict(),
        "video_dir": args.video_dir,
    }
    return record


def render(record: Record, console: Console) -> None:
    """Show a record of a simulation: every episode, the success rate, how long the policy took."""
    found = record.simulation
    table = Table(title=found["environment"], title_justify="left")
    for title in ("episode", "environment", "result", "steps", "queries"):
        table.add_column(title, justify="left" if title == "result" else "right")
    for episode in sorted(found["episodes"], key=lambda episode: episode["episode"]):
        result = Text("success", style="green") if episode["success"] else Text("failure", style="red")
        table.add_row(
            str(episode["episode"]), str(episode["environment"]), result, str(episode["steps"]), str(episode["queries"])
        )
    console.print(table)
    latency = found["latency_ms"]
    last = "max" if latency["p99_is_max"] else "p99"
    times = f"query p50 {latency['p50']:.1f} ms, {last} {latency['p99']:.1f} ms"
    console.print(Text(f"{times} over {latency['iterations']} queries"))
    for note in record.skipped:
        console.print(Text(f"{note.what}: {note.why}"))
    if found["video_dir"]:
        console.print(Text(f"videos: {found['video_dir']}"), soft_wrap=True)
    count = len(found["episodes"])
    console.print(Text(f"success rate: {found['success_rate']:.2f} of {count} episodes", style="bold"))

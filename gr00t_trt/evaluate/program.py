"""The command line of the offline evaluation: published flags, candidates one after another, a table and a record."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..common.command import Parser, check_least, parse_flags, run_program, setting, switch
from ..common.paths import check_dataset
from ..common.progress import Steps, progress
from ..errors import UsageError, unknown
from ..policy.flags import FRAME_RULES, optional
from ..record.files import deliver, record_flags, record_path
from ..serve.api_token import redacted
from .about import About
from .policies import Policy, carry_out, check_policy_flags, connect, load_local, plan_of, policy_flags, print_plan
from .timeline import open_timeline, rerun_flag, write_evaluation

if TYPE_CHECKING:
    from ..data import LeRobotDataset
    from .episodes import Prediction, Recording

EAGER = "eager fp32"
VIDEO_BACKENDS = {**FRAME_RULES, "index": "index"}
"""Those, and ours for frame i of row i."""

EPILOG = """\
examples:
  try it, nothing needed (a generated model and dataset):
    gr00t-trt evaluate --model_path synthetic --dataset_path synthetic --plot
  as published, against a running server:
    gr00t-trt evaluate --plot --host localhost --port 5555 --dataset_path demo_data/robot_sim.PickNPlace/
  how much does compilation change the actions:
    gr00t-trt evaluate --model_path CHECKPOINT --use_torch_tensorrt --compare --save_plot_path compare.png
  both arms and hands of three trajectories:
    gr00t-trt evaluate --model_path CHECKPOINT --trajs 3 --modality_keys left_arm right_arm left_hand right_hand

An episode that ends before --steps is evaluated to its end. One plot per trajectory.
exit status: 0 done, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


def parser() -> argparse.ArgumentParser:
    """All flags, with the published defaults."""
    what = "Compare a policy's actions with those of recorded episodes, in physical units."
    p = Parser(prog="gr00t-trt evaluate", description=what, epilog=EPILOG)
    g = p.add_argument_group("what is evaluated")
    demo = "demo_data/robot_sim.PickNPlace/"
    setting(g, "dataset_path", demo, "LeRobot dataset, or `synthetic`", metavar="PATH")
    setting(g, "trajs", 1, "how many trajectories")
    setting(g, "start_traj", 0, "the first one")
    setting(g, "steps", 150, "rows of each at most")
    help = "action parts in the error and the plots [right_arm left_arm; all of a robot that lacks them]"
    g.add_argument("--modality_keys", nargs="+", metavar="PART", help=help)
    help = "rows of each prediction that are used before the next query [all]"
    g.add_argument("--action_horizon", type=_optional_int, metavar="N", help=help)
    help = f"{', '.join(VIDEO_BACKENDS)}: whose rule picks the frame of a row; PyAV decodes"
    setting(g, "video_backend", "torchcodec", help, metavar="NAME")
    g.add_argument(
        "--compare",
        nargs="?",
        const="eager",
        choices=("eager", "server"),
        metavar="WITH",
        help="put the local policy beside `eager` fp32 with the same noise (when no name is given), or beside the "
        "`server` at --host and --port",
    )
    policy_flags(p, data_config="fourier_gr1_arms_only", embodiment_tag="gr1")
    g = p.add_argument_group("results")
    switch(g, "plot", help="draw each trajectory; beside the record unless --save_plot_path is given")
    switch(g, "plot_state", help="draw the state beside the action where it has the same parts")
    help = "a picture, or a folder for them; several trajectories get -trajN; implies --plot"
    g.add_argument("--save_plot_path", type=optional, metavar="PATH", help=help)
    rerun_flag(g)
    record_flags(g)
    return p


def _optional_int(text: str) -> int | None:
    return None if text == "None" else int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked as far as they can be without data. Raises: UsageError."""
    args = parse_flags(parser(), argv)
    check_least(args, trajs=1, steps=1, start_traj=0)
    if args.video_backend not in VIDEO_BACKENDS:
        raise unknown(UsageError, "--video_backend", args.video_backend, VIDEO_BACKENDS)
    check_policy_flags(args)
    if args.compare is not None and args.model_path is None:
        raise UsageError(f"--compare {args.compare} needs a local policy", fix="add --model_path")
    if args.compare == "eager" and plan_of(args) is None:
        fix = "add --use_torch_tensorrt, --backend, --precision or --config"
        raise UsageError("--compare eager: the local policy is eager fp32 itself", fix=fix)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the record's path (or the record, with --json) to stdout."""
    return run_program(_main, argv, interrupted="interrupted; nothing was written")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse(argv)
    if args.print_plan:
        print_plan(args, ["evaluate", *argv])
        return 0
    check_dataset(args.dataset_path)
    path = record_path(args, "evaluate")
    from . import plot

    if args.plot or args.save_plot_path:
        plot.pyplot_figure()  # a long run should not end with the news that it cannot be drawn
    timeline = open_timeline(args.rerun, "evaluate")
    from .episodes import action_keys, choose_horizon, read_recording
    from .local import LocalPolicy
    from .results import fill, render

    began = time.monotonic()
    # Compilers print, and what reads our stdout expects a path or JSON there.
    with contextlib.redirect_stdout(sys.stderr), progress(console) as steps:
        dataset, candidates = _open(args, steps)
        horizon = choose_horizon(dataset.modality_config, args.action_horizon)
        keys = action_keys(dataset.modality_config, args.modality_keys)
        steps.step(f"reading the recording: {args.dataset_path}")
        wanted = range(args.start_traj, args.start_traj + args.trajs)
        recordings = [read_recording(dataset, each, steps=args.steps, horizon=horizon) for each in wanted]
        _refuse_calibrated(args, dataset, recordings)
        predictions: dict[str, list[Prediction]] = {}
        about: dict[str, About] = {}
        local: LocalPolicy | None = None
        for name, policy, description in candidates:
            about[name] = description
            local = policy if isinstance(policy, LocalPolicy) else local
            predictions[name] = _replay_all(policy, name, dataset, recordings, horizon, steps)
        statistics = local.policy.metadata if local is not None else None
        record = fill(args, ["evaluate", *redacted(argv)], dataset, recordings, predictions, about, keys, statistics)
        record.skip_all(local.policy.state_ranges.notes() if local is not None else ())
        record.evaluation["action_horizon"] = horizon
        if args.plot or args.save_plot_path:
            steps.step("drawing")
            _draw(args, path, dataset, recordings, predictions, keys, record.evaluation)
        if timeline is not None:
            steps.step(f"writing {timeline.path}")
            with timeline:
                write_evaluation(timeline, dataset, recordings, predictions, _fps(dataset))
    record.wall_s = time.monotonic() - began
    record.exit_reason = "done"
    render(record, console)
    deliver(record, path, args)
    return 0


def _refuse_calibrated(args: argparse.Namespace, dataset: LeRobotDataset, recordings: Sequence[Recording]) -> None:
    """Raises: PlanError for a frame that the plan's calibration was made from."""
    plan = plan_of(args) if args.model_path is not None else None
    if plan is not None and plan.calibration is not None:
        from ..quantize.calibration import read_calibration

        frames = [(recording.trajectory, row) for recording in recordings for row in recording.queries]
        read_calibration(plan.calibration).refuse_its_frames(dataset, frames)


Candidate = tuple[str, Policy, About]
"""What to call it, what answers, and what the record says of it."""


def _open(args: argparse.Namespace, steps: Steps) -> tuple[LeRobotDataset, Iterator[Candidate]]:
    """The dataset, read with the keys of the policy, and the policies, each made ready when its turn comes."""
    from ..data import LeRobotDataset, synthetic_dataset

    server: Any = connect(args) if args.model_path is None or args.compare == "server" else None
    rule = VIDEO_BACKENDS[args.video_backend]
    if args.model_path is not None:
        from ..policy.source import Source

        dataset = replace(Source.of(args), frame_lookup=rule).dataset()
    else:
        synthetic = args.dataset_path == "synthetic"
        folder = synthetic_dataset(data_config=args.data_config) if synthetic else args.dataset_path
        dataset = LeRobotDataset(folder, server.get_modality_config(), frame_lookup=rule)
    return dataset, _candidates(args, dataset, server, steps)


def _candidates(args: argparse.Namespace, dataset: LeRobotDataset, server: Any, steps: Steps) -> Iterator[Candidate]:
    if args.model_path is not None:
        local = load_local(args, steps, dataset=dataset)
        # Eager goes first: the plan is carried out in place, so that no model is held twice.
        if args.compare == "eager":
            yield EAGER, local, local.describe()
        plan = carry_out(args, local, steps)
        if plan is not None:
            yield f"{plan.backend} {plan.precision}", local, local.describe()
        elif args.compare != "eager":
            yield EAGER, local, local.describe()
    if server is not None:
        yield f"server {server.address}", server, server.describe()


def _replay_all(
    policy: Policy, name: str, dataset: LeRobotDataset, recordings: Sequence[Recording], horizon: int, steps: Steps
) -> list[Prediction]:
    from .episodes import observed, replay
    from .local import LocalPolicy

    steps.step(f"{name}: warming up")
    policy.get_action(observed(dataset, recordings[0].trajectory, 0))
    if isinstance(policy, LocalPolicy):
        policy.restart()
    out = []
    for recording in recordings:
        steps.step(f"{name}: trajectory {recording.trajectory}")
        out.append(replay(policy, dataset, recording, horizon=horizon, source=name, advance=steps.advance))
    return out


def _draw(
    args: argparse.Namespace,
    path: Path,
    dataset: LeRobotDataset,
    recordings: Sequence[Recording],
    predictions: Mapping[str, list[Prediction]],
    keys: Sequence[str],
    evaluation: Any,
) -> None:
    from . import plot
    from .joints import joint_labels

    labels = {key: joint_labels(dataset, key, recordings[0].actions[key].shape[1]) for key in keys}
    given = args.save_plot_path or str(path.with_suffix(".png"))
    for number, recording in enumerate(recordings):
        target = plot.plot_path(given, recording.trajectory, len(recordings))
        scores = {c["name"]: c["trajectories"][number]["mse"] for c in evaluation["candidates"]}
        answers = {name: own[number] for name, own in predictions.items()}
        plot.draw(target, recording, answers, scores, labels, fps=_fps(dataset), with_state=args.plot_state)
        evaluation["plots"].append(str(target))


def _fps(dataset: LeRobotDataset) -> float:
    """Rows per second: as many as the first view has frames."""
    view = dataset.modality_config["video"].modality_keys[0].partition(".")[2]
    return dataset.info.view(dataset.layout.video[view]).fps

"""The command line of rollouts: one loop for any policy and any robot, with live times and a timing table."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rich.console import Console
from rich.text import Text

from ..common.command import Parser, check_least, parse_flags, run_program, setting, switch
from ..common.interface import ModalityConfig, Observation
from ..common.progress import progress
from ..errors import ServiceError, UsageError, unknown
from ..evaluate.about import record_of
from ..evaluate.policies import CameraPolicy, check_policy_flags, open_policy, policy_flags, print_plan
from ..evaluate.timeline import Timeline, open_timeline, rerun_flag
from ..record.files import deliver, record_flags, record_path
from ..record.schema import Inputs
from ..serve.api_token import redacted
from ..simulate.defaults import DEFAULT_ENV
from .loop import Chunk, Loop, Trace
from .robots import EnvironmentRobot, Robot, check_fit
from .timing import Timing, live, summarise, timing_table
from .watched import Watched

SIMULATED = "simulated"
ARMS = {"so100": "so100_follower", "so101": "so101_follower"}
SYNCHRONOUS, OVERLAPPED = "synchronous", "overlapped"
LIVE_S = 1.0
"""Seconds between two lines about how it goes."""

EPILOG = """\
examples:
  try it (a generated model, an arm simulated by MuJoCo), both ways of executing:
    gr00t-trt rollout --model_path synthetic --actions_to_execute 10 --compare_overlap
  a compiled checkpoint and an SO-100 in one process:
    gr00t-trt rollout --model_path CHECKPOINT --use_torch_tensorrt --overlap --robot.type so100_follower \\
        --robot.port /dev/ttyACM0 --robot.id arm --lang_instruction "put the marker into the cup" \\
        --robot.cameras "{ front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30},
                           wrist: {type: opencv, index_or_path: 2, width: 640, height: 480, fps: 30} }"
  the same arm with a server elsewhere:
    gr00t-trt rollout --policy_host 192.168.0.7 --robot.type so100_follower --robot.port /dev/ttyACM0 ...

Camera frames of any size are averaged down, or stretched, to the size that the model was trained with.
exit status: 0 done, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


def parser() -> argparse.ArgumentParser:
    """All flags, with the published defaults."""
    what = "Let a policy drive a robot: observe, ask, act, and see how fast and how evenly that goes."
    p = Parser(prog="gr00t-trt rollout", description=what, epilog=EPILOG)
    g = p.add_argument_group("the robot")
    help = (
        "simulated, so100_follower, so101_follower (with LeRobot), or a gymnasium id, such as module:id [%(default)s]"
    )
    g.add_argument("--robot.type", dest="robot_type", default=SIMULATED, metavar="TYPE", help=help)
    g.add_argument("--robot.port", dest="robot_port", metavar="PATH", help="serial port of the arm")
    g.add_argument("--robot.id", dest="robot_id", metavar="NAME", help="whose calibration LeRobot uses")
    g.add_argument("--robot.cameras", dest="robot_cameras", metavar="MAP", help="LeRobot's cameras, see the examples")
    g = p.add_argument_group("what it does")
    setting(g, "lang_instruction", "pick up the red ball", "what to do, in words", metavar="TEXT")
    setting(g, "action_horizon", 8, "rows of each answer that are executed")
    setting(g, "actions_to_execute", 350, "answers to execute, each --action_horizon rows long")
    g.add_argument(
        "--control_hz", type=float, default=50.0, metavar="HZ", help="rows sent to the robot per second [%(default)s]"
    )
    switch(g, "overlap", help="compute the next answer while the last one is executed; stale rows are skipped")
    g.add_argument("--compare_overlap", action="store_true", help="do it both ways, one after the other")
    setting(g, "warmup", 2, "untimed questions first")
    policy_flags(p, data_config="so100_dualcam", embodiment_tag="new_embodiment", host_flag="policy_host")
    g = p.add_argument_group("results")
    rerun_flag(g)
    record_flags(g)
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked as far as they can be without a robot. Raises: UsageError."""
    args = parse_flags(parser(), argv)
    check_policy_flags(args)
    check_least(args, action_horizon=1, actions_to_execute=1, warmup=0)
    if not 0 < args.control_hz <= 1000:
        raise UsageError(f"--control_hz: {args.control_hz:g} is out of range", known="above 0, at most 1000")
    args.robot_type = ARMS.get(args.robot_type, args.robot_type)
    arm = args.robot_type in ARMS.values()
    if not arm and args.robot_type != SIMULATED and not {"/", ":"} & set(args.robot_type):
        known = [SIMULATED, *ARMS, *ARMS.values(), DEFAULT_ENV]
        raise unknown(UsageError, "--robot.type", args.robot_type, known)
    given = [name for name in ("robot_port", "robot_id", "robot_cameras") if getattr(args, name) is not None]
    if given and not arm:
        raise UsageError(f"--{given[0].replace('_', '.')} concerns an arm of LeRobot", fix="add --robot.type so100")
    if arm and (args.robot_port is None or args.robot_cameras is None):
        what = f"--robot.type {args.robot_type} needs --robot.port and --robot.cameras"
        raise UsageError(what, fix="lerobot-find-port and lerobot-find-cameras tell them")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the record's path (or the record, with --json) to stdout."""
    return run_program(_main, argv, interrupted="interrupted; the robot keeps its pose, and there is no record")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse(argv)
    if args.print_plan:
        print_plan(args, ["rollout", *argv])
        return 0
    path = record_path(args, f"rollout {args.robot_type}")
    timeline = open_timeline(args.rerun, "rollout")
    began = time.monotonic()
    # Compilers and drivers print, and what reads our stdout expects a path or JSON there.
    with contextlib.redirect_stdout(sys.stderr):
        with progress(console) as steps:
            policy, about = open_policy(args, steps)
            config = policy.get_modality_config()
            chunk = len(config["action"].delta_indices)
            if args.action_horizon > chunk:
                raise UsageError(f"--action_horizon: {args.action_horizon}", known=f"1 to {chunk}, the policy's chunk")
            steps.step(f"connecting the robot: {args.robot_type}")
            robot = open_robot(args, config)
            try:
                check_fit(robot, config)
                ask, unsized = asker(policy, args.lang_instruction)
                steps.step("warming up")
                for _ in range(args.warmup):
                    ask(robot.observe())
            except BaseException:
                robot.close()
                raise
        try:
            modes = _drive(args, robot, ask, about.where, console, timeline)
        finally:
            robot.close()
            if timeline is not None:
                timeline.close()
    inputs = Inputs(instruction=args.lang_instruction, dataset=f"robot {args.robot_type}")
    record = record_of(args, ["rollout", *redacted(argv)], [about], inputs=inputs)
    if unsized:
        record.skip("frame sizes", unsized)
    numbers = {name: getattr(args, name) for name in ("control_hz", "action_horizon", "warmup")}
    record.rollout = {"policy": about.facts, "robot": args.robot_type, **numbers, "modes": modes}
    record.wall_s = time.monotonic() - began
    record.exit_reason = "done"
    console.print(timing_table(modes, args.control_hz))
    for note in record.skipped:
        console.print(Text(f"{note.what}: {note.why}"))
    deliver(record, path, args)
    return 0


def open_robot(args: argparse.Namespace, modality_config: Mapping[str, ModalityConfig]) -> Robot:
    """The robot of the flags, connected; a simulated one has the cameras that are asked for. Raises: Gr00tError."""
    if args.robot_type in ARMS.values():
        from .lerobot import LeRobotArm

        return LeRobotArm(args.robot_type, args.robot_port, args.robot_id, args.robot_cameras)
    if args.robot_type != SIMULATED:
        return EnvironmentRobot(args.robot_type, seed=args.seed)
    from .simulated import SimulatedRobot

    return SimulatedRobot([key.partition(".")[2] for key in modality_config["video"].modality_keys])


def asker(policy: CameraPolicy, instruction: str) -> tuple[Callable[[Observation], Chunk], str | None]:
    """A function from what the robot observes to a chunk: frames resized, instruction added; and a note, or None.

    The note says that frames are sent as they are, since the server does not tell which size it wants.
    """
    from ..serve.resize import fit_frames

    note = None
    try:
        sizes = policy.frame_sizes()
    except ServiceError as error:
        sizes, note = {}, f"the server does not tell its own, so that frames are sent as they are: {error}"
    language = policy.get_modality_config().get("language")
    keys = list(language.modality_keys) if language is not None else []
    text = {keys[0]: [instruction]} if keys else {}
    return lambda observation: policy.get_action({**fit_frames(observation, sizes), **text}), note


def _drive(
    args: argparse.Namespace,
    robot: Robot,
    ask: Callable[[Observation], Chunk],
    device: str,
    console: Console,
    timeline: Timeline | None,
) -> dict[str, Timing]:
    """Each way of executing, and how it went."""
    names = [SYNCHRONOUS, OVERLAPPED] if args.compare_overlap else [OVERLAPPED if args.overlap else SYNCHRONOUS]
    said = time.monotonic()

    def show(trace: Trace) -> None:
        nonlocal said
        if time.monotonic() - said >= LIVE_S:
            said = time.monotonic()
            console.print(live(trace), markup=False, highlight=False, soft_wrap=True)

    looped = partial(Loop, horizon=args.action_horizon, control_hz=args.control_hz, progress=show)
    modes, actions = {}, args.actions_to_execute * args.action_horizon
    for name in names:
        if timeline is None:
            loop = looped(robot, ask)
        else:
            watched = Watched(robot, ask, timeline, name, args.action_horizon, 1 / args.control_hz)
            loop = looped(watched, watched.answer)
        console.print(f"{name}: {actions} actions", markup=False)
        trace = loop.overlapped(actions) if name == OVERLAPPED else loop.synchronous(actions)
        modes[name] = summarise(trace, control_hz=args.control_hz, device=device)
    return modes

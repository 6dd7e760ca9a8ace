"""Seconds from a new checkpoint to its first action: a fresh start against a change in a running deployment.

    python bench/new_weights.py --folder DIR                    the tiny generated model, by each backend that is here
    python bench/new_weights.py --folder DIR --model_path synthetic:full --plans eager

Writes a base model and one whose action head has other values, deploys the first and changes it to the second, in turn
with fresh starts of the second. Engines and compiled kernels of the first start are kept, as on a machine in use.
"""

from __future__ import annotations

import argparse
import io
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from gr00t_trt.common.devices import choose_device
from gr00t_trt.common.progress import Steps
from gr00t_trt.compile.build import set_precision
from gr00t_trt.deploy.deploy import deploy
from gr00t_trt.deploy.weights import Swapped, swap
from gr00t_trt.errors import BackendError
from gr00t_trt.finetune.checkpoints import save
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.policy import load_policy

PLANS: dict[str, dict[str, Any]] = {
    "eager": {"backend": "eager"},
    "inductor": {"backend": "inductor"},
    "torch_tensorrt": {"backend": "torch_tensorrt"},
}
QUIET = Steps(Console(file=io.StringIO()), None)


def write(folder: Path, model_path: str) -> tuple[Path, Path]:
    """A base model and one that was trained from it; written once."""
    old, new = folder / "base", folder / "step-1"
    if new.is_dir():
        return old, new
    policy = load_policy(model_path)
    model: nn.Module = policy.model  # type: ignore[assignment]
    named = {name: p for name, p in model.named_parameters() if name.startswith("action_head.")}
    head = {name: nn.Parameter(p.detach() * 1.01) for name, p in named.items()}
    trained = {name: parameter.detach() for name, parameter in head.items()}
    own = {policy.metadata.embodiment_tag: policy.metadata}
    save(folder, 1, trained, torch.optim.SGD(head.values()), head, {}, model_path, own)
    policy.metadata.write(old)
    return old, new


def measure(old: Path, new: Path, settings: dict[str, Any], cache: Path, device: torch.device) -> tuple[float, Swapped]:
    """Seconds of a fresh start with `new`, and what became of the change from `old` to it."""
    resolved = resolve(plan_from_mapping(settings, "bench"), Machine(str(device)))
    load = partial(load_policy, dtype=partial(set_precision, plan=resolved.plan), device=device)
    served = deploy(load(old), resolved, QUIET, engine_cache=str(cache / "first"))
    if (cache / "first").is_dir():
        shutil.copytree(cache / "first", cache / "second")  # a fresh start finds what is of the same weights, too
    swapped = swap(served, partial(load, new), QUIET, engine_cache=str(cache / "first"))
    del served
    start = time.perf_counter()
    deploy(load(new), resolved, QUIET, engine_cache=str(cache / "second"))
    return time.perf_counter() - start, swapped


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--model_path", default="synthetic")
    p.add_argument("--precision", default="bf16")
    p.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    p.add_argument("--device")
    args = p.parse_args()
    device = choose_device(args.device)
    old, new = write(args.folder, args.model_path)
    print("| backend | fresh start s | change s | requests wait s | stages in place / kept / built |")
    print("|---|---|---|---|---|")
    for name in args.plans:
        settings = {**PLANS[name], "precision": "fp16" if name == "torch_tensorrt" else args.precision}
        try:
            fresh_s, done = measure(old, new, settings, args.folder / f"engines_{name}", device)
        except BackendError as error:
            print(f"| {name} | {str(error).splitlines()[0]} | | | |")
            continue
        pause_s = done.seconds["pause"]
        total_s = sum(done.seconds.values())
        stages = " / ".join(str(len(own)) for own in (done.in_place, done.reused, done.rebuilt))
        print(f"| {name} | {fresh_s:.1f} | {total_s:.1f} | {pause_s:.2f} | {stages} |", flush=True)


if __name__ == "__main__":
    main()

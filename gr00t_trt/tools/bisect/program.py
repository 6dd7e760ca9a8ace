"""`gr00t-trt bisect`: where a submodule that misses its accuracy gate first leaves eager fp32."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ...common.command import Parser, parse_flags, run_program
from ...common.progress import Steps, progress
from ...errors import UsageError
from ...plans import flags
from ...plans.resolve import Machine, Resolved, resolve
from ...policy.flags import check_seed, source_flags

if TYPE_CHECKING:
    from torch import Tensor

    from ...measure.harness import Harness
    from ...model.targets import Target
    from .search import Departure, Layers

EPILOG = """\
A gate that fails says that a submodule is wrong, not where. This program holds every layer of it, in eager PyTorch and
in the plan's precision, against fp32: where they part, the precision is to blame. Where they do not, it cuts the graph
that the backend compiles behind an operator, builds what is before it, and halves until it has the first operator at
which what was built leaves eager. One call of each submodule is looked at, the first one of a request.

examples:
  where does bf16 cost more than a cosine of 0.99999?
    gr00t-trt bisect --model_path synthetic --dataset_path synthetic --fn_name dit_model --backend eager \\
        --precision bf16 --cosine 0.99999
  a plan whose gate fails:
    gr00t-trt bisect --model_path CHECKPOINT --config my_plan.yaml --fn_name language_model

exit status: 0 every gate holds, 1 one does not, and where is said; 2 bad input, 130 interrupted, 141 nobody reads
"""


def parser() -> argparse.ArgumentParser:
    what = "Name the first layer or operator at which a submodule leaves eager fp32."
    p = Parser(prog="gr00t-trt bisect", description=what, epilog=EPILOG)
    g = p.add_argument_group("model and observation")
    source_flags(
        g, "model_path", "dataset_path", "data_config", "embodiment_tag", "tokenizer", "metadata", "seed", "device"
    )
    g = p.add_argument_group("what is looked into")
    flags.fn_name_flag(g)
    flags.backend_flag(g, " [eager]")
    flags.precision_flag(g, " [fp16]")
    flags.config_flag(g)
    flags.optimizations_flag(g, "restructuring of the model: all, none, or names with commas between them [all]")
    g.add_argument("--cosine", type=float, metavar="C", help="the least cosine [the gate of the plan]")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a line for each submodule goes to stdout."""
    return run_program(_main, argv)


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    if args.cosine is not None and not 0 < args.cosine <= 1:
        raise UsageError(f"--cosine: {args.cosine:g} is out of range", known="above 0, at most 1")
    check_seed(args.seed)
    if args.backend is None and args.config is None:
        args.backend = "eager"
    plan = flags.plan_from(args, flags.overrides_of(args))
    from ...common.devices import choose_device

    device = choose_device(args.device)
    resolved = resolve(plan, Machine(str(device)), args.fn_name, timed=False)
    with contextlib.redirect_stdout(sys.stderr), progress(console) as steps:
        found = _search(args, resolved, str(device), steps)
    for name, said in found.items():
        print(f"{name}: {said or 'within its gate'}", flush=True)
    for note in resolved.notes:
        console.print(Text(": ".join(map(str, note))))
    return 1 if any(found.values()) else 0


def _search(args: argparse.Namespace, resolved: Resolved, device: str, steps: Steps) -> dict[str, str | None]:
    """Submodule -> where it departs, in a sentence; None for one within its gate."""
    import torch

    from ...compile.build import dimension_ranges
    from ...measure.accuracy import full_fp32
    from ...measure.harness import Harness
    from ...measure.reference import take_reference
    from ...measure.workloads import one_request
    from ...policy.source import Source, load_source
    from .search import layer_outputs

    policy, observation = load_source(Source.of(args), torch.device(device), steps)
    optimizations = resolved.plan.optimizations
    reference = take_reference(policy, one_request(policy, observation, args.seed), [optimizations], steps)
    model = policy.model.architecture.restructured(policy.model, optimizations)
    dims = dimension_ranges(model.config, resolved.plan.ranges, reference.base)
    exact: dict[str, Layers] = {}
    for name in resolved.names:
        target = model.target(name, reference.recordings[optimizations], dims)
        with full_fp32():
            exact[name] = layer_outputs(target.module, target.inputs)
    del model
    harness = Harness(reference, resolved.plan, steps)
    return {name: _look(harness, name, resolved, exact[name], args.cosine) for name in resolved.names}


def _look(harness: Harness, name: str, resolved: Resolved, exact: Layers, cosine: float | None) -> str | None:
    from ...backends.base import BuildContext
    from ...measure.accuracy import check
    from ...plans.backends import get_backend
    from .search import first_layer, first_operator, layer_outputs

    own = resolved[name]
    gate = own.gate if cosine is None else replace(own.gate, cosine=cosine, sqnr_db=None)
    part = harness.build(name, own, resolved.plan.optimizations)
    missed = check(part.agreement, gate)
    if not missed:
        return None
    found = first_layer(exact, layer_outputs(part.target.module, part.target.inputs), gate)
    if found is not None:
        return _said("its precision, in eager PyTorch, leaves fp32", found, "layer")

    def build(cut: Target) -> Callable[..., Tensor]:
        return get_backend(own.backend).build(cut, own.build, BuildContext()).call

    found = first_operator(part.target, build, gate, lambda what: harness.steps.step(f"{name}: {what}"))
    if found is not None:
        return _said(f"{own.backend} leaves eager PyTorch", found, "operator")
    return f"{'; '.join(missed)}; no layer in eager PyTorch and no operator of its graph does alone"


def _said(how: str, found: Departure, kind: str) -> str:
    """A sentence about a departure."""
    before = found.before
    after = "" if before is None or before.cosine is None else f", after a cosine of {before.cosine:.8f}"
    inside = f" in {found.layer}" if kind == "operator" and found.layer else ""
    place = f"{kind} {found.place + 1} of {found.count}"
    return f"{how} at {found.name}{inside} ({place}{after}): {'; '.join(found.failures)}"

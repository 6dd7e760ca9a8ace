"""The main job: one plan, or several backends, on one observation, written into one record."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from ..common.allocator import return_freed
from ..common.devices import side_stream
from ..common.progress import progress
from ..compile.build import set_precision
from ..deploy.deploy import capture, choose_products, note_padding
from ..engines.cache import open_cache
from ..engines.files import prepare_engine_dir
from ..measure.accuracy import compare_each
from ..measure.choose import with_choice
from ..measure.compare import Comparison
from ..measure.harness import Harness, build_all
from ..measure.memory import GpuMeter, MemoryMeter
from ..measure.reference import take_reference
from ..measure.results import Part, Timed, Variant, candidate_of, stage_times
from ..measure.trace import write_trace
from ..measure.workloads import one_request
from ..plans.load import plan_to_mapping
from ..plans.resolve import Resolved
from ..policy.policy import Gr00tPolicy
from ..policy.source import Source, load_source
from ..quantize.layers import refuse_unfit
from ..record.environment import ROOT
from ..record.result import Result
from ..record.schema import ModelInfo, Record, drift_of, new_record


@dataclass(frozen=True)
class Job:
    """What the command line asks for besides the plan.

    Attributes:
        engine_cache: Folder of finished engines, or ``off``; None for the default, see `open_cache`.
    """

    source: Source = field(default_factory=Source)
    seed: int = 0
    device: str = "cpu"
    engine_cache: str | None = None
    plan_path: Path | None = None
    command: str = ""
    trace: Path | None = None


def run(job: Job, resolved: Resolved, console: Console) -> Record:
    """Do the main job and return its record.

    Raises: Gr00tError for anything that cannot work; engines that were finished before it stay, whole.
    """
    began = time.monotonic()
    refuse_unfit(resolved)
    device = torch.device(job.device)
    if resolved.engine_dir is not None:
        prepare_engine_dir(resolved.engine_dir)
    memory, gpu = MemoryMeter(device), GpuMeter(device)
    with memory, gpu, progress(console) as steps, side_stream(device):
        source = replace(job.source, denoising_steps=resolved.plan.denoising_steps)
        dtype = partial(set_precision, plan=resolved.plan)
        policy, observation = load_source(source, device, steps, dtype=dtype)
        console.print(_data_of(policy, source), markup=False, highlight=False, soft_wrap=True)
        plan, model = plan_to_mapping(resolved.plan), ModelInfo(source.model_path, asdict(policy.model.config))
        if resolved.comparing:
            plan["backend"] = None
        record = new_record(job.command, root=ROOT, device=str(device), plan=plan, plan_path=job.plan_path, model=model)
        record.skip_all(resolved.notes)
        request = one_request(policy, observation, job.seed)
        reference = take_reference(policy, request, [resolved.plan.optimizations], steps)
        return_freed()
        harness = Harness(reference, resolved.plan, steps)
        choose_products(harness, record)
        record.inputs = replace(request.described(job.seed), dataset=source.about)
        if resolved.comparing:
            _compare(harness, resolved, record)
        else:
            _carry_out(harness, resolved, job, record)
    record.skip_all(policy.state_ranges.notes())
    record.drift = drift_of(record.results)
    record.peak_memory, record.telemetry = memory.result(), gpu.result()
    record.wall_s = time.monotonic() - began
    record.exit_reason = "gate failed" if record.failures else "done"
    return record


def _data_of(policy: Gr00tPolicy, source: Source) -> str:
    """Which data config is used, and with which keys: most wrong actions come from a wrong one."""
    config, tag = source.data()
    name = getattr(config, "name", "") or type(config).__name__
    keys = [key for own in policy.get_modality_config().values() for key in own.modality_keys]
    return f"data config {name}, embodiment tag {tag}: {', '.join(keys)}"


def _compare(harness: Harness, resolved: Resolved, record: Record) -> None:
    """Every backend on every submodule and on the whole request; build times are compared, so nothing is cached."""
    comparison = Comparison(harness, resolved, cache=None, only_running=False)
    tried = comparison.submodules()
    assignments = {backend: dict.fromkeys(resolved.names, backend) for backend in comparison.backends}
    requests = comparison.requests(tried, assignments)
    record.results += [one.result for own in (*tried.values(), requests) for one in own.values()]


def _carry_out(harness: Harness, resolved: Resolved, job: Job, record: Record) -> None:
    """The plan, built or chosen, checked, captured and timed."""
    cache = open_cache(job.engine_cache)
    timed_before: dict[str, Result] = {}
    if resolved.candidates:
        comparison = Comparison(harness, resolved, cache=cache, only_running=True)
        tried = comparison.submodules()
        choice = comparison.choose(tried)
        record.skip_all(choice.notes)
        record.results += [one.result for own in (*tried.values(), choice.requests) for one in own.values()]
        parts = {}
        for name, backend in choice.assignment.items():
            part = tried[name][backend].part
            assert part is not None  # what cannot run is never chosen, and what the user chose is kept
            parts[name] = part
            known = {label: one.result.latency_ms for label, one in tried[name].items() if one.result.latency_ms}
            timed_before[name] = harness.part_result(part, latencies=known)
        resolved = replace(resolved, plan=with_choice(resolved.plan, choice.assignment))
        record.plan = plan_to_mapping(resolved.plan)
        del tried, choice
    else:
        parts = build_all(harness, resolved, cache)
    variant = harness.variant(candidate_of(resolved, parts), parts)
    note_padding(variant, record)
    harness.steps.step("comparing the actions with eager fp32")
    base = harness.reference.base
    checked = harness.check(variant, base)
    actions = (harness.policy.postprocess(x, batched=base.batched) for x in (checked.actions, harness.expected(base)))
    record.per_key = compare_each(*actions)
    variant = capture(harness, resolved, variant, record)
    record.results += [timed_before.get(name) or _timed(harness, part) for name, part in parts.items()]
    name = _name(variant)
    timed = _time_requests(harness, resolved, variant, record)
    result = harness.request_result(name, variant, checked, timed=timed)
    if resolved.candidates:  # it was called before, while it was chosen
        result = replace(result, first_call_ms=None)
    record.results.append(result)
    record.stages = stage_times(timed, name if name in timed.stages else "original")
    if job.trace is not None:
        harness.steps.step(f"tracing one request: {job.trace}")
        write_trace(harness, variant if variant.runs else harness.original, base, job.trace)


def _name(variant: Variant) -> str:
    """What a run calls its candidate."""
    made = variant.candidate
    return "restructured" if made.backend == "eager" and made.optimizations else made.backend


def _timed(harness: Harness, part: Part) -> Result:
    """A submodule against the same in eager PyTorch, interleaved, on the recorded inputs and in the same precision.

    One that was built and cannot run here has nothing to be compared, and its eager latency alone decides nothing: the
    split of the request tells it without further calls.
    """
    if not part.built.runs:
        return harness.part_result(part)
    calls = {} if offloaded(part) else {"eager": part.eager}
    if not part.is_baseline:
        calls[part.resolved.backend] = part.call
    harness.steps.step(f"timing {part.target.name}: {' against '.join(calls)}")
    return harness.part_result(part, latencies=harness.interleaved(calls, harness.plan.benchmark))


def _time_requests(harness: Harness, resolved: Resolved, variant: Variant, record: Record) -> Timed:
    """The whole request, observation to actions, and where its time goes; original and variant interleaved."""
    variants = {"original": harness.original}
    if any(offloaded(part) for part in variant.parts.values()):
        record.skip("the original's latency", "cpu_offload moved the PyTorch weights off the GPU")
        variants.clear()
    changed = variant.candidate.optimizations or any(not part.is_baseline for part in variant.parts.values())
    if variant.runs and changed:
        variants[_name(variant)] = variant
    base, options = harness.reference.base, resolved.plan.benchmark
    harness.steps.step(f"timing the whole request: {' against '.join(variants)}")
    if harness.device.type == "cpu":
        return harness.time(variants, base, options)
    timed = harness.time(variants, base, options, split=False)
    harness.steps.step("timing the stages of a request")
    # A graph has no stages to time.
    uncaptured = {name: replace(own, graphs=None) for name, own in variants.items()}
    return replace(timed, stages=harness.split(uncaptured, base, options))


def offloaded(part: Part) -> bool:
    """Whether the stage in eager PyTorch has lost its weights to the CPU."""
    return part.resolved.build.cpu_offload and not part.is_baseline and part.target.inputs[0].device.type == "cuda"

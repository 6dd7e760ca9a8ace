"""A bundle is made: the policy is deployed as at any start, gates and all, and what came of it is written down.

The folder appears under its name when it is complete and every byte is on the disk, and not before.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ...common.interface import Observation
from ...common.progress import Steps
from ...compile.build import set_precision
from ...errors import RecordError
from ...measure.workloads import noise_of
from ...model.n1_5.inputs import IDS
from ...plans.load import plan_yaml
from ...plans.resolve import Resolved
from ...plans.schema import Plan
from ...policy.source import Source, read_observation
from ...record.files import dumps, without_home
from ..deploy import Deployment, deploy
from .example import Example, asked, write_example
from .machine import cpu_features, this_machine
from .manifest import CALIBRATION, FILE, PLAN, RECORD, Manifest, files_below, hashed, manifest_text, written
from .policy_files import write_policy
from .stages import PACKAGE, StageBuilder, refuse_unbundled


@dataclass(frozen=True)
class Made:
    """A bundle that was written; `bytes` are of all its files."""

    folder: Path
    manifest: Manifest
    deployment: Deployment
    bytes: int


def make_bundle(
    source: Source,
    resolved: Resolved,
    out: Path,
    device: torch.device,
    steps: Steps,
    *,
    engine_cache: str | None = None,
    seed: int = 0,
    command: str = "",
) -> Made:
    """Deploy a policy and write it as a bundle.

    Args:
        source: The policy, and the observation that it is tuned for and checked on; an example without a dataset.
        resolved: For `device`.
        out: The folder; it must not be there yet.
    Raises: Gr00tError, as `deploy`; PlanError for what a bundle cannot hold; RecordError for a folder that is there,
        or cannot be written.
    """
    refuse_unbundled(resolved)
    with _appearing(out) as folder:
        observation = read_observation(source, steps)
        dtype = partial(set_precision, plan=resolved.plan)
        policy = replace(source, denoising_steps=None).policy(device, steps, dtype=dtype)
        builder = StageBuilder(folder)
        done = deploy(
            policy, resolved, steps, observation=observation, engine_cache=engine_cache, seed=seed, command=command,
            build=builder,
        )  # fmt: skip
        steps.step("writing the bundle")
        config, _ = source.data()
        weights = cast(nn.Module, policy.model).state_dict()
        facts = write_policy(policy, config, source.data_config, weights, folder)
        write_example(_example(policy, observation, seed), folder)
        written(folder, PLAN, plan_yaml(_own_plan(resolved.plan, folder)))
        written(folder, RECORD, dumps(done.record) + "\n")
        stages = builder.stages()
        compiled = any(stage.kind == PACKAGE for stage in stages)
        manifest = Manifest(
            checkpoint=without_home(source.model_path),
            device=device.type,
            machine=this_machine(device, (part.resolved.backend for part in builder.parts.values())),
            policy=facts,
            cpu_features=cpu_features() if compiled and device.type == "cpu" else (),
            products=torch.get_float32_matmul_precision(),
            backends=done.backends,
            stages=stages,
            dimensions=builder.dimensions(),
            command=without_home(command),
        )
        steps.step("hashing the files of the bundle")
        names = list(files_below(folder))
        manifest = replace(manifest, files=dict(sorted(hashed(folder, names, steps).items())))
        written(folder, FILE, manifest_text(manifest))
    size = sum(fact.bytes for fact in manifest.files.values())
    return Made(out, manifest, done, size)


def _example(policy: Any, observation: Observation | None, seed: int) -> Example:
    given = policy.example() if observation is None else observation
    inputs, _ = policy.preprocess(given)
    noise = noise_of(policy.model, inputs[IDS].shape[0], seed).cpu()
    return Example(given, noise, asked(policy, given, noise))


def _own_plan(plan: Plan, folder: Path) -> Plan:
    """The plan with its calibration in the bundle."""
    if plan.calibration is None:
        return plan
    shutil.copyfile(plan.calibration, folder / CALIBRATION)
    return replace(plan, calibration=CALIBRATION)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name if all goes well, and else is gone.

    Raises: RecordError for a name that is taken, and a folder or disk that cannot be written.
    """
    if os.path.lexists(out):
        raise RecordError(f"{out}: is there already", fix="name another folder, or remove it")
    temporary = out.with_name(f".{out.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True, mode=0o700)
        yield temporary
        _to_disk(temporary)
        os.rename(temporary, out)
    except OSError as error:
        why = error.strerror or str(error)
        raise RecordError(f"{out}: the bundle cannot be written: {why}", fix="name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Every file and folder below, and their names."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

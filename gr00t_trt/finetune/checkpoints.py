"""A run's checkpoints: each a model folder that everything takes, with what training needs to go on beside it.

    RUN/latest, RUN/best     names of two of the folders below
    RUN/step-1000/           config.json, model*.safetensors, experiment_cfg/metadata.json, or an adapter's files
    RUN/step-1000/training/  state.json, optimizer.safetensors
    RUN/base/                a generated base model

A folder has its final name only once all of it is on the disk. Whatever ends a save before, the last one stays.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn

from ..data import DatasetMetadata
from ..errors import CheckpointError, RecordError
from ..model.config_section import read_object
from ..model.folders import ADAPTER_WEIGHTS, CONFIG, EAGLE_CONFIG
from ..model.weight_files import Stored, header, headers, opened
from ..model.weight_writer import from_tensor, write_file, write_json, write_weights
from .adapters import write_adapter
from .base import Base, check_trained, config_for, open_base, write_side_files
from .lora import Lora
from .parts import peft_key

LATEST, BEST = "latest", "best"
STATE, OPTIMIZER = "training/state.json", "training/optimizer.safetensors"
SCHEMA = 1

_STEP = re.compile(r"step-(\d{1,12})")
_OTHER_RUN = "resume with the flags of the run that wrote it, or train into a new folder"


class About(TypedDict):
    """What a checkpoint says of its run."""

    flags: Mapping[str, object]
    samples_a_step: int
    data: Mapping[str, object]
    versions: Mapping[str, str]
    loss: float | None
    held_out_loss: float | None
    lowest_held_out_loss: float | None


class _State(TypedDict):
    """state.json. `optimizer`: parameter -> what is no tensor. `frozen`: files that hold it, and the fingerprint."""

    schema: int
    step: int
    trained: list[str]
    optimizer: Mapping[str, Mapping[str, object]]
    frozen: list[Any]
    about: About


class Restored(NamedTuple):
    """What a run goes on from. `step`: steps done. `trained`: as it was saved, on the host. `about`: likewise."""

    step: int
    trained: dict[str, Tensor]
    about: About


def save(
    folder: str | Path,
    step: int,
    trained: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, nn.Parameter],
    about: About,
    base: str | Path,
    metadata: Mapping[str, DatasetMetadata],
    *,
    keep: int = 5,
    lora: Lora | None = None,
    action_horizon: int | None = None,
) -> Path:
    """Write a checkpoint, then remove those that are too many.

    Frozen and unused tensors are copied from the base model byte for byte, trained ones written in their own dtype.

    Args:
        folder: The run's.
        step: Steps done.
        trained: Name -> tensor, as `parts.trained_tensors` gives them; for an adapter `lora_A`, `lora_B` and whatever
            was trained whole.
        names: Name -> parameter of the optimizer, as `parts.trained_parameters` gives them.
        about: Comes back from `restore`; JSON values.
        base: What training started from, as `load_model` takes it.
        metadata: Tag -> statistics that were trained with; the base's other tags are kept.
        keep: Newest checkpoints that stay, beside the best one.
        lora: What kind of adapter is trained; None for a whole model.
        action_horizon: Actions per chunk; None keeps the base's.
    Returns: The checkpoint's folder.
    Raises: RecordError where it cannot be written, as on a full disk: the last one is still there; CheckpointError for
        a base model that cannot be read, or that trained tensors do not fit.
    """
    folder = Path(folder)
    temporary, final = folder / f"step-{step}.tmp", folder / f"step-{step}"
    try:
        for left in folder.glob("step-*.tmp"):  # of saves that were ended
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        source = open_base(base, folder)
        if lora is None:
            frozen_in = _write_model(temporary, source, trained, metadata, action_horizon, latest(folder))
        else:
            frozen_in = []
            write_adapter(temporary, trained, lora, source, metadata)
        (temporary / STATE).parent.mkdir()
        tensors, plain = _optimizer_state(optimizer, names)
        write_file(temporary / OPTIMIZER, {key: from_tensor(value) for key, value in tensors.items()})
        frozen = [frozen_in, source.fingerprint()]
        state = _State(schema=SCHEMA, step=step, trained=[*trained], optimizer=plain, frozen=frozen, about=about)
        write_json(temporary / STATE, state)
        _put_in_place(temporary, final)
        _name(folder / LATEST, final)
        _prune(folder, keep)
    except OSError as error:
        raise _unwritable(final, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def latest(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a run; None where there is none."""
    named = _named(Path(folder) / LATEST)
    return named or next(iter(_complete(Path(folder))), None)


def mark_best(path: Path) -> None:
    """Say that a checkpoint is the best of its run so far: it stays until another one is. Raises: RecordError."""
    try:
        _name(path.parent / BEST, path)
    except OSError as error:
        raise _unwritable(path.parent / BEST, error) from error


def best(folder: str | Path) -> Path | None:
    """The checkpoint that was marked last; None where none was."""
    return _named(Path(folder) / BEST)


def restore(path: str | Path, optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]) -> Restored:
    """What a checkpoint holds for going on, with the optimizer's state put into `optimizer`.

    Args:
        optimizer: Over the same parameters as when it was saved; its groups keep their own settings.
        names: Name -> parameter of the optimizer.
    Raises: CheckpointError for a folder without a training state, a damaged one, or other parameters.
    """
    path = Path(path)
    state = _read_state(path)
    _restore_optimizer(path / OPTIMIZER, optimizer, names, state["optimizer"])
    adapter = (path / ADAPTER_WEIGHTS).is_file()
    stored = header(path / ADAPTER_WEIGHTS) if adapter else headers(path)
    trained = {}
    for name in state["trained"]:
        key = peft_key(name) if adapter else name
        if key not in stored:
            raise CheckpointError(f"{path}: trained tensor {name} is missing", fix="take an earlier checkpoint")
        trained[name] = _read(stored[key])
    return Restored(state["step"], trained, state["about"])


def _write_model(
    folder: Path,
    base: Base,
    trained: Mapping[str, Tensor],
    metadata: Mapping[str, DatasetMetadata],
    action_horizon: int | None,
    previous: Path | None,
) -> list[str]:
    """Write a whole model; returns the names of the files that hold what is frozen."""
    shapes = {name: tuple(tensor.shape) for name, tensor in trained.items()}
    check_trained(base, shapes)
    frozen = {name: base.entry(name) for name in base.stored if name not in trained}
    own = {name: from_tensor(tensor) for name, tensor in trained.items()}
    twins = {} if previous is None else _twins(previous, base)
    files = write_weights(folder, frozen, own, twins=twins)
    write_json(folder / CONFIG, config_for(base, shapes, action_horizon))
    if base.eagle is not None:
        write_json(folder / EAGLE_CONFIG, dict(base.eagle))
    write_side_files(folder, base, metadata)
    return files[0]


def _twins(previous: Path, base: Base) -> Mapping[str, Path]:
    """Files of the checkpoint before that hold frozen tensors of the same base, by name: they need no second copy."""
    try:
        names, fingerprint = _read_state(previous)["frozen"]
    except CheckpointError:
        return {}
    return {name: previous / name for name in names} if fingerprint == base.fingerprint() else {}


def _optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, dict[str, object]]]:
    """Tensors by ``<what>:<parameter>``, and all else by parameter."""
    tensors: dict[str, Tensor] = {}
    plain = {}
    for name, parameter in _in_order(optimizer, names):
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{key}:{name}": value for key, value in state.items() if isinstance(value, Tensor)}
        plain[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return tensors, plain


def _in_order(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]
) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter in the optimizer's own order."""
    by_identity = {id(parameter): name for name, parameter in names.items()}
    for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
        yield by_identity[id(parameter)], parameter


def _restore_optimizer(
    file: Path,
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, nn.Parameter],
    plain: Mapping[str, Mapping[str, object]],
) -> None:
    order = [*_in_order(optimizer, names)]
    strangers = sorted({name for name, _ in order} ^ set(plain))
    if strangers:
        what = f"{file}: {strangers[0]} is trained in only one of the two runs"
        raise CheckpointError(what, known=f"{len(plain)} parameters", fix=_OTHER_RUN)
    stored = header(file)
    state: dict[int, dict[str, object]] = {}
    for number, (name, parameter) in enumerate(order):
        own = {key.partition(":")[0]: found for key, found in stored.items() if key.partition(":")[2] == name}
        for key, found in own.items():
            if found.shape not in ((), tuple(parameter.shape)):
                what = f"{file}: {key} of {name} has shape {list(found.shape)}"
                raise CheckpointError(what, known=str(list(parameter.shape)), fix=_OTHER_RUN)
        values = {**plain[name], **{key: _read(found) for key, found in own.items()}}
        if values:
            state[number] = values
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _read(stored: Stored) -> Tensor:
    with opened(stored.file) as file:
        # A copy: what is handed out shall not be a view of a file that may be removed or overwritten.
        copied: Tensor = file.get_tensor(stored.key).clone()
    return copied


def _read_state(path: Path) -> _State:
    if not (path / STATE).is_file():
        raise CheckpointError(
            f"{path}: holds no training state to go on from",
            known=f"a checkpoint of gr00t-trt finetune, with {STATE}",
            fix="give it as --base_model_path to start a new run from its weights",
        )
    state = cast(_State, read_object(path / STATE))
    if state.get("schema") != SCHEMA:
        what = f"{path / STATE}: schema {state.get('schema')!r} is another version's"
        raise CheckpointError(what, known=str(SCHEMA), fix="resume with the version that wrote it")
    return state


def _put_in_place(temporary: Path, final: Path) -> None:
    for inside, _, _ in os.walk(temporary):
        _folder_to_disk(Path(inside))
    older = final.with_name(f"{final.name}.old.tmp")
    if final.exists():
        final.rename(older)
    temporary.rename(final)
    _folder_to_disk(final.parent)
    shutil.rmtree(older, ignore_errors=True)


def _folder_to_disk(folder: Path) -> None:
    # Names must survive a power cut, too; a system that cannot open folders is left to itself.
    with suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _name(file: Path, checkpoint: Path) -> None:
    """Write a checkpoint's name into a file, whole or not at all."""
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as opened_file:
            opened_file.write(f"{checkpoint.name}\n")
            opened_file.flush()
            os.fsync(opened_file.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    _folder_to_disk(file.parent)


def _named(file: Path) -> Path | None:
    try:
        name = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    found = file.parent / name
    return found if _STEP.fullmatch(name) and (found / STATE).is_file() else None


def _complete(folder: Path) -> Sequence[Path]:
    """The run's checkpoints, the newest first."""
    found = {path: _STEP.fullmatch(path.name) for path in folder.glob("step-*") if (path / STATE).is_file()}
    return sorted((path for path, match in found.items() if match), key=lambda path: -int(path.name[5:]))


def _prune(folder: Path, keep: int) -> None:
    kept = {latest(folder), best(folder), *_complete(folder)[:keep]}
    for path in _complete(folder):
        if path not in kept:
            # First the name: half a checkpoint must not look like a whole one.
            removed = path.rename(path.with_name(f"{path.name}.tmp"))
            shutil.rmtree(removed, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> RecordError:
    last = latest(path.parent)
    return RecordError(
        f"{path}: the checkpoint cannot be written: {error.strerror or error}",
        known=f"the last complete one is {last}" if last else "none was written before",
        fix="free some space, or keep fewer of them, then go on with --resume",
    )

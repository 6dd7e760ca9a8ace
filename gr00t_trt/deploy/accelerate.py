"""A model of NVIDIA's `gr00t` package, or of LeRobot's N1.5 port, made to run on ours without a change around it.

Nothing of those packages is imported: a model is known by its parts (`backbone`, `action_head`, `config`,
`get_action`) and by the names and shapes in its state dict. Both packages' policies end in
`model.get_action(inputs)`, so replacing that one method leaves their transforms, keys and units as they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..common.products import own_products
from ..common.progress import Steps
from ..compile.build import set_precision
from ..errors import AccuracyError, PlanError
from ..measure import accuracy
from ..model import Gr00tConfig, Gr00tN1d5, example_inputs, model_from_tensors
from ..model.config_files import build_config
from ..model.config_section import Section
from ..model.n1_5.weight_watch import WeightWatch
from ..model.protocol import Inputs
from ..model.stored import as_stored
from ..plans.flags import FAST
from ..plans.load import load_plan
from ..plans.precisions import least_exact, precision_of
from ..plans.resolve import Machine, resolve
from ..plans.schema import Plan
from ..policy.policy import ModelPolicy, TensorPolicy
from ..record.result import Agreement
from .deploy import Deployment, deploy

PARTS = ("backbone", "action_head", "config", "get_action", "state_dict")
HOLDERS = ("model", "_groot_model")
"""Where policies keep the model: NVIDIA's `Gr00tPolicy`, LeRobot's `GrootPolicy`."""

OUTPUT = "action_pred"


class Accelerated:
    """A model of another package with ours in its place; `restore` undoes it.

    Attributes:
        deployment: How the plan was carried out: `backends`, the start-up's record.
        agreement: Of our model in fp32 with the original, on the same inputs and noise, before anything was compiled.
    """

    def __init__(self, original: Any, deployment: Deployment, agreement: Agreement):
        self.deployment, self.agreement = deployment, agreement
        self._original = original

    def restore(self) -> None:
        """Give the model its own `get_action` back."""
        vars(self._original).pop("get_action", None)


def accelerate(
    policy_or_model: Any,
    plan: Plan | None = None,
    *,
    inputs: Inputs | None = None,
    engine_dir: Path | None = None,
    engine_cache: str | None = None,
    console: Console | None = None,
) -> Accelerated:
    """Make the `get_action` of another package's GR00T N1.5 run on our compiled model, on the device it is on.

    The weights are copied in the plan's precisions, what they make in fp32 is held against the original on the same
    inputs and noise, our model is compiled as the plan says and held against fp32, and only then put in place. The
    original is called as its package calls it: in an autocast region where its compute dtype is a half. Keys, shapes,
    dtypes and the type of what `get_action` returns stay the same, inside and outside of autocast; the noise is drawn
    anew for each call, from torch's default generator, in fp32. The original keeps its weights; after
    ``model.to("cpu")`` the next request frees the GPU's copy. Once its weights are changed, requests are a PlanError;
    `WeightWatch` says what is seen when.

    Args:
        policy_or_model: A model with `backbone`, `action_head`, `config` and `get_action`, or a policy that keeps one
            as `model` or `_groot_model`.
        plan: What is compiled, and how; None for the default plan, which on a CPU is PyTorch in its fastest
            precision.
        inputs: Model inputs as its `get_action` takes them, to tune for and to check on; made up when None: one image,
            a prompt of 40 words.
        engine_dir, engine_cache: Where engines are written, and where finished ones are kept, as in `deploy`.
        console: Where progress goes; nowhere when None.
    Raises: PlanError for an object of another structure, naming what is missing, and for one whose `get_action` fails;
        CheckpointError for weights or a configuration of another geometry; AccuracyError when the two models disagree
        or a gate is missed.
    """
    device = next(iter(_model_of(policy_or_model).state_dict().values())).device
    # The caller's autocast would round what we compute, and inference mode mark what we keep.
    with torch.autocast(device.type, enabled=False), torch.inference_mode(False):
        return _accelerate(policy_or_model, plan, inputs, engine_dir, engine_cache, console)


def _accelerate(
    policy_or_model: Any,
    plan: Plan | None,
    inputs: Inputs | None,
    engine_dir: Path | None,
    engine_cache: str | None,
    console: Console | None,
) -> Accelerated:
    steps = Steps(console or Console(file=io.StringIO()), None)
    original = _model_of(policy_or_model)
    kind = f"{type(original).__module__}.{type(original).__qualname__}"
    config = _config_of(original, kind)
    steps.step(f"copying the weights of {kind}")
    state = original.state_dict()
    device = next(iter(state.values())).device
    # On a CPU, engines would be built for another machine and not run.
    default = Plan(backend="eager") if device.type == "cpu" else load_plan(FAST)
    given, machine = plan is not None, Machine(str(device))
    resolved = resolve(
        plan or default, machine, chosen=given, precision_chosen=given, engine_dir=engine_dir, timed=False
    )
    cast = partial(set_precision, plan=resolved.plan)
    ours = model_from_tensors(state, config, dtype=cast, device=device, where=kind)
    if (horizon := _setting(original, "action_horizon")) is not None:
        ours.action_horizon = horizon
    if (count := _setting(original, "num_inference_timesteps")) is not None:
        ours.denoising_steps = count
    made = inputs or example_inputs(config)
    example = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in made.items()}
    steps.step("comparing with the original")
    original_is, agreement = _compare(original, ours, example, kind)
    policy = TensorPolicy(ours, example)  # the transforms stay with the package that the model came from
    resolved = replace(resolved, plan=replace(resolved.plan, denoising_steps=ours.denoising_steps))
    done = deploy(policy, resolved, steps, engine_cache=engine_cache)
    original.get_action = _replacement(original, policy, original_is)
    return Accelerated(original, done, agreement)


def _model_of(given: Any) -> Any:
    """The model itself, or the one that a policy keeps."""
    for candidate in (given, *(getattr(given, name, None) for name in HOLDERS)):
        if candidate is not None and all(hasattr(candidate, part) for part in PARTS):
            return candidate
    missing = [part for part in PARTS if not hasattr(given, part)]
    raise PlanError(
        f"accelerate: {type(given).__module__}.{type(given).__qualname__} is no GR00T N1.5: it has no "
        f"{', '.join(missing)}",
        known=f"a model with {', '.join(PARTS)}, or a policy that keeps one as {' or '.join(HOLDERS)}",
    )


def _config_of(original: Any, kind: str) -> Gr00tConfig:
    eagle = getattr(getattr(original.backbone, "eagle_model", None), "config", None)
    inner = None if eagle is None else Section(Path(f"{kind}.backbone.eagle_model.config"), _mapping(eagle))
    return build_config(Section(Path(f"{kind}.config"), _mapping(original.config)), inner)


def _mapping(config: Any) -> Mapping[str, Any]:
    """A configuration as nested dictionaries, be it one of transformers' objects, a mapping, or a plain object."""
    if hasattr(config, "to_dict"):
        return config.to_dict()
    return config if isinstance(config, Mapping) else vars(config)


def _setting(original: Any, name: str) -> int | None:
    """A number that the original's action head keeps as an attribute, and its policies change there."""
    value = getattr(original.action_head, name, None)
    return value if isinstance(value, int) else None


class _SeenNoise(TorchFunctionMode):
    """Records the first normally distributed tensor of a given shape that is drawn inside the block."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape
        self.noise: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        drawn = func in (torch.randn, torch.randn_like, torch.normal, Tensor.normal_)
        if drawn and self.noise is None and isinstance(result, Tensor) and tuple(result.shape) == self.shape:
            self.noise = result.detach().clone()
        return result


@dataclass(frozen=True)
class _Answers:
    """What the original's `get_action` returns.

    Attributes:
        kind: The class of the mapping.
        dtypes: Whether in an autocast region -> dtype of the actions; without a way of calling it that fails.
        usual: Which of the two ways its package uses, or the other where that fails.
    """

    kind: Callable[..., Any]
    dtypes: Mapping[bool, torch.dtype]
    usual: bool

    def dtype(self, autocast: bool) -> torch.dtype:
        return self.dtypes.get(autocast, self.dtypes[self.usual])


def _compare(original: Any, ours: Gr00tN1d5, inputs: Inputs, kind: str) -> tuple[_Answers, Agreement]:
    """How the original answers, and how well our model in fp32 agrees with it from the same noise."""
    compute = _compute_dtype(original)
    usual = compute is not None
    found: dict[bool, tuple[Any, Tensor | None]] = {}
    failed: dict[bool, Exception] = {}
    for autocast in (usual, not usual):
        try:
            found[autocast] = _ask(original, inputs, ours, compute or torch.bfloat16, autocast)
        except Exception as error:  # foreign code; fp32 weights with inputs cast to a half fail outside of autocast
            failed[autocast] = error
    if not found:
        raise PlanError(
            f"accelerate: {kind}.get_action fails: {type(failed[usual]).__name__}: {failed[usual]}",
            known="a model that answers the inputs",
            fix="give `inputs=` that it answers; without, one image and a prompt of 40 words are made up",
        ) from failed[usual]
    used = usual if usual in found else not usual
    agreement = _agreement(original, ours, inputs, kind, found[used], compute if used else None)
    dtypes = {way: sample[OUTPUT].dtype for way, (sample, _) in found.items() if OUTPUT in sample}
    return _Answers(type(found[used][0]), dtypes, used), agreement


def _compute_dtype(original: Any) -> torch.dtype | None:
    """What the original's package computes in by autocast: its `compute_dtype`, else that of half-precision weights."""
    named = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(getattr(original, "compute_dtype", None)))
    return named or {"bf16": torch.bfloat16, "fp16": torch.float16}.get(_precision(original))


@torch.no_grad()
def _ask(
    original: Any, inputs: Inputs, ours: Gr00tN1d5, compute: torch.dtype, autocast: bool
) -> tuple[Any, Tensor | None]:
    """What the original answers, and the noise that it drew for it."""
    shape = (inputs["embodiment_id"].shape[0], ours.action_horizon, ours.config.action_head.action_dim)
    with torch.autocast(ours.device.type, dtype=compute, enabled=autocast), _SeenNoise(shape) as seen:
        return original.get_action(dict(inputs)), seen.noise


def _agreement(
    original: Any,
    ours: Gr00tN1d5,
    inputs: Inputs,
    kind: str,
    found: tuple[Any, Tensor | None],
    compute: torch.dtype | None,
) -> Agreement:
    """Of our model in fp32 with what the original gave, held to the gate of the original's least exact dtype."""
    sample, noise = found
    if not isinstance(sample, Mapping) or set(sample) != {OUTPUT}:
        keys = list(sample) if isinstance(sample, Mapping) else type(sample).__name__
        raise PlanError(f"accelerate: {kind}.get_action returns {keys}", known=f"a mapping with {OUTPUT} alone")
    if noise is None:
        shape = list(sample[OUTPUT].shape)
        raise AccuracyError(
            f"accelerate: {kind}.get_action drew no normal noise of shape {shape}, so it cannot be compared",
            known="torch.randn of that shape, as GR00T N1.5 draws it",
        )
    with torch.autocast(ours.device.type, enabled=False), own_products(), accuracy.full_fp32(), as_stored(ours):
        pred = ours.get_action(inputs, noise=noise.float())[OUTPUT]
    agreement = accuracy.compare(pred, sample[OUTPUT])
    computed = [_precision(original), *([precision_of(compute)] if compute is not None else [])]
    gate = least_exact(computed).action_gate
    if failures := accuracy.check(agreement, gate):
        raise AccuracyError(
            f"accelerate: our model and {kind} disagree on the same inputs and noise: {'; '.join(failures)}",
            known=f"the gate of the precision that it computes in: {asdict(gate)}",
            fix="was the model changed after GR00T N1.5 was released, or fine-tuned with adapters that are not merged?",
        )
    return agreement


def _precision(original: Any) -> str:
    """The least exact dtype among the weights."""
    dtypes = {tensor.dtype for tensor in original.state_dict().values()}
    return "bf16" if torch.bfloat16 in dtypes else "fp16" if torch.float16 in dtypes else "fp32"


def _replacement(original: Any, policy: ModelPolicy, answers: _Answers) -> Callable[..., Any]:
    weights = _SameWeights(original)
    device = policy.model.device.type

    def get_action(inputs: Inputs) -> Any:
        weights.before()
        if (count := _setting(original, "num_inference_timesteps")) is not None:
            policy.denoising_steps = count
        wanted = answers.dtype(torch.is_autocast_enabled(device))
        # The caller's autocast would cast our compiled stages' inputs, and inference mode mark what we keep.
        with torch.autocast(device, enabled=False), torch.inference_mode(False), torch.no_grad():
            pred = policy.model.get_action(policy.preprocess(inputs)[0])[OUTPUT]
        weights.after()
        return answers.kind({OUTPUT: pred.to(wanted)})

    return get_action


class _SameWeights:
    """The original's weights, which ours were copied from. They may move, and must not change."""

    def __init__(self, original: Any):
        self._original, self._watch = original, WeightWatch(original)

    def before(self) -> None:
        """Called before a request. Raises: PlanError when weights or modules were changed in the open."""
        watch = self._watch
        if watch.tree.modules_intact() and watch.tensors_intact():
            watch.mark()
            return
        if not watch.tree.modules_intact() or watch.tree.tensors() is None:
            self._refuse()
        moved = WeightWatch(self._original)
        if not moved.equals(watch):
            self._refuse()
        self._watch = moved
        moved.mark()

    def after(self) -> None:
        """Called before the result is given out. Raises: PlanError when values are no longer those that were copied."""
        if not self._watch.values_intact():
            self._refuse()

    def _refuse(self) -> None:
        raise PlanError(
            "accelerate: the model's weights were changed after it was accelerated",
            fix="call restore() and accelerate it again",
        )

"""A model of NVIDIA's `gr00t` package, or of LeRobot's N1.5 port, made to run on ours without a change around it.

Nothing of those packages is imported: a model is known by its parts (`backbone`, `action_head`, `config`,
`get_action`) and by the names and shapes in its state dict. Both packages' policies end in
`model.get_action(inputs)`, so replacing that one method leaves their transforms, keys and units as they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..common.progress import Steps
from ..errors import AccuracyError, PlanError
from ..measure import accuracy
from ..model import Gr00tConfig, Gr00tN1d5, example_inputs, model_from_tensors
from ..model.config_files import build_config
from ..model.config_section import Section
from ..model.protocol import Inputs
from ..plans.precisions import PRECISIONS
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

    The weights are copied in fp32, our model is held against the original on the same inputs and noise, compiled as
    the plan says, held against fp32 once more, and only then put in place. Keys, shapes, dtypes and the type of what
    `get_action` returns stay the same; the noise is drawn anew for each call, from torch's default generator, in fp32.
    The original keeps its weights; ``model.to("cpu")`` afterwards frees the GPU's copy.

    Args:
        policy_or_model: A model with `backbone`, `action_head`, `config` and `get_action`, or a policy that keeps one
            as `model` or `_groot_model`.
        plan: What is compiled, and how; None for the default plan.
        inputs: Model inputs as its `get_action` takes them, to tune for and to check on; made up when None: one image,
            a prompt of 40 words.
        engine_dir, engine_cache: Where engines are written, and where finished ones are kept, as in `deploy`.
        console: Where progress goes; nowhere when None.
    Raises: PlanError for an object of another structure, naming what is missing; CheckpointError for weights or a
        configuration of another geometry; AccuracyError when the two models disagree or a gate is missed.
    """
    steps = Steps(console or Console(file=io.StringIO()), None)
    original = _model_of(policy_or_model)
    kind = f"{type(original).__module__}.{type(original).__qualname__}"
    config = _config_of(original, kind)
    steps.step(f"copying the weights of {kind}")
    state = original.state_dict()
    device = next(iter(state.values())).device
    ours = model_from_tensors(state, config, device=device, where=kind)
    if (horizon := _setting(original, "action_horizon")) is not None:
        ours.action_horizon = horizon
    if (count := _setting(original, "num_inference_timesteps")) is not None:
        ours.denoising_steps = count
    example: dict[str, Any] = dict(inputs or example_inputs(config))
    example |= {key: value.to(device) for key, value in example.items() if isinstance(value, Tensor)}
    steps.step("comparing with the original")
    sample, agreement = _compare(original, ours, example, kind)
    policy = TensorPolicy(ours, example)  # the transforms stay with the package that the model came from
    chosen = replace(plan or Plan(), denoising_steps=ours.denoising_steps)
    resolved = resolve(chosen, Machine(str(device)), chosen=plan is not None, engine_dir=engine_dir, timed=False)
    done = deploy(policy, resolved, steps, engine_cache=engine_cache)
    original.get_action = _replacement(original, policy, sample)
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


@torch.no_grad()
def _compare(original: Any, ours: Gr00tN1d5, inputs: Inputs, kind: str) -> tuple[Inputs, Agreement]:
    """One result of the original, and how well our model in fp32 agrees with it from the same noise."""
    shape = (inputs["embodiment_id"].shape[0], ours.action_horizon, ours.config.action_head.action_dim)
    with _SeenNoise(shape) as seen:
        sample = original.get_action(dict(inputs))
    if not isinstance(sample, Mapping) or set(sample) != {OUTPUT}:
        found = list(sample) if isinstance(sample, Mapping) else type(sample).__name__
        raise PlanError(f"accelerate: {kind}.get_action returns {found}", known=f"a mapping with {OUTPUT} alone")
    if seen.noise is None:
        raise AccuracyError(
            f"accelerate: {kind}.get_action drew no normal noise of shape {list(shape)}, so it cannot be compared",
            known="torch.randn of that shape, as GR00T N1.5 draws it",
        )
    pred = ours.get_action(inputs, noise=seen.noise.float())[OUTPUT]
    agreement = accuracy.compare(pred, sample[OUTPUT])
    gate = PRECISIONS[_precision(original)].action_gate
    if failures := accuracy.check(agreement, gate):
        raise AccuracyError(
            f"accelerate: our model and {kind} disagree on the same inputs and noise: {'; '.join(failures)}",
            known=f"the gate of its weights' precision: {asdict(gate)}",
            fix="was the model changed after GR00T N1.5 was released, or fine-tuned with adapters that are not merged?",
        )
    return sample, agreement


def _precision(original: Any) -> str:
    """The least exact dtype among the weights."""
    dtypes = {tensor.dtype for tensor in original.state_dict().values()}
    return "bf16" if torch.bfloat16 in dtypes else "fp16" if torch.float16 in dtypes else "fp32"


def _replacement(original: Any, policy: ModelPolicy, sample: Inputs) -> Callable[..., Any]:
    state = _versions(original)
    device = policy.model.device.type
    dtype = sample[OUTPUT].dtype

    def get_action(inputs: Inputs) -> Any:
        if _versions(original) != state:
            raise PlanError(
                "accelerate: the model's weights were changed after it was accelerated",
                fix="call restore() and accelerate it again",
            )
        if (count := _setting(original, "num_inference_timesteps")) is not None:
            policy.denoising_steps = count
        # In an autocast region the original computes its Euler state, and so its actions, in fp32.
        wanted = torch.float32 if torch.is_autocast_enabled(device) else dtype
        # The caller's autocast would cast our compiled stages' inputs, and inference mode mark what we keep.
        with torch.autocast(device, enabled=False), torch.inference_mode(False), torch.no_grad():
            pred = policy.model.get_action(policy.preprocess(inputs)[0])[OUTPUT]
        return type(sample)({OUTPUT: pred.to(wanted)})  # type: ignore[call-arg]

    return get_action


def _versions(original: Any) -> tuple[int, ...]:
    """Rises with every write into a weight; the same for a model that only moved."""
    return tuple(p._version for p in original.parameters())

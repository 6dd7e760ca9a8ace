"""The whole model. It calls its parts through one table of stages, so that each can be swapped, timed or recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..protocol import Inputs
from ..targets import DimRange, Recording, Target, make_target, recording_calls
from .action_head import ActionHead
from .architecture import N1_5
from .backbone import EagleBackbone
from .config import Gr00tConfig
from .inputs import EMBODIMENT, IDS, MASK, PIXELS, STATE, check_inputs
from .published import PUBLISHED
from .staged import StagedModel


class Gr00tN1d5(StagedModel):
    """GR00T N1.5 for inference: images, instruction and robot state to a chunk of actions.

    Source: Isaac-GR00T, gr00t/model/gr00t_n1.py.
    """

    optimizations: frozenset[str] = frozenset()
    lookups_on_host = False
    loop = N1_5.loops[0]

    def __init__(self, config: Gr00tConfig):
        super().__init__(config)
        self.backbone = EagleBackbone(config)
        self.action_head = ActionHead(config.action_head)
        eagle, head = self.backbone.eagle_model, self.action_head
        self._eager = {
            "vision_model": eagle.vision_model,
            "language_model": eagle.language_model.decoder(),
            "vl_components": head.vl_components(),
            "state_encoder": head.state_encoder,
            "action_encoder": head.action_encoder,
            "dit_model": head.model,
            "action_decoder": head.action_decoder,
            "eagle_backbone": self.backbone,
        }
        self.reset_stages()

    def reset_stages(self) -> None:
        """Put the PyTorch modules back into `stages`, each in the dtype of its weights."""
        self._own = {**self._eager, "eagle_backbone": self._eagle_backbone}
        self.stages.update(self._own)
        self.read_dtypes()

    def read_dtypes(self) -> None:
        """Call every stage in the dtype that its weights have now."""
        self.stage_dtypes.update({name: self.weight_dtype(name) for name in self._eager})

    def cast_stage(self, name: str, dtype: torch.dtype) -> None:
        """Cast the weights of one stage in place, and its inputs from now on.

        ``eagle_backbone`` means the vision tower, the language model and everything between them.
        Raises: PlanError for an unknown name.
        """
        self.eager_stage(name).to(dtype)
        names = ("eagle_backbone", "vision_model", "language_model") if name == "eagle_backbone" else (name,)
        self.stage_dtypes.update(dict.fromkeys(names, dtype))

    def cast_glue(self, dtype: torch.dtype) -> None:
        """Cast in place what belongs to no stage: connector, token embedding, position and future token tables."""
        eagle, head = self.backbone.eagle_model, self.action_head
        embeddings = (eagle.language_model.model.embed_tokens, head.position_embedding, head.future_tokens)
        for module in (eagle.mlp1, self.backbone.eagle_linear, *embeddings):
            if module is not None:
                module.to(dtype)

    def argument_dtypes(self, name: str) -> tuple[torch.dtype, ...]:
        """What each floating argument of a stage is cast to."""
        return (self.stage_dtypes[name],) * len(inspect.signature(self._eager[name].forward).parameters)

    def run_stage(self, name: str, *args: Tensor) -> Tensor:
        """Call a stage, its floating inputs cast to the stage's dtype."""
        dtype = self.stage_dtypes[name]
        return self.stages[name](*(a.to(dtype) if a.is_floating_point() else a for a in args))

    def prepare(self, inputs: Inputs) -> dict[str, Tensor]:
        """Check model inputs and move them to the model's device.

        Floats become fp32, not the model's dtype: each stage casts what it gets, and a stage kept in fp32 should see
        pixels and state that have not been rounded before.

        Args:
            inputs: ``eagle_pixel_values`` float [N, 3, 224, 224] in [-1, 1], ``eagle_input_ids`` int64 [B, S],
                ``eagle_attention_mask`` int64 [B, S] with 1 for real tokens, ``state`` float [B, 1, 64] normalised,
                ``embodiment_id`` int64 [B]. Other keys are ignored. Values are checked on tensors in host memory only;
                reading them from a GPU would stall it.
        Returns: These five, integers as int64.
        Raises: ObservationError naming key, value and fix.
        """
        checked = check_inputs(inputs, self.config)
        return {
            key: value.to(self.device, torch.float32 if value.is_floating_point() else torch.int64, non_blocking=True)
            for key, value in checked.items()
        }

    def uncaptured(self) -> AbstractContextManager[None]:
        """Nothing to leave: requests always pass through the stages."""
        return nullcontext()

    def record(self, inputs: Inputs, noise: Tensor) -> tuple[Recording, Tensor]:
        """Run one request and keep what every stage was called with and what it returned.

        Args:
            inputs: Model inputs of a real observation, as `Gr00tPolicy.preprocess` makes them.
            noise: [B, T, action_dim] initial noise.
        Returns: The recording, and `action_pred` [B, T, action_dim] of the same request.
        """
        with self._compiled.paused(), recording_calls(self.stages) as calls:
            actions = self.get_action(inputs, noise=noise)["action_pred"]
        return {name: tuple(own) for name, own in calls.items()}, actions

    def target(self, name: str, recording: Recording, dims: Mapping[str, DimRange]) -> Target:
        """A stage with its recorded inputs, in the stage's own dtype, on the model's device."""
        module, call, dtypes = self.eager_stage(name), recording[name][0], self.argument_dtypes(name)
        target = make_target(name, N1_5.arguments[name], module, call, dtypes, self.device, dims)
        return replace(target, published=PUBLISHED.get(name))

    @torch.no_grad()
    def get_action(self, inputs: Inputs, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Predict one action chunk per sample.

        Args:
            inputs: As `prepare` takes them.
            noise: [B, T, 32] where the flow starts; standard normal from torch's default generator when None.
        Returns: ``action_pred`` float32 [B, T, 32], normalised and zero padded in its last axis by convention only.
        Raises: ObservationError naming key, value and fix; PlanError when weights changed under a compiled stage.
        """
        self._compiled.mark()
        self._compiled.before(self, self.stages, self._own)
        x = self.prepare(inputs)
        noise = self.start(x[STATE].shape[0], noise)
        features = self.run_stage("eagle_backbone", x[PIXELS], x[IDS], x[MASK])
        actions = self.action_head.denoise(self.run_stage, features, x[STATE], x[EMBODIMENT], noise)
        self._compiled.after(self.stages, self._own)
        return {"action_pred": actions}

    def _eagle_backbone(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vision, language = partial(self.run_stage, "vision_model"), partial(self.run_stage, "language_model")
        return self.backbone.compose(vision, language, pixel_values, input_ids, attention_mask)

    def weight_dtype(self, name: str) -> torch.dtype:
        """What a stage's own weights are in; the model's dtype for a stage without."""
        weight = next(self._eager[name].parameters(), None)
        return self.dtype if weight is None else weight.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gr00tN1d5:
        # `model.half()` and the like change the weights under `stage_dtypes`; a move to another device does not.
        before = {name: self.weight_dtype(name) for name in self._eager}
        super()._apply(fn, recurse)
        for name, dtype in before.items():
            if self.weight_dtype(name) != dtype:
                self.stage_dtypes[name] = self.weight_dtype(name)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`; with ``assign=True`` the weights may have another dtype afterwards."""
        result = super().load_state_dict(*args, **kwargs)
        self.read_dtypes()
        return result

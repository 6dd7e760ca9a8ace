"""The restructured model: the plain model's parameters, called in fewer and larger pieces."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import PlanError, unknown
from ...protocol import Inputs
from ...targets import DimRange, Recording, Target, make_target, recording_calls
from ..architecture import N1_5
from ..backbone import apply_linear
from ..gr00t import Gr00tN1d5
from ..inputs import EMBODIMENT, IDS, LOOKED_UP, MASK, PIXELS, STATE, check_inputs
from ..staged import StagedModel
from ..weight_watch import ModuleTree, WeightWatch
from .captured import Launch, Replayer
from .constants import KEPT_SETS, Embodiments, FoldedConstants
from .denoise import join_tokens
from .projections import join_all
from .prompts import Prompt, Prompts
from .stages import argument_dtypes, arguments_of, check_names, make_stages
from .weight_cache import WeightCache


@dataclass(frozen=True)
class Prepared:
    """A request on the model's device, with what follows from its prompt; the same for any noise and any loop.

    Attributes:
        pixel_values: fp32 [N, 3, 224, 224]. state: fp32 [B, 1, 64].
        kept_by: What held the values computed from the weights, a new object when the weights have changed.
        looked_up: The tensors that prompt and embodiments were looked up by, as they were given.
    """

    pixel_values: Tensor
    prompt: Prompt
    state: Tensor
    embodiments: Embodiments
    kept_by: FoldedConstants = field(repr=False, compare=False)
    looked_up: tuple[Tensor, ...] = field(repr=False, compare=False)


class FastGr00tN1d5(StagedModel):
    """GR00T N1.5 for inference with less repeated work; made by `restructure`, used like `Gr00tN1d5`.

    The weights are the plain model's: `state_dict` and `load_state_dict` speak the checkpoint's names, and the plain
    model stays usable beside this one. Most weights are read in every request, so that whatever is written into them
    counts at once. What is computed from some and kept (folded and selected weights, tables, prompt embeddings) is made
    again in the first request after these were written, loaded, replaced, cast or moved, here or in the plain model;
    `WeightWatch` says how that is seen. Only a write through ``weight.data`` that leaves most of a weight as it was,
    such as one row, may be answered with the old values for up to `WeightWatch.turns` requests: call `refresh` then.
    A module that was replaced or parametrized is a PlanError: restructure the plain model again.

    Attributes:
        optimizations: Names of the optimizations in use.
        loop: ``submodules`` (three stages and Euler per step), ``denoise_step`` or ``denoise_loop``.
        stage_dtypes: Of `denoise_step` and `denoise_loop` only the DiT's; see `argument_dtypes`.
    """

    def __init__(self, plain: Gr00tN1d5, optimizations: Collection[str] = tuple(N1_5.optimizations)):
        super().__init__(plain.config)
        self.optimizations = check_names(optimizations)
        self.backbone, self.action_head = plain.backbone, plain.action_head
        # Not registered: its parts are, under the checkpoint's names.
        self._plain = (plain,)
        self._tree = ModuleTree(plain)
        self._loop = "denoise_loop"
        self._eager = make_stages(plain, self.optimizations)
        self.reset_stages()

    lookups_on_host = True

    @property
    def loop(self) -> str:
        return self._loop

    @loop.setter
    def loop(self, name: str) -> None:
        if name not in N1_5.loops:
            raise unknown(PlanError, "loop", name, N1_5.loops)
        self._loop = name

    def reset_stages(self) -> None:
        """Put the PyTorch modules back into `stages`, each in the dtype of its weights."""
        self._own = dict(self._eager)
        self.stages.update(self._own)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Share the fused weights again, read the stages' dtypes, and make everything anew that is kept."""
        for stage in self._eager.values():
            join_all(stage)
        plain = self._plain[0]
        for name in self._eager:
            self.stage_dtypes[name] = plain.weight_dtype(N1_5.covers.get(name, (name,))[0])
        self._argument_dtypes = {
            name: argument_dtypes(name, stage, self.stage_dtypes) for name, stage in self._eager.items()
        }
        self._constants = FoldedConstants(self.action_head, self.optimizations)
        self._prompts = Prompts(self.backbone, self.optimizations, self.stage_dtypes["language_model"])
        self._embodiments: WeightCache[Embodiments] = WeightCache(KEPT_SETS)
        # Made by the next request: a model is cast stage by stage, and a watch reads all that it watches.
        self._watch: WeightWatch | None = None
        # None of them can answer any more, and each keeps the memory of the weights that it was captured with.
        if (replayer := self._replayer()) is not None:
            replayer.forget()

    def _settle(self) -> WeightWatch:
        """Refresh where a weight has changed in the open. Raises: PlanError for modules that are no longer the same."""
        if not self._tree.modules_intact() or self._tree.tensors() is None:
            raise PlanError(
                "a module of the plain model was replaced or parametrized after the model had been restructured",
                known="the fused weights of the modules that it was made from",
                fix="merge adapters and parametrizations into the weights, then restructure the plain model again",
            )
        if self._watch is not None and not self._watch.tensors_intact():
            self.refresh()
        if self._watch is None:
            # Nothing has watched since the last time.
            self.refresh()
            sources = (*self._constants.sources, *self._prompts.sources)
            self._watch = WeightWatch(self._plain[0], sources)
        return self._watch

    def cast_stage(self, name: str, dtype: torch.dtype) -> None:
        """Cast the weights of one stage in place; of several where the stage is made of several.

        The keys and values at the end of ``vl_components`` belong to ``dit_model``.
        Raises: PlanError for an unknown name.
        """
        self.eager_stage(name)
        for part in N1_5.covers.get(name, (name,)):
            self._plain[0].cast_stage(part, dtype)
        self.refresh()

    def cast_glue(self, dtype: torch.dtype) -> None:
        """Cast in place what belongs to no stage: connector, token embedding, position and future token tables."""
        self._plain[0].cast_glue(dtype)
        self.refresh()

    def argument_dtypes(self, name: str) -> tuple[torch.dtype, ...]:
        """What each floating argument of a stage is cast to."""
        return self._argument_dtypes[name]

    def run_stage(self, name: str, *args: Tensor) -> Tensor:
        """Call a stage, its floating inputs cast to the stage's dtypes."""
        dtypes = self._argument_dtypes[name]
        return self.stages[name](
            *(a if a.dtype == d or not a.is_floating_point() else a.to(d) for a, d in zip(args, dtypes, strict=True))
        )

    @torch.no_grad()
    def prepare(self, inputs: Inputs) -> Prepared:
        """Check model inputs, move them to the device, and look up what follows from prompt and embodiments.

        Args:
            inputs: As `Gr00tN1d5.prepare` takes them. Ids, mask and embodiments in host memory are looked up;
                on a GPU they are taken as padded, and worked out on the device in every call.
        Raises: ObservationError naming key, value and fix; PlanError as `get_action`.
        """
        self._settle()
        return self._prepare(inputs)

    def _prepare(self, inputs: Inputs) -> Prepared:
        checked = check_inputs(inputs, self.config)
        prompt, embodiments = self._looked_up(checked)
        return Prepared(
            pixel_values=checked[PIXELS].to(self.device, torch.float32, non_blocking=True),
            prompt=prompt,
            state=checked[STATE].to(self.device, torch.float32, non_blocking=True),
            embodiments=embodiments,
            kept_by=self._constants,
            looked_up=tuple(checked[name] for name in LOOKED_UP),
        )

    def _looked_up(self, checked: Mapping[str, Tensor]) -> tuple[Prompt, Embodiments]:
        prompt, ids = self._prompts.get(checked[IDS], checked[MASK]), checked[EMBODIMENT]
        if ids.device.type != "cpu":
            return prompt, Embodiments(ids.to(self.device, torch.int64), None)
        key = tuple(ids.tolist())
        # Their copy on the device belongs to the cache: a caller may write into the tensor that was given.
        kept = self._embodiments.get(key, lambda: Embodiments(ids.to(self.device, torch.int64, copy=True), key))
        return prompt, kept

    @torch.no_grad()
    def get_action(self, inputs: Inputs | Prepared, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Predict one action chunk per sample.

        Args:
            inputs: As `prepare` takes them, or what it returned; that must not be older than the weights.
            noise: [B, T, 32] where the flow starts; standard normal from torch's default generator when None.
        Returns: ``action_pred`` float32 [B, T, 32], normalised.
        Raises: ObservationError naming key, value and fix; PlanError when weights changed under a compiled stage, a
            module was replaced, or a prepared request is older than the weights.
        """
        self._compiled.mark()
        # What is like an earlier request is with the device from here on; everything is looked at meanwhile.
        launch = self._launch(inputs, noise)
        self._compiled.before(self, self.stages, self._own)
        watch = self._settle()
        # Drawn once: thrown away, a request is answered anew from the same noise.
        noise = noise if launch is None else launch.noise
        if launch is not None and self._stands(launch, inputs):
            actions = launch.actions
        else:
            actions, noise = self._answer(inputs, noise, watch)
        self._compiled.after(self.stages, self._own)
        if not watch.values_intact():
            self.refresh()
            actions, _ = self._answer(inputs, noise, self._settle())
        return {"action_pred": actions}

    def _launch(self, inputs: Inputs | Prepared, noise: Tensor | None) -> Launch | None:
        replayer = self._replayer()
        if replayer is None or not isinstance(inputs, Mapping):
            return None
        if self._watch is not None:
            self._watch.mark()
        return replayer.launch(inputs, noise)

    def _stands(self, launch: Launch, inputs: Inputs | Prepared) -> bool:
        """Whether what was launched is this request's. Raises: ObservationError as `prepare`."""
        assert isinstance(inputs, Mapping)
        return launch.stands(*self._looked_up(check_inputs(inputs, self.config)), self.dependencies())

    def _answer(self, inputs: Inputs | Prepared, noise: Tensor | None, watch: WeightWatch) -> tuple[Tensor, Tensor]:
        """The answer of a request that is looked at first, and the noise that it started from."""
        x = inputs if isinstance(inputs, Prepared) else self._prepare(inputs)
        self.check_prepared(x)
        start = self.start(x.state.shape[0], noise)
        watch.mark()
        return (self.run if self.graphs is None else self.graphs)(x, start), start

    def _replayer(self) -> Replayer | None:
        graphs: Any = self.graphs
        return graphs if hasattr(graphs, "launch") else None

    def check_prepared(self, x: Prepared) -> None:
        """Raises: PlanError for a request that was prepared before the weights were changed."""
        if x.kept_by is not self._constants:
            raise PlanError("a prepared request is older than the model's weights", fix="prepare it again")

    @torch.no_grad()
    def run(self, x: Prepared, noise: Tensor) -> Tensor:
        """From a prepared request and noise fp32 [B, T, 32] on the model's device to actions fp32 [B, T, 32].

        After a first call with the same embodiments, steps and horizon, it only starts work on the device: nothing
        waits for it, is copied from the host, or depends on values.
        """
        return self.denoise(x, self.encode(x), noise)

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Requests inside go through `run`, whatever `graphs` is: what wraps stages to see their calls needs this."""
        graphs, self.graphs = self.graphs, None
        try:
            yield
        finally:
            self.graphs = graphs

    def record(self, inputs: Inputs, noise: Tensor) -> tuple[Recording, Tensor]:
        """Run one request at each granularity and keep what every stage was called with and what it returned.

        Args:
            inputs: Model inputs of a real observation. noise: [B, T, 32].
        Returns: The recording, in which `language_model_padded` stands empty unless the request was padded; and the
            actions of the model's own granularity. A padded request passes by `language_model`, which is then
            recorded on the same prompts with their padding taken for tokens.
        """
        original, loop = dict(self.stages), self.loop
        try:
            with self.uncaptured(), self._compiled.paused(), recording_calls(self.stages) as calls:
                actions = self.get_action(inputs, noise)["action_pred"]
                # What comes before the loop is the same at every granularity and is recorded once.
                self.stages.update({name: stage for name, stage in original.items() if calls[name]})
                for self.loop in [name for name in N1_5.loops if name != loop]:
                    self.get_action(inputs, noise)
                if not calls["language_model"]:
                    self.stages.update({name: stage for name, stage in original.items() if name != "language_model"})
                    self.encode(self.prepare({**inputs, MASK: torch.ones_like(inputs[MASK])}))
        finally:
            self.loop = loop
        return {name: tuple(own) for name, own in calls.items()}, actions

    def target(self, name: str, recording: Recording, dims: Mapping[str, DimRange]) -> Target:
        """A stage with its recorded inputs, in the dtypes that it is called with, on the model's device."""
        module, call, dtypes = self.eager_stage(name), recording[name][0], self.argument_dtypes(name)
        return make_target(name, arguments_of(module, self.optimizations), module, call, dtypes, self.device, dims)

    def constants(self, x: Prepared, horizon: int) -> tuple[object, ...]:
        """What `run` reads for requests like `x`, kept alive by the result: the memory of every weight, whatever
        becomes of the weights, and what was computed from them once.
        """
        return (
            tuple(t.detach() for t in self._tree.tensors() or ()),
            *self._constants.held(x.embodiments, horizon, self.denoising_steps),
        )

    def dependencies(self) -> tuple[object, ...]:
        """Equal to an earlier result as long as no stage was swapped and `refresh` found nothing to do."""
        return (tuple(self.stages.items()), self._constants)

    @torch.no_grad()
    def encode(self, x: Prepared) -> Tensor:
        """Images and prompt to backbone features [B, S, 2048]."""
        patches = self.run_stage("vision_model", x.pixel_values)
        embeds = self._prompts.place(x.prompt, apply_linear(self.backbone.eagle_model.mlp1[0], patches))
        if x.prompt.key_mask is None or x.prompt.query_mask is None:
            features = self.run_stage("language_model", embeds, x.prompt.rotation)
        else:
            name = "language_model_padded" if "language_model_padded" in self.stages else "language_model"
            features = self.run_stage(name, embeds, x.prompt.rotation, x.prompt.key_mask, x.prompt.query_mask)
        projection = self.backbone.eagle_linear
        return features if isinstance(projection, nn.Identity) else apply_linear(projection, features)

    @torch.no_grad()
    def denoise(self, x: Prepared, backbone_features: Tensor, noise: Tensor) -> Tensor:
        """Backbone features [B, S, 2048] and noise fp32 [B, T, 32] to actions fp32 [B, T, 32]."""
        context = self.run_stage("vl_components", backbone_features)
        weights = self._constants.weights(x.embodiments, noise.shape[1])
        prefix = self._prefix(self.run_stage("state_encoder", x.state, *weights.state))
        steps, actions = self.denoising_steps, noise
        tables = None if self._loop != "denoise_loop" else self._constants.tables(x.embodiments, steps)
        if tables is not None:
            inputs = (prefix, context, tables.modulation, tables.step_size, tables.encoder, *weights.encoder)
            return self.run_stage("denoise_loop", actions, *inputs, *weights.step_decoder)
        for step in range(steps):
            if step == 0 or not self._constants.kept:
                tables = self._constants.tables(x.embodiments, steps, step)
            assert tables is not None
            modulation, row = tables.each[step if len(tables.each) > 1 else 0]
            if self._loop == "denoise_step":
                inputs = (prefix, context, modulation, tables.step_size, row, *weights.encoder)
                actions = self.run_stage("denoise_step", actions, *inputs, *weights.step_decoder)
                continue
            encoded = self.run_stage("action_encoder", actions, row, *weights.encoder)
            output = self.run_stage("dit_model", join_tokens(prefix, encoded), context, modulation)
            velocity = self.run_stage("action_decoder", output, *weights.decoder)[:, -noise.shape[1] :]
            actions = torch.addcmul(actions, velocity.float(), tables.step_size)
        return actions

    def _prefix(self, state_token: Tensor) -> Tensor:
        """State and future tokens, which stay the same in all steps, in the DiT's dtype."""
        dtype = self.stage_dtypes["dit_model"]
        future = self.action_head.future_tokens.weight.to(dtype).expand(state_token.shape[0], -1, -1)
        return torch.cat((state_token.to(dtype), future), dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastGr00tN1d5:
        self._plain[0]._apply(fn, recurse)
        self.refresh()
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`, with the checkpoint's names."""
        result = super().load_state_dict(*args, **kwargs)
        self._plain[0].read_dtypes()
        self.refresh()
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> FastGr00tN1d5:
        """An independent model with stages as `reset_stages` leaves them."""
        twin = FastGr00tN1d5(copy.deepcopy(self._plain[0], memo), self.optimizations)
        memo[id(self)] = twin
        twin.loop = self._loop
        return twin.train(self.training)


def restructure(model: Gr00tN1d5, *, optimizations: Collection[str] = tuple(N1_5.optimizations)) -> FastGr00tN1d5:
    """A restructured model that shares the parameters of `model`, which stays usable.

    Args:
        model: In any dtype and on any device, with the modules that `Gr00tN1d5` was made with.
        optimizations: Names from `N1_5.optimizations`; all by default.
    Raises: PlanError for an unknown name, and for a model with adapters or parametrizations.
    """
    return FastGr00tN1d5(model, optimizations).train(model.training)

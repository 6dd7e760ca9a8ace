"""From an observation in physical units to an action chunk in physical units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.interface import ModalityConfig, Observation, refuse_non_finite
from ..data import (
    DatasetMetadata,
    LeRobotDataset,
    Prompter,
    Tokenizer,
    example_observation,
    load_tokenizer,
    metadata_path,
    read_metadata,
    synthetic_dataset,
    synthetic_tokenizer,
    validate_observation,
)
from ..data.device import DeviceTransfer
from ..errors import ObservationError, PlanError
from ..model import Gr00tConfig, load_config, load_model, resolve_checkpoint
from ..model.checkpoint import Cast, side_folders
from ..model.folders import identify
from ..model.n1_5.inputs import LOOKED_UP
from ..model.protocol import Inputs, Model
from .choice import choose_data, chosen
from .fit import StateRanges, fitted
from .lerobot import LeRobotDataConfig

Action = dict[str, np.ndarray]


class ModelPolicy:
    """A model between a step that makes its inputs and one that reads its output.

    Attributes:
        model: The network, plain or restructured.
        stages: ``preprocess`` and ``postprocess``, in a table like the model's, so that they can be timed alike.
    """

    def __init__(self, model: Model):
        self.model = model
        self.stages: dict[str, Callable[..., Any]] = {"preprocess": self._preprocess, "postprocess": self._postprocess}

    @property
    def denoising_steps(self) -> int:
        """Euler steps per action chunk."""
        return self.model.denoising_steps

    @denoising_steps.setter
    def denoising_steps(self, steps: int) -> None:
        self.model.denoising_steps = steps

    def example(self) -> Observation:
        """An observation of the right form, always the same one, for what needs one before any has come."""
        raise NotImplementedError

    def preprocess(self, observation: Observation) -> tuple[dict[str, torch.Tensor], bool]:
        """Observation -> model inputs (always with a batch axis), and whether the observation came as a batch.

        Raises: ObservationError naming the key, the value and the fix.
        """
        return self.stages["preprocess"](observation)

    def postprocess(self, action_pred: torch.Tensor, *, batched: bool) -> Action:
        """Normalised [B, T, action_dim] -> what `get_action` returns, without the batch axis unless `batched`.

        Raises: AccuracyError for a NaN or an infinity: no robot may see it.
        """
        action: Action = self.stages["postprocess"](action_pred, batched)
        refuse_non_finite(action, "the policy's answer")
        return action

    def get_action(self, observation: Observation, *, noise: torch.Tensor | None = None) -> Action:
        """Predict one action chunk.

        Args:
            noise: [B, T, action_dim] where the flow starts; drawn afresh from torch's default generator when None.
        Raises: ObservationError as `preprocess`, and for noise that is not finite; AccuracyError as `postprocess`.
        """
        if noise is not None and noise.device.type == "cpu" and not torch.isfinite(noise).all():
            raise ObservationError("noise holds a NaN or an infinity", known="standard normal numbers")
        inputs, batched = self.preprocess(observation)
        return self.postprocess(self.predict(inputs, noise), batched=batched)

    def predict(self, inputs: Inputs, noise: torch.Tensor | None) -> torch.Tensor:
        """The model's normalised actions [B, T, action_dim], whatever autocast region the caller is in."""
        with torch.autocast(self.model.device.type, enabled=False):
            return self.model.get_action(inputs, noise=noise)["action_pred"]

    def _preprocess(self, observation: Observation) -> tuple[dict[str, torch.Tensor], bool]:
        raise NotImplementedError

    def _postprocess(self, action_pred: torch.Tensor, batched: bool) -> Action:
        raise NotImplementedError


class TensorPolicy(ModelPolicy):
    """Model inputs in, normalised actions out: needs neither statistics nor a tokenizer. `inputs` are the example."""

    def __init__(self, model: Model, inputs: Inputs):
        super().__init__(model)
        self._inputs = dict(inputs)

    def example(self) -> Observation:
        return self._inputs

    def _preprocess(self, observation: Observation) -> tuple[dict[str, torch.Tensor], bool]:
        # What is looked up, prompts and embodiments, must be on the host; other packages send it to the GPU. The
        # wait for the copy costs far less than a request whose tables are gathered anew and which no graph can answer.
        inputs = dict(observation)
        for name in LOOKED_UP:
            if isinstance(inputs.get(name), torch.Tensor):
                inputs[name] = inputs[name].cpu()
        return inputs, True

    def _postprocess(self, action_pred: torch.Tensor, batched: bool) -> Action:
        return {"action_pred": action_pred.float().cpu().numpy()}


class Gr00tPolicy(ModelPolicy):
    """GR00T N1.5 behind one method, `get_action(observation) -> action`: physical units in, physical units out.

    An observation holds ``video.<view>`` uint8 [T, H, W, 3], ``state.<part>`` float [T, D] and one instruction under an
    ``annotation.…`` key (a string, or a list of one); or all of it with a leading batch axis. An action holds
    ``action.<part>`` float32 [T, D], or [B, T, D] for a batch, in the units of the dataset.

    Args:
        config: A data config: ``modality_config()`` names the keys, ``transform()`` the arithmetic on them.
        metadata: Statistics and modalities of one embodiment, for (un)normalising and choosing its weights.
        prompter: Turns images and instructions into token ids and pixel values.
        bracketed_instruction: Put the instruction of an unbatched request into the prompt as ``['text']``. The
            original's policy does; its training data and its batched requests carry the plain text, as we do.

    Attributes:
        config_name: What the data config is called.
        state_ranges: How many observations lay far outside what the model was trained on.

    Raises: CheckpointError, PlanError as `fit.fitted`.
    """

    def __init__(
        self,
        model: Model,
        config: Any,
        metadata: DatasetMetadata,
        prompter: Prompter,
        *,
        bracketed_instruction: bool = False,
    ):
        super().__init__(model)
        self.metadata = metadata
        self.config_name = getattr(config, "name", "") or type(config).__name__
        self.modality_config, self.modality_transform = fitted(config, metadata, model.config)
        self.modality_transform.set_prompter(prompter)
        self.prompter = prompter
        self.bracketed_instruction = bracketed_instruction
        self._transfer: DeviceTransfer | None = None
        state = self.modality_config.get("state")
        self.state_ranges = StateRanges(state.modality_keys if state else (), metadata)
        model.action_horizon = len(self.modality_config["action"].delta_indices)

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        """Which keys an observation needs, by modality: video, state, action, language."""
        return self.modality_config

    def example(self) -> Observation:
        """As `data.example_observation`, of this policy's keys and resolutions."""
        return example_observation(self.modality_config, self.metadata)

    def _preprocess(self, observation: Observation) -> tuple[dict[str, torch.Tensor], bool]:
        checked, batched = validate_observation(
            observation,
            self.modality_config,
            self.metadata,
            bracketed_text=self.bracketed_instruction,
            default_text=self.modality_transform.default_instruction,
        )
        check = getattr(self.modality_transform, "check", None)
        if check is not None:
            check(checked)
        self.state_ranges.look(checked)
        transfer = self._device_transfer()
        if transfer is not None:
            # Frames alone: a few dozen numbers of state take less on the host than launching as much on a GPU.
            checked |= transfer.send({key: value for key, value in checked.items() if key.startswith("video.")})
        return self.modality_transform.apply(checked), batched

    def _postprocess(self, action_pred: torch.Tensor, batched: bool) -> Action:
        transfer = self._device_transfer()
        # A few hundred numbers: one copy and the host's arithmetic take less than launching as much on a GPU.
        normalised = (transfer.fetch(action_pred) if transfer else action_pred.cpu()).float()
        parts = self.modality_transform.unapply({"action": normalised})
        action = {key: value if batched else value[0] for key, value in parts.items() if key.startswith("action.")}
        # Copies: a part that passes unchanged is a view of the model's output.
        return {key: np.array(value) for key, value in action.items()}

    def _device_transfer(self) -> DeviceTransfer | None:
        """The way to the model's GPU and back; None where the transforms run on the host."""
        device = self.model.device
        if device.type != "cuda" or not getattr(self.modality_transform, "device_generic", False):
            return None
        if self._transfer is None or self._transfer.device != device:
            self._transfer = DeviceTransfer(device)
        return self._transfer


def load_policy(
    model_path: str | Path = "nvidia/GR00T-N1.5-3B",
    *,
    data_config: Any = None,
    embodiment_tag: str | None = None,
    metadata: DatasetMetadata | str | Path | None = None,
    tokenizer: str | Path | None = None,
    denoising_steps: int | None = None,
    bracketed_instruction: bool = False,
    dtype: torch.dtype | Cast = torch.float32,
    device: torch.device | str = "cpu",
) -> Gr00tPolicy:
    """A policy from a checkpoint.

    Args:
        model_path: A checkpoint folder of Isaac-GR00T or LeRobot, a LoRA adapter's, a hub id, ``synthetic`` or
            ``synthetic:full``.
        data_config: A built-in name, ``module:Class``, or an object with ``modality_config()`` and ``transform()``;
            None: fourier_gr1_arms_only, or what LeRobot's own files say of its checkpoint.
        embodiment_tag: Chooses statistics and projector weights: gr1, oxe_droid, agibot_genie1 or new_embodiment;
            None: gr1, or the tag of LeRobot's files or of a `metadata` object.
        metadata: Statistics to use instead of the checkpoint's ``experiment_cfg/metadata.json``: an object, or the
            path of such a file. A synthetic model has none of its own and uses those of the synthetic dataset.
        tokenizer: Folder, tokenizer.json or hub id; by default the checkpoint's, then the hub's Qwen/Qwen3-1.7B.
        denoising_steps: Euler steps per chunk; None keeps the checkpoint's.
        bracketed_instruction: See `Gr00tPolicy`; LeRobot's checkpoints have every instruction so.
        dtype: float32, float16 or bfloat16 for the whole model, or what sets the dtype of every part, see `load_model`.
    Raises: CheckpointError, TokenizerError or PlanError saying what is missing and how to supply it.
    """
    # Everything small first: nobody should wait for weights to learn of a wrong name.
    folder = resolve_checkpoint(model_path)
    if folder is not None:
        identify(folder)
    if isinstance(metadata, DatasetMetadata) and not chosen(embodiment_tag):
        embodiment_tag = metadata.embodiment_tag
    config, tag = choose_data(folder, data_config, embodiment_tag)
    geometry = load_config(folder or model_path)
    found = statistics_of(folder, config, tag, metadata, data_config)
    fitted(config, found, geometry)
    own = isinstance(config, LeRobotDataConfig)
    words = tokenizer_of(config.tokenizer_folder() if own and tokenizer is None else tokenizer, folder, geometry)
    size, tokens = geometry.image_size, geometry.tokens_per_image
    prompter = Prompter(words, words.special_tokens, image_size=size, tokens_per_image=tokens)
    model = load_model(folder or model_path, dtype=dtype, device=device)
    policy = Gr00tPolicy(model, config, found, prompter, bracketed_instruction=bracketed_instruction and not own)
    if denoising_steps is not None:
        policy.denoising_steps = denoising_steps
    return policy


def statistics_of(
    folder: Path | None, config: Any, tag: str, given: DatasetMetadata | str | Path | None, name: Any
) -> DatasetMetadata:
    """The statistics for a data config.

    Args:
        folder: The checkpoint's; None for a synthetic model, which takes those of the synthetic dataset.
        given: Used instead of the checkpoint's: an object, or the path of a ``metadata.json``.
        name: The data config's name, if it has one.
    Raises: CheckpointError, PlanError, as `DatasetMetadata.load`; PlanError for an object of another tag.
    """
    if isinstance(given, DatasetMetadata):
        if given.embodiment_tag != tag:
            what = f"--embodiment_tag {tag} with statistics of {given.embodiment_tag}: which projector is meant?"
            raise PlanError(what, known="the tag chooses projector and statistics", fix="give both for the same tag")
        return given
    if given is not None:
        return read_metadata(given, tag)
    if isinstance(config, LeRobotDataConfig):
        return config.metadata()
    if folder is not None:
        places = side_folders(folder)
        return read_metadata(next((p for p in places if metadata_path(p).is_file()), folder), tag)
    dataset = synthetic_dataset(data_config=name if isinstance(name, str) else "fourier_gr1_arms_only")
    return LeRobotDataset(dataset, config.modality_config()).metadata(tag)


def tokenizer_of(where: str | Path | None, folder: Path | None, geometry: Gr00tConfig) -> Tokenizer:
    """The tokenizer of a checkpoint's folder, the one that is named, or the generated one of a generated model."""
    if where is None and folder is None:
        return synthetic_tokenizer(geometry.special_tokens, geometry.vocab_size)
    places = [] if folder is None else side_folders(folder)
    return load_tokenizer(where, places, geometry.special_tokens, geometry.vocab_size)

"""From an observation in physical units to an action chunk in physical units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.interface import ModalityConfig, Observation
from ..data import (
    DatasetMetadata,
    LeRobotDataset,
    Prompter,
    embodiment_index,
    example_observation,
    load_tokenizer,
    read_metadata,
    synthetic_dataset,
    synthetic_tokenizer,
    validate_observation,
)
from ..data import data_config as data_config_from_name
from ..data.device import DeviceTransfer
from ..errors import PlanError
from ..model import load_config, load_model, resolve_checkpoint
from ..model.n1_5.inputs import LOOKED_UP
from ..model.protocol import Inputs, Model

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
        """Normalised [B, T, action_dim] -> what `get_action` returns, without the batch axis unless `batched`."""
        return self.stages["postprocess"](action_pred, batched)

    def get_action(self, observation: Observation, *, noise: torch.Tensor | None = None) -> Action:
        """Predict one action chunk.

        Args:
            noise: [B, T, action_dim] where the flow starts; drawn afresh from torch's default generator when None.
        Raises: ObservationError as `preprocess`.
        """
        inputs, batched = self.preprocess(observation)
        return self.postprocess(self.model.get_action(inputs, noise=noise)["action_pred"], batched=batched)

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

    Raises: PlanError when the data config does not fit the model.
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
        self.modality_config = config.modality_config()
        self.modality_transform = config.transform()
        self.modality_transform.set_metadata(metadata)
        self.modality_transform.set_prompter(prompter)
        self.prompter = prompter
        self.bracketed_instruction = bracketed_instruction
        self._transfer: DeviceTransfer | None = None
        keys, most = self.modality_config["action"].modality_keys, model.config.action_head.action_dim
        width = sum(metadata.part(key).width for key in keys)
        if width > most:
            what = f"the data config's actions are {width} wide ({', '.join(keys)}), the model's {most}"
            raise PlanError(what, fix="use a data config that was made for this checkpoint")
        model.action_horizon = len(self.modality_config["action"].delta_indices)

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        """Which keys an observation needs, by modality: video, state, action, language."""
        return self.modality_config

    def example(self) -> Observation:
        """As `data.example_observation`, of this policy's keys and resolutions."""
        return example_observation(self.modality_config, self.metadata)

    def _preprocess(self, observation: Observation) -> tuple[dict[str, torch.Tensor], bool]:
        checked, batched = validate_observation(
            observation, self.modality_config, self.metadata, bracketed_text=self.bracketed_instruction
        )
        check = getattr(self.modality_transform, "check", None)
        if check is not None:
            check(checked)
        transfer = self._device_transfer()
        return self.modality_transform.apply(transfer.send(checked) if transfer else checked), batched

    def _postprocess(self, action_pred: torch.Tensor, batched: bool) -> Action:
        transfer = self._device_transfer()
        normalised = action_pred.float().to(transfer.device if transfer else "cpu")
        parts = self.modality_transform.unapply({"action": normalised})
        action = {key: value if batched else value[0] for key, value in parts.items() if key.startswith("action.")}
        # Copies: a part that passes unchanged is a view of the model's output.
        return transfer.fetch(action) if transfer else {key: np.array(value) for key, value in action.items()}

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
    data_config: Any = "fourier_gr1_arms_only",
    embodiment_tag: str = "gr1",
    metadata: DatasetMetadata | str | Path | None = None,
    tokenizer: str | Path | None = None,
    denoising_steps: int | None = None,
    bracketed_instruction: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Gr00tPolicy:
    """A policy from a checkpoint.

    Args:
        model_path: A checkpoint folder, a hub id, ``synthetic`` or ``synthetic:full``.
        data_config: A built-in name, ``module:Class``, or an object with ``modality_config()`` and ``transform()``.
        embodiment_tag: Chooses statistics and projector weights: gr1, oxe_droid, agibot_genie1 or new_embodiment.
        metadata: Statistics to use instead of the checkpoint's ``experiment_cfg/metadata.json``: an object, or the
            path of such a file. A synthetic model has none of its own and uses those of the synthetic dataset.
        tokenizer: Folder, tokenizer.json or hub id; by default the checkpoint's, then the hub's Qwen/Qwen3-1.7B.
        denoising_steps: Euler steps per chunk; None keeps the checkpoint's.
        bracketed_instruction: See `Gr00tPolicy`.
        dtype: float32, float16 or bfloat16, for the whole model.
    Raises: CheckpointError, TokenizerError or PlanError saying what is missing and how to supply it.
    """
    # Everything small first: nobody should wait for weights to learn of a wrong name.
    embodiment_index(embodiment_tag)
    config = data_config_from_name(data_config) if isinstance(data_config, str) else data_config
    folder = resolve_checkpoint(model_path)
    found = _metadata(metadata, folder, data_config, config, embodiment_tag)
    geometry = load_config(folder or model_path)
    if tokenizer is None and folder is None:
        words = synthetic_tokenizer(geometry.special_tokens, geometry.vocab_size)
    else:
        words = load_tokenizer(tokenizer, folder, geometry.special_tokens, geometry.vocab_size)
    size, tokens = geometry.image_size, geometry.tokens_per_image
    prompter = Prompter(words, words.special_tokens, image_size=size, tokens_per_image=tokens)
    model = load_model(folder or model_path, dtype=dtype, device=device)
    policy = Gr00tPolicy(model, config, found, prompter, bracketed_instruction=bracketed_instruction)
    if denoising_steps is not None:
        policy.denoising_steps = denoising_steps
    return policy


def _metadata(
    given: DatasetMetadata | str | Path | None, folder: Path | None, name: Any, config: Any, tag: str
) -> DatasetMetadata:
    if isinstance(given, DatasetMetadata):
        return given
    where = folder if given is None else given
    if where is not None:
        return read_metadata(where, tag)
    dataset = synthetic_dataset(data_config=name if isinstance(name, str) else "fourier_gr1_arms_only")
    return LeRobotDataset(dataset, config.modality_config()).metadata(tag)

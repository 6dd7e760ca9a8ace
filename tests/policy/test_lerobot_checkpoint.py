"""Checkpoints in LeRobot's format, written by the tests themselves: their data config, and what contradicts it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CAMERAS, WIDTH, statistics, write_base, write_lerobot, write_vocabulary
from rich.console import Console
from safetensors.torch import save_file

from gr00t_trt.common.progress import Steps
from gr00t_trt.data import Prompter
from gr00t_trt.errors import CheckpointError, ObservationError, PlanError
from gr00t_trt.model import load_config, load_model
from gr00t_trt.policy import load_policy
from gr00t_trt.policy.choice import choose_data
from gr00t_trt.policy.flags import Default
from gr00t_trt.policy.lerobot import LeRobotDataConfig
from gr00t_trt.policy.source import Source, load_source

MODEL = load_model("synthetic")
QUIET = Steps(Console(file=io.StringIO()), None)
KEYS = {"video.front", "video.wrist", "state.state", "annotation.human.task_description"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_vocabulary(tmp_path / "pretrained_model" / "tokenizer", dict(MODEL.config.special_tokens))
    (tmp_path / "pretrained_model" / "tokenizer").rename(tmp_path / "tokenizer")
    (tmp_path / "pretrained_model").rmdir()
    write_lerobot(tmp_path / "pretrained_model", MODEL, write_base(tmp_path / "base", MODEL))
    (tmp_path / "tokenizer").rename(tmp_path / "pretrained_model" / "tokenizer")
    return tmp_path / "pretrained_model"


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_weights_and_geometry(folder: Path) -> None:
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in MODEL.state_dict().items())
    assert load_config(folder) == load_config(folder.with_name("base"))


def test_without_its_base_the_geometry_is_the_released_one(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(base_model_path="nvidia/GR00T-N1.5-3B"))
    assert load_config(folder) == load_config("synthetic:full")
    with pytest.raises(CheckpointError, match=r"do not fit[\s\S]*LeRobot"):
        load_model(folder)


def test_keys_statistics_and_projector_are_the_checkpoint_s(folder: Path) -> None:
    policy = load_policy(folder)
    observation = policy.example()
    assert set(observation) == KEYS
    assert policy.metadata.embodiment_tag == "so100"
    assert policy.metadata.view("video.front").resolution == (128, 96)
    np.testing.assert_allclose(policy.metadata.statistics("action.action").min, statistics()["action"]["min"])
    inputs, _ = policy.preprocess(observation)
    assert inputs["embodiment_id"].tolist() == [2]
    assert inputs["eagle_pixel_values"].shape == (2, 3, 224, 224)
    assert inputs["state"][0, 0, :WIDTH].abs().max() < 1e-6  # the means lie in the middle; a constant joint gives 0
    action = policy.get_action(observation)["action.action"]
    assert action.shape == (16, WIDTH)
    np.testing.assert_allclose(action[:, 2], statistics()["action"]["min"][2], rtol=1e-6)


def test_cameras_are_seen_in_alphabetical_order(folder: Path) -> None:
    policy = load_policy(folder)
    observation = policy.example()
    inputs, _ = policy.preprocess(observation)
    observation["video.front"] = np.zeros_like(observation["video.front"])
    changed, _ = policy.preprocess(observation)
    same = [torch.equal(a, b) for a, b in zip(inputs["eagle_pixel_values"], changed["eagle_pixel_values"], strict=True)]
    assert same == [False, True]


@pytest.mark.parametrize(
    ("given", "formalize", "text"),
    [
        ("pick it up", False, "['pick it up']"),
        ("don't", False, '["don\'t"]'),
        ("", False, "['Perform the task.']"),
        ("Pick, it: UP!", True, "['pick it up']"),
    ],
)
def test_instructions_are_the_text_of_a_list(
    folder: Path, given: str, formalize: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder / "policy_preprocessor.json", lambda c: c["steps"][2]["config"].update(formalize_language=formalize))
    seen: list[str] = []
    original = Prompter._encode
    monkeypatch.setattr(Prompter, "_encode", lambda self, t, tiles: seen.append(t) or original(self, t, tiles))
    for bracketed in (False, True):
        policy = load_policy(folder, bracketed_instruction=bracketed)
        observation = policy.example()
        observation["annotation.human.task_description"] = [given]
        policy.preprocess(observation)
    assert seen == [text, text]


def test_a_tag_that_lerobot_does_not_know_is_projector_0(folder: Path) -> None:
    edit(folder / "policy_preprocessor.json", lambda c: c["steps"][2]["config"].update(embodiment_tag="mine"))
    assert LeRobotDataConfig(folder).embodiment == 0


def test_choices_that_contradict_the_checkpoint(folder: Path) -> None:
    config, tag = choose_data(folder, Default("so100"), Default("gr1"))
    assert (type(config), tag) == (LeRobotDataConfig, "so100")
    assert choose_data(folder, config, "so100") == (config, "so100")
    with pytest.raises(PlanError, match=r"--data_config so100.*LeRobot[\s\S]*video\.front, video\.wrist, state\.state"):
        load_policy(folder, data_config="so100")
    with pytest.raises(PlanError, match=r"--embodiment_tag gr1.*as so100"):
        load_policy(folder, embodiment_tag="gr1")


def test_other_cameras_than_the_training_s(folder: Path) -> None:
    policy = load_policy(folder)
    observation = policy.example()
    observation["video.front"] = np.zeros((1, 48, 64, 3), np.uint8)
    with pytest.raises(ObservationError, match="128 x 96"):
        policy.get_action(observation)


def test_a_program_s_flags_left_alone(folder: Path) -> None:
    policy, observation = load_source(Source(str(folder), dataset_path=None), torch.device("cpu"), QUIET)
    assert set(observation) == KEYS
    assert policy.metadata.embodiment_tag == "so100"
    with pytest.raises(PlanError, match=r"synthetic: there is none with the cameras of LeRobot"):
        Source(str(folder), dataset_path="synthetic").dataset()


def _no_statistics(folder: Path) -> None:
    edit(folder / "policy_preprocessor.json", lambda c: c["steps"][2].pop("state_file"))


def _no_action_statistics(folder: Path) -> None:
    file = next(folder.glob("policy_postprocessor_step_0_*.safetensors"))
    save_file({"observation.state.min": torch.zeros(WIDTH)}, str(file))


def _statistics_gone(folder: Path) -> None:
    next(folder.glob("policy_preprocessor_step_2_*.safetensors")).unlink()


def _other_statistics(folder: Path) -> None:
    file = next(folder.glob("policy_preprocessor_step_2_*.safetensors"))
    save_file({f"observation.state.{n}": torch.arange(4.0) for n in ("min", "max", "mean", "std")}, str(file))


def _changed(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, change)


PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (_no_statistics, "no statistics of observation.state"),
    (_no_action_statistics, "no statistics of action"),
    (_statistics_gone, "names 'policy_preprocessor_step_2_"),
    (_other_statistics, "statistics of observation.state are 4 wide"),
    (_changed(PRE, lambda c: c.update(steps=[])), "step groot_pack_inputs_v3 is missing"),
    (_changed(PRE, lambda c: c["steps"].append({"registry_name": "normalizer_processor"})), "'normalizer_processor'"),
    (_changed(PRE, lambda c: c["steps"][2]["config"].update(normalize_min_max=False)), "normalize_min_max"),
    (_changed(PRE, lambda c: c["steps"][2]["config"].update(action_horizon=8)), "action_horizon"),
    (_changed(PRE, lambda c: c["steps"][2]["config"]["embodiment_mapping"].update(so100=99)), "so100: 99"),
    (_changed(POST, lambda c: c["steps"][0]["config"].update(env_action_dim=4)), "env_action_dim"),
    (lambda folder: (folder / POST).unlink(), f"{POST} is missing"),
    (_changed("config.json", lambda c: c.update(input_features={})), "names no camera"),
    (_changed("config.json", lambda c: c.update(output_features={})), "no feature action"),
    (_changed("config.json", lambda c: c["input_features"]["observation.images.front"].update(shape=[96, 128, 3])),
     "shape: [96, 128, 3]"),
    (_changed("config.json", lambda c: c["output_features"]["action"].update(shape=[10**9])), "malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_files_that_do_not_say_what_was_done(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


def test_the_tokenizer_that_lerobot_keeps(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "home"))
    assert LeRobotDataConfig(folder).tokenizer_folder() is None
    kept = tmp_path / "home" / "lerobot" / "eagle2hg-processor-groot-n1p5"
    kept.parent.mkdir(parents=True)
    (folder / "tokenizer").rename(kept)
    assert load_policy(folder).prompter.tokenizer.name == str(kept)


def test_every_camera_has_the_same_name_as_in_the_dataset(folder: Path) -> None:
    assert sorted(f"video.{name}" for name in CAMERAS) == LeRobotDataConfig(folder).video_keys

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import gr00t_trt.data
from gr00t_trt.data import DATA_CONFIGS, LeRobotDataset, data_config, synthetic_dataset, validate_observation
from gr00t_trt.errors import PlanError

STATE_WIDTHS = {
    "fourier_gr1_arms_only": 52,
    "fourier_gr1_arms_waist": 58,
    "fourier_gr1_full_upper_body": 32,
    "bimanual_panda_gripper": 22,
    "bimanual_panda_hand": 30,
    "single_panda_gripper": 20,
    "so100": 6,
    "so100_dualcam": 6,
    "unitree_g1": 26,
    "unitree_g1_full_body": 41,
    "oxe_droid": 10,
    "agibot_genie1": 20,
}


def test_there_are_twelve():
    assert set(DATA_CONFIGS) == set(STATE_WIDTHS)


@pytest.mark.parametrize("name", STATE_WIDTHS)
def test_each_config_from_dataset_to_model_and_back(name, cache):
    config = data_config(name)
    folder = synthetic_dataset(cache, data_config=name, episodes=1, length=18, resolution=(64, 48))
    modalities = config.modality_config()
    dataset = LeRobotDataset(folder, modalities)
    metadata = dataset.metadata("new_embodiment")
    transform = config.transform()
    transform.set_metadata(metadata)
    step = dataset[2]
    observation, batched = validate_observation(step, modalities, metadata)
    assert not batched
    inputs = transform.apply(observation)
    assert inputs["images"].shape == (1, 1, len(modalities["video"].modality_keys), 224, 224, 3)
    assert inputs["state"].shape == (1, 1, 64)
    assert int(inputs["state_mask"].sum()) == STATE_WIDTHS[name]
    assert inputs["embodiment_id"].tolist() == [31]
    assert inputs["texts"] == step[modalities["language"].modality_keys[0]]
    actions = transform.unapply({"action": torch.zeros(1, 16, 32)})
    assert list(actions) == modalities["action"].modality_keys
    for key, value in actions.items():
        assert value.shape == (1, 16, step[key].shape[-1])
        assert np.isfinite(value).all()


@pytest.mark.parametrize("name", STATE_WIDTHS)
def test_recorded_actions_survive_normalising_and_back(name, cache):
    config = data_config(name)
    folder = synthetic_dataset(cache, data_config=name, episodes=1, length=18, resolution=(64, 48))
    dataset = LeRobotDataset(folder, config.modality_config())
    chain = config.transform()
    chain.transforms = chain.transforms[:-1]  # without padding, which drops actions
    chain.set_metadata(dataset.metadata("gr1"))
    step = dataset[0]
    back = chain.unapply(chain.apply(step))
    for key in config.modality_config()["action"].modality_keys:
        np.testing.assert_allclose(back[key], step[key], atol=1e-6)


def test_keys_and_indices():
    config = data_config("bimanual_panda_gripper").modality_config()
    assert config["video"].modality_keys == ["video.right_wrist_view", "video.left_wrist_view", "video.front_view"]
    assert config["video"].delta_indices == [0]
    assert config["action"].delta_indices == list(range(16))
    assert data_config("fourier_gr1_arms_waist").modality_config()["language"].modality_keys == [
        "annotation.human.coarse_action"
    ]


def test_classes_have_upstream_names_and_can_be_subclassed():
    class TwoCameras(gr00t_trt.data.So100DataConfig):
        video_keys = ("video.front", "video.wrist")

    assert TwoCameras().modality_config()["video"].modality_keys == ["video.front", "video.wrist"]
    assert TwoCameras().modality_config()["state"].modality_keys == ["state.single_arm", "state.gripper"]
    assert isinstance(data_config("so100"), gr00t_trt.data.So100DataConfig)
    with pytest.raises(AttributeError, match="So99DataConfig"):
        _ = gr00t_trt.data.So99DataConfig


EXTERNAL = """
from gr00t_trt.data import ComposedModalityTransform, ModalityConfig, So100DataConfig

class Mine(So100DataConfig):
    action_indices = tuple(range(8))

class NoTransform:
    def modality_config(self): return {}

class NeedsArguments(So100DataConfig):
    def __init__(self, robot): pass

class Fails(So100DataConfig):
    def modality_config(self): raise RuntimeError("no robot")

class NoChain(So100DataConfig):
    def transform(self): return None

class NoCamera(So100DataConfig):
    def modality_config(self): return {k: v for k, v in super().modality_config().items() if k != "video"}

class ShortKey(So100DataConfig):
    def modality_config(self): return {**super().modality_config(), "state": ModalityConfig([0], ["arm"])}
"""


@pytest.fixture
def external(tmp_path, monkeypatch):
    (tmp_path / "my_external_config.py").write_text(EXTERNAL)
    (tmp_path / "broken_external_config.py").write_text("import nonexistent_package_xyz")
    (tmp_path / "exiting_external_config.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("my_external_config", "broken_external_config"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("external")
def test_external_class_from_the_working_directory():
    path = list(sys.path)
    config = data_config("my_external_config:Mine")
    assert config.modality_config()["action"].delta_indices == list(range(8))
    assert sys.path == path


@pytest.mark.usefixtures("external")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("so10", r"--data_config: unknown value 'so10'[\s\S]*did you mean so100"),
        ("no_such_module_xyz:Mine", "module 'no_such_module_xyz' cannot be imported: ModuleNotFoundError"),
        ("broken_external_config:Mine", "nonexistent_package_xyz"),
        ("my_external_config:Mien", r"unknown value 'Mien'[\s\S]*did you mean Mine"),
        ("my_external_config:NoTransform", "NoTransform has no transform"),
        ("my_external_config:NeedsArguments", r"NeedsArguments\(\) failed: TypeError"),
        ("my_external_config:Fails", r"modality_config\(\) failed: RuntimeError: no robot"),
        ("my_external_config:NoChain", r"transform\(\) gives NoneType"),
        ("my_external_config:NoCamera", "lacks video or action"),
        ("my_external_config:ShortKey", r"state key 'arm'[\s\S]*start with 'state\.'"),
        ("exiting_external_config:Mine", "cannot be imported: SystemExit: 3"),
        (":Mine", "cannot be imported"),
    ],
)
def test_configs_that_cannot_be_used(name, words):
    with pytest.raises(PlanError, match=words):
        data_config(name)

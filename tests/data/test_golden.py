"""Values that the original implementation computes on GR00T's demo dataset and on a synthetic image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gr00t_trt.data import (
    DatasetMetadata,
    LeRobotDataset,
    PartInfo,
    Prompter,
    Statistics,
    VideoInfo,
    data_config,
    synthetic_tokenizer,
    validate_observation,
)
from gr00t_trt.data.parquet import Table
from gr00t_trt.errors import DatasetError

CONFIG = data_config("fourier_gr1_arms_only")
MODALITIES = CONFIG.modality_config()


@pytest.fixture(scope="module")
def decord(demo):
    return LeRobotDataset(demo, MODALITIES, frame_lookup="nearest")


@pytest.fixture(scope="module")
def chain(decord):
    transform = CONFIG.transform()
    transform.set_metadata(decord.metadata("gr1"))
    return transform


@pytest.fixture(scope="module")
def inputs(decord, chain):
    return chain.apply(validate_observation(decord[0], MODALITIES, decord.metadata("gr1"))[0])


def test_image_of_step_0(inputs):
    assert inputs["images"].shape == (1, 1, 1, 224, 224, 3)
    mean = inputs["images"].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(mean, [114.8291, 103.3221, 89.8536], atol=5e-5)


def test_state_of_step_0(inputs):
    golden = [
        -0.011471, 0.121777, 0.042281, -0.863209, -0.014414, -0.030131, -0.003844,
        0.999934, 0.992558, 0.999106, -0.504846, 0.999896, 0.999546, 0.999993,
    ]  # fmt: skip
    assert inputs["state"].shape == (1, 1, 64)
    assert inputs["state"].dtype == torch.float64
    np.testing.assert_allclose(inputs["state"][0, 0, :14], golden, atol=5e-7)
    assert inputs["state_mask"].sum() == 52
    assert not inputs["state"][0, 0, 52:].any()
    assert inputs["embodiment_id"].tolist() == [24]


def test_action_of_an_all_zero_prediction(chain):
    action = chain.unapply({"action": torch.zeros(1, 16, 32)})
    golden = [0.01185024, 0.07039763, 0.00640718, -2.0855277, 0.00753286, -0.05260118, 0.00715577]
    assert action["action.left_arm"].dtype == np.float32
    np.testing.assert_allclose(action["action.left_arm"][0, 0], golden, rtol=1e-6)
    assert {k: v.shape for k, v in action.items()} == {
        "action.left_arm": (1, 16, 7),
        "action.right_arm": (1, 16, 7),
        "action.left_hand": (1, 16, 6),
        "action.right_hand": (1, 16, 6),
    }


def test_prompt_lengths(inputs):
    prompter = Prompter(synthetic_tokenizer())
    assert inputs["texts"] == ["pick the pear from the counter and place it in the plate"]
    assert prompter(inputs["images"], inputs["texts"])["eagle_input_ids"].shape == (1, 294)
    default = prompter(inputs["images"], ["Perform the default behavior."])
    assert default["eagle_input_ids"].shape == (1, 287)


def test_lookup_rules_differ_by_one_frame(demo, decord):
    by_row = LeRobotDataset(demo, MODALITIES)
    on_screen = LeRobotDataset(demo, MODALITIES, frame_lookup="on_screen")
    datasets = {"nearest": decord, "index": by_row, "on_screen": on_screen}

    def frame(name, row):
        return datasets[name].step(1, row)["video.ego_view"][0]

    for row in (0, 1, 57, 300, 468):
        np.testing.assert_array_equal(frame("index", row), frame("on_screen", row))
        np.testing.assert_array_equal(frame("nearest", row), frame("index", row + 1))
    np.testing.assert_array_equal(frame("nearest", 469), frame("index", 469))
    assert (frame("nearest", 57) != frame("index", 57)).any()


def test_random_access_gives_what_walking_gives(demo):
    walking, jumping = LeRobotDataset(demo, MODALITIES), LeRobotDataset(demo, MODALITIES)
    wanted = {int(i): None for i in np.random.default_rng(0).permutation(416)[:12]}
    expected = {i: walking.step(0, i)["video.ego_view"] for i in range(416) if i in wanted}
    for index in wanted:
        np.testing.assert_array_equal(jumping.step(0, index)["video.ego_view"], expected[index])


def test_length_counts_listed_episodes_and_absent_ones_fail_when_read(decord):
    assert len(decord) == 2096
    assert len(decord.episodes) == 5
    with pytest.raises(DatasetError, match=r"episode_000003\.(mp4|parquet)"):
        decord[416 + 470 + 470]


def test_recomputed_statistics_are_those_of_the_present_rows(demo, tmp_path):
    for name in ("info.json", "modality.json", "episodes.jsonl", "tasks.jsonl"):
        (tmp_path / "meta").mkdir(exist_ok=True)
        (tmp_path / "meta" / name).write_bytes((demo / "meta" / name).read_bytes())
    (tmp_path / "data").symlink_to(demo / "data", target_is_directory=True)
    found = LeRobotDataset(tmp_path, MODALITIES).metadata("gr1").statistics("action.left_arm")
    files = sorted((demo / "data").glob("*/*.parquet"))
    rows = np.concatenate([Table(f).column("action") for f in files]).astype(np.float32)[:, :7]
    np.testing.assert_array_equal(found.min, rows.min(0))
    np.testing.assert_array_equal(found.max, rows.max(0))
    np.testing.assert_allclose(found.mean, rows.mean(0, dtype=np.float64), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.std, rows.std(0, dtype=np.float64), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.q01, np.quantile(rows, 0.01, axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.q99, np.quantile(rows, 0.99, axis=0), rtol=1e-6, atol=1e-6)
    assert not (tmp_path / "meta" / "stats.json").exists()


WIDTHS = {"state.left_arm": 7, "state.right_arm": 7, "state.left_hand": 6, "state.right_hand": 6}


def synthetic_chain():
    def statistics(width):
        zero, one = np.zeros(width), np.ones(width)
        return Statistics(max=one, min=-one, mean=zero, std=one, q01=-one, q99=one)

    parts = {k.partition(".")[2]: PartInfo(v) for k, v in WIDTHS.items()}
    values = {k: statistics(v.width) for k, v in parts.items()}
    metadata = DatasetMetadata("gr1", {"ego_view": VideoInfo((256, 256))}, parts, parts, values, values)
    transform = CONFIG.transform()
    transform.set_metadata(metadata)
    return transform


def test_synthetic_image_to_the_last_bit():
    y, x = np.mgrid[0:256, 0:256]
    image = np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)
    chain = synthetic_chain()
    state = {key: np.zeros((1, width)) for key, width in WIDTHS.items()}
    out = chain.apply({"video.ego_view": image[None], **state})["images"][0, 0, 0]
    np.testing.assert_array_equal(out[0, :4], [(6, 6, 6), (7, 6, 6), (8, 6, 7), (9, 6, 7)])
    assert out[-1, -1].tolist() == [247, 247, 247]
    assert int(out.sum(dtype=np.int64)) == 19029247

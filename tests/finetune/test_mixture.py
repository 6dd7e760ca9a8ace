"""Shares, draws and merged statistics of several datasets against what the original made of the same episodes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_samples import GR1, part_of

from gr00t_trt.data import DatasetMetadata, LeRobotDataset, PartInfo, Statistics, VideoInfo, data_config
from gr00t_trt.errors import DatasetError, UsageError
from gr00t_trt.finetune.mixture import constant_columns, episode_shares, merge, shares
from gr00t_trt.finetune.order import Mixture, Permuted, Pick, Upstream

LENGTHS = [[416, 470], [470]]
EPISODES = [[0, 1], [2]]


@pytest.fixture(scope="module")
def original(oracle):
    """Mixture -> what the original makes of the demonstration's episodes 0 and 1 as one dataset and 2 as another."""
    return json.loads((oracle.folder / "mixture.json").read_text())


def settings(name: str) -> Mixture:
    weights = [float(number) for number in re.findall(r"weights (\S+) ([^,\s]+)", name)[0]]
    datasets, episodes = ("True" in part for part in name.split("balance_")[1:])
    return Mixture(
        LENGTHS,
        shares(weights, [sum(each) for each in LENGTHS], balanced=datasets),
        [episode_shares(each, balanced=episodes) for each in LENGTHS],
        weights,
    )


def test_the_original_s_mixtures_draw_for_draw(original):
    for name, found in original["mixtures"].items():
        mixture = settings(name)
        assert mixture.shares.tolist() == pytest.approx(found["dataset_weights"], rel=1e-14)
        for ours, theirs in zip(mixture.episode_shares, found["trajectory_weights"], strict=True):
            assert ours.tolist() == pytest.approx(theirs, rel=1e-14)
        order = Upstream(mixture)
        assert order.pass_length == found["length"]
        whole = "first_32_of_epoch_0" in found or found is list(original["mixtures"].values())[-1]
        for epoch in (0, 1) if whole else ():
            picks = [order.pick(42, epoch * order.pass_length + item) for item in range(order.pass_length)]
            assert len(set(picks)) == found[f"epoch_{epoch}"]["distinct_steps"]
            assert sum(p.dataset == 0 for p in picks) / len(picks) == found[f"epoch_{epoch}"]["share_of_a"]
            first = [["ab"[p.dataset], EPISODES[p.dataset][p.episode], p.row] for p in picks[:32]]
            assert first == found.get(f"first_32_of_epoch_{epoch}", first)


@pytest.mark.parametrize(
    "name", ["weights 1 1, balance_ True, balance_ False", "weights 1 0.25, balance_ True, balance_ True"]
)
def test_a_pass_has_every_frame_and_the_shares_asked_for(name):
    mixture = settings(name)
    order = Permuted(mixture)
    for number in (0, 1, 5):
        picks = [order.pick(7, number * order.pass_length + place) for place in range(order.pass_length)]
        frames = {Pick(d, e, r) for d, own in enumerate(LENGTHS) for e, length in enumerate(own) for r in range(length)}
        assert set(picks) == frames
        for dataset, own in enumerate(mixture.episode_shares):
            for episode, share in enumerate(own):
                count = sum(p[:2] == (dataset, episode) for p in picks)
                assert count == pytest.approx(share * mixture.shares[dataset] * len(picks), abs=1)
                rows = np.bincount([p.row for p in picks if p[:2] == (dataset, episode)])
                assert rows.max() - rows.min() <= 1


def test_shares_by_size_draw_every_frame_once():
    order = Permuted(settings("weights 1 1, balance_ True, balance_ True"))
    assert order.pass_length == 1356
    first, second = ([order.pick(7, place) for place in range(start, start + 1356)] for start in (0, 1356))
    assert len(set(first)) == len(set(second)) == 1356
    assert first != second
    assert first != [order.pick(8, place) for place in range(1356)]
    assert [order.pick(7, place) for place in (5, 2000, 3)] == [first[5], second[2000 - 1356], first[3]]


def test_shares_that_would_need_endless_passes_are_refused():
    mixture = Mixture([[1000], [10**6]], np.array([0.999, 0.001]), [np.ones(1)] * 2, [1, 1])
    with pytest.raises(UsageError, match=r"a pass over every frame takes 1e\+09 samples"):
        Permuted(mixture)
    with pytest.raises(UsageError, match="no dataset has the weight 1"):
        Upstream(replace(mixture, weights=[0.5, 2]))
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--dataset_weights"):
            shares([1.0, weight], [10, 10], balanced=True)


@pytest.fixture(scope="module")
def parts(demo: Path, tmp_path_factory) -> list[DatasetMetadata]:
    """Statistics of the two datasets, from their rows."""
    folder = tmp_path_factory.mktemp("parts")
    modalities = data_config(GR1).modality_config()
    paths = [part_of(demo, folder / str(number), episodes) for number, episodes in enumerate(EPISODES)]
    return [LeRobotDataset(path, modalities).metadata("gr1") for path in paths]


def test_statistics_of_each_dataset_and_of_both_are_the_original_s(original, parts):
    names = {section: list(own) for section, own in original["statistics"]["a"].items()}
    for ours, theirs in zip(parts, original["statistics"].values(), strict=True):
        check(ours, theirs, names)
    keys = [f"{section}.{name}" for section, own in names.items() for name in own]
    for name, found in original["mixtures"].items():
        merged = merge(parts, settings(name).shares.tolist(), ["video.ego_view", *keys])
        if "merged_statistics" in found:
            check(merged, found["merged_statistics"]["weighted_average"], names)


def check(ours: DatasetMetadata, theirs: dict, names: dict) -> None:
    for section, own in names.items():
        for part in own:
            statistics = ours.statistics(f"{section}.{part}")
            for kind, values in theirs[section][part].items():
                # The original's are sums of float32 numbers.
                np.testing.assert_allclose(
                    getattr(statistics, kind), values, rtol=2e-6, atol=2e-6, err_msg=f"{part} {kind}"
                )


def one(
    source: str = "one", width: int = 2, *, size: tuple[int, int] = (64, 48), fps: float = 20.0, **more
) -> DatasetMetadata:
    values = Statistics(*(np.full(width, v) for v in (2.0, 2.0, 2.0, 0.0, 2.0, 2.0)))
    part = {"arm": PartInfo(width, **more)}
    return DatasetMetadata(
        "gr1", {"front": VideoInfo(size, fps=fps)}, part, part, {"arm": values}, {"arm": values}, source=source
    )


def test_what_the_data_config_uses_must_be_alike():
    keys = ["video.front", "state.arm", "action.arm"]
    assert merge([one(), one("two", fps=50)], [1, 1], keys).view("video.front").fps == 20
    for other, found in (
        (one("two", 3), "two: state.arm is 3 wide"),
        (one("two", absolute=False), "two: state.arm is 2 wide, relative"),
        (one("two", size=(32, 48)), "two: video.front is 32 x 48"),
    ):
        with pytest.raises(DatasetError, match=rf"{found}[\s\S]*as in one[\s\S]*--embodiment_tag"):
            merge([one(), other], [1, 1], keys)
    # What it does not use is left out where it differs.
    merged = merge([one(), one("two", 3)], [1, 1], ["video.front"])
    assert (list(merged.state), list(merged.video)) == ([], ["front"])


def test_constant_columns_are_listed(parts):
    assert constant_columns(parts[0], ["action.left_arm", "action.right_hand", "action.left_hand"]) == [
        "action.right_hand[5]",
        "action.left_hand[0, 1, 2, 3, 4, 5]",
    ]
    assert merge(parts[:1], [0.3], []) is parts[0]

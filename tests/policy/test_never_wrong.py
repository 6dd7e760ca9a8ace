"""Statistics, observations and timestamps changed at random: what comes back is right, or it is refused.

The right value is worked out here, in numpy and from the definitions in NVIDIA's data sheet, not by the package. More
tries: GR00T_TRT_EXAMPLES=20000, with `-s` to see how many were refused.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr00t_trt.data import DatasetMetadata, LeRobotDataset, data_config, synthetic_dataset, synthetic_tokenizer
from gr00t_trt.data.parquet import Table, write_table
from gr00t_trt.data.prompt import Prompter
from gr00t_trt.errors import Gr00tError
from gr00t_trt.model import load_config
from gr00t_trt.policy import Gr00tPolicy

EXAMPLES = int(os.environ.get("GR00T_TRT_EXAMPLES", "300"))
CONFIG, TAG, INDEX = data_config("so100"), "new_embodiment", 31
VIEW, ARM, GRIPPER, TASK = "video.webcam", "state.single_arm", "state.gripper", "annotation.human.task_description"
PARTS = {"single_arm": slice(0, 5), "gripper": slice(5, 6)}
FIELDS = ("min", "max", "mean", "std", "q01", "q99")
GEOMETRY = load_config("synthetic")
TOKENIZER = synthetic_tokenizer(GEOMETRY.special_tokens, GEOMETRY.vocab_size)
PROMPTER = Prompter(TOKENIZER, TOKENIZER.special_tokens, GEOMETRY.image_size, GEOMETRY.tokens_per_image)
NOISE = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
TALLY: Counter[str] = Counter()

tries = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def network(state: np.ndarray, embodiment: int, ids: np.ndarray, white: float) -> np.ndarray:
    """A stand-in for the model whose output depends on every input, [16, 32] in (-1, 1)."""
    weights = np.cos(np.arange(16 * 32 * 64) * 0.37).reshape(16, 32, 64) / 8
    words = np.sin((ids * np.arange(1, len(ids) + 1)).sum() % 1000)
    return np.tanh(NOISE[0].numpy() * 0.3 + weights @ state + embodiment / 40 + words * 0.2 + white * 0.1)


class Network:
    """`network` in the place of the model."""

    config, device, action_horizon = GEOMETRY, torch.device("cpu"), 16

    def get_action(self, inputs, noise=None):
        white = float(inputs["eagle_pixel_values"].mean())
        out = [
            network(state[0].numpy(), int(embodiment), ids.numpy(), white)
            for state, embodiment, ids in zip(
                inputs["state"], inputs["embodiment_id"], inputs["eagle_input_ids"], strict=True
            )
        ]
        return {"action_pred": torch.tensor(np.stack(out), dtype=torch.float32)}


def right(entry: dict, observation: dict) -> dict[str, np.ndarray]:
    """What the definitions say of one observation without a batch axis."""
    state = np.zeros(64)
    for name, own in PARTS.items():
        low, high = (np.asarray(entry["statistics"]["state"][name][k], np.float64) for k in ("min", "max"))
        x = np.asarray(observation[f"state.{name}"], np.float64).reshape(-1)
        assert x.shape == low.shape, "a state of another width has no right answer"
        span = np.where(high == low, 1.0, high - low)
        state[own] = np.where(high == low, 0.0, 2 * (x - low) / span - 1)
    frames = np.asarray(observation[VIEW])
    assert frames.dtype == np.uint8
    assert len({*frames.ravel()}) == 1, "frames here are of one level"
    texts = [k for k in observation if "annotation" in str(k)]
    assert len(texts) == 1
    text = np.asarray(observation[texts[0]], dtype=object).reshape(-1)[0]
    assert isinstance(text, str)
    ids = PROMPTER._encode(text, (1,))
    pred = network(state, INDEX, ids, 1.0 if frames.ravel()[0] else -1.0).astype(np.float32)
    out = {}
    for name, own in PARTS.items():
        low, high = (np.asarray(entry["statistics"]["action"][name][k], np.float32) for k in ("min", "max"))
        out[f"action.{name}"] = (pred[:, own] + 1) / 2 * (high - low) + low
    return out


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return synthetic_dataset(tmp_path_factory.mktemp("so100"), data_config="so100", episodes=1, resolution=(32, 32))


@pytest.fixture(scope="module")
def entry(recording) -> dict:
    return LeRobotDataset(recording, CONFIG.modality_config()).metadata(TAG).to_dict()


def observation(level: int, text: str) -> dict:
    frame = np.full((1, 32, 32, 3), level, np.uint8)
    return {VIEW: frame, ARM: np.full((1, 5), 0.25), GRIPPER: np.full((1, 1), -0.1), TASK: [text]}


numbers = st.one_of(st.floats(-10, 10), st.sampled_from([0.0, float("nan"), float("inf"), 1e300, -1e12, 1e-300, 57.3]))


@st.composite
def changes_of_an_entry(draw):
    """A function that damages, or only changes, one entry of metadata.json."""
    section, part = draw(st.sampled_from(["state", "action"])), draw(st.sampled_from([*PARTS, "wrist"]))
    name, value, index = draw(st.sampled_from(FIELDS)), draw(numbers), draw(st.integers(0, 4))
    kind = draw(st.sampled_from(["set", "all", "swap", "drop", "longer", "width", "tag", "junk", "view", "section"]))

    def change(entry):
        own = entry["statistics"][section].setdefault(part, {k: [0.0] for k in FIELDS})
        if kind == "set":
            own[name][index % len(own[name])] = value
        elif kind == "all":
            own[name] = [value] * len(own[name])
        elif kind == "swap":
            other = {"min": "max", "q01": "q99", "mean": "std"}.get(name, "mean")
            own[name], own[other] = own[other], own[name]
        elif kind == "drop":
            own.pop(name)
        elif kind == "longer":
            own[name] = [*own[name], value]
        elif kind == "width":
            entry["modalities"][section].setdefault(part, {})["shape"] = [index]
        elif kind == "tag":
            entry["embodiment_tag"] = "gr1"
        elif kind == "junk":
            entry["modalities"][section]["odd"] = value
        elif kind == "view":
            entry["modalities"]["video"]["webcam"]["resolution"] = [32, 30 + index]
        else:
            entry["statistics"].pop(section)

    return change


@st.composite
def changes_of_an_observation(draw):
    """A function that damages, or only changes, one observation."""
    key = draw(st.sampled_from([VIEW, ARM, GRIPPER, TASK]))
    value, index = draw(numbers), draw(st.integers(0, 4))
    kind = draw(
        st.sampled_from(["value", "cast", "rank", "drop", "rename", "extra", "order", "list", "flip", "text", "mask"])
    )
    name = draw(st.sampled_from(["task", "state.arm", "video.webcm", "annotation.other", "action.gripper", 7]))
    dtype = draw(st.sampled_from(["float32", "float16", "int64", ">f8", "bool", "complex64", "object", "uint8"]))

    def change(o):
        array = o[key] if isinstance(o[key], np.ndarray) else None
        if kind == "text" or (array is None and kind in ("value", "cast", "flip", "mask")):
            o[TASK] = [["go"], "go", ("go",), np.array(["go"]), [b"go"], [None], ["a", "b"], 3, []][(index * 2) % 9]
        elif kind == "value" and key != VIEW:
            array[0, index % array.shape[1]] = value
        elif kind in ("value", "cast"):
            o[key] = array.astype(dtype)
        elif kind == "rank":
            o[key] = o[key][0] if index % 2 else [o[key]]
        elif kind == "drop":
            del o[key]
        elif kind == "rename":
            o[name] = o.pop(key)
        elif kind == "extra":
            o[name] = o[key]
        elif kind == "order":
            for each in sorted(o, key=str, reverse=bool(index % 2)):
                o[each] = o.pop(each)
        elif kind == "list":
            o[key] = o[key].tolist() if array is not None else o[key]
        elif kind == "flip":
            o[key] = array[..., ::-1].copy()[..., ::-1]
        else:
            o[key] = np.ma.masked_array(array, mask=np.zeros(array.shape, bool) | bool(index % 2))

    return change


def answered(entry: dict, given_observation: dict) -> dict | None:
    """The policy's actions; None for a refusal, which has to be one of ours."""
    try:
        metadata = DatasetMetadata.from_dict(TAG, entry)
        policy = Gr00tPolicy(Network(), CONFIG, metadata, PROMPTER)
        return policy.get_action(given_observation, noise=NOISE)
    except Gr00tError:
        return None


def judge(kind: str, entry: dict, given_observation: dict, actions: dict | None) -> None:
    TALLY[kind] += 1
    if actions is None:
        TALLY[f"{kind}, refused"] += 1
        return
    wanted = right(entry, given_observation)
    assert set(actions) == set(wanted)
    for key, value in wanted.items():
        got = actions[key].reshape(value.shape)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(value).max()))


@tries
@given(changes=st.lists(changes_of_an_entry(), min_size=1, max_size=2), level=st.sampled_from([0, 255]))
def test_metadata_and_statistics(entry, changes, level):
    own = copy.deepcopy(entry)
    try:
        for change in changes:
            change(own)
    except (KeyError, TypeError, AttributeError):
        return  # the first change has taken away what the second one wanted to change
    asked = observation(level, "pick the cube")
    judge("metadata", own, asked, answered(own, asked))


@tries
@given(changes=st.lists(changes_of_an_observation(), min_size=1, max_size=2), level=st.sampled_from([0, 255]))
def test_observations(entry, changes, level):
    asked = observation(level, "pick the cube")
    try:
        for change in changes:
            change(asked)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError):
        return
    judge("observation", entry, asked, answered(entry, asked))


def test_what_was_not_changed_is_answered(entry):
    asked = observation(255, "pick the cube")
    actions = answered(entry, asked)
    assert actions is not None
    judge("unchanged", entry, asked, actions)
    json.dumps(entry)


FPS, ROWS = 20, 12


@pytest.fixture(scope="module")
def clocked(tmp_path_factory):
    """A recording whose frame i is 20 + 6 i bright, and its parquet file."""
    from gr00t_trt.data.video import write_video

    root = synthetic_dataset(
        tmp_path_factory.mktemp("clock"), data_config="so100", episodes=1, length=ROWS, resolution=(32, 32)
    )
    (video,) = root.glob("videos/**/*.mp4")
    write_video(video, [np.full((32, 32, 3), 20 + 15 * i, np.uint8) for i in range(ROWS)], FPS)
    (rows,) = root.glob("data/**/*.parquet")
    table = Table(rows)
    return root, rows, {name: np.array(table.column(name)) for name in table.names}


@st.composite
def clocks(draw):
    """Timestamps of the rows as some recorder may have written them."""
    times = np.arange(ROWS) / FPS
    kind = draw(st.sampled_from(["exact", "shift", "float32", "jitter", "one", "swap", "scale", "drift"]))
    small = draw(st.floats(-3e-4, 3e-4))
    if kind == "shift":
        times = times + draw(st.one_of(st.just(small), st.floats(-2, 2), st.just(1.76e9)))
    elif kind == "float32":
        times = (times + small).astype(np.float32)
    elif kind == "jitter":
        times = times + np.array(draw(st.lists(st.floats(-0.02, 0.02), min_size=ROWS, max_size=ROWS)))
    elif kind == "one":
        times[draw(st.integers(0, ROWS - 1))] = draw(numbers)
    elif kind == "swap":
        a, b = draw(st.integers(0, ROWS - 1)), draw(st.integers(0, ROWS - 1))
        times[[a, b]] = times[[b, a]]
    elif kind == "scale":
        times = times * draw(st.sampled_from([1000.0, 1e9, 0.5, 30 / 20]))
    elif kind == "drift":
        times = times + 1 / FPS - np.linspace(5e-8, 2.2e-5, ROWS)
    return times


@settings(tries, max_examples=max(1, EXAMPLES // 3))
@given(times=clocks(), rule=st.sampled_from(["on_screen", "nearest"]))
def test_timestamps(clocked, times, rule):
    root, file, columns = clocked
    write_table(file, {**columns, "timestamp": times})
    dataset = LeRobotDataset(root, CONFIG.modality_config(), frame_lookup=rule)
    for row in range(ROWS):
        TALLY["timestamps"] += 1
        try:
            level = float(dataset.step(0, row)[VIEW].mean())
        except Gr00tError:
            TALLY["timestamps, refused"] += 1
            continue
        frame, time = round((level - 20) / 15), float(times[row])
        assert -1e-4 <= time <= ROWS / FPS + 1e-4, "a time outside the video has no frame"
        starts = np.arange(ROWS) / FPS
        if rule == "nearest":
            assert abs(starts[frame] - time) <= np.abs(starts - time).min() + 1e-9
        else:
            assert starts[frame] <= time + 1e-4
            assert time < starts[frame] + 1 / FPS or frame == ROWS - 1


def test_the_figure():
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(TALLY.items())))
    assert TALLY["unchanged, refused"] == 0
    for kind in ("metadata", "observation", "timestamps"):
        if not TALLY[kind]:
            continue  # its test was not asked for
        refused = TALLY[f"{kind}, refused"] / TALLY[kind]
        assert 0.1 < refused < 0.97, f"{kind}: {refused:.0%} refused: the changes have to find both"

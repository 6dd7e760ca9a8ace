from __future__ import annotations

import numpy as np
import pytest
import torch

from gr00t_trt.data import validate_observation
from gr00t_trt.errors import ObservationError

VIEW = "video.ego_view"
ARM = "state.left_arm"
TASK = "annotation.human.action.task_description"
WIDTHS = {ARM: 7, "state.right_arm": 7, "state.left_hand": 6, "state.right_hand": 6}


def single() -> dict:
    return {
        VIEW: np.zeros((1, 48, 64, 3), np.uint8),
        **{key: np.zeros((1, width)) for key, width in WIDTHS.items()},
        TASK: ["go"],
    }


def batch(size: int = 3) -> dict:
    out = {k: np.repeat(v[None], size, axis=0) for k, v in single().items() if k != TASK}
    return {**out, TASK: [f"go {i}" for i in range(size)]}


@pytest.fixture
def check(config, metadata):
    return lambda observation, **kw: validate_observation(observation, config.modality_config(), metadata, **kw)


def test_unbatched(check):
    out, batched = check(single())
    assert not batched
    assert out[VIEW].shape == (1, 1, 48, 64, 3)
    assert out[ARM].shape == (1, 1, 7)
    assert out[TASK] == ["go"]


def test_batched(check):
    out, batched = check(batch())
    assert batched
    assert out[ARM].shape == (3, 1, 7)
    assert out[TASK] == ["go 0", "go 1", "go 2"]
    assert check(batch(1))[1], "a batch of one is a batch"


def test_recorded_actions_and_further_parts_of_the_robot_are_left_out(check, caplog):
    more = {"action.left_arm": np.full(3, np.nan), "state.waist": None, "video.ego_view_pad_res256_freq20": None}
    out, _ = check({**single(), **more})
    assert set(out) == {VIEW, TASK, *WIDTHS}
    assert "state.waist of the observation is not read" in caplog.text
    caplog.clear()
    check({**single(), **more})
    assert not caplog.text, "said once"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("timestamp", "key 'timestamp' is not read"),
        ("task", "key 'task' is not read"),
        ("state.unlisted", "key 'state.unlisted' is not read"),
        ("state.left_arm_joints", r"did you mean state\.left_arm\? Else leave it out"),
        ("video.wrist", "key 'video.wrist' is not read"),
        (3, "key 3 is not read"),
    ],
)
def test_keys_that_nobody_reads_are_refused(check, key, words):
    with pytest.raises(ObservationError, match=words):
        check({**single(), key: ["go"]})


@pytest.mark.parametrize(
    "key", ["anotation.human.action.task_description", "task", "instruction", "language", "prompt"]
)
def test_an_instruction_under_another_key_is_refused(check, key):
    without = single()
    without[key] = without.pop(TASK)
    with pytest.raises(ObservationError, match=r"no instruction: key 'annotation\.human") as refused:
        check(without)
    assert "send 'Perform the default behavior.'" in str(refused.value)


def test_the_nested_form_of_later_generations_is_named(check):
    with pytest.raises(ObservationError, match=r"'observation' is nested, as N1\.6 and later"):
        check({"observation": {"video": {"ego_view": 1}}, "options": None})


@pytest.mark.parametrize("text", ["go", ["go"], ("go",), np.array(["go"]), np.array("go"), np.str_("go"), [["go"]]])
def test_forms_of_one_instruction(check, text):
    assert check({**single(), TASK: text})[0][TASK] == ["go"]


@pytest.mark.parametrize("texts", [["a", "b", "c"], np.array(["a", "b", "c"]), [["a"], ["b"], ["c"]]])
def test_forms_of_many_instructions(check, texts):
    assert check({**batch(), TASK: texts})[0][TASK] == ["a", "b", "c"]


def test_one_plain_string_serves_a_batch_and_the_key_need_not_be_the_config_s(check):
    assert check({**batch(), TASK: "go"})[0][TASK] == ["go"] * 3
    without = single()
    del without[TASK]
    other_name = {**without, "annotation.other": ["go"]}
    assert check(other_name)[0]["annotation.other"] == ["go"]


def test_brackets_only_for_unbatched_requests(check):
    assert check(single(), bracketed_text=True)[0][TASK] == ["['go']"]
    assert check(batch(), bracketed_text=True)[0][TASK][0] == "go 0"


def test_dtypes_are_kept_where_they_are_floating(check):
    for dtype, expected in ((np.float32, np.float32), (np.float64, np.float64), (np.int64, np.float64)):
        assert check({**single(), ARM: np.zeros((1, 7), dtype)})[0][ARM].dtype == expected
    assert check({**single(), ARM: torch.zeros(1, 7)})[0][ARM].dtype == np.float32
    assert check({**single(), ARM: [[0.0] * 7]})[0][ARM].dtype == np.float64


def test_the_observation_is_not_changed(check):
    observation = single()
    before = {k: (v if k == TASK else v.copy()) for k, v in observation.items()}
    check(observation)
    assert observation.keys() == before.keys()
    assert all(observation[k].shape == before[k].shape for k in WIDTHS)


def nan_arm():
    value = np.zeros((1, 7))
    value[0, 4] = np.nan
    return value


def renamed():
    out = single()
    out["state.left_arms"] = out.pop(ARM)
    return out


FAILURES = {
    "missing state": (renamed, r"key 'state\.left_arm' is missing[\s\S]*did you mean it by state\.left_arms"),
    "missing video": (lambda: {ARM: np.zeros((1, 7))}, r"key 'video\.ego_view' is missing"),
    "empty": (dict, "an empty observation"),
    "not a dict": (lambda: [1], "observation is list"),
    "float video": (lambda: {**single(), VIEW: np.zeros((1, 48, 64, 3))}, r"video\.ego_view is float64[\s\S]*RGB"),
    "video 3-D": (lambda: {**single(), VIEW: np.zeros((48, 64, 3), np.uint8)}, r"shape \(48, 64, 3\)[\s\S]*\[None\]"),
    "video 6-D": (lambda: {**single(), VIEW: np.zeros((1,) * 6, np.uint8)}, r"shape \(1, 1, 1, 1, 1, 1\)"),
    "channels first": (lambda: {**single(), VIEW: np.zeros((1, 3, 48, 64), np.uint8)}, "channels last"),
    "resolution": (
        lambda: {**single(), VIEW: np.zeros((1, 64, 48, 3), np.uint8)},
        r"48 x 64 pixels \(width x height\)[\s\S]*64 x 48, the resolution[\s\S]*resize the frames",
    ),
    "video frames": (lambda: {**single(), VIEW: np.zeros((2, 48, 64, 3), np.uint8)}, "holds 2 frames"),
    "NaN": (lambda: {**single(), ARM: nan_arm()}, r"state\.left_arm holds nan at \[0, 4\]"),
    "absurd": (lambda: {**single(), ARM: np.full((1, 7), 1e300)}, r"holds 1e\+300[\s\S]*its unit"),
    "no instruction": (lambda: {k: v for k, v in single().items() if k != TASK}, "no instruction"),
    "infinite": (lambda: {**single(), ARM: np.full((1, 7), np.inf)}, "holds inf"),
    "width": (lambda: {**single(), ARM: np.zeros((1, 6))}, r"state\.left_arm is 6 wide[\s\S]*\[1, 7\]"),
    "rows": (lambda: {**single(), ARM: np.zeros((2, 7))}, "holds 2 rows"),
    "1-D state": (lambda: {**single(), ARM: np.zeros(7)}, r"shape \(7,\)[\s\S]*add the time axis"),
    "text state": (lambda: {**single(), ARM: [["a"] * 7]}, r"state\.left_arm is <U1"),
    "ragged state": (lambda: {**single(), ARM: [[0.0], [0.0, 1.0]]}, "is no array"),
    "object state": (lambda: {**single(), ARM: None}, r"state\.left_arm is object"),
    "mixed batch": (
        lambda: {**single(), ARM: np.zeros((2, 1, 7))},
        r"ego_view: no batch axis, state\.left_arm: batch 2",
    ),
    "sizes": (lambda: {**batch(3), ARM: np.zeros((2, 1, 7))}, "batch sizes differ"),
    "empty batch": (lambda: batch(0), "the batch is empty"),
    "two annotations": (lambda: {**single(), "annotation.b": ["x"]}, "2 instructions"),
    "two strings": (lambda: {**single(), TASK: ["a", "b"]}, "holds 2 strings[\\s\\S]*one string"),
    "too few strings": (lambda: {**batch(), TASK: ["a"]}, r"holds 1 strings[\s\S]*one per sample of the batch: 3"),
    "no strings": (lambda: {**single(), TASK: []}, "holds 0 strings"),
    "number": (lambda: {**single(), TASK: [3]}, "holds int: '3'"),
    "bytes": (lambda: {**single(), TASK: b"go"}, "holds bytes"),
    "None": (lambda: {**single(), TASK: None}, "holds NoneType"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_fault_is_one_error_with_the_key_and_the_fix(check, name):
    make, words = FAILURES[name]
    with pytest.raises(ObservationError, match=words):
        check(make())


def test_views_that_run_backwards_and_foreign_byte_orders_are_the_same_values(check):
    random = np.random.default_rng(0)
    frame, arm = random.integers(0, 256, (1, 48, 64, 3), np.uint8), random.normal(size=(1, 7))
    plain = check({**single(), VIEW: frame, ARM: arm})[0]
    flipped = check({**single(), VIEW: frame[..., ::-1].copy()[..., ::-1], ARM: arm.astype(">f8")[:, ::-1][:, ::-1]})[0]
    for key in (VIEW, ARM):
        np.testing.assert_array_equal(torch.from_numpy(flipped[key]).numpy(), plain[key])


def test_missing_values_of_a_masked_array_are_refused(check):
    masked = np.ma.masked_array(np.zeros((1, 7)), mask=[[0, 0, 1, 0, 0, 0, 0]])
    with pytest.raises(ObservationError, match=r"state\.left_arm is a masked array with missing values"):
        check({**single(), ARM: masked})

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gr00t_trt.data import (
    ComposedModalityTransform,
    ConcatTransform,
    DatasetMetadata,
    GR00TTransform,
    ModalityTransform,
    PartInfo,
    StateActionDropout,
    StateActionPerturbation,
    StateActionSinCosTransform,
    StateActionToTensor,
    StateActionTransform,
    Statistics,
    VideoColorJitter,
    VideoCrop,
    VideoGrayscale,
    VideoHorizontalFlip,
    VideoInfo,
    VideoRandomGrayscale,
    VideoRandomPosterize,
    VideoRandomRotation,
    VideoResize,
    VideoToNumpy,
    VideoToTensor,
)
from gr00t_trt.data.state_action_transforms import Normalizer
from gr00t_trt.errors import ObservationError, PlanError

STATISTICS = Statistics(
    min=np.array([0.0, 1, -2]),
    max=np.array([2.0, 1, 2]),
    mean=np.array([1.0, 1, 0]),
    std=np.array([0.5, 0, 2]),
    q01=np.array([0.1, 1, -1]),
    q99=np.array([1.9, 1, 1]),
)
X = torch.tensor([3.0, 5.0, -4.0], dtype=torch.float64)
VIEW = "video.front"


def metadata(**parts: PartInfo) -> DatasetMetadata:
    ones = {k: np.ones(v.width) for k, v in parts.items()}
    values = {k: Statistics(max=v, min=-v, mean=0 * v, std=v, q01=-v, q99=v) for k, v in ones.items()}
    return DatasetMetadata("gr1", {"front": VideoInfo((64, 48))}, parts, parts, values, values)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min_max", [2, 0, -2]),
        ("mean_std", [4, 5, -2]),
        ("q99", [1, 1, -1]),
        ("binary", [1, 1, 0]),
        ("scale", [1.5, 5, -2]),
    ],
)
def test_normalisation_table(mode, expected):
    assert Normalizer(mode, STATISTICS).forward(X).tolist() == expected


@pytest.mark.parametrize(
    ("mode", "expected"), [("min_max", [1, 1, 0]), ("q99", [1, 1, 0]), ("mean_std", [1, 1, 0]), ("binary", [0, 0, 0])]
)
def test_inverse_of_zero_with_a_constant_column(mode, expected):
    out = Normalizer(mode, STATISTICS).inverse(torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))


def test_scale_of_an_all_zero_column_is_zero_and_has_no_inverse():
    zero = np.zeros(1)
    normalizer = Normalizer("scale", Statistics(zero, zero, zero, zero, zero, zero))
    assert normalizer.forward(torch.tensor([3.0])).tolist() == [0.0]
    with pytest.raises(PlanError, match="scale has no inverse"):
        normalizer.inverse(torch.zeros(1))


def test_a_prediction_is_not_clamped_when_unnormalised():
    out = Normalizer("q99", STATISTICS).inverse(torch.full((3,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(out, torch.tensor([2.8, 1.0, 2.0], dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(("min_max", "mean_std")),
    low=st.floats(-10, 10),
    span=st.floats(0.1, 10),
    x=st.floats(-50, 50),
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def test_normalise_then_unnormalise_gives_the_value_back_in_its_dtype(mode, low, span, x, dtype):
    stats = Statistics(*(np.array([v]) for v in (low + span, low, low + span / 2, span / 3, low, low + span)))
    normalizer = Normalizer(mode, stats)
    value = torch.tensor([x], dtype=dtype)
    there = normalizer.forward(value)
    assert there.dtype == dtype
    torch.testing.assert_close(normalizer.inverse(there), value, atol=1e-4, rtol=1e-4)


def test_one_chain_takes_float32_after_float64():
    chain = StateActionTransform(["state.arm"], normalization_modes={"state.arm": "min_max"})
    chain.set_metadata(metadata(arm=PartInfo(2)))
    for dtype in (np.float64, np.float32):
        out = chain.apply({"state.arm": np.zeros((1, 2), dtype)})["state.arm"]
        assert out.numpy().dtype == dtype


@pytest.mark.parametrize(
    ("part", "mode", "target", "words"),
    [
        (PartInfo(1, continuous=False), "min_max", None, r"state\.arm: min_max on a part that is not continuous"),
        (PartInfo(4, rotation_type="quaternion"), "mean_std", "rotation_6d", "mean_std on a rotation converted"),
        (PartInfo(4, False, "quaternion"), "min_max", "rotation_6d", "min_max on a relative rotation"),
        (PartInfo(4, rotation_type="quaternion"), "min_max", "matrix", "min_max on a rotation converted"),
        (PartInfo(3), "min_max", "rotation_6d", "gives it no rotation_type"),
        (PartInfo(3, rotation_type="euler_angles_rpy"), None, "euler_angles_ypr", "another order"),
    ],
)
def test_rules_checked_with_the_metadata(part, mode, target, words):
    key = "state.arm"
    transform = StateActionTransform([key], {key: mode} if mode else {}, {key: target} if target else {})
    with pytest.raises(PlanError, match=words):
        transform.set_metadata(metadata(arm=part))


def test_converted_rotations_use_fixed_bounds_and_come_back():
    key = "state.arm"
    transform = StateActionTransform([key], {key: "min_max"}, {key: "axis_angle"})
    transform.set_metadata(metadata(arm=PartInfo(4, rotation_type="quaternion")))
    quaternion = torch.tensor([[np.cos(0.5), np.sin(0.5), 0, 0]], dtype=torch.float64)
    there = transform.apply({key: quaternion})
    torch.testing.assert_close(there[key], torch.tensor([[1 / np.pi, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(transform.unapply(there)[key], quaternion)


def test_a_rotation_that_is_not_changed_uses_the_dataset_statistics():
    key = "state.arm"
    transform = StateActionTransform([key], {key: "mean_std"}, {key: "quaternion"})
    transform.set_metadata(metadata(arm=PartInfo(4, rotation_type="quaternion")))
    assert transform.apply({key: torch.ones(1, 4)})[key].tolist() == [[1, 1, 1, 1]]


def test_unknown_modes_and_keys_are_refused_when_made():
    with pytest.raises(PlanError, match=r"unknown value 'minmax'[\s\S]*did you mean min_max"):
        StateActionTransform(["state.arm"], {"state.arm": "minmax"})
    with pytest.raises(PlanError, match=r"state\.leg"):
        StateActionTransform(["state.arm"], {"state.leg": "min_max"})
    transform = StateActionTransform(["state.arm"], {"state.arm": "min_max"})
    with pytest.raises(PlanError, match=r"unknown value 'state.arm'[\s\S]*did you mean state.arms"):
        transform.set_metadata(metadata(arms=PartInfo(2)))


def test_sines_come_before_cosines():
    x = np.array([[0.1, 0.2]])
    out = StateActionSinCosTransform(["state.arm"]).apply({"state.arm": x})["state.arm"]
    np.testing.assert_allclose(out, np.concatenate([np.sin(x), np.cos(x)], axis=-1))
    with pytest.raises(ObservationError, match=r"key 'state\.arm' is missing"):
        StateActionSinCosTransform(["state.arm"]).apply({})


def test_to_tensor_and_back_with_dtypes():
    key = "state.arm"
    transform = StateActionToTensor([key], {key: np.float64}, {key: torch.float32})
    out = transform.apply({key: np.ones((1, 2))})
    assert out[key].dtype == torch.float32
    assert isinstance(transform.unapply(out)[key], np.ndarray)
    with pytest.raises(ObservationError, match=r"state\.arm is float32"):
        transform.apply({key: np.ones((1, 2), np.float32)})


@pytest.mark.parametrize(
    "transform",
    [
        VideoColorJitter([VIEW], brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08),
        VideoRandomRotation([VIEW], degrees=10, interpolation="linear"),
        VideoHorizontalFlip([VIEW], p=1.0),
        VideoGrayscale([VIEW], num_output_channels=3),
        VideoRandomGrayscale([VIEW], p=1.0),
        VideoRandomPosterize([VIEW], bits=2, p=1.0),
        StateActionPerturbation([VIEW], std=1.0),
        StateActionDropout([VIEW], dropout_prob=1.0),
    ],
)
def test_augmentations_change_nothing(transform):
    data = {VIEW: torch.rand(1, 3, 4, 4)}
    assert transform.eval().apply(data)[VIEW] is data[VIEW]
    assert transform.apply_training(data, None)[VIEW] is data[VIEW]
    if not isinstance(transform, VideoColorJitter | StateActionPerturbation | StateActionDropout):
        with pytest.raises(PlanError, match=f"{type(transform).__name__}.* is not carried out in a training"):
            transform.apply_training(data, draw)


def draw(purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(purpose))


def test_views_are_cropped_and_coloured_alike_in_a_training():
    image = torch.rand(1, 3, 40, 60)
    data = {"video.a": image, "video.b": image}
    crop, jitter = VideoCrop(list(data), scale=0.5), VideoColorJitter(list(data), 0.3, 0.4, 0.5, 0.08)
    for transform in (crop, jitter):
        one, two = (transform.apply_training(data, draw)[key] for key in data)
        assert torch.equal(one, two)
        assert not torch.equal(one, transform.apply(data)["video.a"])
    assert torch.equal(crop.apply_training(data, None)["video.a"], crop.apply(data)["video.a"])


def test_random_crops_reach_every_place_and_no_other():
    image = torch.arange(30.0).reshape(1, 1, 5, 6)
    crop = VideoCrop([VIEW], scale=0.8)
    corners = {
        crop.apply_training({VIEW: image}, lambda _, s=seed: torch.Generator().manual_seed(s))[VIEW][0, 0, 0, 0].item()
        for seed in range(200)
    }
    assert corners == {0, 1, 2, 6, 7, 8}


@pytest.mark.parametrize(
    "ranges", [{"brightness": -0.1}, {"contrast": (1.2, 0.8)}, {"saturation": "much"}, {"hue": 0.6}, {"hue": (0, 1)}]
)
def test_ranges_that_are_none_are_refused(ranges):
    with pytest.raises(PlanError, match=f"VideoColorJitter: {next(iter(ranges))}"):
        VideoColorJitter([VIEW], **ranges)


def test_states_are_disturbed_and_dropped_in_a_training():
    data = {"state.a": np.linspace(-1, 1, 2000).reshape(1, -1), "state.b": np.ones((1, 3), np.float32)}
    keys = list(data)
    noisy = StateActionPerturbation(keys, std=0.1).apply_training(data, draw)
    moved = noisy["state.a"].numpy() - data["state.a"]
    assert moved[0, 500:1500].std() == pytest.approx(0.1, abs=0.01)
    assert noisy["state.a"].abs().max() == 1
    assert torch.equal(noisy["state.b"], torch.ones(1, 3))
    assert torch.equal(StateActionPerturbation(keys, std=0.1).apply_training(data, draw)["state.a"], noisy["state.a"])
    dropped = 0
    for seed in range(200):
        own = lambda _, s=seed: torch.Generator().manual_seed(s)  # noqa: E731
        out = StateActionDropout(keys, dropout_prob=0.3).apply_training(data, own)
        zero = [not torch.as_tensor(out[key]).any() for key in keys]
        assert len(set(zero)) == 1
        dropped += zero[0]
    assert 40 < dropped < 80


def test_a_chain_within_a_chain_has_the_same_model_inputs():
    inner = GR00TTransform(default_instruction="wait", embodiment=7)
    chain = ComposedModalityTransform([ComposedModalityTransform([inner])])
    assert list(chain.model_inputs()) == [inner]
    assert chain.default_instruction == "wait"
    chain.set_action_dim(9)
    assert inner.max_action_dim == 9


def test_a_training_has_the_actions():
    transform = GR00TTransform(action_horizon=2, max_state_dim=3, max_action_dim=4, embodiment=7)
    data = {"video": np.zeros((1, 1, 4, 4, 3), np.uint8), "state": np.ones((1, 2)), "action": np.full((2, 3), 0.5)}
    out = transform.apply_training(data, draw)
    assert "action" not in transform.apply(data)
    assert out["action"].dtype == torch.float32
    assert out["action"].tolist() == [[[0.5, 0.5, 0.5, 0.0]] * 2]
    assert out["action_mask"].tolist() == [[[True, True, True, False]] * 2]
    with pytest.raises(ObservationError, match=r"action has shape \(3, 3\)|action has shape \(1, 3, 3\)"):
        transform.apply_training({**data, "action": np.zeros((3, 3))}, draw)
    transform.max_action_dim = 2
    with pytest.raises(ObservationError, match="action is 3 wide"):
        transform.apply_training(data, draw)
    with pytest.raises(ObservationError, match="'action' is missing"):
        transform.apply_training({k: v for k, v in data.items() if k != "action"}, draw)
    dropping = GR00TTransform(action_horizon=2, max_state_dim=3, embodiment=7, language_dropout_prob=0.1)
    with pytest.raises(PlanError, match="language_dropout_prob is not carried out"):
        dropping.apply_training(data, draw)
    assert "action" in dropping.apply_training(data, None)


def test_a_chain_passes_draws_on_and_names_what_fails():
    class Elsewhere:
        def apply(self, data):
            return {**data, "seen": True}

    chain = ComposedModalityTransform([VideoCrop([VIEW], scale=0.5), Elsewhere(), VideoHorizontalFlip([VIEW])])
    with pytest.raises(PlanError, match="VideoHorizontalFlip is not carried out"):
        chain.apply_training({VIEW: torch.rand(1, 3, 8, 8)}, draw)
    out = chain.apply_training({VIEW: torch.rand(1, 3, 8, 8)}, None)
    assert out["seen"]
    assert out[VIEW].shape == (1, 3, 4, 4)
    with pytest.raises(ObservationError, match=r"transform 0 \(VideoCrop.apply_training\)"):
        chain.apply_training({VIEW: None}, draw)


@pytest.mark.parametrize(
    ("size", "cropped", "corner"), [((256, 256), (243, 243), (6, 6)), ((480, 640), (456, 608), (12, 16))]
)
def test_centre_crop(size, cropped, corner):
    image = torch.arange(size[0] * size[1], dtype=torch.float32).reshape(1, 1, *size)
    out = VideoCrop([VIEW], scale=0.95).apply({VIEW: image})[VIEW]
    assert out.shape[-2:] == cropped
    assert out[0, 0, 0, 0] == corner[0] * size[1] + corner[1]


def test_bytes_survive_tensor_and_back():
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 48, 64, 3), dtype=np.uint8)
    out = VideoToTensor([VIEW]).apply({VIEW: frames})
    assert out[VIEW].shape == (2, 1, 3, 48, 64)
    assert 0 <= out[VIEW].min() <= out[VIEW].max() <= 1
    difference = frames.astype(int) - VideoToNumpy([VIEW]).apply(out)[VIEW]
    assert difference.min() >= 0, "truncation never rounds up"
    assert difference.max() <= 1


def test_every_batch_element_and_view_is_resized_like_a_single_one():
    frames = torch.rand(2, 2, 3, 30, 40)
    resize = VideoResize([VIEW], height=20, width=20)
    out = resize.apply({VIEW: frames})[VIEW]
    torch.testing.assert_close(out[1, 1], resize.apply({VIEW: frames[1, 1][None]})[VIEW][0], rtol=0, atol=0)


def test_cubic_overshoot_does_not_wrap():
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    out = VideoResize([VIEW], 16, 16, interpolation="cubic").apply({VIEW: step})
    image = VideoToNumpy([VIEW]).apply(out)[VIEW]
    assert set(image[..., :6, :].flatten()) <= {0, 1, 2}
    assert set(image[..., 10:, :].flatten()) <= {253, 254, 255}


def test_video_errors():
    with pytest.raises(PlanError, match="unknown value 'lanczos4'"):
        VideoResize([VIEW], 224, 224, interpolation="lanczos4")
    with pytest.raises(PlanError, match="unknown value 'albumentations'"):
        VideoToTensor([VIEW], backend="albumentations")
    to_tensor = VideoToTensor([VIEW])
    to_tensor.set_metadata(metadata())
    with pytest.raises(ObservationError, match=r"video\.front is float32"):
        to_tensor.apply({VIEW: np.zeros((1, 48, 64, 3), np.float32)})
    with pytest.raises(ObservationError, match=r"48 x 64 pixels[\s\S]*64 x 48 in the metadata"):
        to_tensor.apply({VIEW: np.zeros((1, 64, 48, 3), np.uint8)})


def concat(**kwargs) -> ConcatTransform:
    transform = ConcatTransform(**kwargs)
    transform.set_metadata(metadata(arm=PartInfo(2), hand=PartInfo(1), turn=PartInfo(4, rotation_type="quaternion")))
    return transform


def test_concat_stacks_views_before_height_and_joins_parts_in_order():
    transform = concat(video_concat_order=["video.b", "video.a"], state_concat_order=["state.hand", "state.arm"])
    data = {
        "video.a": np.zeros((5, 1, 4, 6, 3), np.uint8),
        "video.b": np.ones((5, 1, 4, 6, 3), np.uint8),
        "video.unlisted": np.zeros(1),
        "state.arm": torch.full((5, 1, 4), 2.0),
        "state.hand": torch.ones(5, 1, 1),
    }
    out = transform.apply(data)
    assert set(out) == {"video", "state"}
    assert out["video"].shape == (5, 1, 2, 4, 6, 3)
    assert out["video"][0, 0, :, 0, 0, 0].tolist() == [1, 0]
    assert out["state"][0, 0].tolist() == [1, 2, 2, 2, 2], "widths may double for sine and cosine"


def test_concat_inverse_splits_and_ignores_padding():
    transform = concat(action_concat_order=["action.hand", "action.arm"])
    out = transform.unapply({"action": torch.arange(32.0).expand(2, 16, 32)})
    assert out["action.hand"][0, 0].tolist() == [0]
    assert out["action.arm"][1, 3].tolist() == [1, 2]


def test_concat_errors():
    transform = concat(
        video_concat_order=["video.a", "video.b"],
        state_concat_order=["state.arm", "state.turn"],
        action_concat_order=["action.arm", "action.hand"],
    )
    views = {"video.a": np.zeros((1, 4, 6, 3)), "video.b": np.zeros((1, 4, 6, 3))}
    with pytest.raises(ObservationError, match="views differ in shape"):
        transform.apply({**views, "video.b": np.zeros((1, 4, 8, 3))})
    with pytest.raises(ObservationError, match=r"state\.turn' is missing"):
        transform.apply({**views, "state.arm": torch.zeros(1, 2)})
    with pytest.raises(ObservationError, match=r"state\.turn is 5 wide[\s\S]*4 or 6 or 8"):
        transform.apply({**views, "state.arm": torch.zeros(1, 2), "state.turn": torch.zeros(1, 5)})
    with pytest.raises(ObservationError, match=r"action keys \['action\.arm'\][\s\S]*or none"):
        transform.apply({**views, "action.arm": torch.zeros(16, 2)})
    with pytest.raises(PlanError, match="has no metadata yet"):
        ConcatTransform().apply({})


def gr00t(**kwargs) -> GR00TTransform:
    transform = GR00TTransform(**kwargs)
    transform.set_metadata(metadata())
    return transform


IMAGES = np.zeros((2, 1, 1, 4, 4, 3), np.uint8)


def test_state_is_padded_and_masked_and_never_cut():
    out = gr00t(max_state_dim=4).apply({"video": IMAGES, "state": torch.ones(2, 1, 3, dtype=torch.float32)})
    assert out["state"].dtype == torch.float64
    assert out["state"][0, 0].tolist() == [1, 1, 1, 0]
    assert out["state_mask"][1, 0].tolist() == [True, True, True, False]
    with pytest.raises(ObservationError, match="state is 3 wide: the last 1 values would never reach the model"):
        gr00t(max_state_dim=2).apply({"video": IMAGES, "state": torch.ones(2, 1, 3)})
    none = gr00t(max_state_dim=4).apply({"video": IMAGES})
    assert not none["state_mask"].any()
    with pytest.raises(ObservationError, match=r"state has shape \(2, 2, 3\)"):
        gr00t().apply({"video": IMAGES, "state": torch.ones(2, 2, 3)})


def test_unbatched_data_becomes_a_batch_of_one():
    out = gr00t().apply({"video": IMAGES[0], "state": np.ones((1, 3)), "annotation.task": ["go", "stop"]})
    assert out["images"].shape == (1, 1, 1, 4, 4, 3)
    assert out["texts"] == ["go"]
    assert out["embodiment_id"].tolist() == [24]


def test_instructions():
    transform = gr00t()
    assert transform.apply({"video": IMAGES, "annotation.any": np.array(["a", "b"])})["texts"] == ["a", "b"]
    # A request without an annotation also works after one that had it.
    assert transform.apply({"video": IMAGES})["texts"] == ["Perform the default behavior."] * 2
    with pytest.raises(ObservationError, match="two instructions"):
        transform.apply({"video": IMAGES, "annotation.a": ["a", "b"], "annotation.b": ["a", "b"]})
    with pytest.raises(ObservationError, match="1 instructions"):
        transform.apply({"video": IMAGES, "annotation.a": ["a"]})


class _Broken(ModalityTransform):
    def apply(self, data):
        raise RuntimeError("sensor on fire")


def test_composition_names_the_transform_that_failed():
    chain = ComposedModalityTransform([StateActionToTensor(["state.arm"]), _Broken(["x"])])
    with pytest.raises(ObservationError, match=r"transform 1 \(_Broken.apply\): RuntimeError: sensor on fire"):
        chain.apply({"state.arm": np.zeros((1, 2))})


def test_composition_leaves_its_input_alone_and_inverts_in_reverse():
    key = "action.arm"
    chain = ComposedModalityTransform([StateActionToTensor([key]), StateActionTransform([key], {key: "min_max"})])
    chain.set_metadata(metadata(arm=PartInfo(2)))
    value = np.array([[0.25, -0.5]])
    data = {key: value}
    there = chain(data)
    assert data == {key: value}
    back = chain.unapply(there)[key]
    assert isinstance(back, np.ndarray)
    np.testing.assert_allclose(back, value)

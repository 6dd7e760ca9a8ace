"""The path through a device, walked on the CPU: same code, and the same bits as on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gr00t_trt.data import (
    DATA_CONFIGS,
    ComposedModalityTransform,
    LeRobotDataset,
    ModalityTransform,
    PartInfo,
    Prompter,
    StateActionToTensor,
    StateActionTransform,
    VideoResize,
    data_config,
    state_action_transforms,
    synthetic_dataset,
    synthetic_tokenizer,
    validate_observation,
    video_transforms,
)
from gr00t_trt.data.device import DeviceTransfer, _Staging, unit_interval
from gr00t_trt.data.resampling import Taps, resample
from gr00t_trt.data.rotations import _about_axis, _product
from gr00t_trt.errors import ObservationError

FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
CPU = torch.device("cpu")


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Every branch for tensors that are not on the host, with tensors that are."""
    for module in (video_transforms, state_action_transforms):
        monkeypatch.setattr(module, "on_host", lambda x: False)


# --- resizing ---


def levels(x: torch.Tensor) -> torch.Tensor:
    return (x.clamp(0, 1) * 255).to(torch.uint8).int()


def both(frames: torch.Tensor, mode: str, side: int = 224) -> tuple[torch.Tensor, torch.Tensor]:
    operator = torch.nn.functional.interpolate(
        frames, size=(side, side), mode=mode, align_corners=False, antialias=True
    )
    rows, columns = (Taps.of(size, side, mode, CPU) for size in frames.shape[-2:])
    return operator, resample(frames, columns, rows)


SIZES = [
    (243, 243), (456, 608), (171, 304), (684, 1216), (1026, 1824), (45, 60), (224, 212), (448, 672), (336, 224),
    (112, 1120), (31, 500), (317, 389), (551, 263),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_resizing_tap_by_tap_has_the_bits_of_the_cpu_operator(size, mode):
    noise = torch.from_numpy(random(0).integers(0, 256, (1, 2, *size), dtype=np.uint8))
    # Even areas are where truncation shows a single rounding.
    noise[:, 1] = torch.linspace(0, 255, size[1]).to(torch.uint8)
    operator, ours = both(unit_interval(noise), mode)
    if FUSED:
        assert torch.equal(operator, ours)
    assert (levels(operator) - levels(ours)).abs().max() <= 1


@pytest.mark.skipif(not FUSED, reason="this CPU's operator has no fused multiply-add")
def test_every_even_picture_keeps_the_operators_level():
    even = torch.arange(256, dtype=torch.uint8)[None, :, None, None]
    for height, width in ((243, 243), (456, 608)):
        operator, ours = both(unit_interval(even.expand(1, 256, height, width)[:, ::5].contiguous()), "bilinear")
        assert torch.equal(operator, ours)


def test_tables_of_taps_are_made_once_per_size(as_on_a_gpu, monkeypatch):
    made = []
    of = Taps.of
    monkeypatch.setattr(Taps, "of", lambda *a: made.append(a[:2]) or of(*a))
    resize = VideoResize(["video.a", "video.b"], 224, 224)
    for _ in range(2):
        resize.apply({"video.a": torch.rand(1, 3, 30, 40), "video.b": torch.rand(1, 3, 30, 30)})
    assert sorted(made) == [(30, 224), (40, 224)]


def test_golden_image_on_the_way_of_a_gpu(as_on_a_gpu):
    y, x = np.mgrid[0:256, 0:256]
    image = torch.from_numpy(np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8))[None]
    data = {"video.a": image}
    for transform in data_config("fourier_gr1_arms_only").transform().transforms[:5]:
        transform.apply_to = ["video.a"]
        data = transform.apply(data)
    out = data["video.a"][0]
    assert out[0, :4].tolist() == [[6, 6, 6], [7, 6, 6], [8, 6, 7], [9, 6, 7]]
    if FUSED:
        assert int(out.sum(dtype=torch.int64)) == 19029247


# --- whole chains ---


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    return Prompter(synthetic_tokenizer())


@pytest.fixture(scope="module", params=list(DATA_CONFIGS))
def subject(request, cache, prompter):
    config = data_config(request.param)
    folder = synthetic_dataset(cache, data_config=request.param, episodes=1, length=18, resolution=(64, 48))
    modalities = config.modality_config()
    dataset = LeRobotDataset(folder, modalities)
    metadata = dataset.metadata("new_embodiment")
    chain = config.transform()
    chain.set_metadata(metadata)
    chain.set_prompter(prompter)
    return chain, dataset, modalities, metadata


def observation_of(dataset, rows, dtype) -> dict:
    """Unbatched for one row, batched for a tuple of rows; states in `dtype`."""
    steps = [dataset[row] for row in (rows if isinstance(rows, tuple) else (rows,))]
    out = {}
    for key in steps[0]:
        if not key.startswith("action."):
            values = [s[key] if "annotation" not in key else s[key][0] for s in steps]
            stacked = values if "annotation" in key else np.stack(values)
            out[key] = stacked if isinstance(rows, tuple) else stacked[0]
            if key.startswith("state."):
                out[key] = out[key].astype(dtype)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [3, (0, 9), (4,)])
def test_inputs_and_actions_are_those_of_the_host_bit_for_bit(subject, rows, dtype, request):
    chain, dataset, modalities, metadata = subject
    assert chain.device_generic
    checked, _ = validate_observation(observation_of(dataset, rows, dtype), modalities, metadata)
    prediction = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    inputs, actions = chain.apply(checked), chain.unapply({"action": prediction})
    request.getfixturevalue("as_on_a_gpu")
    transfer = DeviceTransfer("cpu")
    frames = {key: value for key, value in checked.items() if key.startswith("video.")}
    for sent in (checked, frames):  # a policy sends the frames alone
        on_device = chain.apply({**checked, **transfer.send(sent)})
        assert on_device.keys() == inputs.keys()
        for key, value in inputs.items():
            same = value.dtype == on_device[key].dtype and torch.equal(value, on_device[key])
            assert same or (not FUSED and key == "eagle_pixel_values"), key
    parts = chain.unapply({"action": transfer.fetch(prediction)})
    assert list(parts) == list(actions)
    for key, value in actions.items():
        assert parts[key].numpy().dtype == value.dtype
        np.testing.assert_array_equal(parts[key].numpy(), value)


@pytest.mark.parametrize("mode", ["min_max", "q99", "mean_std", "binary"])
def test_other_inverses_too(mode, as_on_a_gpu, metadata):
    key = "action.left_arm"
    chain = ComposedModalityTransform([StateActionToTensor([key]), StateActionTransform([key], {key: mode})])
    chain.set_metadata(metadata)
    value = torch.randn(2, 16, 7, generator=torch.Generator().manual_seed(0))
    there = chain.unapply({key: value})[key]
    assert isinstance(there, torch.Tensor), "it came back on its own"
    np.testing.assert_array_equal(there.numpy(), chain.transforms[1].unapply({key: value})[key].numpy())


class _Foreign(ModalityTransform):
    pass


class _Inherited(StateActionToTensor):
    pass


@pytest.mark.parametrize("foreign", [_Foreign(), _Inherited([]), ComposedModalityTransform([_Foreign()])])
def test_transforms_from_elsewhere_keep_a_chain_on_the_host(foreign):
    assert not ComposedModalityTransform([StateActionToTensor([]), foreign]).device_generic


def test_a_quaternion_without_length_is_refused_before_anything_is_sent(metadata):
    key = "state.arm"
    chain = ComposedModalityTransform([StateActionTransform([key], target_rotations={key: "rotation_6d"})])
    chain.set_metadata(type(metadata)("gr1", {}, {"arm": PartInfo(4, rotation_type="quaternion")}, {}, {}, {}))
    good = np.array([[[1.0, 0, 0, 0]], [[0, 0, 0, -1.0]]])
    chain.check({key: good})
    with pytest.raises(ObservationError, match=r"state\.arm holds a quaternion of length 0"):
        chain.check({key: good * [[[1]], [[0]]]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_rotations_need_no_matrix_kernel(dtype):
    angles = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    a, b = _about_axis(0, angles[0]), _about_axis(2, angles[1])
    torch.testing.assert_close(_product(a, b), a @ b, rtol=0, atol=torch.finfo(dtype).eps)


# --- copies ---


def request_of(seed: int, batch: int = 1, size: int = 5) -> dict:
    r = random(seed)
    return {
        "video.a": r.integers(0, 256, (batch, 1, size, 3, 3), dtype=np.uint8),
        "state.a": r.normal(size=(batch, 1, 3)).astype(np.float32),
        "state.b": r.normal(size=(batch, 1, 7)),
        "annotation.task": ["go"] * batch,
    }


def assert_same(sent: dict, given: dict) -> None:
    assert sent.keys() == given.keys()
    for key, value in given.items():
        if isinstance(value, np.ndarray):
            assert sent[key].numpy().dtype == value.dtype
            np.testing.assert_array_equal(sent[key].numpy(), value)
        else:
            assert sent[key] == value


def test_requests_do_not_see_each_other_while_shapes_and_batches_change():
    transfer = DeviceTransfer("cpu")
    given = [request_of(0), request_of(1), request_of(2, batch=3), request_of(3, size=9), request_of(4)]
    sent = [transfer.send(request) for request in given]
    for there, here in zip(sent, given, strict=True):
        assert_same(there, here)


def test_an_observation_in_any_memory_order_is_packed():
    flipped = {
        "video.a": np.arange(54, dtype=np.uint8).reshape(1, 1, 3, 6, 3)[..., ::-1],
        "state.a": np.ones((1, 1, 0)),
    }
    assert_same(DeviceTransfer("cpu").send(flipped), flipped)
    assert DeviceTransfer("cpu").send({"annotation.task": ["go"]}) == {"annotation.task": ["go"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_was_fetched_belongs_to_the_caller(dtype):
    transfer = DeviceTransfer("cpu")
    there = torch.arange(12.0).reshape(1, 4, 3)[..., 1:].to(dtype)
    first = transfer.fetch(there)
    for other in (there * 0 - 1, torch.ones(3, 100), torch.ones(0, 2)):
        assert torch.equal(transfer.fetch(other), other)
    assert first.dtype == dtype
    assert torch.equal(first, there)
    first.zero_()
    assert there.any()


class _Late(_Staging):
    """A stream that copies only when somebody waits for it."""

    pending = None

    def copy(self, source, target):
        self.pending = (source, target)
        return target

    def wait(self):
        if self.pending:
            self.pending[1].copy_(self.pending[0])
            self.pending = None


def test_memory_is_written_again_only_after_the_copy_that_reads_it():
    transfer = DeviceTransfer("cpu")
    transfer._there, transfer._back = _Late(CPU), _Late(CPU)
    given = [request_of(seed) for seed in range(3)]
    sent = [transfer.send(request) for request in given]
    transfer._there.wait()
    for there, here in zip(sent, given, strict=True):
        assert_same(there, here)
    assert torch.equal(transfer.fetch(torch.arange(6.0)), torch.arange(6.0))


def test_a_gpu_gets_pinned_memory_and_an_event_after_each_copy(monkeypatch):
    log = []

    class Event:
        def record(self, stream):
            log.append(f"record on {stream}")

        def synchronize(self):
            log.append("wait")

    empty = torch.empty

    def pinned(*size, pin_memory=False, **kwargs):
        log.append(f"pinned {pin_memory}")
        return empty(*size, **kwargs)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    staging = _Staging(torch.device("cuda:1"))
    monkeypatch.setattr(torch, "empty", pinned)
    for _ in range(2):
        host = staging.take(4)
        staging.copy(host, empty(4, dtype=torch.uint8))
    assert log == ["wait", "pinned True", "record on stream of cuda:1", "wait", "record on stream of cuda:1"]

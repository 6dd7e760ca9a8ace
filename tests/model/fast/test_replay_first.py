"""A request like an earlier one is launched before anything is looked at, and given out only if all of it was right."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_graphs import FakeCapturer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gr00t_trt.errors import ObservationError
from gr00t_trt.model import Gr00tN1d5
from gr00t_trt.model.n1_5.fast import CudaCapturer, FastGr00tN1d5, RequestGraphs, input_block, restructure
from gr00t_trt.model.n1_5.fast.input_block import InputBlock
from gr00t_trt.model.n1_5.inputs import EMBODIMENT, IDS, MASK, PIXELS, STATE
from gr00t_trt.model.n1_5.synthetic import fill_synthetic, tiny_config
from gr00t_trt.model.n1_5.weight_watch import WeightWatch

pytestmark = pytest.mark.usefixtures("one_warm_call")

CALLS = 4
"""Calls into torch that a request may make before its graph is launched."""

LAUNCHED_US = 150
"""Twice what it takes, which is mostly the copying of pixels, and a quarter of what looking at everything first takes:
tests share their cores, and `CALLS` is the sharper bound."""


def noise(seed: int = 7) -> Tensor:
    return torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(seed))


def act(model: Any, inputs: dict[str, Tensor], start: Tensor | None = None) -> Tensor:
    return model.get_action(inputs, noise=noise() if start is None else start)["action_pred"]


def fresh(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in inputs.items()}


@pytest.fixture
def pair(reference: Gr00tN1d5, make_request) -> Iterator[tuple[FastGr00tN1d5, FakeCapturer]]:
    """A restructured model whose request `make_request(1)` was captured and answered once."""
    model, capturer = restructure(copy.deepcopy(reference)), FakeCapturer()
    model.graphs = RequestGraphs(model, capturer, tolerance=1e-5)
    assert model.graphs.capture(model.prepare(make_request(1)), noise()) is None
    act(model, make_request(1))
    capturer.replays = 0
    return model, capturer


def same(model: FastGr00tN1d5, inputs: dict[str, Tensor], start: Tensor | None = None) -> None:
    """Asserts that the answer is that of a plain model with the weights of today."""
    expected = act(model._plain[0], inputs, start)
    torch.testing.assert_close(act(model, inputs, start), expected, atol=1e-5, rtol=0)


# --- what comes before the launch


class Functions(TorchFunctionMode):
    """Names of the calls into torch inside, without the reading of attributes such as shape, and without `no_grad`."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in ("__get__", "_set_grad_enabled"):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prepare", [lambda x: x, fresh], ids=["the same tensors", "equal tensors"])
def test_little_is_called_before_the_launch(pair, make_request, monkeypatch, prepare: Callable[..., Any]) -> None:
    model, _ = pair
    inputs, before = make_request(1), list[tuple[int, int]]()
    inputs[STATE] = inputs[STATE].double()  # as a policy's transforms give it
    act(model, inputs)
    kept = next(iter(model.graphs._kept.values()))
    monkeypatch.setattr(kept.graph, "replay", lambda: before.append((len(functions.names), len(operators.names))))
    looks = list[str]()
    for name in ("tensors_intact", "values_intact"):
        monkeypatch.setattr(WeightWatch, name, lambda self, name=name: not looks.append(f"{name} after {len(before)}"))
    inputs, start = prepare(inputs), noise()
    with Functions() as functions, Operators() as operators:
        act(model, inputs, start)
    assert len(before) == 1
    assert max(before[0]) <= CALLS, functions.names[: before[0][0]]
    assert looks == ["tensors_intact after 1", "values_intact after 1"]


@pytest.fixture(scope="module")
def deep() -> FastGr00tN1d5:
    """As many layers, and so as many tensors, as the released model has, each a narrow one."""
    tiny = tiny_config()
    head = tiny.action_head
    config = dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(tiny.backbone, select_layer=12),
        eagle=dataclasses.replace(
            tiny.eagle,
            text=dataclasses.replace(tiny.eagle.text, num_hidden_layers=12),
            vision=dataclasses.replace(tiny.eagle.vision, num_hidden_layers=27),
        ),
        action_head=dataclasses.replace(
            head,
            num_inference_timesteps=1,
            diffusion=dataclasses.replace(head.diffusion, num_layers=16),
            vl_self_attention=dataclasses.replace(head.vl_self_attention, num_layers=4),
        ),
    )
    model = Gr00tN1d5(config)
    fill_synthetic(model, dtype=torch.float32, device=torch.device("cpu"))
    return restructure(model.eval().requires_grad_(False))


def test_the_launch_comes_soon_whatever_the_number_of_weights(deep: FastGr00tN1d5, make_request) -> None:
    assert len(list(deep._plain[0].parameters())) == 887
    inputs, start, launched = make_request(1), noise(), [0.0]
    deep.graphs = RequestGraphs(deep, FakeCapturer(), tolerance=1e-4)
    assert deep.graphs.capture(deep.prepare(inputs), start) is None
    for kept in deep.graphs._kept.values():
        kept.graph.replay = lambda: launched.__setitem__(0, time.perf_counter())
    medians = []
    for _ in range(3):  # others may have the cores for a while
        taken = []
        for _ in range(40):
            began = time.perf_counter()
            act(deep, inputs, start)
            taken.append((launched[0] - began) * 1e6)
        medians.append(statistics.median(taken))
    assert min(medians) < LAUNCHED_US


# --- what is found out afterwards


def test_a_prompt_written_over_in_place_is_not_answered_as_the_old_one(pair, make_request) -> None:
    model, capturer = pair
    inputs, other = make_request(1), make_request(1, seed=1)
    same(model, inputs)
    for key in (IDS, EMBODIMENT, MASK):
        inputs[key].numpy()[...] = other[key].numpy() if key == IDS else {EMBODIMENT: 3, MASK: 0}[key]
        same(model, inputs)
    inputs[IDS][0, 0] = model.config.vocab_size
    with pytest.raises(ObservationError, match="outside the vocabulary"):
        act(model, inputs)
    assert capturer.captured == 1


def test_prompts_in_turn_are_each_launched_at_once(pair, make_request) -> None:
    model, capturer = pair
    requests = [make_request(1, seed=seed) for seed in range(3)]
    for _ in range(2):
        for request in requests:
            same(model, fresh(request), noise(int(request[STATE][0, 0, 0] * 1e6)))
    # Nothing was launched for another prompt than that of its request.
    assert capturer.replays == 6


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (STATE, torch.full((1, 1, 64), torch.nan), "state: nan"),
        (PIXELS, torch.full((1, 3, 224, 224), torch.inf), "eagle_pixel_values: inf"),
        (PIXELS, torch.zeros(1, 3, 8, 8), r"eagle_pixel_values: shape \(1, 3, 8, 8\)"),
        (STATE, torch.zeros(2, 1, 64), "state: batch 2"),
        (STATE, torch.zeros(1, 1, 64, dtype=torch.int64), "state: dtype int64"),
        (STATE, None, "state: a NoneType"),
        (IDS, [1, 2], "eagle_input_ids: a list"),
    ],
)
def test_bad_inputs_are_refused_as_ever(pair, make_request, key: str, value: Any, words: str) -> None:
    model, _ = pair
    act(model, make_request(1))
    with pytest.raises(ObservationError, match=words):
        act(model, {**make_request(1), key: value})
    with pytest.raises(ObservationError, match="noise: shape"):
        act(model, make_request(1), torch.zeros(1, 8, 32))
    with pytest.raises(ObservationError, match="model inputs: no"):
        model.get_action([])
    same(model, make_request(1))


def test_other_dtypes_are_answered_as_fp32(pair, make_request) -> None:
    model, capturer = pair
    inputs = make_request(1)
    for dtype in (torch.float64, torch.bfloat16):
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        same(model, cast, noise().to(dtype))
    same(model, {**inputs, STATE: inputs[STATE].double()})  # what a policy's transforms give
    same(model, {**inputs, IDS: inputs[IDS].int(), MASK: inputs[MASK].bool()})
    same(model, inputs, (noise() * 3).long())
    assert capturer.replays == 5


def test_steps_loop_and_horizon_are_looked_at_before_the_launch(pair, make_request) -> None:
    model, capturer = pair
    inputs = make_request(1)
    for name, value in (("denoising_steps", 3), ("action_horizon", 8), ("loop", "denoise_step")):
        before = getattr(model, name)
        setattr(model, name, value)
        same(model, inputs, noise()[:, : model.action_horizon])
        assert capturer.replays == 0, name
        setattr(model, name, before)


@pytest.mark.parametrize("given", [True, False])
def test_an_answer_thrown_away_is_given_anew_from_the_same_noise(pair, make_request, given: bool) -> None:
    model, capturer = pair
    inputs = make_request(1)
    start = noise() if given else None
    for how in ("read", "kept"):
        head = model.action_head
        weight = head.model.transformer_blocks[0].ff.net[2].weight if how == "read" else head.action_encoder.W1.W
        weight.data = weight.data * 1.5
        torch.manual_seed(5)
        drawn = torch.randn(1, 16, 32) if start is None else start
        torch.manual_seed(5)
        answer = model.get_action(inputs, noise=start)["action_pred"]
        torch.testing.assert_close(answer, act(model._plain[0], inputs, drawn), atol=1e-5, rtol=0)
    # Twice launched with the old weights, compared and replayed with the new ones.
    assert capturer.replays == 2 * (1 + 2 + 1)


# --- memory


def test_a_graph_keeps_every_weight_that_it_reads_alive(pair, make_request) -> None:
    model, _ = pair
    kept = next(iter(model.graphs._kept.values()))
    plain = model._plain[0]
    read = {t.untyped_storage().data_ptr() for t in (*plain.parameters(), *plain.buffers())}
    fused = [t for stage in model._eager.values() for t in stage.parameters()]
    read |= {t.untyped_storage().data_ptr() for t in fused}
    held = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_iter(kept.constants[0][0])}
    assert read <= held
    for parameter in plain.parameters():
        parameter.data = parameter.data.clone()
    assert {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_iter(kept.constants[0][0])} == held


@pytest.mark.parametrize("change", [lambda m: m.double(), lambda m: m.refresh(), lambda m: m.reset_stages()])
def test_graphs_of_other_weights_are_given_up_at_once(pair, make_request, change: Callable[[Any], None]) -> None:
    model, _ = pair
    change(model)
    assert len(model.graphs) == 0
    assert model.graphs._known == {}
    assert model.graphs._last is None


def test_no_graph_outlives_weights_written_elsewhere(pair, make_request) -> None:
    model, _ = pair
    longer = make_request(1, words=24)
    assert model.graphs.capture(model.prepare(longer), noise()) is None
    assert len(model.graphs) == 2
    model._plain[0].double().float()
    same(model, make_request(1, words=30))  # not captured, and yet the old weights' memory is free
    assert len(model.graphs) == 0
    same(model, longer)
    assert len(model.graphs) == 1


# --- the block of memory


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []

    class Event:
        def record(self, stream: object) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

    empty = torch.empty

    def pinned(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        log.append(f"pinned {pin_memory}")
        return empty(*size, **options)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(input_block.torch, "empty", pinned)
    return log


def values(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((1, 3, 5, 7), (2, 1, 64), (2, 16, 32))]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_block_holds_each_tensor_aligned_and_takes_new_values(told, pinned: bool) -> None:
    block = InputBlock(values(0), pinned=pinned)
    addresses = [t.data_ptr() for t in block.tensors]
    assert [(a - addresses[0]) % 256 for a in addresses] == [0, 0, 0]
    for seed in range(3):
        if seed:
            block.fill([t.t().contiguous().t() if t.ndim == 2 else t for t in values(seed)])
        assert all(map(torch.equal, block.tensors, values(seed)))
        assert [t.data_ptr() for t in block.tensors] == addresses


def test_host_memory_reaches_a_gpu_by_one_copy_from_pinned_memory(told) -> None:
    block, given = InputBlock(values(0), pinned=True), values(1)
    told.clear()
    for _ in range(2):
        with Operators() as operators:
            block.fill(given)
        assert operators.names[-2:] == ["aten::_foreach_copy_", "aten::copy_"]
    assert told == ["wait", "pinned True", "record", "wait", "record"]
    told.clear()
    elsewhere = [given[0], *(t.to("meta") for t in given[1:])]
    with pytest.raises(NotImplementedError, match="meta"), Operators() as operators:
        block.fill(elsewhere)  # each by a copy of its own, which nothing can make from the meta device
    assert operators.names == ["aten::_foreach_copy_"] * 2


# --- on a GPU


@pytest.fixture
def on_gpu(reference: Gr00tN1d5) -> FastGr00tN1d5:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = restructure(copy.deepcopy(reference).to("cuda"))
    model.graphs = RequestGraphs(model, CudaCapturer(torch.device("cuda")), tolerance=1e-3, on_demand=True)
    return model


def test_a_launch_on_memory_that_was_given_up_does_no_harm(on_gpu, make_request) -> None:
    inputs = make_request(1)
    for _ in range(2):
        act(on_gpu, inputs)
        for parameter in on_gpu._plain[0].parameters():
            parameter.data = parameter.data * 1.1
        torch.cuda.empty_cache()
        torch.testing.assert_close(act(on_gpu, inputs), act(on_gpu._plain[0], inputs), atol=1e-3, rtol=0)


def test_inputs_reach_a_graph_from_wherever_they_lie_and_on_any_stream(on_gpu, make_request) -> None:
    act(on_gpu, make_request(1))
    for seed, away in enumerate(((), (PIXELS,), (PIXELS, STATE), (STATE,))):
        inputs = make_request(1, seed=seed)
        expected = act(on_gpu._plain[0], inputs, noise(seed))
        moved = {key: value.cuda() if key in away else value for key, value in inputs.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            answers = [act(on_gpu, moved, start).cpu() for start in (noise(seed), noise(seed).cuda())]
        for answer in answers:
            torch.testing.assert_close(answer, expected.cpu(), atol=1e-3, rtol=0)
    assert len(on_gpu.graphs) == 1

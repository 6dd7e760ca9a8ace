"""However weights are written, the next request is answered from the new ones, or refused; never from a mixture."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_graphs import FakeCapturer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gr00t_trt.errors import PlanError
from gr00t_trt.model import Gr00tN1d5
from gr00t_trt.model.n1_5 import weight_watch
from gr00t_trt.model.n1_5.fast import CudaCapturer, FastGr00tN1d5, RequestGraphs, restructure
from gr00t_trt.model.n1_5.weight_watch import WeightWatch

pytestmark = pytest.mark.usefixtures("one_warm_call")

Act = Callable[[], Tensor]

FOLDED = "action_head.action_encoder.W1"
TABULATED = "action_head.model.transformer_blocks.0.norm1.linear"
EMBEDDED = "backbone.eagle_model.language_model.model.embed_tokens"
FUSED = "action_head.model.transformer_blocks.0.attn1.to_k"
READ = "action_head.model.transformer_blocks.0.attn1.to_out.0"
SELECTED = "action_head.action_decoder.layer2"
KINDS = {"folded": FOLDED, "tabulated": TABULATED, "embedded": EMBEDDED, "fused": FUSED, "read": READ, "row": SELECTED}
"""A module of each way in which the restructured model comes to a weight."""


def noise() -> Tensor:
    return torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture(params=["plain", "fast", "graphs"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def made(form: str, reference: Gr00tN1d5, make_request) -> tuple[Gr00tN1d5, Act]:
    """A plain model, and the answer of what was made from it, which has answered once."""
    plain = copy.deepcopy(reference)
    model: Any = plain if form == "plain" else restructure(plain)
    if form == "graphs":
        model.graphs = RequestGraphs(model, FakeCapturer(), tolerance=1e-3, on_demand=True)
    inputs = make_request(1)

    def act() -> Tensor:
        return model.get_action(inputs, noise=noise())["action_pred"]

    for _ in range(2):
        act()
    return plain, act


def parameter(model: nn.Module, kind: str) -> tuple[nn.Module, str, nn.Parameter]:
    module = model.get_submodule(KINDS[kind])
    name = "W" if hasattr(module, "W") else "weight"
    return module, name, getattr(module, name)


def changed(reference: Gr00tN1d5, names: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    state = {k: v + torch.randn(v.shape, generator=g) * 0.01 for k, v in reference.state_dict().items() if names(k)}
    return {**reference.state_dict(), **state}


def fresh(reference: Gr00tN1d5, state: dict[str, Tensor], make_request) -> Tensor:
    """What a model made from the new weights answers."""
    model = copy.deepcopy(reference)
    model.load_state_dict(state)
    return model.get_action(make_request(1), noise=noise())["action_pred"]


def replace_all(model: Gr00tN1d5, state: dict[str, Tensor], how: Callable[[nn.Module, str, Tensor], None]) -> None:
    for path, tensor in state.items():
        owner, _, name = path.rpartition(".")
        how(model.get_submodule(owner), name, tensor.clone())


def _through_data(module: nn.Module, name: str, new: Tensor) -> None:
    getattr(module, name).data.copy_(new)


def _added_to_data(module: nn.Module, name: str, new: Tensor) -> None:
    weight = getattr(module, name)
    weight.data += new - weight.data


def _other_data(module: nn.Module, name: str, new: Tensor) -> None:
    getattr(module, name).data = new


def _other_parameter(module: nn.Module, name: str, new: Tensor) -> None:
    setattr(module, name, nn.Parameter(new, requires_grad=False))


@torch.no_grad()
def _in_place(module: nn.Module, name: str, new: Tensor) -> None:
    getattr(module, name).copy_(new)


WAYS = [_through_data, _added_to_data, _other_data, _other_parameter, _in_place]


@pytest.mark.parametrize("way", WAYS)
def test_all_weights_written(made, reference, make_request, way) -> None:
    plain, act = made
    state = changed(reference)
    replace_all(plain, state, way)
    for _ in range(2):
        torch.testing.assert_close(act(), fresh(reference, state, make_request), atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_weights_written_before_the_first_request(reference, make_request, way) -> None:
    plain = copy.deepcopy(reference)
    model, state = restructure(plain), changed(reference)
    replace_all(plain, state, way)
    answer = model.get_action(make_request(1), noise())["action_pred"]
    torch.testing.assert_close(answer, fresh(reference, state, make_request), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["fast", "graphs"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [_through_data, _other_parameter])
def test_one_weight_written(made, reference, make_request, way, kind: str) -> None:
    plain, act = made
    before = act()
    state = changed(reference, lambda name: name.startswith(KINDS[kind]))
    module, name, _ = parameter(plain, kind)
    way(module, name, state[f"{KINDS[kind]}.{name}"])
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    after = act()
    torch.testing.assert_close(after, fresh(reference, state, make_request), atol=1e-5, rtol=0)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("assign", [True, False])
def test_weights_loaded_into_the_plain_model(made, reference, make_request, assign: bool) -> None:
    plain, act = made
    state = changed(reference)
    plain.load_state_dict({key: value.clone() for key, value in state.items()}, assign=assign)
    torch.testing.assert_close(act(), fresh(reference, state, make_request), atol=1e-5, rtol=0)


@pytest.mark.parametrize("assign", [True, False])
def test_the_plain_model_cast(made, reference, make_request, assign: bool) -> None:
    plain, act = made
    before = act()
    if assign:
        plain.load_state_dict({key: value.bfloat16() for key, value in plain.state_dict().items()}, assign=True)
    else:
        plain.bfloat16()
    cast = copy.deepcopy(reference).bfloat16()
    expected = cast.get_action(make_request(1), noise=noise())["action_pred"]
    assert not torch.equal(act(), before)
    # Two ways to the same sums in bf16 differ by its rounding.
    assert float((act() - expected).norm() / (expected - noise()).norm()) < 0.05


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Adapted(nn.Module):
    """As an adapter wraps a layer."""

    def __init__(self, inside: nn.Module):
        super().__init__()
        self.inside, self.weight = inside, inside.weight

    def forward(self, *args: Tensor) -> Tensor:
        return 2 * self.inside(*args)


@pytest.mark.parametrize("form", ["plain", "fast"], indirect=True)
@pytest.mark.parametrize("kind", ["tabulated", "embedded", "fused", "read"])
@pytest.mark.parametrize("way", ["parametrized", "wrapped"])
def test_a_module_that_computes_its_weight_is_refused(made, form: str, reference, make_request, kind, way) -> None:
    plain, act = made
    path = KINDS[kind]
    before, module = act(), plain.get_submodule(path)
    if way == "parametrized":
        parametrize.register_parametrization(module, "weight", Doubled())
    else:
        plain.set_submodule(path, Adapted(module))
    if form == "plain":
        assert not torch.equal(act(), before)
        with pytest.raises(PlanError, match=f"(?s){path} is a .*merge adapters"):
            restructure(plain)
        return
    for _ in range(2):
        with pytest.raises(PlanError, match="replaced or parametrized"):
            act()
    if way == "parametrized":
        parametrize.remove_parametrizations(module, "weight")
    else:
        plain.set_submodule(path, module)
        module.weight.data *= 2
    merged = restructure(plain).get_action(make_request(1), noise=noise())["action_pred"]
    torch.testing.assert_close(merged, fresh(reference, plain.state_dict(), make_request), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["folded", "row", "embedded"])
def test_one_number_written_through_data_is_seen_in_its_turn(reference, make_request, kind: str, monkeypatch) -> None:
    monkeypatch.setattr(weight_watch, "TURNS", 20)
    plain = copy.deepcopy(reference)
    model, inputs = restructure(plain), make_request(1)
    model.get_action(inputs, noise=noise())
    _, _, weight = parameter(plain, kind)
    where = (int(inputs["eagle_input_ids"][0, 0]), 3) if kind == "embedded" else (24, 5, 1)
    weight.data[where] += 0.5
    expected = fresh(reference, plain.state_dict(), make_request)
    watch = model._watch
    assert 10 < watch.turns < 100
    for _ in range(watch.turns):
        answer = model.get_action(inputs, noise=noise())["action_pred"]
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)
    weight.data[where] += 0.5
    model.refresh()
    torch.testing.assert_close(
        model.get_action(inputs, noise=noise())["action_pred"],
        fresh(reference, plain.state_dict(), make_request),
        atol=1e-5,
        rtol=0,
    )


def test_a_prepared_request_does_not_outlive_the_weights(reference, make_request) -> None:
    plain = copy.deepcopy(reference)
    model = restructure(plain)
    x = model.prepare(make_request(1))
    model.get_action(x, noise())
    plain.get_submodule(EMBEDDED).weight.data *= 0.9
    with pytest.raises(PlanError, match="older than the model's weights"):
        model.get_action(x, noise())
    with pytest.raises(PlanError, match="prepare it again"):
        RequestGraphs(model, FakeCapturer(), tolerance=1e-3).capture(x, noise())
    model.get_action(model.prepare(make_request(1)), noise())


# --- stages that may hold copies of the weights


@pytest.fixture(params=["plain", "fast"])
def compiled(request: pytest.FixtureRequest, reference: Gr00tN1d5) -> Any:
    """A model one of whose stages computes with the weights of the day on which it was made."""
    model: Any = copy.deepcopy(reference)
    model = model if request.param == "plain" else restructure(model)
    engine = copy.deepcopy(model.eager_stage("vision_model"))
    model.stages["vision_model"] = lambda *args: engine(*args)
    return model


@pytest.mark.parametrize("way", WAYS)
def test_changed_weights_and_a_compiled_stage_are_refused(compiled, reference, make_request, way) -> None:
    inputs = make_request(1)
    before = compiled.get_action(inputs, noise())["action_pred"]
    state = changed(reference, lambda name: name.startswith(READ))
    replace_all(compiled, {key: state[key] for key in state if key.startswith(READ)}, way)
    for _ in range(2):
        with pytest.raises(PlanError, match="changed after vision_model had been compiled"):
            compiled.get_action(inputs, noise())
    compiled.reset_stages()
    torch.testing.assert_close(
        compiled.get_action(inputs, noise())["action_pred"], fresh(reference, state, make_request), atol=1e-5, rtol=0
    )
    compiled.load_state_dict(reference.state_dict())
    compiled.stages["vision_model"] = copy.deepcopy(compiled.eager_stage("vision_model"))
    torch.testing.assert_close(compiled.get_action(inputs, noise())["action_pred"], before, atol=1e-5, rtol=0)


def test_weights_that_only_moved_are_the_same(compiled, make_request) -> None:
    inputs = make_request(1)
    before = compiled.get_action(inputs, noise())["action_pred"]
    compiled.double().float()
    replace_all(compiled, dict(compiled.state_dict()), _other_parameter)
    torch.testing.assert_close(compiled.get_action(inputs, noise())["action_pred"], before, atol=1e-5, rtol=0)
    copied = copy.deepcopy(compiled)
    torch.testing.assert_close(copied.get_action(inputs, noise())["action_pred"], before, atol=1e-5, rtol=0)


def test_stages_that_come_and_go_are_known_again(compiled, make_request, monkeypatch) -> None:
    inputs, made = make_request(1), []
    real = weight_watch.WeightWatch
    monkeypatch.setattr(
        "gr00t_trt.model.n1_5.compiled_stages.WeightWatch", lambda model: (made.append(model), real(model))[1]
    )
    engine = compiled.stages["vision_model"]
    for _ in range(3):
        compiled.stages["vision_model"] = engine
        compiled.get_action(inputs, noise())
        compiled.reset_stages()
        compiled.get_action(inputs, noise())
    assert len(made) == 1
    parameter(compiled, "read")[2].data.mul_(2)
    compiled.get_action(inputs, noise())  # in PyTorch
    again = copy.deepcopy(compiled.eager_stage("vision_model"))
    compiled.stages["vision_model"] = again  # compiled from the new weights
    compiled.get_action(inputs, noise())
    compiled.stages["vision_model"] = engine
    with pytest.raises(PlanError, match="vision_model had been compiled"):
        compiled.get_action(inputs, noise())
    compiled.stages["vision_model"] = again
    compiled.get_action(inputs, noise())


def test_a_recording_takes_no_stage_for_compiled(reference, make_request, monkeypatch) -> None:
    made: list[object] = []
    monkeypatch.setattr("gr00t_trt.model.n1_5.compiled_stages.WeightWatch", lambda model: made.append(model))
    for model in (copy.deepcopy(reference), restructure(copy.deepcopy(reference))):
        model.record(make_request(1), noise())
        model.get_action(make_request(1), noise())
    assert made == []


# --- the watch by itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (64, 64), (33, 7, 5)])
def test_every_place_of_a_tensor_is_seen_in_its_turn(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape).to(dtype))
    module.register_buffer("odd", torch.zeros(3, dtype=torch.bool))
    watch = WeightWatch(module)
    numbers = module.weight.data.view(-1)
    assert watch.values_intact()
    for i in {0, len(numbers) // 2, len(numbers) - 1}:
        numbers[i] += 1
        assert not all(watch.values_intact() for _ in range(watch.turns))
        numbers[i] -= 1
        watch = WeightWatch(module)
    module.odd.data[1] = True
    assert watch.tensors_intact()
    assert not watch.values_intact()


def test_exchanged_rows_are_seen() -> None:
    module = nn.Linear(8, 4096, bias=False)
    watch = WeightWatch(module)
    module.weight.data[[1000, 1002]] = module.weight.data[[1002, 1000]]
    assert not all(watch.values_intact() for _ in range(watch.turns))
    assert not WeightWatch(module).equals(watch)


def test_what_lies_behind_a_transposed_or_strided_weight_is_seen() -> None:
    module = nn.Module()
    module.a = nn.Parameter(torch.randn(6, 4).t())
    module.b = nn.Parameter(torch.randn(8, 6)[::2, :3])
    for weight in (module.a, module.b):
        watch = WeightWatch(module)
        weight.data[-1, -1] = 9
        assert watch.tensors_intact()
        assert not watch.values_intact()


def test_a_gpu_is_read_beside_the_request_and_not_while_it_is_captured(monkeypatch) -> None:
    told: list[str] = []
    capturing = False

    class Stream:
        def __init__(self, device: object):
            self.name = "own" if device is not None else "caller"

        def wait_event(self, event: Event) -> None:
            told.append(f"{self.name} waits for {event.at}")

    class Event:
        def record(self, stream: Stream) -> None:
            self.at = f"{stream.name} until the request"

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        told.append(f"on {stream.name}")
        yield

    fakes = {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device: Stream(None),
        "is_current_stream_capturing": lambda: capturing,
        "device": lambda device: contextlib.nullcontext(),
        "stream": on,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    beside = weight_watch.Beside(torch.device("cuda:0"))
    beside.mark()
    assert torch.equal(beside.read(lambda: torch.ones(2)), torch.ones(2))
    assert told == ["on own", "own waits for caller until the request"]
    capturing = True
    beside.mark()
    assert beside.read(lambda: torch.ones(2)) is None
    assert len(told) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_write_through_data_on_a_gpu_is_seen_by_the_same_request(reference, make_request) -> None:
    plain = copy.deepcopy(reference).to("cuda")
    model = restructure(plain)
    model.graphs = RequestGraphs(model, CudaCapturer(torch.device("cuda")), tolerance=1e-3, on_demand=True)
    start = noise().to("cuda")
    for _ in range(2):
        before = model.get_action(make_request(1), start)["action_pred"]
    for kind in KINDS:
        parameter(plain, kind)[2].data += 0.01
    after = model.get_action(make_request(1), start)["action_pred"]
    expected = fresh(reference, {k: v.cpu() for k, v in plain.state_dict().items()}, make_request)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after.cpu(), expected, atol=1e-3, rtol=0)


def test_the_first_request_after_a_cast_makes_the_watch(reference, make_request) -> None:
    model: FastGr00tN1d5 = restructure(copy.deepcopy(reference))
    for name in ("dit_model", "language_model"):
        model.cast_stage(name, torch.float32)
    assert model._watch is None
    model.get_action(make_request(1), noise())
    assert model._watch is not None

"""Requests answered by graphs: always what the plain model answers, whatever changes in between."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_graphs import FakeCapturer, FakeGraph, NotCapturable, Recorder
from torch import Tensor

from gr00t_trt.errors import ShapeError
from gr00t_trt.model import Gr00tConfig, Gr00tN1d5
from gr00t_trt.model.n1_5.fast import CudaCapturer, FastGr00tN1d5, RequestGraphs, restructure
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.plans.schema import LOOPS, OPTIMIZATIONS

pytestmark = pytest.mark.usefixtures("one_warm_call")

TOLERANCE = 1e-5


@dataclasses.dataclass
class Subject:
    """A restructured model answered by graphs, beside the plain one.

    Attributes:
        wasted: Replays that were launched and thrown away, as far as the test knows.
    """

    model: FastGr00tN1d5
    plain: Gr00tN1d5
    graphs: RequestGraphs
    capturer: FakeCapturer
    wasted: int = 0

    def check(self, inputs: dict[str, Tensor], noise: Tensor) -> Tensor:
        """The answer, which is the plain model's."""
        actions = self.model.get_action(inputs, noise=noise)["action_pred"]
        expected = self.plain.get_action(inputs, noise=noise)["action_pred"]
        assert float((actions - expected).abs().max()) < TOLERANCE
        return actions

    def start(self, inputs: dict[str, Tensor], noise: Tensor) -> str | None:
        return self.graphs.capture(self.model.prepare(inputs), noise)

    @property
    def counts(self) -> tuple[int, int]:
        """Captures, and requests answered by replay; comparing a capture takes two replays."""
        return self.capturer.captured, self.capturer.replays - 2 * self.capturer.captured - self.wasted


@pytest.fixture
def make(reference: Gr00tN1d5) -> Callable[..., Subject]:
    def made(precision: str = "fp32", optimizations: tuple[str, ...] = OPTIMIZATIONS, **options: Any) -> Subject:
        plain, capturer = copy.deepcopy(reference), FakeCapturer()
        model = restructure(copy.deepcopy(reference), optimizations=optimizations)
        model.graphs = RequestGraphs(model, capturer, tolerance=PRECISIONS[precision].graph_tolerance, **options)
        return Subject(model, plain, model.graphs, capturer)

    return made


def noise(batch: int, horizon: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(batch, horizon, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loop", LOOPS)
def test_replays_follow_every_input(make, make_request, loop: str) -> None:
    subject = make()
    subject.model.loop = loop
    inputs, other = make_request(2), make_request(2, seed=1)
    assert subject.start(inputs, noise(2)) is None
    answers = [subject.check(inputs, noise(2))]
    for key in ("eagle_pixel_values", "eagle_input_ids", "state"):
        answers.append(subject.check({**inputs, key: other[key]}, noise(2)))
    answers.append(subject.check(inputs, noise(2, seed=1)))
    answers.append(subject.check(other, noise(2, seed=2)))
    assert subject.counts == (1, 6)
    assert subject.graphs.max_rel_error == 0.0
    for i, answer in enumerate(answers):  # each is its own memory still, and none is another's
        assert not any(torch.equal(answer, before) for before in answers[:i])
    assert torch.equal(subject.check(inputs, noise(2)), answers[0])


@pytest.mark.parametrize(("loop", "folded"), [("denoise_step", True), ("denoise_loop", True), ("submodules", False)])
def test_one_graph_serves_every_combination_of_different_embodiments(
    make, make_request, loop: str, folded: bool
) -> None:
    subject = make(optimizations=tuple(name for name in OPTIMIZATIONS if folded or name != "constant_folding"))
    subject.model.loop = loop
    inputs = make_request(3)
    assert subject.start(inputs, noise(3)) is None
    combinations = ([24, 17, 31], [17, 24, 31], [24, 24, 17], [0, 31, 0], [24, 17, 31])
    answers = [subject.check({**inputs, "embodiment_id": torch.tensor(ids)}, noise(3)) for ids in combinations]
    assert subject.counts == (1, 5)
    assert torch.equal(answers[0], answers[-1])
    assert not any(torch.equal(answers[0], other) for other in answers[1:-1])
    # Seen before: it is launched before it is looked at, and stands.
    subject.check({**inputs, "embodiment_id": torch.tensor(combinations[2])}, noise(3, seed=1))
    assert subject.counts == (1, 6)
    # All of one embodiment is no matter of this graph. Weights that change end what was folded of them.
    subject.check({**inputs, "embodiment_id": torch.full((3,), 24)}, noise(3))
    assert subject.counts == (1, 6)
    for model in (subject.model, subject.plain):
        with torch.no_grad():
            model.action_head.action_decoder.layer2.W.mul_(0.5)
    subject.check(inputs, noise(3))
    assert subject.capturer.captured == 1 + folded


def test_whatever_shapes_a_request_is_captured_once_and_few_graphs_are_kept(make, make_request) -> None:
    subject = make(on_demand=True, limit=3)
    model, plain = subject.model, subject.plain
    first = (make_request(1), noise(1))
    variants = {
        "length": (make_request(1, words=24), noise(1)),
        "batch": (make_request(2), noise(2)),
        "views": (make_request(1, views=2), noise(1)),
        "padding": (make_request(2, padding=4), noise(2)),
        "embodiment": ({**make_request(1), "embodiment_id": torch.tensor([3])}, noise(1)),
    }
    subject.check(*first)
    for count, request in enumerate(variants.values(), 2):
        subject.check(*request)
        assert subject.counts == (count, count)
        assert len(subject.graphs) == min(count, 3)
    one = subject.graphs.input_bytes
    captured = subject.capturer.captured
    subject.check(*variants["embodiment"])
    subject.check({**variants["padding"][0], **make_request(2, padding=2)}, noise(2))  # another mask, the same graph
    assert subject.capturer.captured == captured
    for name, value in (("denoising_steps", 3), ("action_horizon", 8), ("loop", "submodules")):
        setattr(model, name, value)
        if name != "loop":
            setattr(plain, name, value)
        start = noise(1, model.action_horizon)
        for _ in range(2):
            subject.check(first[0], start)
        captured += 1
        assert subject.capturer.captured == captured
    assert len(subject.graphs) == 3
    assert 0 < subject.graphs.input_bytes < one


def test_padding_to_a_common_length_would_change_the_actions(reference: Gr00tN1d5, make_request) -> None:
    """Why every prompt length has a graph of its own."""
    inputs = make_request(1)
    expected = reference.get_action(inputs, noise=noise(1))["action_pred"]
    ids, mask = inputs["eagle_input_ids"], inputs["eagle_attention_mask"]
    for side in ((4, 0), (0, 4)):
        pad = torch.nn.functional.pad
        padded = {**inputs, "eagle_input_ids": pad(ids, side, value=5), "eagle_attention_mask": pad(mask, side)}
        actions = reference.get_action(padded, noise=noise(1))["action_pred"]
        assert float((actions - expected).abs().max()) > 10 * TOLERANCE


def test_without_leave_only_what_was_asked_for_is_captured(make, make_request) -> None:
    subject = make()
    subject.start(make_request(1), noise(1))
    for request in (make_request(1, words=22), make_request(2), make_request(1, seed=1)):
        subject.check(request, noise(len(request["state"])))
    assert subject.counts == (1, 1)


def test_noise_is_fresh_by_request_and_sample_and_follows_the_seed(make, make_request) -> None:
    subject = make()
    inputs = {key: value[:1].expand(2, *value.shape[1:]) for key, value in make_request(2).items()}
    subject.start(inputs, noise(2))
    torch.manual_seed(3)
    first, second = (subject.model.get_action(inputs)["action_pred"] for _ in range(2))
    assert float((first[0] - first[1]).abs().mean()) > 0.1
    assert float((first - second).abs().mean()) > 0.1
    torch.manual_seed(3)
    assert torch.equal(subject.model.get_action(inputs)["action_pred"], first)
    torch.manual_seed(3)
    assert torch.equal(subject.check(inputs, torch.randn(2, 16, 32)), first)
    assert subject.counts[0] == 1


def _in_place(model: Any) -> None:
    model.action_head.action_encoder.W1.W.mul_(1.1)
    model.backbone.eagle_model.language_model.model.embed_tokens.weight.mul_(0.9)
    model.action_head.model.transformer_blocks[0].attn1.to_q.weight.mul_(0.9)


def _loaded(model: Any) -> None:
    model.load_state_dict({key: value * 0.95 for key, value in model.state_dict().items()})


def _moved(model: Any) -> None:
    model.double().float()


@pytest.mark.parametrize("change", [_in_place, _loaded, _moved])
def test_changed_weights_are_captured_anew(make, make_request, change: Callable[[Any], None]) -> None:
    subject = make()
    inputs = make_request(1)
    subject.start(inputs, noise(1))
    before = subject.check(inputs, noise(1))
    with torch.no_grad():
        change(subject.model)
        change(subject.plain)
    after = subject.check(inputs, noise(1))
    assert (change is _moved) == torch.equal(before, after)
    subject.check(inputs, noise(1, seed=1))
    subject.wasted = int(change is _in_place)  # the others pass through the model, which gives its graphs up
    assert subject.counts == (2, 3)


def test_a_cast_model_is_compared_with_what_its_dtype_allows(make, make_request) -> None:
    subject = make("bf16")
    inputs = make_request(1)
    subject.model.cast_stage("dit_model", torch.bfloat16)
    assert subject.start(inputs, noise(1)) is None
    uncaptured = subject.model.run(subject.model.prepare(inputs), noise(1))
    assert torch.equal(subject.model.get_action(inputs, noise=noise(1))["action_pred"], uncaptured)
    assert subject.counts == (1, 1)
    least_exact = max(subject.model.stage_dtypes.values(), key=lambda dtype: torch.finfo(dtype).eps)
    assert least_exact == torch.bfloat16


def test_swapped_stages_are_captured_anew_or_refused(make, make_request) -> None:
    subject = make()
    model, inputs = subject.model, make_request(1)
    model.loop = "denoise_loop"
    subject.start(inputs, noise(1))
    eager = model.eager_stage("denoise_loop")
    model.stages["denoise_loop"] = lambda *args: eager(*args) * 2
    doubled = model.get_action(inputs, noise=noise(1))["action_pred"]
    model.reset_stages()
    torch.testing.assert_close(doubled, subject.check(inputs, noise(1)) * 2)
    subject.wasted = 1
    assert subject.counts == (3, 2)

    def waiting(*args: Tensor) -> Tensor:
        return eager(*args) if float(args[0].sum()) < 1e9 else args[0]

    model.stages["denoise_loop"] = waiting
    with pytest.warns(RuntimeWarning, match="no CUDA graph of this request: NotCapturable: .*waits for the device"):
        subject.check(inputs, noise(1))
    for seed in range(2):  # what was refused is not tried again, and warnings are errors here
        subject.check(inputs, noise(1, seed=seed))
    model.reset_stages()
    subject.check(inputs, noise(1))
    subject.wasted = 2
    assert subject.counts == (4, 3)


def _drop_last(graph: FakeGraph) -> None:
    del graph.calls[-1]


def _stale_noise(graph: FakeGraph) -> None:
    copies = {id(x): x.clone() for _, args, _, _ in graph.calls for x in args if getattr(x, "shape", ()) == (1, 16, 32)}
    graph.calls[:] = [(f, tuple(copies.get(id(x), x) for x in a), k, out) for f, a, k, out in graph.calls]


def _nan(graph: FakeGraph) -> None:
    func = torch.ops.aten.add.Tensor
    graph.calls.append((func, (graph.output, torch.full((1,), torch.nan)), {}, graph.output))


@pytest.mark.parametrize("spoil", [_drop_last, _stale_noise, _nan])
def test_a_graph_that_answers_differently_is_refused(make, make_request, spoil: Callable[[FakeGraph], None]) -> None:
    subject = make()
    subject.capturer.spoil = spoil
    reason = subject.start(make_request(1), noise(1))
    assert reason is not None
    assert "is off the uncaptured call by" in reason
    assert len(subject.graphs) == 0
    subject.check(make_request(1), noise(1))
    assert subject.counts == (1, 0)


def test_a_recording_sees_every_call_and_leaves_the_graphs(make, make_request) -> None:
    subject = make()
    subject.start(make_request(1), noise(1))
    recording, actions = subject.model.record(make_request(1), noise(1))
    assert len(recording["dit_model"]) == 2
    torch.testing.assert_close(actions, subject.check(make_request(1), noise(1)))
    assert subject.counts == (1, 1)


def test_errors_of_the_capture_are_reasons_and_errors_of_the_request_stay_errors(make, make_request) -> None:
    subject = make(on_demand=True)
    subject.capturer.fails = RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
    with pytest.warns(RuntimeWarning, match="RuntimeError: CUDA error: operation not permitted"):
        subject.check(make_request(1), noise(1))
    subject.check(make_request(1, seed=1), noise(1))

    def narrow(*args: Tensor) -> Tensor:
        raise ShapeError("vision_model: built for one image")

    subject.model.stages["vision_model"] = narrow
    with pytest.raises(ShapeError, match="built for one image"):
        subject.model.get_action(make_request(1))


def test_one_shape_at_a_time(make, make_request) -> None:
    subject = make(one_shape=True, on_demand=True)
    subject.start(make_request(1), noise(1))
    subject.check(make_request(1), noise(1))
    subject.check(make_request(1, words=22), noise(1))
    assert len(subject.graphs) == 0
    for seed in range(2):
        subject.check(make_request(1, seed=seed), noise(1))
    assert subject.counts == (2, 3)


def test_what_came_on_the_device_is_not_looked_up(make, make_request) -> None:
    subject = make(on_demand=True)
    x = subject.model.prepare(make_request(1))
    for there in (
        dataclasses.replace(x, embodiments=dataclasses.replace(x.embodiments, key=None)),
        dataclasses.replace(x, prompt=dataclasses.replace(x.prompt, image_rows=None)),
    ):
        assert "host memory" in subject.graphs.capture(there, noise(1))
        assert torch.equal(subject.graphs(there, noise(1)), subject.model.run(x, noise(1)))
    assert subject.counts == (0, 0)


def test_the_callers_tensors_stay_the_callers(make, make_request) -> None:
    subject = make()
    inputs = make_request(1)
    with torch.inference_mode():
        subject.start(inputs, noise(1))
        inside = subject.model.get_action(inputs, noise=noise(1))["action_pred"]
    expected = subject.check(inputs, noise(1))
    assert torch.equal(inside, expected)
    for value in inputs.values():
        value.zero_()
    expected_too = expected.clone()
    subject.check(make_request(1, seed=1), noise(1))
    assert torch.equal(expected, expected_too)
    assert subject.counts == (1, 3)


def test_threads_get_their_own_answers(make, make_request) -> None:
    subject = make()
    requests = [(make_request(1, seed=seed), noise(1, seed=seed)) for seed in range(4)]
    subject.start(*requests[0])
    failed: list[BaseException] = []

    def ask(request: tuple[dict[str, Tensor], Tensor]) -> None:
        try:
            subject.check(*request)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert subject.counts == (1, 4)


# --- what a real capture would refuse


@pytest.fixture(scope="module")
def weightless(shallow: Gr00tConfig) -> Gr00tN1d5:
    with torch.device("meta"):
        return Gr00tN1d5(shallow).half().requires_grad_(False)


WITHOUT = [(name, 0) for name in (None, *OPTIMIZATIONS) if name not in ("prompt_cache", "fused_projections")]


@pytest.mark.parametrize(("without", "padding"), [*WITHOUT, (None, 3)])
def test_nothing_on_the_path_waits_or_copies(
    weightless: Gr00tN1d5, reference: Gr00tN1d5, make_request, without: str | None, padding: int
) -> None:
    """The meta device stands in for a GPU: nothing can be read back from it, and host tensors differ from it. What
    is made there from host data leaves no trace, and does so on the CPU."""
    names = [name for name in OPTIMIZATIONS if name != without]
    for plain in (weightless, copy.deepcopy(reference)):
        model = restructure(plain, optimizations=names)
        inputs = make_request(2, padding=padding)
        inputs = {k: v.to(model.device) if v.is_floating_point() else v for k, v in inputs.items()}
        for model.loop in ("submodules", "denoise_loop"):  # a step alone has nothing of its own on the way to it
            x, start = model.prepare(inputs), torch.empty(2, 16, 32, device=model.device)
            model.constants(x, 16)
            with torch.no_grad(), Recorder() as recorder:
                actions = model.run(x, start)
            assert actions.device == model.device
            assert len(recorder.calls) > 100


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x.to("meta"),
        lambda x: bool((x > 0).all()),
    ],
)
def test_the_recorder_refuses_what_cuda_does(refused: Callable[[Tensor], object]) -> None:
    with pytest.raises(NotCapturable), Recorder():
        refused(torch.ones(3))


# --- the calls into torch.cuda, in their order


@pytest.fixture
def callers() -> list[str]:
    """The name of the stream that is current, in a list of one."""
    return ["caller"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, callers: list[str]) -> list[str]:
    """torch.cuda replaced by one that writes down what it is told."""
    log: list[str] = []

    @dataclasses.dataclass
    class Stream:
        name: object

        def __post_init__(self) -> None:
            self.name = "own" if isinstance(self.name, torch.device) else self.name

        def wait_event(self, event: Event) -> None:
            log.append(f"{self.name} waits for {event.after}")

    class Event:
        after = "nothing"

        def __init__(self) -> None:
            log.append("event made")

        def record(self, stream: Stream) -> None:
            self.after = stream.name

    @contextlib.contextmanager
    def inside(what: str) -> Iterator[None]:
        log.append(what)
        yield
        log.append(f"{what} ends")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    pools = iter("ABC")
    fakes: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device: Stream(callers[0]),
        "graph_pool_handle": lambda: next(pools),
        "CUDAGraph": Graph,
        "device": lambda device: contextlib.nullcontext(),
        "stream": lambda stream: inside(f"on {stream.name}"),
        "graph": lambda graph, pool, stream, capture_error_mode: inside(
            f"capture on {stream.name} into {pool}, {capture_error_mode}"
        ),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return log


def test_the_capturer_keeps_to_its_stream_and_pool(told: list[str]) -> None:
    capturer = CudaCapturer(torch.device("cuda:0"))
    assert told == ["event made"] * 2
    told.clear()
    with capturer.scope():
        graph = capturer.capture(lambda: torch.ones(1))
        graph.replay()
    capture = "capture on own into A, thread_local"
    assert told == [
        "own waits for caller", "own waits for nothing",
        "on own", capture, f"{capture} ends", "replay", "on own ends", "caller waits for own",
    ]  # fmt: skip
    assert torch.equal(graph.output, torch.ones(1))
    told.clear()
    with pytest.raises(RuntimeError, match="not permitted"), capturer.scope():
        capturer.capture(_not_permitted)
    assert told[-1] == "caller waits for own"


def test_a_replay_stays_on_the_callers_stream_and_waits_for_those_of_other_streams(told, callers) -> None:
    capturer = CudaCapturer(torch.device("cuda:0"))
    with capturer.scope():
        graph = capturer.capture(lambda: torch.ones(1))
    told.clear()
    for name, waits in (("caller", []), ("caller", []), ("other", ["other waits for caller"]), ("other", [])):
        callers[0] = name
        with capturer.turn():
            graph.replay()
        assert told == [*waits, "replay"], name
        told.clear()
    callers[0] = "caller"
    with capturer.scope():
        pass
    assert told == [
        "own waits for caller", "own waits for other", "on own", "on own ends", "caller waits for own",
    ]  # fmt: skip


def test_graphs_share_a_pool_that_lives_and_has_not_seen_a_failure(told: list[str]) -> None:
    capturer = CudaCapturer(torch.device("cuda:0"))

    def pool() -> str:
        return next(line for line in reversed(told) if line.startswith("capture")).split(" into ")[1][0]

    kept = [capturer.capture(lambda: torch.ones(1)) for _ in range(2)]
    assert pool() == "A"
    with pytest.raises(RuntimeError):
        capturer.capture(_not_permitted)
    assert pool() == "A"
    kept.append(capturer.capture(lambda: torch.ones(1)))
    assert pool() == "B"
    kept.clear()
    kept.append(capturer.capture(lambda: torch.ones(1)))
    assert pool() == "C"


def _not_permitted() -> Tensor:
    raise RuntimeError("operation not permitted")

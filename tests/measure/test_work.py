"""Counted work: half the operators per step, fewer FLOPs, and nothing counted twice."""

from __future__ import annotations

import pytest
import torch

from gr00t_trt.measure import work as module
from gr00t_trt.measure.roofline import ceilings
from gr00t_trt.measure.rows import ALL, OURS, PLAIN, planned
from gr00t_trt.measure.work import Counted, Counter, to_count
from gr00t_trt.measure.workloads import with_views
from gr00t_trt.model import load_config
from gr00t_trt.model.n1_5.inputs import EMBODIMENT, IDS, MASK, PIXELS, STATE
from gr00t_trt.record.result import Workload


def inputs_of(work: Workload) -> dict[str, torch.Tensor]:
    """40 other tokens and one view's, made larger as the rows' requests are; for the released geometry."""
    config = load_config("synthetic:full")
    ids = torch.cat((torch.arange(1, 41), torch.full((config.tokens_per_image,), config.image_token_index)))
    ids = ids.roll(-20).expand(work.batch, -1)
    one = {
        PIXELS: torch.zeros(work.batch, 3, 224, 224),
        IDS: ids,
        MASK: torch.ones_like(ids),
        STATE: torch.zeros(work.batch, 1, 64),
        EMBODIMENT: torch.zeros(work.batch, dtype=torch.int64),
    }
    return with_views(one, work.views, config.image_token_index)


def test_operators_per_step_are_halved() -> None:
    counter = Counter(load_config("synthetic:full"), "bf16", inputs_of)
    before, after = counter.operators_per_step(()), counter.operators_per_step(ALL)
    print(f"operators per denoising step: {before} plain, {after} restructured")
    assert before == 502
    assert after == 248
    assert after * 2 <= before


@pytest.fixture(scope="module")
def tiny(requests_) -> Counter:
    return Counter(load_config("synthetic"), "bf16", requests_.inputs)


def test_steps_cost_the_same_each(tiny: Counter) -> None:
    flops = [tiny.trace(Counted.of(OURS, Workload(steps=n))).flops for n in (1, 2, 4)]
    assert flops[2] - flops[1] == 2 * (flops[1] - flops[0]) > 0


def test_a_batch_shares_weights_and_not_activations(tiny: Counter) -> None:
    one, many = (tiny.trace(Counted.of(OURS, Workload(batch=n))) for n in (1, 4))
    assert many.flops == pytest.approx(4 * one.flops, rel=1e-6)
    assert many.weight_bytes < 1.5 * one.weight_bytes
    assert many.bytes - many.weight_bytes > 3.5 * (one.bytes - one.weight_bytes)


@pytest.mark.parametrize(
    ("form", "least", "most"),
    [("int8", 0.53, 0.6), ("fp8", 0.53, 0.6), ("nvfp4", 0.3, 0.4)],
    ids=["int8", "fp8", "nvfp4"],
)
def test_quantised_weights_have_the_bytes_of_their_format(
    form: str, least: float, most: float, tiny: Counter, requests_
) -> None:
    question = Counted.of(OURS, Workload())
    whole, quantised = tiny.trace(question), Counter(load_config("synthetic"), form, requests_.inputs).trace(question)
    assert quantised.flops == whole.flops
    assert quantised.bytes - quantised.weight_bytes == whole.bytes - whole.weight_bytes
    assert least < quantised.weight_bytes / whole.weight_bytes < most
    assert {product.arithmetic for product in quantised.products} == {"half", form}
    hopper, able = ceilings("NVIDIA H200"), ceilings("NVIDIA GeForce RTX 5090")
    assert (quantised.milliseconds(hopper) is None) == (form == "nvfp4")  # of which it has no products
    assert quantised.milliseconds(able) < whole.milliseconds(able)


def test_restructuring_saves_work_and_operators(tiny: Counter) -> None:
    plain, ours = (tiny.trace(Counted.of(candidate, Workload())) for candidate in (PLAIN, OURS))
    assert ours.flops < plain.flops
    assert ours.bytes < plain.bytes
    assert ours.operators < 0.7 * plain.operators


def test_counting_ahead_in_other_processes_gives_the_same_counts(tiny, requests_, monkeypatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    counter = Counter(load_config("synthetic"), "bf16", requests_.inputs)
    question = Counted.of(OURS, Workload(views=2))
    with counter.ahead([question], [ALL]):
        pass
    monkeypatch.setattr(module, "_traced", None)  # nothing is counted again
    monkeypatch.setattr(module, "_operators_per_step", None)
    ahead = counter.trace(question), counter.operators_per_step(ALL)
    monkeypatch.undo()
    assert ahead == (tiny.trace(question), tiny.operators_per_step(ALL))


def test_what_will_be_asked_is_counted_once() -> None:
    questions, steps = to_count(planned("cuda", ("vision_model",)))
    assert len(set(questions)) == len(questions)
    assert {question.work.steps for question in questions} == {1, 2, 4, 8}
    assert steps == [(), *(ALL[:n] for n in range(1, len(ALL) + 1))]

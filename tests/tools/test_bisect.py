"""A fault is put into a known layer or operator, and that one is named."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import Tensor, fx, nn

from gr00t_trt.common.progress import Steps
from gr00t_trt.errors import BackendError
from gr00t_trt.measure.harness import Harness
from gr00t_trt.measure.reference import take_reference
from gr00t_trt.measure.workloads import one_request
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.precisions import Gate
from gr00t_trt.plans.schema import Plan
from gr00t_trt.policy.policy import load_policy
from gr00t_trt.tools.bisect.program import main
from gr00t_trt.tools.bisect.search import first_layer, first_operator, layer_outputs

GATE = Gate(cosine=0.9999)


class Toy(nn.Module):
    """Six layers, one of which is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.body(x)))


@pytest.fixture
def target() -> Target:
    torch.manual_seed(0)
    return Target("toy", Toy().eval(), (torch.randn(3, 8),), ("x",), ({},))


def breaking(number: int, operator: str = "aten.gelu.default") -> Callable[[Target], Callable[..., Tensor]]:
    """A compiler that gets the operator wrong that is called `number` times before."""

    class Wrong(fx.Interpreter):
        def run_node(self, n: fx.Node):
            out = super().run_node(n)
            if str(n.target) == operator:
                self.count += 1
                return out * 1.0 + 0.5 * (self.count == number + 1)
            return out

        def run(self, *args):
            self.count = 0
            return super().run(*args)

    def build(cut: Target) -> Callable[..., Tensor]:
        assert isinstance(cut.module, fx.GraphModule)
        return Wrong(cut.module).run

    return build


@pytest.mark.parametrize("number", range(4))
def test_the_operator_that_a_compiler_gets_wrong_is_named(target: Target, number: int) -> None:
    built: list[str] = []
    found = first_operator(target, breaking(number), GATE, built.append)
    assert found is not None
    assert (found.name, found.layer) == ("aten.gelu.default", ("body.1", "body.3")[number % 2])
    assert found.place == 2 * number + 1
    assert found.count == 9
    assert found.before is not None
    assert found.before.exact
    assert len(built) <= 5  # the whole, and halvings of nine


def test_a_compiler_that_is_right_departs_nowhere(target: Target) -> None:
    assert first_operator(target, breaking(99), GATE, lambda _: None) is None


def test_the_layer_that_differs_is_named_and_not_those_after_it(target: Target) -> None:
    expected = layer_outputs(target.module, target.inputs)
    assert [name for name, _ in expected][:5] == ["body.0", "body.1", "body.2", "body.3", "body"]
    assert first_layer(expected, expected, GATE) is None
    other = copy.deepcopy(target.module)
    with torch.no_grad():
        other.body[2].bias += 0.5
    found = first_layer(expected, layer_outputs(other, target.inputs), GATE)
    assert found is not None
    assert (found.name, found.place, found.count) == ("body.2", 2, 11)
    assert found.before is not None
    assert found.before.exact
    assert "below the gate" in found.failures[0]


class Branching(nn.Module):
    """Its graph depends on numbers, so that none can be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_has_no_graph_is_told() -> None:
    target = Target("odd", Branching(), (torch.ones(2),), ("x",), ({},))
    with pytest.raises(BackendError, match="odd: it has no graph to cut"):
        first_operator(target, breaking(0), GATE, lambda _: None)


@pytest.fixture(scope="module")
def dit() -> Target:
    """The transformer of the tiny model, with the inputs of a request."""
    policy, steps = load_policy("synthetic"), Steps(Console(file=io.StringIO()), None)
    reference = take_reference(policy, one_request(policy, policy.example(), 0), [()], steps)
    harness = Harness(reference, Plan(backend="eager", precision="fp32"), steps)
    return harness.plain.target("dit_model", harness.recording(()), _dims(harness))


def _dims(harness: Harness):
    from gr00t_trt.compile.build import dimension_ranges

    return dimension_ranges(harness.plain.config, harness.plan.ranges, harness.reference.base)


def test_an_attention_that_is_wrong_is_found_in_the_transformer(dit: Target) -> None:
    attention = "aten.scaled_dot_product_attention.default"
    found = first_operator(dit, breaking(1, attention), GATE, lambda _: None)
    assert found is not None
    assert found.name == attention
    assert found.layer.startswith("blocks.1") or "transformer_blocks.1" in found.layer
    assert first_operator(dit, breaking(99, attention), GATE, lambda _: None) is None


QUICK = ["--model_path", "synthetic", "--dataset_path", "synthetic", "--fn_name", "dit_model"]


def test_a_precision_is_held_against_fp32_layer_by_layer(capsys) -> None:
    assert main([*QUICK, "--precision", "bf16", "--cosine", "0.99999"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("dit_model: its precision, in eager PyTorch, leaves fp32 at ")
    assert "is below the gate 0.99999" in out
    assert main([*QUICK, "--precision", "bf16"]) == 0
    assert capsys.readouterr().out == "dit_model: within its gate\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["--cosine", "1.5"], "--cosine: 1.5 is out of range"), (["--fn_name", "dit"], "dit_model")],
)
def test_flags_that_cannot_work_are_refused(argv: list[str], words: str, capsys) -> None:
    assert main([*QUICK, *argv]) == 2
    assert words in capsys.readouterr().err

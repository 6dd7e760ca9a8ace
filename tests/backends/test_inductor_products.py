"""The rewriting of products: where it applies, and that what it writes is the same function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gr00t_trt.backends.inductor import products as inductor_products
from gr00t_trt.backends.inductor.products import GpuProducts, is_long, long_linear
from gr00t_trt.model.n1_5.fast.backbone import FastLanguageModel, PaddedLanguageModel, padding_tables, rotation_table
from gr00t_trt.model.n1_5.qwen3 import Qwen3Model
from gr00t_trt.model.n1_5.synthetic import tiny_config

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Mlp(nn.Module):
    """As in the model's towers, 64 wide and 256 inside, twice; the first time its inner values are also returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.wide = nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 128, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return self.wide(y) + F.gelu(self.wide(y))


def traced(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The graph of an Mlp as torch.compile hands it to its passes, and its calls after the pass."""
    monkeypatch.setattr(inductor_products, "_half_on_gpu", lambda node: on_gpu)
    seen: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
        GpuProducts()(module.graph)
        module.graph.lint()
        module.recompile()
        seen.append(module)
        return module

    torch.manual_seed(0)
    with torch.no_grad():
        torch.compile(Mlp(), backend=keep, fullgraph=True)(torch.randn(2, 5, 64))
    torch._dynamo.reset()
    return seen[0], [node for node in seen[0].graph.nodes if node.op == "call_function"]


def test_products_are_rewritten_where_they_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor_products, "linear_gelu", stand_in_gelu)
    monkeypatch.setattr(inductor_products, "long_linear", stand_in_long)
    _, calls = traced(True, monkeypatch)
    targets = [node.target for node in calls]
    assert targets.count(stand_in_gelu) == 1
    assert targets.count(stand_in_long) == 1
    assert targets.count(F.linear) == 2  # without a bias, and not long
    assert targets.count(F.gelu) == 1  # the exact one


def stand_in_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def stand_in_long(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def test_graphs_on_a_cpu_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    _, calls = traced(False, monkeypatch)
    assert [node.target for node in calls].count(F.linear) == 4


def language_model(dtype: torch.dtype) -> tuple[FastLanguageModel, Tensor, Tensor]:
    """Two layers of it, where two query heads share a key, and what it is asked."""
    torch.manual_seed(0)
    text = replace(tiny_config().eagle.text, num_attention_heads=4, num_key_value_heads=2)
    model = FastLanguageModel(Qwen3Model(text, 2), fused=True).to(dtype).requires_grad_(False)
    rotation = rotation_table(text, 9, dtype, torch.device("cpu"))
    return model, torch.randn(2, 9, text.hidden_size, dtype=dtype), rotation


def attention_calls(module: nn.Module, without: tuple[str, ...], *args: Tensor) -> tuple[Tensor, list[fx.Node]]:
    """The result after the pass, and the calls of attention in its graph."""
    calls: list[fx.Node] = []

    def keep(graph: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
        GpuProducts(without)(graph.graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        calls.extend(graph.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention))
        expanded = graph.graph.find_nodes(op="call_method", target="expand")
        assert bool(expanded) != all(call.kwargs.get("enable_gqa") for call in calls)
        return graph

    torch._dynamo.reset()
    return torch.compile(module, backend=keep, fullgraph=True)(*args), calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_share_their_keys_and_values(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor_products, "_half_on_gpu", lambda node: True)
    monkeypatch.setattr(inductor_products, "is_long", lambda *_: False)
    model, embeds, rotation = language_model(dtype)
    exact = model.double()(embeds.double(), rotation.double())
    model, embeds, rotation = language_model(dtype)
    got, calls = attention_calls(model, (), embeds, rotation)
    assert [call.kwargs.get("enable_gqa") for call in calls] == [True, True]
    assert float((got - exact).abs().max()) <= 1.1 * float((model(embeds, rotation) - exact).abs().max())
    repeated, calls = attention_calls(model, ("grouped_attention",), embeds, rotation)
    assert not any(call.kwargs.get("enable_gqa") for call in calls)
    assert torch.equal(repeated, model(embeds, rotation))


def test_under_a_mask_they_are_repeated_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel of attention takes both."""
    monkeypatch.setattr(inductor_products, "_half_on_gpu", lambda node: True)
    monkeypatch.setattr(inductor_products, "is_long", lambda *_: False)
    model, embeds, rotation = language_model(torch.float32)
    given = embeds, rotation, *padding_tables(torch.ones(2, 9), torch.float32)
    got, calls = attention_calls(PaddedLanguageModel(model), (), *given)
    assert len(calls) == 2
    assert torch.equal(got, PaddedLanguageModel(model)(*given))


@pytest.mark.parametrize(
    ("width", "length", "cut"),
    [(1536, 6144, True), (1152, 4304, False), (2048, 8192, True), (2048, 2048, False), (6144, 1536, False)],
)
def test_which_products_are_cut(width: int, length: int, cut: bool) -> None:
    assert is_long(width, length) == cut


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_parts_is_the_product(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6144, 1536, bias=bias, device="cuda", dtype=dtype)
    x = torch.randn(1, 49, 6144, device="cuda", dtype=dtype)
    with torch.no_grad():
        exact = F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
        cut, whole = long_linear(x, linear.weight, linear.bias), linear(x)
    assert cut.dtype == dtype
    assert cut.shape == whole.shape
    assert float((cut - exact).abs().max()) <= 1.1 * float((whole - exact).abs().max())


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 49, 64), (7, 64), (2, 3, 5, 64)])
def test_compiled_products_are_near_the_exact_ones(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = Mlp().to("cuda").requires_grad_(False)
    exact = module.double()(torch.randn(shape, device="cuda", dtype=torch.float64))
    torch.manual_seed(0)
    module = Mlp().to("cuda").requires_grad_(False).to(dtype)
    x = torch.randn(shape, device="cuda", dtype=torch.float64).to(dtype)
    whole = module(x)
    rewritten = torch.compile(module, options={"pre_grad_custom_pass": GpuProducts()}, fullgraph=True)(x)
    assert float((rewritten - exact).abs().max()) <= 2 * float((whole - exact).abs().max())

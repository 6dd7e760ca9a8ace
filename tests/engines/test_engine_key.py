"""The key of an engine changes with everything that the engine depends on, and with nothing else."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_submodules import make_target
from torch import nn

import gr00t_trt
from gr00t_trt.engines import key as engine_key
from gr00t_trt.engines.key import code_hash, digest, module_hash, source_hash, target_gpu
from gr00t_trt.errors import BackendError
from gr00t_trt.model.n1_5 import fast
from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.model.targets import DimRange, Target
from gr00t_trt.plans.schema import OPTIMIZATIONS

ARGUMENTS = {
    "route": "torch_tensorrt",
    "settings": {"use_fp32_acc": True},
    "gpu": "portable",
    "versions": {"torch": "2.13.0", "tensorrt_rtx": "1.5.0"},
}


def key(target: Target | None = None, **changed: Any) -> dict[str, Any]:
    return engine_key.engine_key(target or make_target("attention"), **{**ARGUMENTS, **changed})


def with_module(change: Callable[[nn.Module], object]) -> Target:
    target = make_target("attention")
    change(target.module)
    return target


def with_input(index: int, tensor: torch.Tensor) -> Target:
    target = make_target("attention")
    inputs = list(target.inputs)
    inputs[index] = tensor
    return dataclasses.replace(target, inputs=tuple(inputs))


def with_range(**sizes: int) -> Target:
    target = make_target("attention")
    length = dataclasses.replace(target.ranges[0][1], **sizes)
    return dataclasses.replace(target, ranges=tuple({**axes, 1: length} for axes in target.ranges))


def one_weight(module: nn.Module) -> None:
    with torch.no_grad():
        module.qkv.weight[3, 5] += 1


CHANGED = {
    "route": lambda: key(route="tensorrt"),
    "a setting": lambda: key(settings={"use_fp32_acc": False}),
    "one more setting": lambda: key(settings={"use_fp32_acc": True, "optimization_level": 5}),
    "GPU": lambda: key(gpu="NVIDIA H200 (9.0)"),
    "a version": lambda: key(versions={"torch": "2.13.0", "tensorrt_rtx": "1.5.1"}),
    "one weight": lambda: key(with_module(one_weight)),
    "precision": lambda: key(make_target("attention", torch.bfloat16)),
    "name": lambda: key(dataclasses.replace(make_target("attention"), name="other")),
    "an argument's name": lambda: key(dataclasses.replace(make_target("attention"), argument_names=("x", "keep"))),
    "an argument's dtype": lambda: key(with_input(1, torch.ones(1, 20, dtype=torch.int64))),
    "recorded size": lambda: key(with_input(0, torch.zeros(1, 21, 32, dtype=torch.float16))),
    "minimum": lambda: key(with_range(minimum=9)),
    "optimum": lambda: key(with_range(optimum=30)),
    "maximum": lambda: key(with_range(maximum=41)),
    "a dimension's name": lambda: key(with_range(name="tokens")),
    "a static axis": lambda: key(dataclasses.replace(make_target("attention"), ranges=({}, {}))),
    "a plain attribute": lambda: key(with_module(lambda m: setattr(m, "heads", 4))),
    "an attribute of a part": lambda: key(with_module(lambda m: setattr(m.norm, "eps", 1e-6))),
    "mode": lambda: key(with_module(lambda m: m.train())),
    "a buffer that is not saved": lambda: key(
        with_module(lambda m: m.register_buffer("scale", torch.ones(2), persistent=False))
    ),
    "a tensor in a plain attribute": lambda: key(with_module(lambda m: setattr(m, "table", [torch.ones(2)]))),
    "class of a part": lambda: key(with_module(lambda m: setattr(m, "out", nn.Sequential(m.out)))),
}


def test_every_ingredient_makes_another_key() -> None:
    same = {digest(key()) for _ in range(2)}
    assert len(same) == 1
    digests = {what: digest(make()) for what, make in CHANGED.items()}
    assert [what for what, found in digests.items() if found in same] == []
    assert len(set(digests.values())) == len(digests)


@pytest.mark.parametrize("values", [(torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.ones(2).half())])
def test_values_outside_the_state_count(values: tuple[torch.Tensor, torch.Tensor]) -> None:
    hashes = set()
    for value in values:
        for hold in (
            lambda m, v: m.register_buffer("scale", v, persistent=False),
            lambda m, v: setattr(m, "tables", {"a": (v,)}),
        ):
            module = nn.Linear(2, 2)
            hold(module, value)
            hashes.add(module_hash(module))
    assert len(hashes) == 4


def test_a_module_in_a_plain_attribute_counts_with_its_weights() -> None:
    def holder(inner: nn.Linear) -> nn.Module:
        outer = nn.Identity()
        outer.sources = (inner,)
        return outer

    inner = nn.Linear(2, 2)
    before = module_hash(holder(inner))
    assert module_hash(holder(inner)) == before
    nn.init.constant_(inner.weight, 3.0)
    assert module_hash(holder(inner)) != before


def test_a_module_that_holds_its_owner_has_an_end() -> None:
    outer = nn.Sequential(nn.Identity())
    outer[0].owner = [outer]
    assert module_hash(outer) == module_hash(outer)


def test_the_package_s_own_sources_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    before = key()
    for name in ("model", "engines", "backends"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.py").write_text("x = 1\n")
    monkeypatch.setattr(engine_key, "_PACKAGE", tmp_path)
    found = set()
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "model" / "part.py").write_text(text)
        source_hash.cache_clear()
        found.add(key()["source_sha256"])
    source_hash.cache_clear()
    assert len(found | {before["source_sha256"]}) == 3


def _module_from(source: str) -> nn.Module:
    import linecache

    module = types.ModuleType("their_layers")
    module.__file__ = "their_layers.py"
    linecache.cache["their_layers.py"] = (len(source), None, source.splitlines(True), "their_layers.py")
    sys.modules["their_layers"] = module
    exec(source, module.__dict__)
    return module.Layer()


def test_the_source_of_another_package_s_layer_counts() -> None:
    source = "from torch import nn\nclass Layer(nn.Module):\n    def forward(self, x):\n        return x + {}\n"
    try:
        one, same, two = (module_hash(_module_from(source.format(n))) for n in (1, 1, 2))
    finally:
        sys.modules.pop("their_layers", None)
    assert one == same != two


def _hooked(module: nn.Module) -> None:
    module.norm.register_forward_hook(lambda *args: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_hooked, "MaskedAttention.norm: a forward hook"),
        (lambda m: setattr(m, "scale", lambda x, n=[]: x), None),
        (lambda m: setattr(m, "scale", (lambda n: lambda x: x * n)(2)), "MaskedAttention.scale: the function"),
        (lambda m: setattr(m, "forward", m.norm.forward), "MaskedAttention.forward: a method"),
        (lambda m: setattr(m, "extra", object()), "MaskedAttention.extra: a object"),
        (lambda m: setattr(m, "extra", {"a": [iter(())]}), r"MaskedAttention.extra\['a'\]\[0\]: a tuple_iterator"),
    ],
)
def test_what_cannot_be_described_gives_no_key(change: Any, message: str | None) -> None:
    target = with_module(change)
    if message is None:  # a plain function: its file says what it does
        assert key(target)["module_sha256"] != key()["module_sha256"]
        return
    with pytest.raises(BackendError, match=message + ".* no description by which an engine could be recognised"):
        key(target)


def test_code_without_a_source_gives_no_key() -> None:
    cls = type("Layer", (nn.Identity,), {"__module__": "typed_at_a_prompt"})
    with pytest.raises(BackendError, match="Layer: code of typed_at_a_prompt, whose source is not at hand"):
        module_hash(cls())


def test_ordinary_values_have_a_description() -> None:
    module = nn.Identity()
    module.values = {
        "activation": torch.nn.functional.gelu,
        "partial": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
        "set": {"b", "a"},
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size((1, 2)),
        "range": DimRange("batch", 1, 1, 2),
        "class": nn.Linear,
        "nan": float("nan"),
    }
    found = module_hash(module)
    module.values["partial"] = functools.partial(torch.nn.functional.gelu, approximate="none")
    assert module_hash(module) != found


def test_a_key_is_plain_and_readable_and_its_digest_ignores_order() -> None:
    found = key()
    assert json.loads(json.dumps(found)) == found
    assert digest(dict(reversed(found.items()))) == digest(found)
    assert found["arguments"][0] == {
        "name": "hidden",
        "dtype": "float16",
        "shape": [1, 20, 32],
        "ranges": {"0": ["batch", 1, 1, 4], "1": ["length", 8, 20, 40]},
    }


def stage_of_ours() -> Target:
    """With classes of the package, which another process finds where this one does."""
    module = gr00t_trt.load_policy("synthetic").model.eager_stage("state_encoder")
    return Target("state_encoder", module, (torch.zeros(1, 1, 64),), ("state",), ({},))


def test_another_process_finds_the_same_key() -> None:
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/engines']; import test_engine_key as t; "
        "print(t.digest(t.key(t.stage_of_ours())))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == digest(key(stage_of_ours()))


def test_every_stage_of_both_models_has_a_key() -> None:
    policy = gr00t_trt.load_policy("synthetic")
    modules = {name: policy.model.eager_stage(name) for name in N1_5.arguments}
    restructured = fast.restructure(policy.model, optimizations=tuple(OPTIMIZATIONS))
    modules |= {f"restructured {name}": restructured.eager_stage(name) for name in restructured.stages}
    hashes = {name: module_hash(module) for name, module in modules.items()}
    assert len(set(hashes.values())) == len(hashes)


def test_the_gpu_that_an_engine_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    assert target_gpu((), cpu) == "portable"
    assert target_gpu(("8.9", "12.0"), cpu) == "8.9, 12.0"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert target_gpu((), cuda) == "NVIDIA H200 (9.0)"


def test_comments_docstrings_and_layout_build_nothing_anew() -> None:
    source = '"""Why."""\nLIMIT = 3\n"""Of what."""\ndef f(x):\n    """What."""\n    return x + LIMIT  # so\n'
    assert code_hash(source) == code_hash("LIMIT = 3\n\n\ndef f(x):\n    return (x + LIMIT)\n")
    assert code_hash(source) != code_hash(source.replace("+", "-"))
    assert code_hash(source) != code_hash(source.replace("LIMIT = 3", "LIMIT = 4"))

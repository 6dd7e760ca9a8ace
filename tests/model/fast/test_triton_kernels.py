"""The kernels of the DiT without a GPU: their values by Triton's interpreter, their machine code by its compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.triton import TritonBackend
from gr00t_trt.errors import BackendError, PlanError
from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.model.n1_5.dit import DiT
from gr00t_trt.model.n1_5.fast.backbone import FastLanguageModel, FastVisionModel
from gr00t_trt.model.n1_5.fast.denoise import DenoiseStep, FastActionDecoder, FoldedActionEncoder
from gr00t_trt.model.n1_5.fast.dit import CrossAttentionKV, FastDiT
from gr00t_trt.model.n1_5.qwen3 import Qwen3Model
from gr00t_trt.model.n1_5.siglip import VisionModel
from gr00t_trt.model.n1_5.synthetic import full_config, tiny_config
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.quantize.layers import with_replaced

triton = pytest.importorskip("triton", reason="Triton is not installed")

SHARED_MEMORY = 227 * 1024 // 2
"""Bytes of a Hopper multiprocessor that a program may take if a second one is to start beside it."""
REGISTERS = 65536 // 2
"""Likewise."""
CHAINS = ("vision_model", "language_model")
"""Stages that may be a chain of kernels."""


def values(*cases: tuple[object, ...]) -> list[tuple[float, float, bool]]:
    """Of each case: errors against fp64 of the kernels and of eager PyTorch, and whether two passes were equal."""
    script = Path(__file__).with_name("triton_values.py")
    line = [sys.executable, str(script), *(",".join(map(str, case)) for case in cases)]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=900, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()]
    return [(float(own), float(eager), same == "True") for own, eager, same in rows]


def as_near_as_eager(*cases: tuple[object, ...]) -> None:
    for case, (own, eager, same) in zip(cases, values(*cases), strict=True):
        assert own <= 1.1 * eager, case
        assert same, case


def test_values_in_bf16_are_as_near_to_fp64_as_eagers_are() -> None:
    as_near_as_eager(
        ("step", 48, "bfloat16", 2, 40, 7),
        ("attention", 72, "bfloat16", 1, 70),
        ("rotary", 32, "bfloat16", 1, 70),
        ("vision_chain", 72, "bfloat16", 1, 7),
        ("language", 32, "bfloat16", 1, 40),
        ("language_chain", 32, "bfloat16", 1, 40),
    )


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "fp8"])
@pytest.mark.parametrize("head_width", [12, 24, 32, 48, 96])
def test_any_head_width_dtype_and_batch_of_a_step(head_width: int, dtype: str) -> None:
    as_near_as_eager(("step", head_width, dtype, 1, 64), ("step", head_width, dtype, 3, 131))


LEFT_OUT = ("constant_folding", "token_pruning", "kv_cache", "attention_bias", "interleave_self_attention", "one_dtype")


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_step_with_other_optimizations_and_horizons(dtype: str) -> None:
    """`rows` actions: fewer and more than a program takes."""
    left_out = [("step", 48, dtype, 2, 40, 7, 16, name) for name in LEFT_OUT]
    as_near_as_eager(*left_out, *(("step", 48, dtype, 2, 40, 7, rows) for rows in (1, 5, 40, 70)))


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("head_width", [8, 20, 64, 72, 128])
def test_any_head_width_length_and_sharing_of_attention(head_width: int, dtype: str) -> None:
    lengths = [(kind, head_width, dtype, 2, each) for each in (1, 31, 64, 65, 130) for kind in ("attention", "rotary")]
    as_near_as_eager(*lengths, *(("rotary", head_width, dtype, 1, 40, 4, shared) for shared in (1, 4)))


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "fp8"])
def test_the_vision_tower_with_any_number_of_rows(dtype: str) -> None:
    """49 and 144 patches to an image; all layers on kernels, and attention alone."""
    sizes = [(1, 7), (3, 7), (1, 12)]
    others = [("vision", 72, dtype, 1, 7), ("language", 32, dtype, 2, 40)] if dtype != "fp8" else []
    as_near_as_eager(*(("vision_chain", 72, dtype, batch, side) for batch, side in sizes), *others)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "fp8"])
def test_the_language_model_with_any_length_and_sharing(dtype: str) -> None:
    sizes = [(1, 40), (2, 70), (1, 131)]
    shared = [("language_chain", 48, dtype, 1, 40, 4, each) for each in (1, 4)]
    as_near_as_eager(*(("language_chain", 32, dtype, batch, length) for batch, length in sizes), *shared)


@pytest.mark.kernels
@pytest.mark.parametrize("stage", ["vision_model", "language_model", "denoise_step"])
def test_the_released_geometry(stage: str) -> None:
    as_near_as_eager(("released", stage, "bfloat16"), *([("released", stage, "bfloat16", 1)] * (stage in CHAINS)))


@pytest.mark.kernels
@pytest.mark.parametrize("stage", ["vision_model", "language_model", "vl_components", "state_encoder", "denoise_step"])
def test_what_the_backend_builds_takes_any_length_and_batch_without_compiling_again(stage: str) -> None:
    for mode in ("default", "chain") if stage in CHAINS else ("default",):
        ((error, _, same),) = values(("built", stage, mode))
        assert error < 1e-6
        assert same


@pytest.mark.kernels
def test_the_whole_model_on_kernels_gives_the_plain_models_actions() -> None:
    """Three embodiments in one batch, all denoising steps, in fp32."""
    ((difference, _, same),) = values(("model",))
    assert difference < 1e-5
    assert same


class Launches(dict[tuple, tuple[Any, dict[str, Any], dict[str, Any]]]):
    """Those that compile to the same code once: kernel, arguments and options; and how often each was `counted`."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Launches:
    """Every launch of a request at the released geometry.

    Nothing is computed: tensors have no memory, and the kernels only see what they are called with.
    """
    from gr00t_trt.model.n1_5.fast import attention_kernels, category_kernels, kernels, launches

    found = Launches()

    class Recorded:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]):
            def launch(*args: Any, **options: Any) -> None:
                found.counted[self.kernel.__name__] += 1
                given = dict(zip(self.kernel.arg_names, args, strict=False))
                key = tuple(_type_of(value) for name, value in given.items() if name not in _unassumed(self.kernel))
                found.setdefault((self.kernel.__name__, key, *options.items()), (self.kernel, given, options))

            return launch

    monkeypatch.setattr(launches, "can_overlap", lambda device: True)
    for module, *names in (
        (kernels, "linear", "gated_linear"),
        (attention_kernels, "attention", "rotated_heads"),
        (category_kernels, "action_tokens", "category_linear"),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorded(getattr(module, name)))
    with torch.device("meta"):
        fp8 = getattr(request, "param", None) == "fp8"
        _see(fp8=fp8)
        _read(fp8=fp8)
        _step(fp8=fp8)
    return found


def _see(*, fp8: bool) -> None:
    """The vision tower, all of it on kernels."""
    from gr00t_trt.model.n1_5.fast.triton_chains import VisionChain

    plain = VisionModel(replace(full_config().eagle.vision, num_hidden_layers=2)).to(torch.bfloat16)
    model = FastVisionModel(plain)
    model = _in_fp8(model, model.layers) if fp8 else model
    out = VisionChain(model)(torch.empty(1, 3, 224, 224, dtype=torch.bfloat16))
    assert out.shape == (1, 256, 1152)


def _in_fp8(stage: nn.Module, blocks: nn.Module) -> Any:
    linear = [layer for layer in blocks.modules() if isinstance(layer, nn.Linear)]
    return with_replaced(stage, {id(layer): _Fp8(layer) for layer in linear})


def _read(*, fp8: bool) -> None:
    """The language model, all of it on kernels."""
    from gr00t_trt.model.n1_5.fast.triton_chains import LanguageChain

    config = full_config()
    plain = Qwen3Model(replace(config.eagle.text, vocab_size=64), 2).to(torch.bfloat16)
    model = FastLanguageModel(plain, fused=True)
    model = _in_fp8(model, model.layers) if fp8 else model
    rotation = torch.empty(2, 294, 128, dtype=torch.bfloat16)
    out = LanguageChain(model)(torch.empty(1, 294, 2048, dtype=torch.bfloat16), rotation)
    assert out.shape == (1, 294, 2048)


def _step(*, fp8: bool) -> None:
    from gr00t_trt.model.n1_5.fast.triton_step import KernelStep

    config = full_config().action_head
    dit = DiT(config.diffusion).to(torch.bfloat16)
    fast = FastDiT(dit, None, prefix_rows=33, token_pruning=True, fused=True)
    width, head = config.diffusion.width, config.diffusion.attention_head_dim
    fast = _in_fp8(fast, fast.blocks) if fp8 else fast
    step = DenoiseStep(FoldedActionEncoder(), fast, FastActionDecoder(), folded=True)
    narrow = [
        (1, 33, width), (16, 1, width // head, 294, head), (34, width), (1,), (1, 1, width), (1, 32, width),
        (1, width, width), (1, 16, width), (1, width, 1024), (1, 1, 1024), (1, 1024, 32), (1, 1, 32),
    ]  # fmt: skip
    inputs = [torch.empty(shape, dtype=torch.float32 if shape == (1,) else torch.bfloat16) for shape in narrow]
    out = KernelStep(step)(torch.empty(1, 16, 32), *inputs)
    assert out.shape == (1, 16, 32)
    assert out.dtype == torch.float32


class _Fp8(nn.Module):
    """As `QuantLinear` looks to the kernels: made of a layer without memory, which could not be encoded."""

    form, smoothing = "fp8", None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.codes = torch.empty(layer.weight.shape, dtype=torch.uint8)
        self.scale, self.input_scale = torch.empty(layer.out_features), torch.empty(())


def _unassumed(kernel: Any) -> set[str]:
    return {parameter.name for parameter in kernel.params if parameter.do_not_specialize}


def _type_of(value: Any) -> Any:
    """As Triton tells arguments apart: by dtype, and whole numbers by what it may take for granted of them."""
    if value is None:
        return None
    return value.dtype if isinstance(value, torch.Tensor) else (value == 1, value % 16 == 0)


def machine_code(kernel: Any, given: dict[str, Any], options: dict[str, Any]) -> tuple[int, int, str]:
    """Registers of a thread, bytes of shared memory, and the instructions for a Hopper GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {torch.float8_e4m3fn: "*fp8e4nv", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}
    own = {name: options[name] for name in kernel.arg_names if name in options}
    assumed = {name: value for name, value in given.items() if name not in _unassumed(kernel)}
    own |= {name: value for name, value in assumed.items() if value is None or (type(value) is int and value == 1)}
    types = {name: names[value.dtype] if isinstance(value, torch.Tensor) else "i32" for name, value in given.items()}
    signature = {name: "constexpr" if name in own else types[name] for name in kernel.arg_names}
    aligned = [
        i
        for i, name in enumerate(kernel.arg_names)
        if name in assumed and name not in own and (isinstance(given[name], torch.Tensor) or given[name] % 16 == 0)
    ]
    source = ASTSource(kernel, signature, own, {(i,): [["tt.divisibility", 16]] for i in aligned})
    settings = {name: value for name, value in options.items() if name not in kernel.arg_names}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=settings)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        use, code = (
            subprocess.run([str(tools / tool), option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    return int(re.search(r"REG:(\d+)", use)[1]), built.metadata.shared, code  # type: ignore[index]


def check_code(kernel: Any, given: dict[str, Any], options: dict[str, Any]) -> None:
    registers, shared, code = machine_code(kernel, given, options)
    assert registers * options["num_warps"] * 32 <= REGISTERS
    assert shared <= SHARED_MEMORY
    assert _unit(kernel, options) in code, "no product on Hopper's matrix units"
    assert not re.findall(r"\b(STL|LDL)\b", code), "registers spilled"
    assert "PREEXIT" in code
    assert "ACQBULK" in code, "it would not wait for the kernel in front of it"
    early = re.findall(r"\b(?:LDG|LDGSTS|STG|RED|ATOMG)\b", code[: code.index("ACQBULK")])
    assert not early, "it would read or write before the kernel in front of it has ended"
    assert re.search(r"\bSTG\b", code)


def _unit(kernel: Any, options: dict[str, Any]) -> str:
    """The instruction of its products: those of Hopper's own want 64 rows."""
    if kernel.__name__ == "rotated_heads":
        return ""
    return "QGMMA" if options.get("FP8") else "HGMMA" if options["BM"] >= 64 else "HMMA"


def test_attention_compiles_for_hopper(launches) -> None:
    check_code(*next(launch for (name, *_), launch in launches.items() if name == "attention"))


@pytest.mark.kernels
@pytest.mark.parametrize("launches", ["bf16", "fp8"], indirect=True)
def test_every_launch_of_the_released_geometry_compiles_for_hopper(launches) -> None:
    assert len(launches) == 24
    for launch in launches.values():
        check_code(*launch)


def test_a_step_is_five_launches_a_block_and_three_around_them(launches) -> None:
    """Norms, biases, activations, residuals and Euler's step have none of their own; the last block's keys have one."""
    launches.counted.clear()
    with torch.device("meta"):
        _step(fp8=False)
    assert launches.counted == {"action_tokens": 1, "linear": 16 * 4 + 1, "attention": 16, "category_linear": 2}


def test_the_vision_tower_is_five_launches_a_layer(launches) -> None:
    launches.counted.clear()
    with torch.device("meta"):
        _see(fp8=False)
    assert launches.counted == {"linear": 2 * 4, "attention": 2}


def test_the_language_model_is_six_launches_a_layer(launches) -> None:
    launches.counted.clear()
    with torch.device("meta"):
        _read(fp8=False)
    assert launches.counted == {"linear": 2 * 3, "gated_linear": 2, "attention": 2, "rotated_heads": 2}


def _tiny(fused: bool = True) -> FastDiT:
    dit = DiT(tiny_config().action_head.diffusion)
    return FastDiT(dit, CrossAttentionKV(dit, fused=fused), prefix_rows=33, token_pruning=True, fused=fused)


def test_layers_that_the_kernels_do_not_know_are_refused() -> None:
    class Quantized(nn.Linear):
        pass

    dit = _tiny()
    dit.blocks[0].ff.net[2] = Quantized(8, 8)
    with pytest.raises(BackendError, match=r"dit_model: 0.ff.net.2 is no linear layer that its kernels know"):
        N1_5.with_kernels(dit)
    with pytest.raises(BackendError, match="fused_projections"):
        N1_5.with_kernels(_tiny(fused=False))


def test_a_stage_without_kernels_has_none() -> None:
    assert N1_5.with_kernels(nn.Linear(2, 2)) is None


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(PlanError, match=r"mode 'best' is not available\n.*default, chain"):
        TritonBackend("best")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_backend_says_so() -> None:
    backend = get_backend("triton")
    assert backend.availability().reason == "its kernels need a CUDA GPU"
    with pytest.raises(BackendError, match=r"dit: its kernels need a CUDA GPU\n.*choose --backend inductor"):
        backend.build(type("Target", (), {"name": "dit"})(), BuildOptions(), BuildContext())

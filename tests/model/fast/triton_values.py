"""Triton kernels in Triton's interpreter, against fp64: run with TRITON_INTERPRET=1.

Arguments: cases, each a name below and its settings, all joined by commas. Prints a line for each: the error of the
kernels, that of eager PyTorch in the same dtype, and whether a second pass gave the same bits.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from triton_interpreter import mend_the_interpreter

from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.model.n1_5.config import Gr00tConfig
from gr00t_trt.model.n1_5.fast import restructure
from gr00t_trt.model.n1_5.fast.stages import make_stages
from gr00t_trt.model.n1_5.fast.triton_stages import with_kernels
from gr00t_trt.model.n1_5.gr00t import Gr00tN1d5
from gr00t_trt.model.n1_5.synthetic import fill_synthetic, full_config, tiny_config
from gr00t_trt.quantize.layers import with_replaced
from gr00t_trt.quantize.linear import QuantLinear

ALL = frozenset(N1_5.optimizations)

Arguments = Callable[[torch.nn.Module], list[Tensor]]


def compared(config: Gr00tConfig, stage: str, name: str, arguments: Arguments, without: str = "") -> str:
    """The line of one stage; dtype `name`, or fp8 for its layers with the rest in bf16."""
    torch.manual_seed(0)
    dtype = getattr(torch, "bfloat16" if name == "fp8" else name)
    model = Gr00tN1d5(config).eval()
    for weight in model.requires_grad_(False).parameters():
        weight.copy_(torch.randn_like(weight) * (weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.1))

    def made(computing: torch.dtype) -> torch.nn.Module:
        return make_stages(copy.deepcopy(model).to(dtype).to(computing), ALL - {without})[stage]

    own = made(dtype)
    given = [each.to(dtype) for each in arguments(own)]
    if stage == "denoise_step":
        given[0], given[4] = given[0].float(), given[4].float()  # actions and step size
    exact = made(torch.float64)(*(each.double() for each in given))
    own = quantized(own, given) if name == "fp8" else own
    kernels = with_kernels(own)
    found = kernels(*given)
    assert found.dtype == own(*given).dtype
    return f"{off(found, exact):.3e} {off(own(*given), exact):.3e} {torch.equal(found, kernels(*given))}"


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def quantized(step: torch.nn.Module, arguments: list[Tensor]) -> torch.nn.Module:
    """Every linear layer of the blocks in fp8, calibrated on the very call."""
    largest: dict[int, Tensor] = {}

    def see(layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest[id(layer)] = inputs[0].float().abs().flatten(0, -2).amax(0)

    layers = [each for each in step.dit.blocks.modules() if isinstance(each, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    step(*arguments)
    for hook in hooks:
        hook.remove()
    return with_replaced(step, {id(layer): QuantLinear(layer, "fp8", largest[id(layer)]) for layer in layers})


def step(
    head_width: int, name: str, batch: int, keys: int, future: int = 32, rows: int = 16, without: str = ""
) -> str:
    """One denoising step of a narrow transformer, two pairs of blocks, with every kind of block that there is.

    Every sample has weights of its own, as if it had another embodiment; `future` tokens and `rows` actions.
    """
    config = tiny_config()
    dit = config.action_head.diffusion
    dit = replace(dit, attention_head_dim=head_width, num_attention_heads=96 // head_width)
    head = replace(config.action_head, diffusion=dit, num_target_vision_tokens=future)
    narrow = replace(config, action_head=head)
    return compared(narrow, "denoise_step", name, lambda step: _of_step(step, batch, keys, 1 + future, rows), without)


def _of_step(step: torch.nn.Module, batch: int, keys: int, prefix: int, rows: int) -> list[Tensor]:
    dit, crossing = step.dit, sum(block.own is None for block in step.dit.blocks)
    width, head = dit.proj_out_2.in_features, dit.blocks[0].head_dim
    inner = dit.proj_out_2.out_features
    read = width if step.folded else inner
    modulation = torch.randn(2 * len(dit.blocks) + 2, width) * 0.3
    modulation[::2] += 1
    return [
        torch.randn(batch, rows, 32),
        torch.randn(batch, prefix, width),
        torch.randn(2 * crossing, batch, width // head, keys, head),
        modulation,
        torch.full((1,), 0.25),
        torch.randn(batch, 1, width),
        torch.randn(batch, 32, width) * 32**-0.5,
        torch.randn(batch, width, width) * width**-0.5,
        torch.randn(batch, rows, width),
        torch.randn(batch, read, inner) * read**-0.5,
        torch.randn(batch, 1, inner),
        torch.randn(batch, inner, 32) * inner**-0.5,
        torch.randn(batch, 1, 32),
    ]


def vision(head_width: int, name: str, batch: int, side: int, heads: int = 2) -> str:
    """A vision tower of one layer over images of side x side patches."""
    config = tiny_config()
    own = replace(
        config.eagle.vision,
        hidden_size=heads * head_width,
        num_attention_heads=heads,
        num_hidden_layers=1,
        image_size=side * config.eagle.vision.patch_size,
    )
    narrow = replace(config, eagle=replace(config.eagle, vision=own))
    pixels = own.image_size
    return compared(narrow, "vision_model", name, lambda stage: [torch.randn(batch, 3, pixels, pixels)])


def language(head_width: int, name: str, batch: int, length: int, heads: int = 4, shared: int = 2) -> str:
    """One layer of a language model, each of whose keys `shared` queries share."""
    config = tiny_config()
    text = replace(
        config.eagle.text,
        head_dim=head_width,
        num_attention_heads=heads,
        num_key_value_heads=heads // shared,
    )
    narrow = replace(
        config,
        backbone=replace(config.backbone, select_layer=1),
        eagle=replace(config.eagle, text=text),
    )
    turn = torch.randn(length, head_width)
    inputs = [torch.randn(batch, length, text.hidden_size), torch.stack((turn.cos(), turn.sin()))]
    return compared(narrow, "language_model", name, lambda stage: inputs)


def released(stage: str, name: str) -> str:
    """One layer of a kind in the released geometry."""
    full = full_config()
    config = replace(
        full,
        backbone=replace(full.backbone, select_layer=1),
        eagle=replace(full.eagle, vision=replace(full.eagle.vision, num_hidden_layers=1)),
        action_head=replace(
            full.action_head,
            max_num_embodiments=2,
            diffusion=replace(full.action_head.diffusion, num_layers=2),
            vl_self_attention=replace(full.action_head.vl_self_attention, num_layers=1),
        ),
    )
    turn = torch.randn(294, 128)
    inputs: dict[str, Arguments] = {
        "vision_model": lambda _: [torch.randn(1, 3, 224, 224)],
        "language_model": lambda _: [torch.randn(1, 294, 2048), torch.stack((turn.cos(), turn.sin()))],
        "denoise_step": lambda step: _of_step(step, 1, 294, 33, 16),
    }
    return compared(config, stage, name, inputs[stage])


def compiled() -> str:
    """A language model behind torch.compile, at two lengths: the larger error of each, and whether it compiled once."""
    config, counters = tiny_config(), torch._dynamo.utils.counters["stats"]
    model = Gr00tN1d5(config).eval().requires_grad_(False)
    stage = make_stages(model, ALL)["language_model"]
    with torch.no_grad():
        call = torch.compile(with_kernels(stage), fullgraph=True)
        errors = []
        for length in (40, 71):
            turn = torch.randn(length, config.eagle.text.head_dim)
            x, rotation = torch.randn(2, length, config.eagle.text.hidden_size), torch.stack((turn.cos(), turn.sin()))
            torch._dynamo.mark_dynamic(x, 1)
            torch._dynamo.mark_dynamic(rotation, 1)
            errors.append(off(call(x, rotation), stage(x, rotation).double()))
    return f"{max(errors):.3e} 1e-6 {counters['unique_graphs'] == 1}"


def model() -> str:
    """Actions of the tiny model with every stage on kernels: the largest difference from the plain model's."""
    config = tiny_config()
    plain = Gr00tN1d5(config)
    fill_synthetic(plain, dtype=torch.float32, device=torch.device("cpu"))
    plain.eval().requires_grad_(False)
    fast = restructure(copy.deepcopy(plain))
    ids = torch.cat((torch.full((3, 256), config.image_token_index), torch.randint(0, 1000, (3, 9))), 1)
    inputs = {
        "eagle_pixel_values": torch.rand(3, 3, 224, 224) * 2 - 1,
        "eagle_input_ids": ids,
        "eagle_attention_mask": torch.ones_like(ids),
        "state": torch.rand(3, 1, 64),
        "embodiment_id": torch.tensor([24, 17, 31]),
    }
    noise = torch.randn(3, 16, 32)
    expected = plain.get_action(inputs, noise=noise)["action_pred"]
    used = []
    for name in ("vision_model", "language_model", "denoise_loop"):
        kernels = with_kernels(fast.eager_stage(name))
        fast.stages[name] = lambda *args, name=name, kernels=kernels: used.append(name) or kernels(*args)
    fast.loop = "denoise_loop"
    found = [fast.get_action(inputs, noise=noise)["action_pred"] for _ in range(2)]
    assert len(used) == 6
    return f"{float((found[0] - expected).abs().max()):.3e} 0 {torch.equal(*found)}"


if __name__ == "__main__":
    mend_the_interpreter()
    for case in sys.argv[1:]:
        kind, *settings = case.split(",")
        print(globals()[kind](*(int(each) if each.isdigit() else each for each in settings)))

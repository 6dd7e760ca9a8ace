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
import torch.nn.functional as F
from torch import Tensor
from triton_interpreter import mend_the_interpreter

from gr00t_trt.backends.base import Availability, BuildContext
from gr00t_trt.backends.triton import TritonBackend
from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.model.n1_5.config import Gr00tConfig
from gr00t_trt.model.n1_5.fast import restructure
from gr00t_trt.model.n1_5.fast.attention_operators import attend, attend_before
from gr00t_trt.model.n1_5.fast.stages import make_stages
from gr00t_trt.model.n1_5.fast.triton_stages import with_kernels
from gr00t_trt.model.n1_5.gr00t import Gr00tN1d5
from gr00t_trt.model.n1_5.synthetic import fill_synthetic, full_config, tiny_config
from gr00t_trt.model.targets import DimRange
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.quantize.layers import with_replaced
from gr00t_trt.quantize.linear import QuantLinear

ALL = frozenset(N1_5.optimizations)

Arguments = Callable[[torch.nn.Module], list[Tensor]]


def compared(
    config: Gr00tConfig, stage: str, name: str, arguments: Arguments, without: str = "", *, chained: bool = False
) -> str:
    """The line of one stage; dtype `name`, or fp8 for its layers with the rest in bf16."""
    torch.manual_seed(0)
    dtype = getattr(torch, "bfloat16" if name == "fp8" else name)
    model = Gr00tN1d5(config).eval()
    for weight in model.requires_grad_(False).parameters():
        fan_in = weight[0].numel() if weight.dim() == 4 else weight.shape[-1]  # of a convolution, or a product
        weight.copy_(torch.randn_like(weight) * (fan_in**-0.5 if weight.dim() > 1 else 0.1))

    def made(computing: torch.dtype) -> torch.nn.Module:
        return make_stages(copy.deepcopy(model).to(dtype).to(computing), ALL - {without})[stage]

    own = made(dtype)
    given = [each.to(dtype) for each in arguments(own)]
    if stage == "denoise_step":
        given[0], given[4] = given[0].float(), given[4].float()  # actions and step size
    if without == "one_dtype":
        given[5:] = [each.float() for each in given[5:]]  # the encoder's and the decoder's weights
    exact = made(torch.float64)(*(each.double() for each in given))
    own = quantized(own, given) if name == "fp8" else own
    kernels = with_kernels(own, chained=chained)
    found = kernels(*given)
    assert found.dtype == own(*given).dtype
    return f"{off(found, exact):.3e} {off(own(*given), exact):.3e} {torch.equal(found, kernels(*given))}"


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def quantized(stage: torch.nn.Module, arguments: list[Tensor]) -> torch.nn.Module:
    """Every linear layer of its blocks in fp8, calibrated on the very call."""
    largest: dict[int, Tensor] = {}

    def see(layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest[id(layer)] = inputs[0].float().abs().flatten(0, -2).amax(0)

    blocks = stage.dit.blocks if hasattr(stage, "dit") else stage.layers
    layers = [each for each in blocks.modules() if isinstance(each, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    stage(*arguments)
    for hook in hooks:
        hook.remove()
    return with_replaced(stage, {id(layer): QuantLinear(layer, "fp8", largest[id(layer)]) for layer in layers})


def step(head_width: int, name: str, batch: int, keys: int, future: int = 32, rows: int = 16, without: str = "") -> str:
    """One denoising step of a narrow transformer, two pairs of blocks, with every kind of block that there is.

    Every sample has weights of its own, as if it had another embodiment; `future` tokens and `rows` actions; `without`
    an optimization, a property of the transformer, or `one_dtype`: encoder and decoder then stay in fp32.
    """
    config = tiny_config()
    dit = config.action_head.diffusion
    dit = replace(dit, attention_head_dim=head_width, num_attention_heads=96 // head_width)
    if hasattr(dit, without):
        dit = replace(dit, **{without: False})
    head = replace(config.action_head, diffusion=dit, num_target_vision_tokens=future)
    narrow = replace(config, action_head=head)
    return compared(narrow, "denoise_step", name, lambda step: _of_step(step, batch, keys, 1 + future, rows), without)


def _of_step(step: torch.nn.Module, batch: int, keys: int, prefix: int, rows: int) -> list[Tensor]:
    dit, crossing = step.dit, sum(block.own is None for block in step.dit.blocks)
    width, head = dit.proj_out_2.in_features, dit.blocks[0].head_dim
    inner = dit.proj_out_2.out_features
    read = width if step.folded else inner
    context = (2 * crossing, batch, width // head, keys, head)
    if dit.context is not None:
        context = (batch, keys, dit.context.projections.product.in_features)
    modulation = torch.randn(2 * len(dit.blocks) + 2, width) * 0.3
    modulation[::2] += 1
    return [
        torch.randn(batch, rows, 32),
        torch.randn(batch, prefix, width),
        torch.randn(context),
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


def vision(head_width: int, name: str, batch: int, side: int, heads: int = 2, *, chained: bool = False) -> str:
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
    return compared(narrow, "vision_model", name, lambda _: [torch.randn(batch, 3, pixels, pixels)], chained=chained)


def vision_chain(head_width: int, name: str, batch: int, side: int, heads: int = 2) -> str:
    """As `vision`, all of it on kernels."""
    return vision(head_width, name, batch, side, heads, chained=True)


def language_chain(head_width: int, name: str, batch: int, length: int, heads: int = 4, shared: int = 2) -> str:
    """As `language`, all of it on kernels."""
    return language(head_width, name, batch, length, heads, shared, chained=True)


def language(
    head_width: int, name: str, batch: int, length: int, heads: int = 4, shared: int = 2, *, chained: bool = False
) -> str:
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
    return compared(narrow, "language_model", name, lambda stage: inputs, chained=chained)


def attention(width: int, name: str, batch: int, rows: int, heads: int = 2) -> str:
    """Attention alone, with scores that make it look at a few keys."""
    joined = 2 * torch.randn(batch, rows, 3 * heads * width)

    def reference(joined: Tensor) -> Tensor:
        q, k, v = joined.unflatten(-1, (3, heads, width)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    return _of_function(lambda joined: attend(joined, width), reference, name, joined)


def rotary(width: int, name: str, batch: int, rows: int, heads: int = 4, shared: int = 2) -> str:
    """The same after norms and rotations, causal, several queries sharing a key."""
    kept, turn = heads // shared, torch.randn(rows, width)
    joined, rotation = torch.randn(batch, rows, (heads + 2 * kept) * width), torch.stack((turn.cos(), turn.sin()))
    q_weight, k_weight = 2 + torch.rand(2, width)

    def reference(joined: Tensor, q_weight: Tensor, k_weight: Tensor, rotation: Tensor) -> Tensor:
        sizes = [heads * width, kept * width, kept * width]
        q, k, v = (x.unflatten(-1, (-1, width)) for x in joined.split(sizes, -1))
        q, k = (_turned(x, weight, rotation) for x, weight in ((q, q_weight), (k, k_weight)))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)

    def own(*given: Tensor) -> Tensor:
        return attend_before(*given, heads, kept, 1e-6)

    return _of_function(own, reference, name, joined, q_weight, k_weight, rotation)


def _turned(x: Tensor, weight: Tensor, rotation: Tensor) -> Tensor:
    x = F.rms_norm(x, x.shape[-1:], weight, 1e-6)
    cos, sin = rotation.unsqueeze(2).unbind(0)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _of_function(own: Callable[..., Tensor], reference: Callable[..., Tensor], name: str, *inputs: Tensor) -> str:
    given = [each.to(getattr(torch, name)) for each in inputs]
    exact = reference(*(each.double() for each in given))
    found = own(*given)
    return f"{off(found, exact):.3e} {off(reference(*given), exact):.3e} {torch.equal(found, own(*given))}"


def released(stage: str, name: str, chained: int = 0) -> str:
    """One layer of a kind in the released geometry; everything else is tiny."""
    tiny, full, turn = tiny_config(), full_config(), torch.randn(294, 128)
    vision = replace(full.eagle.vision, num_hidden_layers=1)
    text = replace(full.eagle.text, vocab_size=1024)
    head = replace(
        full.action_head,
        max_num_embodiments=2,
        diffusion=replace(full.action_head.diffusion, num_layers=2),
        vl_self_attention=replace(full.action_head.vl_self_attention, num_layers=1),
    )
    configs: dict[str, tuple[Gr00tConfig, Arguments]] = {
        "vision_model": (
            replace(tiny, eagle=replace(tiny.eagle, vision=vision)),
            lambda _: [torch.randn(1, 3, 224, 224)],
        ),
        "language_model": (
            replace(tiny, eagle=replace(tiny.eagle, text=text), backbone=replace(tiny.backbone, select_layer=1)),
            lambda _: [torch.randn(1, 294, 2048), torch.stack((turn.cos(), turn.sin()))],
        ),
        "denoise_step": (replace(tiny, action_head=head), lambda step: _of_step(step, 1, 294, 33, 16)),
    }
    config, inputs = configs[stage]
    return compared(config, stage, name, inputs, chained=bool(chained))


def built(name: str, mode: str) -> str:
    """A stage as the backend builds it, called with other lengths and batches than it was built with.

    The larger error of the calls, and whether nothing was compiled in them.
    """
    plain = Gr00tN1d5(tiny_config())
    fill_synthetic(plain, dtype=torch.float32, device=torch.device("cpu"))
    model = restructure(plain.eval().requires_grad_(False))
    recording, _ = model.record(_request(1, 9), torch.randn(1, 16, 32))
    ranges = {"batch": (1, 3), "images": (1, 3), "length": (200, 400)}
    dims = {dim: DimRange(dim, low, low, high) for dim, (low, high) in ranges.items()}
    target = model.target(name, recording, dims)
    TritonBackend.availability = lambda self: Availability(True)
    built = TritonBackend(mode).build(target, BuildOptions(), BuildContext())
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    errors = []
    for batch, words in ((2, 5), (3, 40)):
        calls, _ = model.record(_request(batch, words), torch.randn(batch, 16, 32))
        errors.append(off(built.call(*calls[name][0].inputs), calls[name][0].output.double()))
    same = compiled == torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return f"{max(errors):.3e} 0 {same and built.settings['backend'] == 'triton'}"


def _request(batch: int, words: int) -> dict[str, Tensor]:
    ids = torch.cat((torch.full((batch, 256), 1021), torch.randint(0, 1000, (batch, words))), 1)
    return {
        "eagle_pixel_values": torch.rand(batch, 3, 224, 224) * 2 - 1,
        "eagle_input_ids": ids,
        "eagle_attention_mask": torch.ones_like(ids),
        "state": torch.rand(batch, 1, 64),
        "embodiment_id": torch.tensor([24, 17, 31])[:batch],
    }


def model() -> str:
    """Actions of the tiny model with every stage on kernels: the largest difference from the plain model's."""
    plain = Gr00tN1d5(tiny_config())
    fill_synthetic(plain, dtype=torch.float32, device=torch.device("cpu"))
    plain.eval().requires_grad_(False)
    fast = restructure(copy.deepcopy(plain))
    inputs = _request(3, 9)
    noise = torch.randn(3, 16, 32)
    expected = plain.get_action(inputs, noise=noise)["action_pred"]
    used = []
    for name in ("vision_model", "language_model", "vl_components", "state_encoder", "denoise_loop"):
        kernels = with_kernels(fast.eager_stage(name), chained=True)
        fast.stages[name] = lambda *args, name=name, kernels=kernels: used.append(name) or kernels(*args)
    fast.loop = "denoise_loop"
    found = [fast.get_action(inputs, noise=noise)["action_pred"] for _ in range(2)]
    assert len(used) == 10
    return f"{float((found[0] - expected).abs().max()):.3e} 0 {torch.equal(*found)}"


if __name__ == "__main__":
    mend_the_interpreter()
    for case in sys.argv[1:]:
        kind, *settings = case.split(",")
        print(globals()[kind](*(int(each) if each.isdigit() else each for each in settings)))

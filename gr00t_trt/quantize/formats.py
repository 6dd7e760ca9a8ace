"""The number formats: values in, codes and scales out, and back; plain PyTorch on any device.

    format  code                  scale of a weight                           scale of an input
    int8    int8, -127 to 127     fp32 per output channel, amax / 127         fp32, static: amax / 127
    fp8     e4m3                  fp32 per output channel, amax / 448         fp32, static: 2 amax / 448
    nvfp4   e2m1, two in a byte   e4m3 per 16 values, one fp32 per tensor     the same, block scales from the values

Codes are held as int8 or uint8: e4m3 is a floating dtype, so that `module.half()` would cast it, without an error.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
BLOCK = 16
"""Values that share a block scale in nvfp4, and what both sides of a quantised weight are a multiple of: tensor cores
take no other."""
E4M3_LARGEST, _E2M1_LARGEST = 448.0, 6.0
_LEAST_SCALE = 2.0**-60
_LEAST_BLOCK_SCALE = 2.0**-9
"""The smallest e4m3 value: a block of zeros divides by it."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


@dataclass(frozen=True)
class Format:
    """One number format.

    Attributes:
        largest: What the largest magnitude of a tensor becomes, in units of its scale.
        headroom: Inputs up to this many times the largest calibrated one are not clipped. A floating format loses
            nothing by it; an integer one would lose a bit with every doubling.
        smoothing: How much of the differences between input channels moves into the weight, 0 to 1.
        bits: Of a weight, its block scales included.
    """

    name: str
    largest: float
    headroom: float
    smoothing: float
    bits: float


FORMATS = {
    form.name: form
    for form in (
        Format("int8", 127.0, headroom=1.0, smoothing=0.5, bits=8),
        Format("fp8", E4M3_LARGEST, headroom=2.0, smoothing=0.0, bits=8),
        Format("nvfp4", E4M3_LARGEST * _E2M1_LARGEST, headroom=1.0, smoothing=0.5, bits=4.5),
    )
}


@dataclass(frozen=True)
class Codes:
    """A weight [N, K] in a format.

    Attributes:
        codes: int8 [N, K]; uint8 [N, K], the bits of e4m3; or uint8 [N, K / 2], even columns in the low bits.
        scale: fp32 [N], or [] of an nvfp4 tensor.
        block_scale: uint8 [N, K / 16], the bits of e4m3, for nvfp4; None for the others.
    """

    codes: Tensor
    scale: Tensor
    block_scale: Tensor | None = None


def scale_of(amax: Tensor, form: Format) -> Tensor:
    """The fp32 scale at which the magnitude `amax` becomes the format's largest."""
    return (amax.float() / form.largest).clamp(min=_LEAST_SCALE)


def encode(weight: Tensor, form: Format) -> Codes:
    """A weight [N, K] in a format; K is a multiple of 16 for nvfp4."""
    weight = weight.float()
    if form.name == "nvfp4":
        scale = scale_of(weight.abs().amax(), form)
        packed, block_scale = _encode_blocks(weight, scale)
        return Codes(packed, scale, block_scale)
    scale = scale_of(weight.abs().amax(dim=1), form)
    return Codes(_encode(weight, scale[:, None], form.name), scale)


def decode(codes: Tensor, scale: Tensor, block_scale: Tensor | None, name: str) -> Tensor:
    """fp32 [N, K]: the values that `encode` stored."""
    if block_scale is not None:
        return _decode_blocks(codes, block_scale, scale)
    return _decode(codes, scale[:, None], name)


def rounded(x: Tensor, scale: Tensor, name: str) -> Tensor:
    """fp32 [..., K] as the format can hold it at a static scale: out of range is clipped, block scales follow `x`."""
    if name == "nvfp4":
        packed, block_scale = _encode_blocks(x, scale)
        return _decode_blocks(packed, block_scale, scale)
    return _decode(_encode(x, scale, name), scale, name)


def _encode(x: Tensor, scale: Tensor, name: str) -> Tensor:
    steps = x / scale
    if name == "int8":
        return steps.round().clamp(-127, 127).to(torch.int8)
    # Clamped first: where a cast to e4m3 does not saturate, what is too large becomes NaN.
    return steps.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(E4M3).view(torch.uint8)


def _decode(codes: Tensor, scale: Tensor, name: str) -> Tensor:
    return (codes if name == "int8" else codes.view(E4M3)).float() * scale


def _encode_blocks(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """[..., K] -> e2m1 codes, two in a byte [..., K / 2], and the bits of e4m3 block scales [..., K / 16]."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    wanted = blocks.abs().amax(-1) / (_E2M1_LARGEST * scale)
    block_scale = wanted.clamp(_LEAST_BLOCK_SCALE, E4M3_LARGEST).to(E4M3)
    codes = _e2m1(blocks / (block_scale.float() * scale).unsqueeze(-1)).flatten(-2)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), block_scale.view(torch.uint8)


def _decode_blocks(packed: Tensor, block_scale: Tensor, scale: Tensor) -> Tensor:
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).int()
    values = _e2m1_table(packed.device)[0][codes]
    steps = block_scale.view(E4M3).float() * scale
    return (values.unflatten(-1, (-1, BLOCK)) * steps.unsqueeze(-1)).flatten(-2)


@functools.lru_cache(maxsize=8)
def _e2m1_table(device: torch.device) -> tuple[Tensor, Tensor]:
    """The value of each code, and what lies in the middle of two; made once, since a CUDA graph cannot copy them."""
    values = torch.tensor(_E2M1, device=device)
    return torch.cat((values, -values)), torch.tensor(_E2M1_MIDDLES, device=device)


def _e2m1(x: Tensor) -> Tensor:
    """uint8 codes 0 to 15 of the nearest values, the sign in the fourth bit; ties go to the even code."""
    middles, magnitude = _e2m1_table(x.device)[1], x.abs()
    below, above = (torch.bucketize(magnitude, middles, right=right) for right in (False, True))
    code = torch.where(below == above, below, below + below % 2).to(torch.uint8)
    return code | (torch.signbit(x).to(torch.uint8) << 3)

"""Small submodules with the operators of the real ones, in half precision, with a dynamic batch and length."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gr00t_trt.backends.onnx.export import missing
from gr00t_trt.model.targets import DimRange, Target

BATCH = DimRange("batch", 1, 1, 4)
LENGTH = DimRange("length", 8, 20, 40)


def torch_tensorrt_installed() -> bool:
    for name in ("torch-tensorrt", "torch-tensorrt-rtx"):
        try:
            importlib.metadata.version(name)
            return True
        except importlib.metadata.PackageNotFoundError:
            pass
    return False


needs_torch_tensorrt = pytest.mark.skipif(not torch_tensorrt_installed(), reason="torch_tensorrt is not installed")
needs_onnx = pytest.mark.skipif(bool(missing()), reason="onnx and onnxscript are not installed")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


class MaskedAttention(nn.Module):
    """Bidirectional attention with a bool padding mask, LayerNorm without weights, tanh GELU."""

    def __init__(self, heads: int = 2, head_dim: int = 16):
        super().__init__()
        width = heads * head_dim
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        return hidden + F.gelu(self.out(mixed.transpose(1, 2).flatten(2)), approximate="tanh")


class RmsNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Decoder(nn.Module):
    """Causal attention with grouped keys, rotary positions counted from an int64 mask, fp32 RMSNorm."""

    def __init__(self, heads: int = 4, groups: int = 2, head_dim: int = 16):
        super().__init__()
        width = heads * head_dim
        self.heads, self.groups, self.head_dim = heads, groups, head_dim
        self.norm = RmsNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * groups * head_dim, bias=False)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        batch, length, _ = hidden.shape
        index = torch.arange(length, device=hidden.device)
        visible = (index[None, :] <= index[:, None])[None] & (attention_mask[:, None, :] > 0)
        position = (visible.to(torch.int64).sum(-1) - 1).clamp(min=0).float()
        frequency = 1.0 / 1e4 ** (torch.arange(0, self.head_dim, 2, device=hidden.device).float() / self.head_dim)
        angle = torch.cat(2 * (position[:, :, None] * frequency,), -1)[:, None]
        x = self.norm(hidden)
        q = self._rotate(self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), angle)
        k, v = self.key_value(x).unflatten(-1, (2, self.groups, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        shape = (batch, self.groups, self.heads // self.groups, length, self.head_dim)
        k, v = (t[:, :, None].expand(shape).reshape(batch, self.heads, length, -1) for t in (self._rotate(k, angle), v))
        return hidden + F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None]).transpose(1, 2).flatten(2)

    @staticmethod
    def _rotate(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * angle.cos().to(x.dtype) + torch.cat((-second, first), -1) * angle.sin().to(x.dtype)


class EmbodimentEncoder(nn.Module):
    """Weights of 32 embodiments, gathered by an int64 id, with a sine and cosine of an int64 timestep."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.first = nn.Parameter(0.1 * torch.randn(32, 8, width))
        self.second = nn.Parameter(0.1 * torch.randn(32, 2 * width, width))
        self.bias = nn.Parameter(0.1 * torch.randn(32, width))
        self.width = width

    def forward(self, actions: torch.Tensor, timestep: torch.Tensor, embodiment_id: torch.Tensor) -> torch.Tensor:
        x = torch.bmm(actions, self.first[embodiment_id])
        half = torch.arange(self.width // 2, device=actions.device).float()
        angle = timestep[:, None].float() * torch.exp(-half * (9.21034 / (self.width // 2)))
        wave = torch.cat((angle.sin(), angle.cos()), -1).to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
        x = torch.bmm(torch.cat((x, wave), -1), self.second[embodiment_id])
        return F.silu(x + self.bias[embodiment_id][:, None])


def tensors(name: str, batch: int, length: int, dtype: torch.dtype = torch.float16) -> tuple[torch.Tensor, ...]:
    """Inputs of a small submodule, the same ones on every call."""
    random = torch.Generator().manual_seed(batch * 1000 + length)
    if name == "encoder":
        actions = torch.randn(batch, 6, 8, generator=random).to(dtype)
        return actions, torch.arange(batch) * 250 + 7, torch.arange(batch) % 32
    width = 64 if name == "decoder" else {"attention": 32, "head_dim_72": 144, "head_dim_48": 96}[name]
    keep = torch.ones(batch, length, dtype=torch.bool)
    keep[:, length - 3 :] = False
    hidden = torch.randn(batch, length, width, generator=random).to(dtype)
    return hidden, keep.to(torch.int64) if name == "decoder" else keep


def make_target(name: str, dtype: torch.dtype = torch.float16) -> Target:
    torch.manual_seed(0)
    modules: dict[str, Callable[[], nn.Module]] = {
        "attention": MaskedAttention,
        "head_dim_72": lambda: MaskedAttention(head_dim=72),
        "head_dim_48": lambda: MaskedAttention(head_dim=48),
        "decoder": Decoder,
        "encoder": EmbodimentEncoder,
    }
    module = modules[name]().to(dtype).eval().requires_grad_(False)
    names = {"encoder": ("actions", "timestep", "embodiment_id"), "decoder": ("hidden", "attention_mask")}
    ranges = 3 * ({0: BATCH},) if name == "encoder" else 2 * ({0: BATCH, 1: LENGTH},)
    return Target(name, module, tensors(name, 1, 20, dtype), names.get(name, ("hidden", "keep")), ranges)


class Unconvertible(nn.Module):
    def forward(self, x):
        return torch.lgamma(torch.relu(x) + 1.5) * 2


def unconvertible():
    return Target("odd_one", Unconvertible(), (torch.randn(1, 16),), ("x",), ({0: BATCH},))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))

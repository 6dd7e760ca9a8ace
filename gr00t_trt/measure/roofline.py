"""The shortest time in which a device could run a request: every matrix product at full speed, all else free.

One product takes the longer of two times: its arithmetic at the device's peak, and its bytes at the device's bandwidth.
The bytes are its operands and its result, each moved once; those of a quantised weight are its codes and scales.
Attention counts as one product, whose scores are never written to memory. Products are added up, since each waits for
the one before. What lies between them is assumed fused.

The products are those of the model at hand: `trace` runs it on the meta device, where tensors have shapes, not values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ..errors import PlanError
from ..quantize.operator import quantized_linear as _defined  # noqa: F401  the operator must exist

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Ceilings:
    """What a device can reach in half precision, fp16 or bf16, without sparsity.

    Attributes:
        bandwidth: Bytes per second.
        arithmetic: Floating point operations per second.
        source: Where the two come from.
        faster: Quantised format -> how many times as many operations it has by the datasheet; none for a format that
            the device cannot multiply in.
    """

    bandwidth: float
    arithmetic: float
    source: str
    faster: Mapping[str, float] = field(default_factory=dict)


def _derated(terabytes: float, teraflops: float, **faster: float) -> Ceilings:
    source = f"datasheet {terabytes:g} TB/s and {teraflops:g} TFLOP/s, of which 0.90 and 0.80 are reachable"
    return Ceilings(terabytes * 1e12 * 0.90, teraflops * 1e12 * 0.80, source, faster)


_HOPPER = {"fp8": 2.0, "int8": 2.0}

DEVICES: tuple[tuple[str, Ceilings], ...] = (
    (r"NVIDIA H200", Ceilings(4.3e12, 790e12, "measured: copies at 4.3 TB/s, bf16 products at 790 TFLOP/s", _HOPPER)),
    (r"NVIDIA H100 80GB HBM3", _derated(3.35, 989, **_HOPPER)),
    (r"NVIDIA GeForce RTX 5090", _derated(1.79, 209.5, fp8=2, int8=4, nvfp4=8)),
    (r"NVIDIA GeForce RTX 4090", _derated(1.008, 165, fp8=2, int8=4)),
    (r"NVIDIA A100-SXM4-80GB", _derated(2.04, 312, int8=2)),
    (r"(NVIDIA )?(Jetson )?(AGX )?Thor", _derated(0.273, 258, fp8=2, nvfp4=4)),
    (r"(NVIDIA )?(Jetson )?(AGX )?Orin( \(nvgpu\))?", _derated(0.205, 42.5, int8=2)),
)
"""Full device name as the driver gives it -> ceilings. Boards of the same family with other memory are not listed, and
so have no roofline. The derating is what an H200 was measured to keep of its own datasheet."""


def ceilings(gpu: str | None) -> Ceilings | None:
    """The ceilings of a device by its name, ``torch.cuda.get_device_name()``; None for an unknown one, or none."""
    return next((found for name, found in DEVICES if gpu and re.fullmatch(name, gpu)), None)


@dataclass(frozen=True)
class Product:
    """One matrix product, convolution or attention.

    Attributes:
        flops: Multiplications and additions.
        weight_bytes: Of operands that were there before the call: parameters, or tables made of them.
        activation_bytes: Of the other operands and the result.
        arithmetic: ``half`` where all operands are fp16 or bf16; the format of quantised ones; None for any other.
    """

    operator: str
    flops: int
    weight_bytes: int
    activation_bytes: int
    arithmetic: str | None

    def milliseconds(self, device: Ceilings) -> float | None:
        """None for arithmetic of which the device's speed is not known, or that it does not have."""
        faster = 1.0 if self.arithmetic == "half" else device.faster.get(self.arithmetic or "")
        if faster is None:
            return None
        moved = (self.weight_bytes + self.activation_bytes) / device.bandwidth
        return 1e3 * max(self.flops / (device.arithmetic * faster), moved)


@dataclass
class Trace:
    """What one call of a model does.

    Attributes:
        operators: ATen operators that PyTorch dispatches, attention counted as one; views are not counted.
    """

    products: list[Product] = field(default_factory=list)
    operators: int = 0

    @property
    def flops(self) -> int:
        return sum(product.flops for product in self.products)

    @property
    def weight_bytes(self) -> int:
        """Weights read, again in every denoising step."""
        return sum(product.weight_bytes for product in self.products)

    @property
    def bytes(self) -> int:
        """Everything that the products read and write."""
        return sum(product.weight_bytes + product.activation_bytes for product in self.products)

    def milliseconds(self, device: Ceilings) -> float | None:
        """The roofline time; None when that of a product is not known."""
        times = [product.milliseconds(device) for product in self.products]
        known = [ms for ms in times if ms is not None]
        return sum(known) if len(known) == len(times) else None


def trace(call: Callable[[], object], inputs: Iterable[Tensor] = ()) -> Trace:
    """Run `call` once and note its products.

    Args:
        call: Runs a model on the meta device; whatever it keeps between calls should exist already.
        inputs: The tensors of the request, which are no weights.
    Raises: PlanError when a product runs on another device: its time would be spent, and its caches filled.
    """
    found = Trace()
    with torch.no_grad(), _Operators(found, inputs) as seen, _Attention(seen):
        call()
    return found


class _Operators(TorchDispatchMode):
    """Notes every operator, and which storages the call has made; the others hold weights."""

    def __init__(self, found: Trace, inputs: Iterable[Tensor]):
        super().__init__()
        self.found = found
        self._kept = list(inputs)  # an address may be given to another storage once its own is gone
        self._made = {_storage(x) for x in self._kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operands, results = _tensors((args, kwargs)), _tensors(out)
        # Rows taken out of a weight are weights still: what the product after it reads comes from the same memory.
        if func is not torch.ops.aten.index_select.default or self._is_made(operands[0]):
            self.made(results, operands)
        self._kept += results
        if not func._schema.returns or any(r.alias_info is None or r.alias_info.is_write for r in func._schema.returns):
            self.found.operators += 1
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            self.product(func._overloadpacket.__name__, flops, operands, results)
        if func is torch.ops.gr00t_trt.quantized_linear.default:
            # Without an input's scale the weight alone is quantised, and the product is one of 16 bits.
            form = "half" if args[4] is None else args[7]
            self.product("quantized_linear", 2 * args[0].numel() * out.shape[-1], operands, results, form)
        return out

    def made(self, results: Sequence[Tensor], operands: Sequence[Tensor]) -> None:
        """Results are the call's own, unless they share memory with an operand, whose kind they then are."""
        shared = {_storage(x) for x in operands}
        self._made |= {_storage(x) for x in results} - shared

    def product(
        self,
        operator: str,
        flops: int,
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        arithmetic: str | None = None,
    ) -> None:
        for x in operands:
            if x.device.type != "meta":
                raise PlanError(f"roofline: {operator} on {x.device}", known="models and inputs on the meta device")
        weights = [x for x in operands if not self._is_made(x)]
        others = [x for x in operands if self._is_made(x)]
        arithmetic = arithmetic or ("half" if all(x.dtype in HALF for x in operands) else None)
        moved = _bytes(weights), _bytes([*others, *results])
        self.found.products.append(Product(operator, int(flops), *moved, arithmetic))

    def _is_made(self, x: Tensor) -> bool:
        return _storage(x) in self._made


class _Attention(TorchFunctionMode):
    """Counts attention as one operator, before PyTorch takes it apart; on the meta device it would be made of many."""

    def __init__(self, operators: _Operators):
        super().__init__()
        self._operators = operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        out = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
        self._operators.product("attention", sdpa_flop_count(query.shape, key.shape, value.shape), args[:3], [out])
        return out


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)

"""Weights told apart by their bytes."""

from __future__ import annotations

import hashlib

from torch import nn

from ..model.weight_writer import tensor_bytes


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over a module's state: name, dtype, shape and bytes of each entry, in the state's order."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()

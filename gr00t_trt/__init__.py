"""GR00T N1.5 compiled with Torch-TensorRT, measured, and checked against eager PyTorch.

    import gr00t_trt

    policy = gr00t_trt.load_policy("synthetic")
    action = policy.get_action(observation)

The functions load PyTorch on first use; importing the package does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deploy.accelerate import accelerate as accelerate
    from .model import load_model as load_model
    from .policy.policy import load_policy as load_policy

__version__ = "0.1.0"
__all__ = ["accelerate", "load_model", "load_policy"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from .model import load_model

        return load_model
    if name == "load_policy":
        from .policy.policy import load_policy

        return load_policy
    if name == "accelerate":
        from .deploy.accelerate import accelerate

        return accelerate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""GR00T N1.5 in plain PyTorch, with the public checkpoint's own key names."""

from .checkpoint import load_config, load_model, model_from_tensors, resolve_checkpoint
from .config import Gr00tConfig
from .gr00t import Gr00tN1d5
from .inputs import example_inputs

__all__ = [
    "Gr00tConfig",
    "Gr00tN1d5",
    "example_inputs",
    "load_config",
    "load_model",
    "model_from_tensors",
    "resolve_checkpoint",
]

"""GR00T N1.5 in plain PyTorch, with the public checkpoint's own key names."""

from .checkpoint import load_config, load_model, resolve_checkpoint
from .config import Gr00tConfig
from .gr00t import Gr00tN1d5

__all__ = ["Gr00tConfig", "Gr00tN1d5", "load_config", "load_model", "resolve_checkpoint"]

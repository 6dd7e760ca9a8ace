"""gymnasium, imported here only, with an error that says how to install it. Never imports torch."""

from __future__ import annotations

from ..common.install import install_extra
from ..errors import PlanError

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.envs.registration import load_env_creator
    from gymnasium.wrappers import TimeLimit
except ImportError as error:
    raise PlanError("simulated worlds need gymnasium: not installed", fix=install_extra("sim")) from error

__all__ = ["TimeLimit", "gymnasium", "load_env_creator", "spaces"]

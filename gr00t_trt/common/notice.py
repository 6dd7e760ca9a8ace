"""What an operator should know and no request fails for: said once, through Python's logging."""

from __future__ import annotations

import logging
from functools import lru_cache

LOGGER = logging.getLogger("gr00t_trt")
"""A host process routes it as it likes; without a handler, warnings go to stderr."""


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log a warning; the same message again says nothing."""
    LOGGER.warning(message)

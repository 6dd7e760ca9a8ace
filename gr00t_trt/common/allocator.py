"""Memory that was freed and that the C library still holds."""

from __future__ import annotations

import ctypes
import gc
import sys


def return_freed() -> None:
    """Collect garbage, and give freed memory back to the system where the C library can.

    A compiler frees gigabytes in small pieces; glibc keeps them, and the next engine's would come on top.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)

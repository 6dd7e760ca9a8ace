"""The commands that messages name, and that asking for them changes nothing."""

from __future__ import annotations

import subprocess
import sys

from gr00t_trt.common.install import install, install_extra


def test_a_command_that_installs():
    assert install("triton") in ("pip install triton", "uv pip install triton")
    assert "gr00t_trt[serve]" in install_extra("serve") or ".[serve]" in install_extra("serve")


def test_setuptools_still_works_afterwards():
    """torch.compile imports it; looking for pip as a module makes that fail."""
    code = "from gr00t_trt.common.install import install; install('x'); import setuptools._distutils"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

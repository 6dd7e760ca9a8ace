"""What a bundle can be used with: the GPU, the processor's instructions, and the versions of what loads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ... import __version__
from ...engines.key import source_hash, target_gpu
from ...engines.manifest import this_platform
from ...errors import PlanError
from ...plans.backends import BACKENDS, get_backend
from .manifest import Manifest

_AGAIN = "make the bundle on a machine like this one, with these versions: gr00t-trt bundle OUT --model_path CHECKPOINT"
_CODE = "code of the model"
_COMPUTING = (
    *("abm", "adx", "aes", "amx", "avx", "bmi", "f16c", "fma", "gfni", "movbe", "pclmul", "popcnt", "sse", "ssse"),
    *("vaes", "vpcl", "asimd", "atomics", "bf16", "crc32", "fphp", "i8mm", "sve"),
)
"""How the names of instructions begin that a compiler uses for arithmetic, on x86 and on Arm."""


def this_machine(device: torch.device, backends: Iterable[str]) -> dict[str, str]:
    """What must be the same where a bundle is used, by name.

    Args:
        backends: That built something in it.
    """
    out = {
        "platform": this_platform(),
        "gr00t_trt": __version__,
        _CODE: source_hash()[:16],
        "torch": str(torch.__version__),
    }
    if device.type == "cuda":
        out["gpu"] = target_gpu((), device)
    for name in dict.fromkeys(backends):
        if BACKENDS[name].makes_engines:  # the others come with PyTorch, and asking them may import a compiler
            out |= get_backend(name).availability().versions
    return out


def cpu_features() -> tuple[str, ...]:
    """The instructions that compiled arithmetic may use here, as Linux names them; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ()
    found = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    return tuple(sorted({name for name in found.partition(":")[2].split() if name.startswith(_COMPUTING)}))


def refuse_another(manifest: Manifest, device: torch.device, where: Path) -> None:
    """Raises: PlanError for another device, GPU, processor or version than the bundle was made with, naming both."""
    if device.type != manifest.device:
        made = {"cuda": "a GPU", "cpu": "a CPU"}
        raise PlanError(
            f"{where}: it was made for {made[manifest.device]}, and {device} was chosen",
            fix=f"leave --device out, or start on a machine with {made[manifest.device]}",
        )
    here = this_machine(device, (stage.backend for stage in manifest.stages))
    machine = manifest.machine.items()
    other = [_said(name, made, here.get(name)) for name, made in machine if here.get(name) != made]
    lacking = [name for name in manifest.cpu_features if name not in cpu_features()]
    if lacking:
        shown = ", ".join(lacking[:8]) + (", ..." if len(lacking) > 8 else "")
        other.append(f"a processor with {shown}, which this one lacks")
    if other:
        raise PlanError(f"{where}: it was made with {'; '.join(other)}", fix=_AGAIN)


def _said(name: str, made: str, here: str | None) -> str:
    if name == _CODE:
        return "another state of this package's code"
    return f"{name} {made}, and here is {here or 'none'}"

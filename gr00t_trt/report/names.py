"""What a row of a measuring run is called: beside the rows before it, and alone. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..plans.schema import OPTIMISATIONS

GROUPS = {
    "waterfall": "step by step, each with all before it",
    "loop": "the denoising steps alone",
    "request": "`get_action`, from numpy to numpy",
    "percentiles": "a thousand calls",
    "compile": "ways to compile",
    "submodules": "submodule by submodule, against the same one in PyTorch",
    "steps": "denoising steps",
    "views": "views",
    "batch": "batch",
}
"""Group of measurements -> its heading, in the order of the tables."""

ALL = "all optimisations"
OUTSIDE = "outside the gate"
"""What the note of a row begins with whose actions stray further from eager fp32 than its gate allows."""

COMPILERS = {"inductor": "torch.compile", "torch_tensorrt": "Torch-TensorRT"}

Row = Mapping[str, Any]


def form(row: Row) -> str | None:
    """The form of the model that a row measured; None for one that does not say, as for the plain model in PyTorch."""
    settings = row.get("settings") or {}
    done = len(settings.get("optimisations") or ())
    if not done:
        return None
    parts = [ALL if done == len(OPTIMISATIONS) else f"{done} of {len(OPTIMISATIONS)} optimisations"]
    parts += [COMPILERS.get(settings.get("backend") or "", "")]
    parts += ["one CUDA graph" if settings.get("graph") else ""]
    return ", ".join(part for part in parts if part)


def adds_an_optimisation(row: Row) -> bool:
    """Whether it is a step of the waterfall that only restructures the model."""
    return row["group"] == "waterfall" and str(row["name"]).removeprefix("+ ") in OPTIMISATIONS


def is_between(row: Row) -> bool:
    """Whether it is a step of the waterfall on the way to all optimisations."""
    return adds_an_optimisation(row) and form(row) not in (None, ALL)


def in_its_group(row: Row) -> str:
    """A step of the waterfall stands on those before it, which a reader of one line cannot see."""
    name = str(row["name"])
    return f"{name} ({ALL})" if adds_an_optimisation(row) and form(row) == ALL else name


def alone(row: Row) -> str:
    """The name of a row that is read without the ones before it: what was measured, not what was added last."""
    name, made = str(row["name"]), form(row)
    if made is None:
        return name
    if row["group"] == "waterfall":
        return made
    return f"{name} ({made})" if row["group"] in ("request", "percentiles") else name

#!/usr/bin/env python3
"""Write docs/api.md from the docstrings of the documented import paths.

python docs/make_api.py            write it
python docs/make_api.py --check    exit 1 if it does not say what the docstrings say
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Python API

Generated from the docstrings by `docs/make_api.py`. What is not here is private and may move.
"""
MODULES = {
    "gr00t_trt": ("load_policy", "load_model", "accelerate"),
    "gr00t_trt.policy": ("Gr00tPolicy",),
    "gr00t_trt.data": (
        "LeRobotDataset", "DatasetMetadata", "DataConfig", "data_config", "ModalityConfig", "validate_observation",
        "example_observation", "read_metadata", "load_tokenizer",
    ),
    "gr00t_trt.plans": ("load_plan",),
    "gr00t_trt.serve.client": ("RobotInferenceClient",),
    "gr00t_trt.serve.http_client": ("HttpInferenceClient",),
    "gr00t_trt.errors": (
        "Gr00tError", "PlanError", "CheckpointError", "TokenizerError", "DatasetError", "ObservationError",
        "ShapeError", "BackendError", "AccuracyError", "ServiceError", "RecordError",
    ),
}  # fmt: skip


def page() -> str:
    parts = [HEAD]
    for module_name, names in MODULES.items():
        module = importlib.import_module(module_name)
        parts.append(f"## `{module_name}`\n")
        for name in names:
            parts += entry(name, getattr(module, name))
    return "\n".join(parts).rstrip() + "\n"


def entry(name: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        yield f"- `{name}`: {first_line(thing)}"
        return
    yield f"### `{name}`\n"
    yield f"```text\n{name}{signature(thing)}\n```\n"
    yield body(thing)
    if inspect.isclass(thing):
        for own, member in vars(thing).items():
            documented = inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
            if documented and not own.startswith("_") and (described := inspect.getdoc(member)):
                call = "" if isinstance(member, property) else signature(getattr(thing, own))
                yield f"**`{own}{call}`**\n\n{text(described)}\n"


def signature(thing: Any) -> str:
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "()"
    plain = [p.replace(annotation=_Bare(p.annotation), default=_stable(p.default)) for p in found.parameters.values()]
    return str(found.replace(parameters=plain, return_annotation=_Bare(found.return_annotation)))


def _stable(default: Any) -> Any:
    return _Bare("...") if callable(default) and default is not inspect.Parameter.empty else default


class _Bare:
    """An annotation that is shown as it stands in the source, or an empty one."""

    def __new__(cls, annotation: Any) -> Any:
        return annotation if annotation is inspect.Signature.empty else super().__new__(cls)

    def __init__(self, annotation: Any):
        self.text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))

    def __repr__(self) -> str:
        return self.text


def first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").splitlines()[0]


def body(thing: Any) -> str:
    return text(inspect.getdoc(thing) or "") + "\n"


def text(described: str) -> str:
    """A docstring as Markdown: its sections stay readable as they are, in a block of their own."""
    match = re.search(r"^(Args|Returns|Raises|Attributes):", described, re.M)
    if match is None:
        return described.replace("``", "`")
    lead, rest = described[: match.start()].rstrip(), described[match.start() :].rstrip()
    return f"{lead.replace('``', '`')}\n\n```text\n{rest}\n```"


def main(argv: list[str]) -> int:
    written = page()
    if "--check" in argv:
        stale = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != written
        if stale:
            print("docs/api.md is stale: python docs/make_api.py")
        return int(stale)
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

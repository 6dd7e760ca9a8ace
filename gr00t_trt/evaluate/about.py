"""What a record says of a policy, and the records of programs that ask one. Never imports torch."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..record.environment import ROOT
from ..record.schema import ModelInfo, Record, new_record


@dataclass(frozen=True)
class About:
    """`facts` as JSON, and notes of what and why."""

    facts: Any
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def device(self) -> str | None:
        """Where a local model runs."""
        return self.facts.get("device")

    @property
    def where(self) -> str:
        """Where answers come from: a device, or a server."""
        return str(self.device or self.facts.get("server", "cpu"))


def record_of(args: argparse.Namespace, command: Sequence[str], policies: Sequence[About], **known: Any) -> Record:
    """A record of a command after ``gr00t-trt`` that asks policies, with their notes; `known` as for `new_record`."""
    record = new_record(
        shlex.join(["gr00t-trt", *command]),
        root=ROOT,
        device=next((own.device for own in policies if own.device), None),
        model=ModelInfo(args.model_path),
        **known,
    )
    for own in policies:
        record.skip_all(own.notes)
    return record

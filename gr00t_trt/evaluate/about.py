"""What a record says of a policy. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class About:
    """`facts` as JSON, and notes of what and why."""

    facts: Any
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def device(self) -> str | None:
        """Where a local model runs."""
        found: str | None = self.facts.get("device")
        return found

    @property
    def where(self) -> str:
        """Where answers come from: a device, or a server."""
        return str(self.device or self.facts.get("server", "cpu"))

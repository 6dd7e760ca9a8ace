"""The kinds of robots that one server drives: each with keys, statistics and limits of its own, all on one model.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

from ..common.interface import ModalityConfig
from .batching import Batcher
from .limits import Limits
from .refusal import Refusal
from .wire import Message


@dataclass(frozen=True)
class Robot:
    """One kind of robot.

    Attributes:
        modality_config: Keys that its policy reads and gives.
        limits: Of a single request; None for no limits.
        policy: Answers it; None where that is in another process.
        batcher: Joins its requests; None answers each alone.
        about: For the status page: ``data_config``, and under ``observation`` the dtype and shape of every key.
    """

    modality_config: Mapping[str, ModalityConfig]
    limits: Limits | None
    policy: Any = None
    batcher: Batcher | None = None
    about: Mapping[str, object] = field(default_factory=dict)

    def described(self) -> Message:
        """For the status page, of maps and lists alone, which every protocol can encode."""
        return {**self.about, "modality_config": {name: asdict(own) for name, own in self.modality_config.items()}}


class Robots:
    """Kinds of robots by embodiment tag; requests that name none are of the first kind.

    Args:
        tag: Of the first kind; None where it has none.
        others: Tag -> the others.
    """

    def __init__(self, first: Robot, tag: str | None = None, others: Mapping[str, Robot] | None = None):
        self.first, self._tag = first, tag
        self.others = dict(others or {})

    def of(self, tag: str | None) -> Robot:
        """The kind that a request names. Raises: Refusal for one that is not served."""
        if tag is None or tag == self._tag:
            return self.first
        if tag not in self.others:
            known = [*([self._tag] if self._tag else []), *self.others]
            near = get_close_matches(tag, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            text = f"embodiment_tag: no {tag!r} is served here, but {', '.join(known) or 'one robot without a tag'}"
            raise Refusal(text + hint, http_status=400)
        return self.others[tag]

    def described(self) -> Message:
        """Tag -> what the status page says of a kind; empty where there is only one."""
        if not self.others or self._tag is None:
            return {}
        return {"robots": {tag: each.described() for tag, each in {self._tag: self.first, **self.others}.items()}}

"""Tasks that are played together, and what others measured in them. Never imports torch or gymnasium."""

from __future__ import annotations

from ..errors import UsageError, unknown
from ..record.simulation import Published
from .defaults import GR1_24

GR1 = "gr1_24"
SUITES = {GR1: GR1_24}
"""Name -> environments."""
STEPS = {GR1: 720}
"""Name -> low-level steps of an episode, as those who published figures have them."""

_CUP = GR1_24[0]
_TASKS = "robocasa-gr1-tabletop-tasks"
PUBLISHED = {
    GR1: (
        Published("N1.5, zero shot", f"README of {_TASKS}", 0.42),
        Published("N1.5, post-trained for 30,000 steps", f"README of {_TASKS}", 0.47),
        Published("N1.5, zero shot", "NVIDIA's page on N1.5, quoted in Isaac-GR00T #330", 0.439),
        Published("N1.5, zero shot", "a user, Isaac-GR00T #330", 0.346, episodes=10),
        Published("N1.5, zero shot", "a user, Isaac-GR00T #413", 0.34, episodes=20),
        Published("N1.6", "README of Isaac-GR00T's examples", 0.476, {_CUP: 0.085}, 20),
        Published("N1.6, post-trained", f"a user, {_TASKS} #27", None, {_CUP: 0.615}),
    )
}
"""Name -> means over its tasks, and single tasks where they were given."""


def environments(suite: str) -> tuple[str, ...]:
    """The environments of a suite. Raises: UsageError for an unknown one."""
    if suite not in SUITES:
        raise unknown(UsageError, "--suite", suite, SUITES)
    return SUITES[suite]

"""The named steps from the plain model to the restructured one. Each can be left out alone."""

from __future__ import annotations

from collections.abc import Collection

from ....errors import PlanError, unknown
from ....plans.schema import OPTIMISATIONS


def check_names(names: Collection[str]) -> frozenset[str]:
    """The names as a set. Raises: PlanError for one that is not in `OPTIMISATIONS`."""
    for name in names:
        if name not in OPTIMISATIONS:
            raise unknown(PlanError, "optimisations", name, OPTIMISATIONS)
    return frozenset(names)

from __future__ import annotations

import copy

import pytest
from sample_measured import MEASURED
from sample_records import BUILT, COMPARED


@pytest.fixture
def compared() -> dict:
    """A comparison of backends and a measuring run in one, on a GPU."""
    return copy.deepcopy(COMPARED)


@pytest.fixture
def built() -> dict:
    """Engines built on a machine without a GPU: no latency, and one NaN."""
    return copy.deepcopy(BUILT)


@pytest.fixture
def measured() -> dict:
    """A measuring run on a GPU, whole."""
    return copy.deepcopy(MEASURED)

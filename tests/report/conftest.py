from __future__ import annotations

import copy

import pytest
from sample_measured import MEASURED
from sample_records import BUILT, COMPARED

from gr00t_trt.record.schema import Record


@pytest.fixture
def compared() -> Record:
    """A comparison of backends and a measuring run in one, on a GPU."""
    return copy.deepcopy(COMPARED)


@pytest.fixture
def built() -> Record:
    """Engines built on a machine without a GPU: no latency, and one NaN."""
    return copy.deepcopy(BUILT)


@pytest.fixture
def measured() -> Record:
    """A measuring run on a GPU, whole."""
    return copy.deepcopy(MEASURED)

"""What a server sets up around a deployed policy."""

from __future__ import annotations

from types import SimpleNamespace

import gr00t_trt
from gr00t_trt.serve.start import _timed_tables


def test_stages_that_a_graph_has_swallowed_are_not_timed() -> None:
    plain = gr00t_trt.load_policy("synthetic")
    assert _timed_tables(plain) == (plain.stages, plain.model.stages)
    stages, steps = {"dit_model": print}, {"preprocess": print}
    policy = SimpleNamespace(stages=steps, model=SimpleNamespace(stages=stages, graphs=None))
    assert _timed_tables(policy) == (steps, stages)
    policy.model.graphs = print  # wrapping a stage now would throw its graph away
    assert _timed_tables(policy) == (steps,)

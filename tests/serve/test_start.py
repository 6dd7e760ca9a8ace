"""What a server sets up around a deployed policy."""

from __future__ import annotations

from types import SimpleNamespace

from gr00t_trt.serve.start import _timed_tables


def test_stages_that_a_graph_has_swallowed_are_not_timed() -> None:
    stages, steps = {"dit_model": print}, {"preprocess": print}
    plain = SimpleNamespace(stages=steps, model=SimpleNamespace(stages=stages))
    assert _timed_tables(plain) == (steps, stages)
    plain.model.graphs = None
    assert _timed_tables(plain) == (steps, stages)
    plain.model.graphs = print  # wrapping a stage now would throw its graph away
    assert _timed_tables(plain) == (steps,)

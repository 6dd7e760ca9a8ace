"""Messages: what is wrong, what is known, how to fix it."""

import pytest

from gr00t_trt import errors


def test_three_parts_one_per_line():
    error = errors.PlanError("plan.yaml: x: 1", known=["a", "b"], fix="use a")
    assert str(error) == "plan.yaml: x: 1\n  known: a, b\n  use a"


def test_parts_are_optional():
    assert str(errors.BackendError("it broke")) == "it broke"


@pytest.mark.parametrize(
    "name", ["Plan", "Checkpoint", "Tokenizer", "Dataset", "Observation", "Shape", "Backend", "Record"]
)
def test_everything_is_a_gr00t_error(name):
    assert issubclass(getattr(errors, f"{name}Error"), errors.Gr00tError)


def test_unknown_offers_the_nearest():
    error = errors.unknown(errors.PlanError, "--fn_name", "dit_modle", ("dit_model", "all"))
    assert str(error) == "--fn_name: unknown value 'dit_modle'\n  known: dit_model, all\n  did you mean dit_model?"


def test_unknown_offers_nothing_when_nothing_is_close():
    assert "did you mean" not in str(errors.unknown(errors.PlanError, "--fn_name", "zzz", ("dit_model", "all")))


def test_nearest_ignores_case():
    assert errors.nearest("FP61", ("fp16", "bf16")) == "fp16"
    assert errors.nearest("quite different", ("fp16",)) is None

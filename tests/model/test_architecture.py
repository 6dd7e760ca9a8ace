"""The names of the optimizations, and those that they had in earlier releases."""

from __future__ import annotations

from pathlib import Path

import pytest

from gr00t_trt.errors import PlanError
from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.model.n1_5.fast import restructure
from gr00t_trt.plans.load import load_plan, merge, plan_from_mapping, plan_to_mapping
from gr00t_trt.plans.schema import Plan

FORMER = {
    "embodiment_weights": "constant_folding",
    "cross_attention_kv": "kv_cache",
    "future_tokens": "constant_folding",
    "timestep_tables": "constant_folding",
    "action_rows": "token_pruning",
    "fused_projections": "fused_projections",
    "patch_product": "fused_projections",
    "action_encoder_fold": "constant_folding",
    "prompt_cache": "prompt_cache",
    "unpadded_mask": "prompt_cache",
}
"""The ten names that plans of earlier releases may hold -> what each means today."""
NAMES = ("constant_folding", "kv_cache", "token_pruning", "fused_projections", "prompt_cache")


def chosen(optimizations: object) -> tuple[str, ...]:
    return plan_from_mapping({"optimizations": optimizations}, "test").optimizations


def test_every_name_of_today_is_what_some_former_ones_became() -> None:
    assert tuple(N1_5.optimizations) == NAMES
    assert set(FORMER.values()) == set(NAMES)
    assert {**{name: name for name in NAMES}, **N1_5.renamed} == {**{name: name for name in NAMES}, **FORMER}


def test_a_plan_of_an_earlier_release_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(f"backend: eager\noptimisations: [{', '.join(FORMER)}]\n")
    plan = load_plan(path)
    assert plan == Plan(backend="eager", optimizations=NAMES)
    # Written again, it speaks the names of today.
    assert plan_to_mapping(plan)["optimizations"] == list(NAMES)
    assert plan_from_mapping(plan_to_mapping(plan), "again") == plan


@pytest.mark.parametrize(("former", "today"), FORMER.items())
def test_a_former_name_means_what_it_is_part_of(former: str, today: str) -> None:
    assert chosen([former]) == chosen([today]) == chosen(former.upper()) == (today,)
    others = tuple(name for name in NAMES if name != today)
    assert chosen({former: False}) == chosen({today: False}) == others
    assert chosen({former: True}) == NAMES


def test_former_and_present_names_stand_beside_each_other() -> None:
    assert chosen("kv_cache, timestep_tables,embodiment_weights") == ("constant_folding", "kv_cache")
    assert chosen({"unpadded_mask": False, "token_pruning": False}) == (
        "constant_folding", "kv_cache", "fused_projections",
    )  # fmt: skip
    assert chosen({"constant_folding": True, "future_tokens": False}) == NAMES[1:]  # one part switched off is the whole
    assert merge(Plan(), {"optimizations": "patch_product"}).optimizations == ("fused_projections",)


def test_what_was_never_a_name_is_refused_with_the_nearest_of_today() -> None:
    with pytest.raises(PlanError, match=r"unknown value 'kv_cash'[\s\S]*did you mean kv_cache"):
        chosen(["kv_cash"])
    with pytest.raises(PlanError, match="patch_products: no such key"):
        chosen({"patch_products": False})
    with pytest.raises(PlanError, match="patch_product: 'off' is not a boolean"):
        chosen({"patch_product": "off"})
    with pytest.raises(PlanError, match="given twice, in two spellings"):
        plan_from_mapping({"optimizations": "all", "optimisations": "all"}, "test")


def test_the_model_itself_knows_the_names_of_today_alone(shared_tiny) -> None:
    assert restructure(shared_tiny, optimizations=NAMES[:2]).optimizations == frozenset(NAMES[:2])
    with pytest.raises(PlanError, match="unknown value 'patch_product'"):
        restructure(shared_tiny, optimizations=["patch_product"])

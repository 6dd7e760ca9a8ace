from __future__ import annotations

import pytest
import torch

import gr00t_trt
from gr00t_trt.compile.build import dimension_ranges
from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset
from gr00t_trt.errors import PlanError
from gr00t_trt.measure.workloads import one_request
from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.plans.schema import GROUPS, OPTIMIZATIONS, SUBMODULES, Plan, Ranges
from gr00t_trt.plans.submodules import select


@pytest.fixture(scope="module")
def recorded():
    policy = gr00t_trt.load_policy("synthetic")
    config = data_config("fourier_gr1_arms_only")
    observation = LeRobotDataset(synthetic_dataset(), config.modality_config()).step(0, 0)
    request = one_request(policy, observation, seed=0)
    recording, actions = policy.model.record(request.inputs, request.noise)
    return policy.model, request, recording, actions


def test_every_name_and_group_selects_its_submodules_in_the_order_of_a_request() -> None:
    assert select("all", Plan()) == SUBMODULES
    assert select("dit_model", Plan()) == ("dit_model",)
    for group, members in GROUPS.items():
        assert select(group, Plan()) == members


def test_the_joint_backbone_replaces_both_towers() -> None:
    assert select("all", Plan(joint_backbone=True)) == ("eagle_backbone", *GROUPS["action_head"])
    assert select("eagle_backbone", Plan(joint_backbone=True)) == ("eagle_backbone",)
    assert select("action_head", Plan(joint_backbone=True)) == GROUPS["action_head"]
    with pytest.raises(PlanError, match="--fn_name vision_model alone has nothing to compile"):
        select("vision_model", Plan(joint_backbone=True))


def test_the_restructured_model_has_the_same_targets_and_may_join_the_loop() -> None:
    assert Plan().optimizations == tuple(OPTIMIZATIONS)
    for names in ((), ("kv_cache",)):
        assert select("all", Plan(optimizations=names)) == SUBMODULES
    joined = Plan(loop="denoise_loop")
    assert select("all", joined) == (*SUBMODULES[:4], "denoise_loop")
    assert select("action_head", joined) == ("vl_components", "state_encoder", "denoise_loop")
    assert select("eagle_backbone", joined) == GROUPS["eagle_backbone"]
    assert select("denoise_loop", joined) == ("denoise_loop",)
    with pytest.raises(PlanError, match="use --optimizations all"):
        select("denoise_loop", Plan(optimizations=()))
    with pytest.raises(PlanError, match="unknown value 'context'"):
        select("context", Plan())
    with pytest.raises(PlanError, match="add --loop denoise_step"):
        select("denoise_step", joined)
    with pytest.raises(PlanError, match="which contains it"):
        select("dit_model", joined)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"--fn_name: unknown value 'dit'[\s\S]*did you mean dit_model\?"):
        select("dit", Plan())


def test_the_targets_arguments_are_the_forwards_own(recorded) -> None:
    import inspect

    model = recorded[0]
    for name, arguments in N1_5.arguments.items():
        assert list(inspect.signature(model.eager_stage(name).forward).parameters) == list(arguments), name


def test_a_recording_holds_every_call_and_replays_to_the_same_result(recorded) -> None:
    model, _, recording, _ = recorded
    counts = {name: len(calls) for name, calls in recording.items()}
    assert counts == {**dict.fromkeys(N1_5.arguments, 1), "action_encoder": 4, "dit_model": 4, "action_decoder": 4}
    assert [int(call.inputs[2][0]) for call in recording["dit_model"]] == [0, 250, 500, 750]
    for name, calls in recording.items():
        for call in calls:
            assert torch.equal(model.eager_stage(name)(*call.inputs), call.output), name


def test_recording_leaves_the_model_as_it_was(recorded) -> None:
    model, request, _, actions = recorded
    before = dict(model.stages)
    again = model.record(request.inputs, request.noise)[1]
    assert model.stages == before
    assert torch.equal(again, actions)


def test_ranges_cover_three_cameras_and_tune_for_the_recorded_request(recorded) -> None:
    model, request, recording, _ = recorded
    dims = dimension_ranges(model.config, Ranges(), request)
    length = recording["language_model"][0].inputs[0].shape[1]
    sizes = {name: (d.minimum, d.optimum, d.maximum) for name, d in dims.items()}
    assert sizes == {"batch": (1, 1, 8), "images": (1, 1, 24), "length": (32, length, 1024)}
    assert sizes["length"][2] >= 19 + 263 * 3 + 100


def test_a_request_outside_the_plans_ranges_is_refused(recorded) -> None:
    model, request, _, _ = recorded
    with pytest.raises(PlanError, match="the observation has batch 1, outside the plan's range 2 to 4"):
        dimension_ranges(model.config, Ranges(batch=(2, 4)), request)


def test_a_target_has_the_stages_dtype_and_named_ranges(recorded) -> None:
    _, request, recording, _ = recorded
    model = gr00t_trt.load_model("synthetic")
    model.cast_stage("dit_model", torch.bfloat16)
    dims = dimension_ranges(model.config, Ranges(), request)
    made = model.target("dit_model", recording, dims)
    assert [x.dtype for x in made.inputs] == [torch.bfloat16, torch.bfloat16, torch.int64]
    assert made.argument_names == ("hidden_states", "encoder_hidden_states", "timestep")
    assert [{axis: d.name for axis, d in r.items()} for r in made.ranges] == [
        {0: "batch"},
        {0: "batch", 1: "length"},
        {0: "batch"},
    ]

"""`accelerate` on stand-ins for the two packages' objects: their keys, shapes, dtypes and types, their numbers."""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

import gr00t_trt
from gr00t_trt.errors import AccuracyError, CheckpointError, PlanError
from gr00t_trt.model import Gr00tN1d5, load_model
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.schema import Plan

EXACT = plan_from_mapping({"backend": "eager", "precision": "fp32"}, "test")


class Parameters(nn.Module):
    """The parameters of a state dict under their dotted names, as the published modules hold them."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                groups.setdefault(first, {})[rest] = tensor
            else:
                self.register_parameter(first, nn.Parameter(tensor.clone(), requires_grad=False))
        for first, own in groups.items():
            self.add_module(first, Parameters(own))


class BatchFeature(UserDict):
    """What transformers' class of this name is to callers: a mapping made from ``data``."""

    def __init__(self, data: dict[str, Any]):
        super().__init__(data)


class Original(Parameters):
    """A GR00T N1.5 in the published layout; it computes with our plain model in the role of the foreign code."""

    def __init__(self, tensors: dict[str, Tensor], config: dict[str, Any], eagle: dict[str, Any], computes: Gr00tN1d5):
        super().__init__(tensors)
        self.config = SimpleNamespace(to_dict=lambda: config)
        self.backbone.eagle_model.config = SimpleNamespace(to_dict=lambda: eagle)
        self.action_head.action_horizon = config["action_head_cfg"]["action_horizon"]
        self.action_head.num_inference_timesteps = config["action_head_cfg"]["num_inference_timesteps"]
        self._computes = [computes]
        self.calls = 0

    def get_action(self, inputs: Any) -> BatchFeature:
        self.calls += 1
        model = self._computes[0]
        assert "eagle_image_sizes" in inputs  # the original takes it out, and fails where it is missing
        model.denoising_steps = self.action_head.num_inference_timesteps
        shape = (inputs["embodiment_id"].shape[0], self.action_head.action_horizon, model.config.action_head.action_dim)
        dtype = next(self.parameters()).dtype
        noise = torch.randn(size=shape, dtype=dtype, device="cpu")
        return BatchFeature(
            data={"action_pred": model.get_action(inputs, noise=noise.float())["action_pred"].to(dtype)}
        )


class LeRobots(Original):
    """As LeRobot's port with `use_bf16`: weights in fp32, inputs cast to bf16, and so of use inside autocast only."""

    compute_dtype = "bfloat16"

    def get_action(self, inputs: Any) -> BatchFeature:
        cast = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
        weight = self.action_head.state_encoder.layer1.W
        torch.bmm(cast["state"], weight[inputs["embodiment_id"]])  # the product of its that autocast has to cast
        return super().get_action(cast)


MakeOriginal = Callable[..., Original]


@pytest.fixture
def make_original(golden: Path) -> MakeOriginal:
    def make(kind: type[Original] = Original) -> Original:
        folder = golden / "checkpoint"
        config, eagle = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "eagle_config"))
        return kind(load_file(str(folder / "model.safetensors")), config, eagle, load_model(folder))

    return make


@pytest.fixture
def original(make_original: MakeOriginal) -> Original:
    return make_original()


@pytest.fixture(params=["b1_v1", "b2_v2", "b2_v1_leftpad"])
def case(request: pytest.FixtureRequest, golden: Path) -> dict[str, Tensor]:
    return load_file(str(golden / f"case_{request.param}.safetensors"))


@pytest.fixture
def one(golden: Path) -> dict[str, Tensor]:
    return inputs_of(load_file(str(golden / "case_b1_v1.safetensors")))


def inputs_of(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("in."): v for k, v in case.items() if k.startswith("in.")}


def drawing(noise: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: noise.clone())


@pytest.mark.parametrize("plan", [EXACT, None], ids=["fp32 eager", "restructured"])
def test_the_originals_recorded_actions_come_out(original, case, plan, monkeypatch) -> None:
    plan = plan or plan_from_mapping({"backend": "eager", "precision": "fp32", "optimizations": "all"}, "test")
    done = gr00t_trt.accelerate(original, plan)
    assert done.agreement.max_abs < 1e-5
    calls = original.calls
    drawing(case["in.noise"], monkeypatch)
    result = original.get_action(inputs_of(case))
    assert original.calls == calls, "the original computed, not we"
    assert type(result) is BatchFeature
    assert list(result) == ["action_pred"]
    torch.testing.assert_close(result["action_pred"], case["out.action_pred"], atol=1e-5, rtol=0)


def test_restore_gives_the_method_back(original, one) -> None:
    done = gr00t_trt.accelerate(original, EXACT)
    done.restore()
    calls = original.calls
    original.get_action(one)
    assert original.calls == calls + 1
    done.restore()  # twice does no harm


@pytest.mark.parametrize("holder", ["model", "_groot_model"])
def test_a_policy_that_keeps_the_model_goes_on_as_before(original, one, holder: str) -> None:
    policy = SimpleNamespace(**{holder: original})
    before = original.calls
    gr00t_trt.accelerate(policy, EXACT)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = getattr(policy, holder).get_action(one)
    assert original.calls == before + 2  # the comparison's own, outside and inside of autocast
    assert result["action_pred"].dtype == torch.float32


def test_dtype_follows_the_originals(original, one) -> None:
    original.to(torch.bfloat16)
    done = gr00t_trt.accelerate(original, plan_from_mapping({"backend": "eager", "precision": "bf16"}, "test"))
    assert 0 < done.agreement.max_abs < 0.05
    assert original.get_action(one)["action_pred"].dtype == torch.bfloat16
    assert done.deployment.backends["dit_model"] == "eager bf16"


def test_noise_is_drawn_anew_and_follows_the_seed(original, one) -> None:
    gr00t_trt.accelerate(original, EXACT)
    torch.manual_seed(3)
    first, second = (original.get_action(one)["action_pred"] for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    torch.testing.assert_close(original.get_action(one)["action_pred"], first, atol=0, rtol=0)


def test_denoising_steps_set_on_the_original_are_used(original, one, monkeypatch) -> None:
    done = gr00t_trt.accelerate(original, EXACT)
    drawing(one["noise"], monkeypatch)
    ours = {}
    for original.action_head.num_inference_timesteps in (4, 2):
        ours[original.action_head.num_inference_timesteps] = original.get_action(one)["action_pred"]
    done.restore()
    assert not torch.allclose(ours[4], ours[2])
    for original.action_head.num_inference_timesteps, result in ours.items():
        torch.testing.assert_close(original.get_action(one)["action_pred"], result, atol=1e-5, rtol=0)


def test_a_model_that_needs_autocast_is_compared_and_answered_inside_it(
    make_original, one, golden, monkeypatch
) -> None:
    original, case = make_original(LeRobots), load_file(str(golden / "case_b1_v1.safetensors"))
    with pytest.raises(RuntimeError, match="BFloat16"):
        original.get_action(one)
    done = gr00t_trt.accelerate(SimpleNamespace(_groot_model=original))
    assert done.agreement.cosine > 0.999
    assert set(done.deployment.backends.values()) == {"eager fp32"}
    drawing(case["in.noise"], monkeypatch)
    for autocast in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            result = original.get_action(one)["action_pred"]
        torch.testing.assert_close(result, case["out.action_pred"], atol=1e-5, rtol=0)


def test_the_callers_autocast_and_inference_mode_change_nothing(original, one, golden, monkeypatch) -> None:
    case = load_file(str(golden / "case_b1_v1.safetensors"))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        done = gr00t_trt.accelerate(original)
    assert done.agreement.max_abs < 1e-5
    drawing(case["in.noise"], monkeypatch)
    torch.testing.assert_close(original.get_action(one)["action_pred"], case["out.action_pred"], atol=1e-5, rtol=0)


def test_a_model_that_answers_in_no_way_is_refused_with_its_own_words(original, monkeypatch) -> None:
    def fails(self: Original, inputs: Any) -> BatchFeature:
        raise KeyError("eagle_extra")

    monkeypatch.setattr(Original, "get_action", fails)
    with pytest.raises(PlanError, match=r"get_action fails: KeyError: 'eagle_extra'"):
        gr00t_trt.accelerate(original)


@torch.no_grad()
def _in_place(module: nn.Module, name: str) -> None:
    getattr(module, name).mul_(2)


def _through_data(module: nn.Module, name: str) -> None:
    getattr(module, name).data += 0.1


def _other_data(module: nn.Module, name: str) -> None:
    getattr(module, name).data = getattr(module, name).data * 2


def _other_parameter(module: nn.Module, name: str) -> None:
    setattr(module, name, nn.Parameter(getattr(module, name).data * 2))


def _loaded(module: nn.Module, name: str) -> None:
    module.load_state_dict({key: value * 2 for key, value in module.state_dict().items()}, assign=True)


def _cast(module: nn.Module, name: str) -> None:
    module.half()


def _parametrized(module: nn.Module, name: str) -> None:
    parametrize.register_parametrization(module, name, nn.Identity())


CHANGES = [_in_place, _through_data, _other_data, _other_parameter, _loaded, _cast, _parametrized]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_not_answered_with_the_old_ones(original, one, change) -> None:
    done = gr00t_trt.accelerate(original, EXACT)
    original.get_action(one)
    change(original.action_head.future_tokens, "weight")
    for _ in range(2):
        with pytest.raises(PlanError, match="weights were changed"):
            original.get_action(one)
    done.restore()
    original.get_action(one)


def test_an_adapter_put_around_a_module_is_noticed(original, one) -> None:
    gr00t_trt.accelerate(original, EXACT)
    original.action_head.state_encoder = nn.Sequential(original.action_head.state_encoder)
    with pytest.raises(PlanError, match="weights were changed"):
        original.get_action(one)


def test_weights_that_only_move_are_no_change(original, one) -> None:
    gr00t_trt.accelerate(original, EXACT)
    original.double().float()
    original.load_state_dict({key: value.clone() for key, value in original.state_dict().items()}, assign=True)
    original.get_action(one)


def test_a_model_that_computes_something_else_is_refused_and_left_alone(original, one) -> None:
    with torch.no_grad():
        original._computes[0].action_head.action_decoder.layer2.W.mul_(1.5)
    with pytest.raises(AccuracyError, match="disagree on the same inputs and noise"):
        gr00t_trt.accelerate(original, EXACT)
    assert "get_action" not in vars(original)


def test_a_model_whose_noise_is_not_seen_is_refused(original, monkeypatch) -> None:
    monkeypatch.setattr(
        Original, "get_action", lambda self, inputs: BatchFeature({"action_pred": torch.zeros(1, 6, 7)})
    )
    with pytest.raises(AccuracyError, match=r"no normal noise of shape \[1, 6, 7\]"):
        gr00t_trt.accelerate(original, EXACT)


def test_a_missing_weight_and_an_adapters_weight_are_named(original) -> None:
    del original.action_head.state_encoder
    original.action_head.lora = nn.Linear(2, 2)
    with pytest.raises(CheckpointError) as refused:
        gr00t_trt.accelerate(original, EXACT)
    assert "action_head.state_encoder.layer1.W" in str(refused.value)
    assert "action_head.lora.weight" in str(refused.value)


def test_a_configuration_of_another_model_is_named(original) -> None:
    original.config.to_dict()["model_type"] = "gr00t_n1_6"
    with pytest.raises(CheckpointError, match="model_type"):
        gr00t_trt.accelerate(original, EXACT)


@pytest.mark.parametrize("given", [object(), nn.Linear(2, 2), SimpleNamespace(model=nn.Linear(2, 2)), None])
def test_something_else_is_refused_by_what_it_lacks(given: Any) -> None:
    with pytest.raises(PlanError, match="backbone"):
        gr00t_trt.accelerate(given, Plan())


def test_a_tower_without_its_inner_level_is_the_same_tower(original, golden: Path) -> None:
    """transformers 5 has dropped one of the two levels named vision_model."""
    state = {
        key.replace(".vision_model.vision_model.", ".vision_model."): v for key, v in original.state_dict().items()
    }
    from gr00t_trt.model import load_config, model_from_tensors

    ours = model_from_tensors(state, load_config(golden / "checkpoint"))
    for name, tensor in load_model(golden / "checkpoint").state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, atol=0, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inputs_that_other_packages_send_to_the_gpu_are_answered_by_a_graph(original, one, monkeypatch) -> None:
    original.to("cuda")
    original._computes[0].to("cuda")
    plan = plan_from_mapping({"backend": "eager", "precision": "fp32", "cuda_graph": "startup"}, "test")
    done = gr00t_trt.accelerate(original, plan, inputs=one)
    assert done.agreement.max_abs < 1e-4
    assert done.deployment.record.cuda_graph.graphs == 1
    uncaptured: list[None] = []
    model = done.deployment.policy.model
    run = model.run
    monkeypatch.setattr(model, "run", lambda *args: uncaptured.append(None) or run(*args))
    drawing(one["noise"], monkeypatch)
    on_gpu = {key: value.to("cuda") for key, value in one.items()}
    result = original.get_action(on_gpu)["action_pred"]
    assert not uncaptured
    assert result.device.type == "cuda"
    done.restore()
    torch.testing.assert_close(result, original.get_action(on_gpu)["action_pred"], atol=1e-4, rtol=0)

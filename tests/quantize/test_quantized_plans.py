"""What a plan may say of a quantised precision, what each submodule gets of it, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gr00t_trt.common.products import Speed
from gr00t_trt.errors import PlanError
from gr00t_trt.plans.backends import Availability
from gr00t_trt.plans.checks import COMPUTE_CAPABILITIES
from gr00t_trt.plans.conflicts import plan_warnings
from gr00t_trt.plans.load import load_plan, merge, plan_from_mapping, plan_to_mapping
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.plans.resolve import Machine, Resolved, resolve
from gr00t_trt.plans.schema import ARCHITECTURE, SUBMODULES
from gr00t_trt.plans.shipped import shipped_plans
from gr00t_trt.plans.submodules import resolve_submodule
from gr00t_trt.quantize.layers import matching

LARGE = ARCHITECTURE.attention


def plan_of(**settings: Any) -> Any:
    return plan_from_mapping({"backend": "eager", **settings}, "plan.yaml")


def resolved(plan: Any, **options: Any) -> Resolved:
    speed = Speed({"float32": 2.0, "bfloat16": 3.0, "float16": 2.0}, 2.0)
    return resolve(plan, Machine("cpu", lambda name: Availability(True), lambda: speed), **options)


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "c.safetensors").touch()
    return str(tmp_path / "c.safetensors")


@pytest.mark.parametrize("name", ["fp8", "INT8", "NVFP4", "float8", "fp4"])
def test_the_large_submodules_get_it_and_the_rest_what_carries_it(name: str) -> None:
    plan = plan_of(precision=name)
    for submodule in SUBMODULES:
        own = resolve_submodule(plan, submodule)
        assert PRECISIONS[own.precision].quantized == (submodule in LARGE)
        assert (own.quantization is not None) == (submodule in LARGE)
        assert own.precision in (plan.precision, "bf16")
    assert resolve_submodule(plan, "denoise_loop").precision == plan.precision


def test_a_plan_for_several_survives_a_trip_through_a_mapping() -> None:
    own = {
        "vision_model": {"precision": "fp8"},
        "language_model": {"precision": "nvfp4", "keep": ["down_proj", "o_proj"]},
        "dit_model": {"precision": "fp8", "keep": "auto"},
    }
    plan = plan_of(precision="bf16", submodules=own, calibration="c.safetensors", keep=["qkv"])
    assert plan_from_mapping(plan_to_mapping(plan), "again") == plan
    kept = {name: resolve_submodule(plan, name).quantization.keep for name in own}
    assert kept == {"vision_model": ("qkv",), "language_model": ("down_proj", "o_proj"), "dit_model": ("auto",)}
    flags = {"submodules.vision_model.precision": "int8", "calibration": "d.safetensors"}
    merged = merge(plan, flags)
    assert (merged.submodules["vision_model"].precision, merged.calibration) == ("int8", "d.safetensors")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "nvfp4", "backend": "tensorrt"}, "the backend tensorrt cannot build it"),
        ({"precision": "nvfp4", "backend": "onnxruntime"}, "use --backend torch_tensorrt"),
        ({"precision": "nvfp4", "backend": "auto"}, "use --backend torch_tensorrt"),
        (
            {"precision": "nvfp4", "submodules": {"dit_model": {"backend": "inductor"}}},
            "precision: nvfp4: the backend inductor cannot build it",
        ),
        (
            {"precision": "fp8", "backend": "torch_tensorrt", "build": {"compute_capabilities": ["8.6", "12.0"]}},
            "build.compute_capabilities: a GPU of 8.6 cannot multiply in fp8, the precision of vision_model",
        ),
        (
            {
                "precision": "bf16",
                "backend": "tensorrt",
                "submodules": {"dit_model": {"precision": "nvfp4", "backend": "torch_tensorrt"}},
                "build": {"compute_capabilities": ["8.9"]},
            },
            "known: 10.0 and newer",
        ),
        ({"precision": "fp8", "optimizations": "none"}, "set `optimizations: all`"),
        ({"precision": "fp8", "optimizations": {"kv_cache": False}}, "set `optimizations: all`"),
        ({"precision": "fp8", "joint_backbone": True}, "restructured model's layers"),
        ({"submodules": {"state_encoder": {"precision": "fp8"}}}, "submodules.state_encoder.precision: fp8"),
        ({"precision": "fp8", "keep": "down_proj"}, "keep: 'down_proj' is not a list"),
        ({"precision": "fp8", "keep": [3]}, "keep[0]: 3 is no pattern"),
        ({"precision": "fp8", "calibration": 3}, "calibration: 3 is not a path"),
        ({"precision": "int4"}, "unknown value 'int4'"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(**settings)
    assert words in str(caught.value)


def test_which_gpus_compute_in_which_precision() -> None:
    able = {name: [c for c in COMPUTE_CAPABILITIES if row.computes_on(c)] for name, row in PRECISIONS.items()}
    assert able["fp16"] == list(COMPUTE_CAPABILITIES)
    assert able["int8"] == ["8.0", "8.6", "8.9", "12.0", "12.1"]
    assert able["fp8"] == ["8.9", "12.0", "12.1"]
    assert able["nvfp4"] == ["12.0", "12.1"]
    assert PRECISIONS["nvfp4"].computes_on("11.0")
    assert plan_of(precision="fp8", backend="eager", build={"compute_capabilities": ["8.0"]}).precision == "fp8"


def test_the_calibration_is_asked_for_before_anything_is_loaded(file: str) -> None:
    with pytest.raises(PlanError, match="a quantised precision needs a calibration") as caught:
        resolved(plan_of(precision="fp8"))
    assert "gr00t-trt calibrate" in str(caught.value)
    with pytest.raises(PlanError, match=r"calibration: nowhere: no such file"):
        resolved(plan_of(precision="fp8", calibration="nowhere"))
    assert resolved(plan_of(precision="fp8", calibration=file), compare=("eager", "tensorrt")).comparing
    with pytest.raises(PlanError, match="the backend tensorrt cannot build it"):
        resolved(plan_of(precision="nvfp4", calibration=file), compare=("eager", "tensorrt"))


def test_each_quantised_submodule_is_held_against_its_gate_at_every_start(file: str) -> None:
    own = {"dit_model": {"precision": "nvfp4", "gate": {"cosine": 0.9}}}
    plan = resolved(plan_of(precision="bf16", calibration=file, submodules=own)).plan
    assert plan.submodules["dit_model"].gate.cosine == 0.9
    assert plan.submodules["dit_model"].gate.sqnr_db == PRECISIONS["nvfp4"].gate.sqnr_db
    assert set(plan.submodules) == {"dit_model"}


def test_on_a_cpu_it_is_not_taken_for_a_way_to_be_faster(file: str) -> None:
    found = resolved(plan_of(precision="fp8", calibration=file))
    assert found.plan.precision == "fp8"
    assert ("precision fp8", "computed by its reference in PyTorch: its accuracy counts, not its speed") in found.notes
    assert resolved(plan_of(precision="fp16"), precision_chosen=False).plan.precision == "fp32"


def test_what_onnx_runtime_cannot_multiply_on_a_cpu_becomes_fp32_beside_quantised_stages(file: str) -> None:
    asked = plan_of(precision="int8", backend="onnxruntime", calibration=file)
    found = resolved(asked)
    got = {name: found[name].precision for name in SUBMODULES}
    small = [name for name in SUBMODULES if name not in LARGE]
    assert got == dict.fromkeys(LARGE, "int8") | dict.fromkeys(small, "fp32")
    assert (", ".join(small), "fp32: onnxruntime has no bf16 products on a CPU") in found.notes
    assert resolved(asked, compare=("eager", "onnxruntime"))["state_encoder"].precision == "fp32"
    speed = Speed({"float32": 2.0, "bfloat16": 3.0, "float16": 2.0}, 2.0)
    on_gpu = resolve(asked, Machine("cuda:0", lambda name: Availability(True), lambda: speed))
    assert on_gpu["state_encoder"].precision == "bf16"
    alone = plan_of(precision="bf16", backend="onnxruntime")
    assert resolved(alone)["state_encoder"].precision == "bf16"  # and the backend refuses it


def test_what_does_nothing_is_said() -> None:
    said = plan_warnings(plan_of(precision="bf16", calibration="c", keep=["ff"]))
    assert "calibration has no effect: no precision of this plan is quantised" in said
    assert "keep has no effect: no precision of this plan is quantised" in said
    own = {"vision_model": {"keep": ["fc1"]}, "dit_model": {"precision": "fp8"}}
    said = plan_warnings(plan_of(precision="bf16", calibration="c", submodules=own))
    assert said == ["submodules.vision_model.keep has no effect: its precision, bf16, quantises nothing"]


def test_a_pattern_is_dotted_parts_of_a_name() -> None:
    names = ("language_model/layers.0.down_proj", "language_model/layers.10.down_proj", "dit_model/blocks.0.ff.net.2")
    assert matching("down_proj", names) == names[:2]
    assert matching("layers.1", names) == ()
    assert matching("layers.*.down_proj", names) == names[:2]
    assert matching("blocks.?", names) == names[2:]
    assert matching("proj", names) == ()
    assert matching("ff", names) == names[2:]


@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_the_plans_that_come_with_the_package(name: str) -> None:
    plan = load_plan(name)
    assert (plan.precision, plan.backend, plan.calibration) == (name, "torch_tensorrt", "calibration.safetensors")


@pytest.mark.parametrize("name", ["jetson_thor", "rtx_4090_5090"])
def test_the_plans_of_a_gpu_take_the_bits_that_their_comments_offer(name: str) -> None:
    header = load_plan(name)
    if name == "rtx_4090_5090":
        taken = merge(header, {"precision": "fp8", "calibration": "c"})
        with pytest.raises(PlanError, match=r"a GPU of 8\.9 cannot multiply in nvfp4"):
            merge(header, {"precision": "nvfp4", "calibration": "c"})
    else:
        lines = shipped_plans()[name].path.read_text().splitlines()
        block = [line.removeprefix("#") for line in lines if line.startswith("#             ")]
        own = yaml.safe_load("\n".join(block))
        taken = plan_from_mapping({**plan_to_mapping(header), **own}, name)
        assert resolve_submodule(taken, "language_model").quantization.keep == ("down_proj", "o_proj")
    assert resolve_submodule(taken, "dit_model").precision == "fp8"

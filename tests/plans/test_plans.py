"""Plans: what is read, what is refused and in which words, what each submodule gets."""

import argparse
import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from gr00t_trt.errors import PlanError
from gr00t_trt.plans import checks, flags, schema
from gr00t_trt.plans.backends import BACKENDS, honoring
from gr00t_trt.plans.conflicts import plan_warnings
from gr00t_trt.plans.load import load_plan, merge, plan_from_mapping, plan_to_mapping
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.plans.schema import BuildOptions, Gate, Plan
from gr00t_trt.plans.submodules import resolve_action_gate, resolve_submodule

SHIPPED = sorted((Path(__file__).parents[2] / "compile_configs").glob("*.yaml"))


def refused(mapping, where="plan.yaml"):
    with pytest.raises(PlanError) as caught:
        plan_from_mapping(mapping, where)
    return str(caught.value)


def written(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- shipped plans


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_plans_load_and_do_nothing_useless(path):
    assert plan_warnings(load_plan(path)) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_plans_say_command_hardware_and_what_is_measured(path):
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"python run_groot_torchtrt.py --config {path.stem}\n" in header
    for word in ("# Hardware:", "# Engines:", "# Latency:"):
        assert word in header


def test_all_reached_for_plans_are_shipped():
    names = {path.stem for path in SHIPPED}
    assert names >= {"fp16", "bf16", "fp16_eager_encoders", "rtx_4090_5090", "jetson_thor", "jetson_orin", "hopper"}


def test_only_the_geforce_plan_claims_engines_ahead_of_time():
    targets = {path.stem: load_plan(path).build.compute_capabilities for path in SHIPPED}
    assert targets.pop("rtx_4090_5090") == ("8.9", "12.0")
    assert set(targets.values()) == {()}


# --- files


def test_a_file_fills_the_settings(tmp_path):
    text = """
precision: FP16
submodules:
  vision_model: {precision: bfloat16, gate: {max_abs: 0.5}}
  state_encoder: {backend: eager}
build: {use_fp32_acc: true, optimization_level: 4}
ranges: {batch: [1, 4], length: [32, 600]}
benchmark: {timer: python_timer, iterations: 20}
"""
    plan = load_plan(written(tmp_path, text))
    assert plan.precision == "fp16"
    assert plan.submodules["vision_model"].precision == "bf16"
    assert plan.submodules["state_encoder"].backend == "eager"
    assert plan.build.optimization_level == 4
    assert plan.ranges.batch == (1, 4)
    assert plan.ranges.views == (1, 3)
    assert plan.benchmark.iterations == 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the plan is empty"),
        ("# nothing but a comment\n", "the plan is empty"),
        ("- fp16\n", "a plan must be a mapping, not ['fp16']"),
        ("fp16\n", "a plan must be a mapping, not 'fp16'"),
        ("precision: fp16\nbuild: {debug: true\n", "line 3, column 1: "),
        ("precision: fp16\nprecision: bf16\n", "line 2, column 1: precision is given twice"),
        ("build:\n  debug: true\n  debug: false\n", "line 3, column 3: debug is given twice"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("precision: !!python/object:os.system x\n", "could not determine a constructor"),
        ("[" * 3000, "not YAML"),
        ("denoising_steps: 1:30\n", "denoising_steps: '1:30'"),
        ("a: &a {precision: fp16}\nb: {<<: *a}\n", "line 2, column 5: merge keys (<<) are not read"),
        (
            "a: &a [x]\n" + "".join(f"{c}: &{c} [{f'*{p}, ' * 9}]\n" for p, c in pairwise("abcdefghi")),
            "more than 10000",
        ),
        ("a: &a [*a]\n", "more than 10000"),
        ("# " + "x" * 1_000_000, "larger than 1000000 bytes"),
    ],
)
def test_files_that_are_no_plan(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}:")
    assert words in str(caught.value)


def test_a_missing_file_lists_its_neighbours(tmp_path):
    written(tmp_path, "precision: fp16\n")
    with pytest.raises(PlanError, match=r"no such plan file\n  known: plan\.yaml"):
        load_plan(tmp_path / "plam.yaml")


def test_a_folder_and_a_binary_file_are_refused(tmp_path):
    with pytest.raises(PlanError, match="a folder, not a plan file"):
        load_plan(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(PlanError, match="the plan cannot be read"):
        load_plan(tmp_path / "x.yaml")


def test_a_byte_order_mark_and_empty_sections_are_fine(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\xef\xbb\xbfprecision: bf16\nsubmodules:\nbuild:\n")
    assert load_plan(path) == Plan(precision="bf16")


# --- values


def test_a_misspelt_submodule_in_full():
    assert refused({"submodules": {"vison_model": {"precision": "fp16"}}}) == (
        "plan.yaml: submodules.vison_model: no such submodule\n"
        "  known: vision_model, language_model, vl_components, state_encoder, action_encoder, dit_model, "
        "action_decoder\n"
        "  did you mean vision_model?"
    )


def test_a_group_is_no_submodule():
    assert "name its members: vision_model, language_model" in refused({"submodules": {"eagle_backbone": {}}})


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"precison": "fp16"}, "plan.yaml: precison: no such key"),
        ({"build": {"use_fp32_ac": True}}, "plan.yaml: build.use_fp32_ac: no such key"),
        ({"submodules": {"dit_model": {"gate": {"cosin": 0.9}}}}, "submodules.dit_model.gate.cosin: no such key"),
        ({True: 1}, "plan.yaml: true: no such key"),
        ({"build": {"use_fp32_acc": "true"}}, "build.use_fp32_acc: 'true' is not a boolean"),
        ({"build": {"use_fp32_acc": 1}}, "build.use_fp32_acc: 1 is not a boolean"),
        ({"build": {"debug": None}}, "build.debug: null is not a boolean"),
        ({"build": {"optimization_level": True}}, "build.optimization_level: true is not a whole number"),
        ({"build": {"optimization_level": 6}}, "build.optimization_level: 6 is out of range\n  known: 0 to 5"),
        ({"build": [1]}, "plan.yaml: build: [1] is not a mapping"),
        ({"submodules": ["dit_model"]}, "submodules: ['dit_model'] is not a mapping"),
        ({"submodules": {"dit_model": "fp16"}}, "submodules.dit_model: 'fp16' is not a mapping"),
        ({"benchmark": {"iterations": 0}}, "benchmark.iterations: 0 is out of range"),
        ({"benchmark": {"iterations": 10.0}}, "benchmark.iterations: 10.0 is not a whole number"),
        ({"benchmark": {"warmup": -1}}, "benchmark.warmup: -1 is out of range"),
        ({"benchmark": {"timer": "wall"}}, "benchmark.timer: unknown value 'wall'\n  known: cuda_event, python_timer"),
        ({"denoising_steps": 0}, "denoising_steps: 0 is out of range\n  known: 1 to 1000"),
        ({"gate": {"cosine": 1.5}}, "gate.cosine: 1.5 is out of range"),
        ({"gate": {"cosine": float("nan")}}, "gate.cosine: nan is out of range"),
        ({"gate": {"max_abs": "1e-3"}}, "YAML reads this as text: write it with a decimal point"),
        ({"ranges": {"batch": 8}}, "ranges.batch: 8 is not a range\n  known: [minimum, maximum]"),
        ({"ranges": {"batch": [1, 2, 3]}}, "ranges.batch: [1, 2, 3] is not a range"),
        ({"ranges": {"batch": [4, 2]}}, "ranges.batch: [4, 2] is upside down"),
        ({"ranges": {"batch": [0, 2]}}, "ranges.batch[0]: 0 is out of range"),
        ({"ranges": {"batch": [1, 10**30]}}, "ranges.batch[1]: "),
        ({"backend": "tensort"}, "backend: unknown value 'tensort'"),
        ({"precision": 16}, "precision: 16 is not a name\n  known: fp32, fp16, bf16"),
        ({"precision": "fp61"}, "did you mean fp16?"),
        ({"build": {"compute_capabilities": "8.9"}}, "compute_capabilities: '8.9' is not a list"),
        ({"build": {"compute_capabilities": [8.9]}}, "compute_capabilities[0]: 8.9 is not text"),
        (
            {"build": {"compute_capabilities": ["9.0"]}},
            "no engine can be built ahead of time for compute capability '9.0'",
        ),
        ({"build": {"compute_capabilities": ["8.9", "8.9"]}}, "compute_capabilities[1]: '8.9' is listed twice"),
        (None, "a plan must be a mapping, not null"),
    ],
)
def test_wrong_values_name_file_key_and_value(mapping, words):
    assert words in refused(mapping)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("FP16", "fp16"),
        ("half", "fp16"),
        ("Float16", "fp16"),
        ("bfloat16", "bf16"),
        ("FP32", "fp32"),
        (" bf16 ", "bf16"),
    ],
)
def test_precision_spellings(given, name):
    assert plan_from_mapping({"precision": given}, "x").precision == name


# --- combinations


@pytest.mark.parametrize(
    ("vision", "field"),
    [
        ({"precision": "bf16"}, "precision bf16 for vision_model and fp16 for language_model"),
        ({"backend": "eager"}, "backend eager for vision_model and torch_tensorrt for language_model"),
        ({"gate": {"cosine": 0.9}}, "gate (cosine 0.9, "),
        ({"decompose_attention": True}, "decompose_attention differs"),
    ],
)
def test_a_joint_backbone_has_one_of_each(vision, field):
    assert field in refused({"joint_backbone": True, "submodules": {"vision_model": vision}})


def test_a_joint_backbone_with_equal_halves_is_fine():
    half = {"precision": "bf16"}
    plan = plan_from_mapping(
        {"joint_backbone": True, "submodules": dict.fromkeys(("vision_model", "language_model"), half)}, "x"
    )
    assert resolve_submodule(plan, "eagle_backbone").precision == "bf16"


def test_every_build_option_says_which_backends_honour_it():
    options = {field.name for field in dataclasses.fields(BuildOptions)}
    assert set().union(*(row.honors for row in BACKENDS.values())) == options
    assert {backend for option in options for backend in honoring(option)} < set(BACKENDS)


@pytest.mark.parametrize("value", [3, "", True, ["a"]])
def test_a_folder_of_engines_is_text(value):
    assert "build.trt_engine_path: " in refused({"build": {"trt_engine_path": value}})


def test_cpu_offload_needs_an_engine():
    assert "build.cpu_offload: no submodule uses torch_tensorrt" in refused(
        {"backend": "eager", "build": {"cpu_offload": True}}
    )
    plan_from_mapping(
        {
            "backend": "eager",
            "build": {"cpu_offload": True},
            "submodules": {"dit_model": {"backend": "torch_tensorrt"}},
        },
        "x",
    )


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"precision": "bf16", "build": {"use_fp32_acc": True}}, "build.use_fp32_acc is meant for fp16"),
        ({"build": {"disable_tf32": True}}, "build.disable_tf32 has no effect"),
        ({"build": {"use_explicit_typing": False}}, "needs Torch-TensorRT 2.9"),
        (
            {"backend": "onnxruntime", "build": {"compute_capabilities": ["8.9"]}},
            "build.compute_capabilities has no effect: no submodule uses torch_tensorrt or tensorrt",
        ),
        ({"build": {"trt_engine_path": "x"}}, "no effect: no submodule uses tensorrt"),
        ({"backend": "inductor", "build": {"optimization_level": 3}}, "build.optimization_level has no effect"),
        ({"submodules": {"state_encoder": {"decompose_attention": True}}}, "it has no attention"),
        (
            {"submodules": {"dit_model": {"decompose_attention": True, "backend": "eager"}}},
            "no effect on the eager backend",
        ),
        ({"joint_backbone": True, "backend": "eager"}, "the backbone stays in eager"),
        ({"ranges": {"length": [32, 600]}}, "ranges.length ends at 600 tokens, but 3 views"),
    ],
)
def test_useless_settings_are_told(mapping, words):
    assert [words in warning for warning in plan_warnings(plan_from_mapping(mapping, "x"))][-1:] == [True]


@pytest.mark.parametrize(
    ("key", "asked"),
    [("joint_backbone", {"joint_backbone": True}), ("build.cpu_offload", {"build": {"cpu_offload": True}})],
)
def test_what_only_the_plain_model_has_takes_the_restructuring_back_and_says_so(key, asked):
    implied = plan_from_mapping(asked, "x")
    assert implied.optimizations == ()
    assert merge(Plan(), {key: True}) == implied == plan_from_mapping({**asked, "optimizations": "none"}, "x")
    assert merge(implied, {"precision": "bf16"}).optimizations == ()
    assert merge(Plan(), {key: False}) == Plan()
    assert [w for w in plan_warnings(implied) if w.startswith(f"{key}: ") and "the plain model is used" in w]
    for wanted in ("all", ["prompt_cache"]):
        assert f"plan.yaml: {key}: " in refused({**asked, "optimizations": wanted})
        with pytest.raises(PlanError, match=f"command line: {key}: "):
            merge(Plan(), {key: True, "optimizations": wanted})
    with pytest.raises(PlanError, match=f"command line: {key}: "):
        merge(plan_from_mapping({"optimizations": ["prompt_cache"]}, "x"), {key: True})


def test_a_stage_is_held_to_the_least_exact_precision_that_computes_in_it():
    mixed = plan_from_mapping({"precision": "fp32", "submodules": {"dit_model": {"precision": "bf16"}}}, "x")
    assert resolve_submodule(mixed, "vl_components").gate == PRECISIONS["bf16"].gate
    assert resolve_submodule(mixed, "vl_components").precision == "fp32"
    for names in ((), ("token_pruning",)):
        assert (
            resolve_submodule(dataclasses.replace(mixed, optimizations=names), "vl_components").gate
            == PRECISIONS["fp32"].gate
        )
    mixed = plan_from_mapping({"precision": "fp32", "submodules": {"action_decoder": {"precision": "fp16"}}}, "x")
    assert resolve_submodule(mixed, "denoise_loop").gate == PRECISIONS["fp16"].gate
    assert resolve_submodule(mixed, "dit_model").gate == PRECISIONS["fp32"].gate


def test_defaults_warn_of_nothing():
    assert plan_warnings(Plan()) == []


# --- round trip, merge, resolve


FULL = {
    "backend": "inductor",
    "precision": "bf16",
    "submodules": {"dit_model": {"backend": "torch_tensorrt", "precision": "fp32", "gate": {"cosine": 0.9}}},
    "build": {"compute_capabilities": ["8.9", "12.0"], "cpu_offload": True},
    "ranges": {"batch": [2, 4], "length": [40, 900]},
    "action_gate": {"max_abs": 0.25},
    "benchmark": {"timer": "python_timer", "iterations": 3, "warmup": 0},
    "denoising_steps": 8,
}


@pytest.mark.parametrize("mapping", [{}, FULL], ids=["defaults", "full"])
def test_round_trip_through_yaml_and_json(mapping):
    plan = plan_from_mapping(mapping, "x")
    plain = plan_to_mapping(plan)
    assert plan_from_mapping(yaml.safe_load(yaml.safe_dump(plain)), "x") == plan
    assert plan_from_mapping(json.loads(json.dumps(plain)), "x") == plan


@pytest.mark.parametrize(
    ("table", "cls"),
    [
        (checks.PLAN, schema.Plan),
        (checks.BUILD, schema.BuildOptions),
        (checks.RANGES, schema.Ranges),
        (checks.BENCHMARK, schema.BenchmarkOptions),
        (checks.GATE, schema.Gate),
        (checks.SUBMODULE, schema.SubmodulePlan),
    ],
)
def test_every_setting_can_be_given_in_a_plan(table, cls):
    assert list(table) == [field.name for field in dataclasses.fields(cls)]


def test_merge_takes_only_what_was_given():
    plan = plan_from_mapping(FULL, "x")
    assert merge(plan, {"precision": None, "benchmark.iterations": None}) == plan
    merged = merge(plan, {"precision": "FP16", "benchmark.iterations": 50, "submodules.vision_model.precision": "fp32"})
    assert (merged.precision, merged.benchmark.iterations, merged.benchmark.warmup) == ("fp16", 50, 0)
    assert merged.submodules["vision_model"].precision == "fp32"
    assert merged.submodules["dit_model"] == plan.submodules["dit_model"]
    assert plan.precision == "bf16"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"precision": "nvfp4", "backend": "tensorrt"},
            "command line: precision: nvfp4: the backend tensorrt cannot build it",
        ),
        ({"build.bogus": 1}, "command line: build.bogus: no such key"),
        ({"precision.x": 1}, "command line: precision.x: precision has no keys of its own"),
        (
            {"submodules.vision_model.precision": "bf16", "joint_backbone": True},
            "command line: joint_backbone: one build",
        ),
    ],
)
def test_merge_refuses_as_a_file_would(overrides, words):
    with pytest.raises(PlanError) as caught:
        merge(Plan(), overrides)
    assert words in str(caught.value)


def test_resolve_inherits_field_by_field():
    mapping = {
        "gate": {"max_abs": 0.5, "cosine": 0.99},
        "build": {"use_fp32_acc": True},
        "submodules": {"dit_model": {"precision": "bf16", "decompose_attention": True, "gate": {"cosine": 0.98}}},
    }
    plan = plan_from_mapping(mapping, "x")
    dit, vision = resolve_submodule(plan, "dit_model"), resolve_submodule(plan, "vision_model")
    assert (dit.backend, dit.precision) == ("torch_tensorrt", "bf16")
    assert dit.build.decompose_attention
    assert dit.build.use_fp32_acc
    assert dit.gate == Gate(0.98, 0.5, PRECISIONS["bf16"].gate.sqnr_db)
    assert vision.gate == Gate(0.99, 0.5, PRECISIONS["fp16"].gate.sqnr_db)
    assert not vision.build.decompose_attention


def test_resolve_refuses_other_names():
    with pytest.raises(PlanError, match="submodule: unknown value 'dit'"):
        resolve_submodule(Plan(), "dit")
    with pytest.raises(PlanError, match="unknown value 'eagle_backbone'"):
        resolve_submodule(Plan(), "eagle_backbone")


def test_gates_loosen_with_the_precision_and_both_measures_agree():
    for kind in ("gate", "action_gate"):
        fp32, fp16, bf16 = (getattr(PRECISIONS[name], kind) for name in ("fp32", "fp16", "bf16"))
        assert fp32.cosine > fp16.cosine > bf16.cosine
        assert fp32.sqnr_db > fp16.sqnr_db > bf16.sqnr_db
        for gate in (fp32, fp16, bf16):
            # The decibels are the looser of the two for an error without direction.
            assert 1 - 10 ** (-gate.sqnr_db / 10) / 2 < gate.cosine


def test_the_least_exact_precision_sets_the_action_gate():
    assert resolve_action_gate(Plan()) == PRECISIONS["fp16"].action_gate
    mixed = plan_from_mapping(
        {"submodules": {"vision_model": {"precision": "bf16"}}, "action_gate": {"max_abs": 0.1}}, "x"
    )
    assert resolve_action_gate(mixed) == dataclasses.replace(PRECISIONS["bf16"].action_gate, max_abs=0.1)


def test_another_timer_is_worth_a_note_only_where_latencies_are_taken():
    plan = plan_from_mapping({"backend": "eager", "benchmark": {"timer": "cuda_event"}}, "x")
    for timed in (True, False):
        resolved = resolve(plan, Machine("cpu"), timed=timed)
        assert resolved.plan.benchmark.timer == "python_timer"
        assert [what for what, _ in resolved.notes if "benchmark" in what] == ["--benchmark cuda_event"] * timed


def test_numbers_are_what_they_look_like(tmp_path):
    assert load_plan(written(tmp_path, "denoising_steps: 8\n")).denoising_steps == 8
    with pytest.raises(PlanError, match="denoising_steps: '010'"):
        load_plan(written(tmp_path, "denoising_steps: 010\n"))
    loose = load_plan(written(tmp_path, "action_gate: {max_abs: 1e-1}\n"))
    assert loose.action_gate.max_abs == 0.1


@pytest.mark.parametrize(
    ("device", "given", "config"),
    [
        ("cuda:0", {}, "fast"),
        ("cuda:0", {"precision": "fp16"}, "fast"),
        ("cpu", {}, None),
        ("cuda:0", {"backend": "eager"}, None),
        ("cuda:0", {"config": "bf16"}, "bf16"),
        ("cuda:0", {"use_torch_tensorrt": True}, None),
        ("cuda:0", {"trt_engine_path": "engines"}, None),
    ],
)
def test_on_a_gpu_the_fastest_measured_plan_is_the_default(device, given, config):
    none = {"config": None, "backend": None, "use_torch_tensorrt": False, "precision": None, "trt_engine_path": None}
    args = argparse.Namespace(**{**none, **given})
    assert flags.default_to_fast(args, device) == (config == "fast")
    assert args.config == config
    plan = flags.plan_from(args, flags.overrides_of(args))
    if config == "fast":
        assert (plan.backend, plan.loop, plan.cuda_graph) == ("inductor", "denoise_step", "on_demand")
        assert plan.precision == given.get("precision", "bf16")

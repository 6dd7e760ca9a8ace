"""The settings of all six releases, checked without installing them."""

from __future__ import annotations

import pytest

from gr00t_trt.backends.torch_tensorrt.settings import map_settings, release_tuple
from gr00t_trt.errors import BackendError, PlanError
from gr00t_trt.plans.schema import BuildOptions

ALWAYS = {
    "workspace_size",
    "min_block_size",
    "torch_executed_ops",
    "pass_through_build_failures",
    "max_aux_streams",
    "version_compatible",
    "optimization_level",
    "truncate_double",
    "use_fast_partitioner",
    "enable_experimental_decompositions",
    "device",
    "require_full_compilation",
    "disable_tf32",
    "assume_dynamic_shape_support",
    "sparse_weights",
    "engine_capability",
    "num_avg_timing_iters",
    "dla_sram_size",
    "dla_local_dram_size",
    "dla_global_dram_size",
    "dryrun",
    "hardware_compatible",
    "timing_cache_path",
    "lazy_engine_init",
    "cache_built_engines",
    "reuse_cached_engines",
    "use_fp32_acc",
    "refit_identical_engine_weights",
    "strip_engine_weights",
    "immutable_weights",
    "enable_weight_streaming",
    "enable_cross_compile_for_windows",
    "tiling_optimization_level",
    "l2_limit_for_tiling",
    "use_distributed_mode_trace",
    "offload_module_to_cpu",
}
AUTOCAST = {
    "enable_autocast",
    "autocast_low_precision_type",
    "autocast_excluded_nodes",
    "autocast_excluded_ops",
    "autocast_max_output_threshold",
    "autocast_max_depth_of_reduction",
    "autocast_calibration_dataloader",
    "enable_resource_partitioning",
    "cpu_memory_budget",
}
TYPED = {"enabled_precisions", "use_explicit_typing", "use_python_runtime"}
ATTENTION = {"dynamically_allocate_resources", "decompose_attention", "attn_bias_is_causal"}
RTX = {"runtime_cache_path", "dynamic_shapes_kernel_specialization_strategy"}
FIELDS = {
    (2, 9): ALWAYS | TYPED,
    (2, 10): ALWAYS | TYPED | AUTOCAST,
    (2, 11): ALWAYS | TYPED | AUTOCAST | ATTENTION,
    (2, 12): ALWAYS | TYPED | AUTOCAST | ATTENTION | RTX,
    (2, 13): ALWAYS | AUTOCAST | ATTENTION | {"fallback_data_dependent_ops"},
    (2, 14): ALWAYS
    | AUTOCAST
    | ATTENTION
    | {"fallback_data_dependent_ops", "use_complex_decomposition", "disabled_constant_fold_exclusions"},
}
RELEASES = sorted(FIELDS)
EVERYTHING = BuildOptions(
    use_fp32_acc=True,
    disable_tf32=True,
    use_cpp_runtime=True,
    cpu_offload=True,
    debug=True,
    optimization_level=5,
    decompose_attention=True,
)


def settings(options=None, release=(2, 13), flavour="tensorrt", cuda=True, without=()):
    return map_settings(
        options or BuildOptions(),
        release=release,
        fields=FIELDS[release] - set(without),
        flavour=flavour,
        cuda=cuda,
        timing_cache_path="/cache/timing_cache.bin",
    )


def test_the_table_has_the_published_sizes():
    assert [len(FIELDS[r]) for r in RELEASES] == [39, 48, 51, 53, 49, 51]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("options", [BuildOptions(), EVERYTHING], ids=["default", "everything"])
@pytest.mark.parametrize("cuda", [True, False])
def test_nothing_is_passed_that_the_release_does_not_know(release, options, cuda):
    assert set(settings(options, release, cuda=cuda).compile) <= FIELDS[release]


@pytest.mark.parametrize("release", RELEASES)
def test_what_holds_on_every_release(release):
    out = settings(EVERYTHING, release)
    expected = {
        "min_block_size": 1,
        "truncate_double": True,
        "require_full_compilation": True,
        "use_fp32_acc": True,
        "disable_tf32": True,
        "offload_module_to_cpu": True,
        "optimization_level": 5,
        "timing_cache_path": "/cache/timing_cache.bin",
    }
    assert {k: out.compile.get(k) for k in expected} == expected
    assert "enabled_precisions" not in out.compile
    assert "dryrun" not in out.compile
    assert out.debugger
    assert out.module == {
        "strict": False,
        "prefer_deferred_runtime_asserts_over_guards": True,
        "immutable_weights": False,
    }


@pytest.mark.parametrize("release", RELEASES)
def test_the_dtypes_of_the_graph_are_kept(release):
    assert settings(release=release).compile.get("use_explicit_typing") is (True if release == (2, 9) else None)


@pytest.mark.parametrize("release", RELEASES)
def test_weak_typing_ends_with_2_12(release):
    options = BuildOptions(use_explicit_typing=False)
    if release >= (2, 13):
        with pytest.raises(PlanError, match=r"use_explicit_typing: false is impossible with Torch-TensorRT 2\.1"):
            settings(options, release)
    else:
        out = settings(options, release)
        assert out.compile["use_explicit_typing"] is False
        assert any("use_explicit_typing is off" in note for note in out.notes)


@pytest.mark.parametrize("release", RELEASES)
def test_no_attention_mask_is_read_as_causal(release):
    out = settings(release=release).compile
    assert out.get("attn_bias_is_causal") is (False if release >= (2, 11) else None)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("wanted", [True, False])
def test_decomposed_attention(release, wanted):
    out = settings(BuildOptions(decompose_attention=wanted), release)
    if release >= (2, 11):
        assert out.compile["decompose_attention"] is wanted
    else:
        assert any("always lowers attention" in note for note in out.notes) is not wanted


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("wanted", [True, False])
def test_the_two_runtimes_become_one_in_2_13(release, wanted):
    out = settings(BuildOptions(use_cpp_runtime=wanted), release)
    if release <= (2, 12):
        assert out.compile["use_python_runtime"] is not wanted
    else:
        assert "use_python_runtime" not in out.compile
        assert any("one runtime" in note for note in out.notes) is wanted


def test_without_a_gpu():
    out = settings(BuildOptions(cpu_offload=True), flavour="tensorrt_rtx", cuda=False)
    assert out.compile["dryrun"] is True
    assert "offload_module_to_cpu" not in out.compile
    assert any("cpu_offload" in note for note in out.notes)


def test_flavours():
    options = BuildOptions(compute_capabilities=("8.9",))
    assert "timing_cache_path" not in settings(options, flavour="tensorrt_rtx").compile
    with pytest.raises(PlanError, match=r"\['8.9'\] asked of TensorRT"):
        settings(options, flavour="tensorrt")


@pytest.mark.parametrize("missing", ["use_fp32_acc", "truncate_double", "min_block_size", "require_full_compilation"])
def test_a_setting_that_results_depend_on_is_never_dropped(missing):
    with pytest.raises(BackendError, match=f"Torch-TensorRT 2.13 has no setting '{missing}'"):
        settings(without=[missing])


def test_debug_as_a_setting_when_a_release_has_one():
    out = map_settings(
        BuildOptions(debug=True),
        release=(2, 14),
        fields=FIELDS[(2, 14)] | {"debug"},
        flavour="tensorrt",
        cuda=True,
        timing_cache_path="x",
    )
    assert out.compile["debug"] is True
    assert not out.debugger


@pytest.mark.parametrize("level", [-1, 6])
def test_optimization_level_outside_the_scale(level):
    with pytest.raises(PlanError, match=f"optimization_level: {level} is outside 0 to 5"):
        settings(BuildOptions(optimization_level=level))


def test_release_of_a_version():
    assert release_tuple("2.13.0+cu130") == (2, 13)
    assert release_tuple("2.9.0.dev20250901") == (2, 9)
    with pytest.raises(BackendError, match="'nightly'"):
        release_tuple("nightly")

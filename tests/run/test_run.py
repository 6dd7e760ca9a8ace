"""The main job as a whole: what it chooses, what it builds, and what its record and its engines say."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import gr00t_trt
from gr00t_trt.backends.torch_tensorrt import engine as trt_build
from gr00t_trt.common.devices import choose_device
from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset, synthetic_tokenizer
from gr00t_trt.engines.files import verify
from gr00t_trt.errors import BackendError, DatasetError, ObservationError, PlanError
from gr00t_trt.plans.backends import Availability, get_backend
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.plans.schema import LOOPS, Plan
from gr00t_trt.plans.submodules import select
from gr00t_trt.policy import source
from gr00t_trt.policy.source import Source, recorded_step
from gr00t_trt.record.result import Baseline, Status
from gr00t_trt.record.schema import Record
from gr00t_trt.run.job import Job, run

CPU = Machine("cpu")
JOB = Job(Source("synthetic", "synthetic"))
ONCE = {"timer": "python_timer", "iterations": 1, "warmup": 0}

needs_torch_tensorrt = pytest.mark.skipif(
    not get_backend("torch_tensorrt").availability().installed, reason="torch_tensorrt is not installed"
)
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


def plan(**settings: Any) -> Plan:
    return plan_from_mapping({"backend": "eager", "benchmark": ONCE, **settings}, "test")


def carried_out(wanted: Plan, fn_name: str = "state_encoder", job: Job = JOB, **how: Any) -> Record:
    return run(job, resolve(wanted, CPU, fn_name, **how), Console(file=io.StringIO()))


@pytest.fixture
def without_torch_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("torch_tensorrt")
    monkeypatch.setattr(type(backend), "availability", lambda self: Availability(False, "not here: install it"))


@pytest.mark.usefixtures("without_torch_tensorrt")
def test_the_default_backend_gives_way_to_eager_and_says_so() -> None:
    wanted = plan(backend="torch_tensorrt", build={"cpu_offload": True})
    record = carried_out(wanted, chosen=False)
    assert [entry.candidate.backend for entry in record.submodules] == ["eager"]
    assert record.plan["backend"] == "eager"
    assert any("not here: install it" in note.why for note in record.skipped)


@pytest.mark.usefixtures("without_torch_tensorrt")
def test_a_chosen_backend_that_is_missing_is_an_error_that_names_its_users() -> None:
    with pytest.raises(BackendError, match=r"torch_tensorrt \(state_encoder\) is not available here: not here"):
        resolve(plan(backend="torch_tensorrt"), CPU, "state_encoder")
    mixed = plan(precision="fp32", submodules={"dit_model": {"backend": "torch_tensorrt"}})
    with pytest.raises(BackendError, match=r"\(dit_model\)"):
        resolve(mixed, CPU, "action_head", chosen=False)
    resolved = resolve(mixed, CPU, "state_encoder", chosen=False)
    assert (resolved.plan, resolved.notes) == (mixed, ())


@pytest.mark.parametrize(("count", "wanted", "found"), [
    (0, None, "cpu"), (0, "cpu", "cpu"), (0, "cpu:3", "cpu"),
    (2, None, "cuda:0"), (2, "cuda", "cuda:0"), (2, "cuda:1", "cuda:1"), (2, "cpu", "cpu"),
])  # fmt: skip
def test_the_device(count: int, wanted: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert str(choose_device(wanted)) == found


@pytest.mark.parametrize("wanted", ["cuda", "cuda:2", "gpu", "meta", "mps"])
def test_devices_that_are_not_there(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(PlanError, match=wanted):
        choose_device(wanted)


def test_an_episode_without_frames_is_named_as_such(tmp_path: Path) -> None:
    folder = synthetic_dataset(tmp_path, resolution=(64, 48), episodes=1, length=4)
    path = folder / "meta" / "episodes.jsonl"
    path.write_text(path.read_text() + '{"episode_index": 1, "length": 0}\n')
    dataset = LeRobotDataset(folder, data_config(JOB.source.data_config).modality_config())
    with pytest.raises(DatasetError, match="episode 1 has 0 frames"):
        recorded_step(dataset, 1, 0)
    with pytest.raises(DatasetError, match=r"no row 4[\s\S]*0 to 3"):
        recorded_step(dataset, 0, 4)


def test_a_bad_observation_is_found_before_the_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> dict[str, Any]:
        observation = recorded_step(*args)
        observation["state.left_arm"][0, 3] = np.nan
        return observation

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(source, "recorded_step", broken)
    monkeypatch.setattr(source, "load_policy", never)
    with pytest.raises(ObservationError, match=r"state\.left_arm holds nan at \[0, 3\]"):
        carried_out(plan())


def test_each_submodule_is_compared_in_its_own_precision() -> None:
    mixed = plan(
        precision="fp16", submodules={"vision_model": {"precision": "fp32"}, "dit_model": {"precision": "bf16"}}
    )
    record = carried_out(mixed, "all")
    entries = {entry.subject: entry for entry in record.submodules}
    assert [entries[name].candidate.precision for name in ("vision_model", "dit_model", "vl_components")] == [
        "fp32", "bf16", "fp16",
    ]  # fmt: skip
    dtypes = {name: next(iter(entry.build.arguments.values())).dtype for name, entry in entries.items()}
    assert (dtypes["vision_model"], dtypes["dit_model"], dtypes["language_model"]) == ("float32", "bfloat16", "float16")
    assert entries["vision_model"].accuracy.exact
    assert not entries["dit_model"].accuracy.exact
    assert not record.failures


@needs_torch_tensorrt
@needs_no_gpu
@pytest.mark.filterwarnings("ignore")
def test_what_is_built_and_cannot_run_is_recorded_without_a_latency(tmp_path: Path) -> None:
    record = carried_out(plan(backend="torch_tensorrt"), engine_dir=tmp_path / "engines")
    (entry,) = record.submodules
    assert (entry.status, entry.latency_ms, entry.against) == (Status.BUILT_NOT_RUN, None, None)
    assert (entry.build.engines, entry.build.coverage_percent, entry.passed) == (1, 100.0, True)
    assert record.request.latency_ms is None
    if entry.build.engine_path is not None:  # the flavour of TensorRT without RTX builds none here
        manifest = verify(Path(entry.build.engine_path))
        assert manifest.bytes == entry.build.engine_bytes
        assert not manifest.executed
        assert sorted(p.name for p in (tmp_path / "engines").iterdir()) == [
            "state_encoder.engine", "state_encoder.manifest.json",
        ]  # fmt: skip


@needs_torch_tensorrt
@needs_no_gpu
@pytest.mark.filterwarnings("ignore")
def test_a_second_start_of_the_same_plan_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an engine was built")

    wanted, job = plan(backend="torch_tensorrt"), replace(JOB, engine_cache=str(tmp_path / "cache"))
    first = carried_out(wanted, job=job).submodules[0]
    if first.build.engine_bytes is None:
        pytest.skip("this flavour of TensorRT builds no engine here")
    monkeypatch.setattr(trt_build, "build_engine", never)
    second = carried_out(wanted, job=job, engine_dir=tmp_path / "engines").submodules[0]
    assert (first.build.from_cache, second.build.from_cache) == (False, True)
    for same in ("coverage_percent", "operators", "engine_bytes"):
        assert getattr(first.build, same) == getattr(second.build, same)
    for same in ("accuracy", "passed", "status"):
        assert getattr(first, same) == getattr(second, same)
    assert verify(Path(second.build.engine_path)).submodule == "state_encoder"
    with pytest.raises(BackendError, match="an engine was built"):
        carried_out(wanted, job=replace(job, engine_cache="off"))


@needs_torch_tensorrt
@needs_no_gpu
@pytest.mark.filterwarnings("ignore")
def test_the_joint_backbone_is_one_engine() -> None:
    (entry,) = carried_out(plan(backend="torch_tensorrt", joint_backbone=True), "eagle_backbone").submodules
    assert (entry.subject, entry.build.engines, entry.build.unsupported) == ("eagle_backbone", 1, {})
    assert entry.passed


def _write_checkpoint(folder: Path) -> None:
    """The tiny model as a checkpoint folder with a vision-language configuration and a tokenizer of its own."""
    policy = gr00t_trt.load_policy("synthetic")
    config = policy.model.config
    head = config.action_head
    none = {"positional_embeddings": None}
    (folder / "config.json").write_text(
        json.dumps({
            "model_type": "gr00t_n1_5",
            "backbone_cfg": {"select_layer": config.backbone.select_layer, "project_to_dim": None},
            "action_head_cfg": {
                **{k: v for k, v in vars(head).items() if isinstance(v, int | float)},
                "diffusion_model_cfg": {**vars(head.diffusion), "norm_type": "ada_norm", **none},
                "vl_self_attention_cfg": {**vars(head.vl_self_attention), **none},
            },
        })
    )  # fmt: skip
    eagle = {"vision_config": vars(config.eagle.vision), "text_config": vars(config.eagle.text)}
    (folder / "eagle_config.json").write_text(json.dumps({**eagle, "image_token_index": config.image_token_index}))
    save_file(policy.model.state_dict(), str(folder / "model.safetensors"))
    policy.metadata.write(folder)
    tokenizer = synthetic_tokenizer(config.special_tokens, config.vocab_size)
    tokenizer._tokenizer.save(str(folder / "tokenizer.json"))


def test_a_checkpoint_folder_of_another_geometry_runs_like_the_model_it_was_saved_from(tmp_path: Path) -> None:
    _write_checkpoint(tmp_path)
    synthetic, saved = (
        carried_out(plan(), job=Job(replace(JOB.source, model_path=path))) for path in ("synthetic", str(tmp_path))
    )
    assert saved.submodules[0].accuracy == synthetic.submodules[0].accuracy
    assert saved.request.accuracy == synthetic.request.accuracy
    assert saved.inputs == synthetic.inputs


@pytest.mark.parametrize("loop", LOOPS)
def test_the_restructured_model_is_checked_and_timed_against_the_plain_one(loop: str) -> None:
    wanted = plan(precision="fp32", loop=loop)
    record = carried_out(wanted, "all")
    assert record.request.accuracy.max_abs < 1e-5
    assert record.failures == []
    assert [entry.subject for entry in record.submodules] == list(select("all", wanted))
    assert (record.request.name, record.request.against.baseline) == ("restructured", Baseline.ORIGINAL)
    assert record.request.against.latency_ms is not None
    assert record.request.latency_ms is not None
    stages = {row.stage: row for row in record.stages}
    assert stages["dit_model"].baseline_ms is not None
    only_here = "language_model" if loop == "submodules" else loop
    assert stages[only_here].latency_ms is not None
    assert (stages[only_here].baseline_ms is None) == (loop != "submodules")
    assert stages["vision_model"].within is None
    assert [row.stage for row in record.stages][-2:] == ["between stages", "request"]


@needs_torch_tensorrt
@needs_no_gpu
def test_one_denoising_step_is_one_engine() -> None:
    wanted = plan(backend="torch_tensorrt", precision="fp16", loop="denoise_step")
    (entry,) = carried_out(wanted, "denoise_step").submodules
    assert (entry.build.engines, entry.build.coverage_percent) == (1, 100.0)
    assert entry.passed

"""The seven files that `gr00t-trt export` makes of a real observation, run by ONNX Runtime on it and on others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import gr00t_trt
from gr00t_trt.data import LeRobotDataset, data_config
from gr00t_trt.export.program import main
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.model.targets import Recording
from gr00t_trt.plans.schema import SUBMODULES
from gr00t_trt.policy.policy import Gr00tPolicy
from gr00t_trt.record.result import Workload

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

LIMITS = {"fp16": 0.999}
"""Precision -> least cosine; files in fp32 are held to the toy checkpoint's results in test_export_program."""
FILES = {
    "vision_model": "eagle2/vit_{}.onnx",
    "language_model": "eagle2/llm_{}.onnx",
    "vl_components": "action_head/vlln_vl_self_attention.onnx",
    "state_encoder": "action_head/state_encoder.onnx",
    "action_encoder": "action_head/action_encoder.onnx",
    "dit_model": "action_head/DiT_{}.onnx",
    "action_decoder": "action_head/action_decoder.onnx",
}
INSTRUCTION = "annotation.human.action.task_description"


@dataclass(frozen=True)
class Export:
    """What one run of the program left: its folder and what it printed."""

    precision: str
    folder: Path
    table: str


@pytest.fixture(scope="module", params=list(LIMITS))
def exported(request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    folder = tmp_path_factory.mktemp(request.param)
    flags = f"--model_path synthetic --dataset_path {demo} --precision {request.param} --onnx_dir {folder}"
    with pytest.MonkeyPatch.context() as patch, open(folder / "table.txt", "w+") as out:
        patch.setattr("sys.stdout", out)
        assert main(flags.split()) == 0
        out.seek(0)
        yield Export(request.param, folder, out.read())


@pytest.fixture(scope="module")
def policy(demo: Path) -> Gr00tPolicy:
    return gr00t_trt.load_policy("synthetic")


@pytest.fixture(scope="module")
def recordings(policy: Gr00tPolicy, demo: Path) -> dict[str, Recording]:
    """Requests made of real observations, in eager fp32: the exported one, then other sizes in every direction."""
    dataset = LeRobotDataset(demo, data_config("fourier_gr1_arms_only").modality_config())
    rows = [dataset.step(0, step) for step in (0, 100, 200)]
    requests = Requests(policy, rows, seed=0)
    inputs = {
        "the exported one": requests.inputs(Workload()),
        "three views": requests.inputs(Workload(views=3)),
        "a batch of two with two views each": requests.inputs(Workload(views=2, batch=2)),
        "a longer prompt": policy.preprocess({**rows[1], INSTRUCTION: ["put the pear on the plate " * 6]})[0],
        "a batch with padding": padded(policy, requests),
    }
    noise = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    return {name: policy.model.record(each, noise[: len(each["state"])])[0] for name, each in inputs.items()}


def padded(policy: Gr00tPolicy, requests: Requests) -> dict[str, torch.Tensor]:
    batch = requests.observation(Workload(batch=2))
    inputs, _ = policy.preprocess({**batch, INSTRUCTION: ["lift it", "place the pear in the plate"]})
    assert not inputs["eagle_attention_mask"].bool().all()
    return inputs


def test_the_program_says_that_all_seven_pass(exported: Export) -> None:
    rows = [line.split() for line in exported.table.splitlines() if ".onnx" in line]
    assert [row[0] for row in rows] == [FILES[name].format(exported.precision) for name in SUBMODULES]
    for row in rows:
        assert (row[1], row[-1]) == (exported.precision, "pass")
        assert float(row[-2]) >= LIMITS[exported.precision]
    assert "…" not in exported.table


@pytest.mark.parametrize("name", SUBMODULES)
def test_every_size_agrees_with_eager_fp32(exported: Export, recordings: dict[str, Recording], name: str) -> None:
    path = exported.folder / FILES[name].format(exported.precision)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = set()
    for what, recording in recordings.items():
        for call in recording[name]:
            args = list(call.inputs)
            if name == "vision_model":  # the published file takes the positions as an input
                args.append(torch.arange(256).expand(len(args[0]), -1))
            feed = {
                value.name: (arg.half() if value.type == "tensor(float16)" else arg).numpy()
                for value, arg in zip(session.get_inputs(), args, strict=True)
            }
            actual = torch.from_numpy(session.run(None, feed)[0])
            assert actual.shape == call.output.shape, what
            cosine = torch.cosine_similarity(actual.double().flatten(), call.output.double().flatten(), dim=0)
            assert cosine >= LIMITS[exported.precision], f"{what}: {cosine:.7f}"
            shapes.add(tuple(actual.shape))
    batches, lengths = {shape[0] for shape in shapes}, {shape[1] for shape in shapes}
    assert batches == ({1, 2, 3, 4} if name == "vision_model" else {1, 2})
    assert len(lengths) == (5 if name in ("language_model", "vl_components") else 1)

"""A bundle: the same actions as a normal start, from files alone; and everything that it refuses, by name."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import QUIET, actions, equal, made, normal, own_products, resolved, started
from rich.console import Console

from gr00t_trt.common.files import parse_json
from gr00t_trt.deploy.bundle import example as examples
from gr00t_trt.deploy.bundle import make as making
from gr00t_trt.deploy.bundle import starts
from gr00t_trt.deploy.bundle.manifest import FILE, manifest_text, read_manifest
from gr00t_trt.deploy.bundle.program import main, parser, served_flags
from gr00t_trt.deploy.bundle.start import open_bundle, start
from gr00t_trt.deploy.bundle.starts import StartFact
from gr00t_trt.errors import AccuracyError, PlanError, RecordError, ServiceError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nobody may change."""
    with own_products():
        return made(tmp_path_factory.mktemp("bundles") / "robot").folder


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def rewritten(folder: Path, **changes: Any) -> None:
    """Give a bundle another manifest, as if it had been made so."""
    (folder / FILE).write_text(manifest_text(replace(read_manifest(folder), **changes)))


def test_the_actions_are_those_of_a_normal_start_to_the_bit(bundle: Path) -> None:
    found = started(bundle)
    assert equal(actions(found.policy), actions(normal(resolved())))
    said = next(note.why for note in found.deployment.record.skipped if note.what == "bundle")
    assert "to the bit" in str(said)


def test_nothing_but_the_folder_is_needed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was asked for")

    for name in ("fill_synthetic", "synthetic_config"):
        monkeypatch.setattr(f"gr00t_trt.model.checkpoint.{name}", never)
    monkeypatch.setattr("gr00t_trt.measure.reference.take_reference", never)
    monkeypatch.setattr("gr00t_trt.deploy.deploy.build_all", never)
    monkeypatch.setattr("socket.socket.connect", never)
    assert actions(started(bundle).policy)


def test_the_gates_results_come_along(bundle: Path) -> None:
    record = started(bundle).deployment.record
    assert record.request.passed
    assert record.request.accuracy.cosine > 0.9999
    assert set(record.plan["submodules"]) == set()


def test_weights_have_the_plans_precisions(tmp_path: Path) -> None:
    plan = resolved(precision="bf16", submodules={"action_decoder": {"precision": "fp32"}}, loop="denoise_loop")
    folder = made(tmp_path / "mixed", plan).folder
    found = started(folder)
    assert equal(actions(found.policy), actions(normal(plan)))
    assert found.policy.model.stage_dtypes["denoise_loop"] == torch.bfloat16
    size = (folder / "model" / "model.safetensors").stat().st_size
    assert size < 0.6 * sum(4 * p.numel() for p in found.policy.model.parameters())


def test_its_model_folder_is_a_checkpoint(bundle: Path) -> None:
    again = normal(resolved(), model_path=str(bundle / "model"))
    assert equal(actions(again), actions(started(bundle).policy))


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "model/tokenizer.json", "model/experiment_cfg/metadata.json", "plan.yaml",
             "record.json", "example.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("harm", ["altered", "cut", "missing"])
def test_a_damaged_file_is_refused_by_its_name(bundle: Path, name: str, harm: str) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if harm != "missing":
        path.write_bytes(content if harm == "altered" else content[:-1])
    with pytest.raises(RecordError, match=path.name):
        started(bundle)


def test_a_manifest_that_was_changed_is_refused(bundle: Path) -> None:
    raw = parse_json((bundle / FILE).read_text())
    raw["policy"]["embodiment_tag"] = "oxe_droid"
    (bundle / FILE).write_text(json.dumps(raw))
    with pytest.raises(RecordError, match="not as it was written"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not a readable manifest"), ("[]", "schema None"), ('{"schema": 9}', "schema 9")]
)
def test_a_manifest_of_another_kind_is_refused(bundle: Path, text: str, said: str) -> None:
    (bundle / FILE).write_text(text)
    with pytest.raises(RecordError, match=said):
        open_bundle(bundle)


def test_a_folder_that_is_no_bundle(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such folder"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="did you mean"):
        open_bundle(whole.parent)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no user ids")
def test_a_file_that_others_may_write_is_refused(bundle: Path) -> None:
    (bundle / "model" / "model.safetensors").chmod(0o666)
    with pytest.raises(RecordError, match="others may write to it"):
        started(bundle)


@pytest.mark.parametrize(
    ("name", "said"),
    [("torch", "torch 1.0"), ("gr00t_trt", "gr00t_trt 1.0"), ("platform", "platform 1.0"), ("gpu", "gpu 1.0"),
     ("code of the model", "another state of this package's code")],
)  # fmt: skip
def test_another_machine_is_refused_with_the_reason(bundle: Path, name: str, said: str) -> None:
    rewritten(bundle, machine={**read_manifest(bundle).machine, name: "1.0"})
    with pytest.raises(PlanError, match=said):
        started(bundle)


def test_a_processor_that_lacks_an_instruction_is_refused(bundle: Path) -> None:
    rewritten(bundle, cpu_features=("no_such_instruction",))
    with pytest.raises(PlanError, match="a processor with no_such_instruction"):
        started(bundle)


def test_a_bundle_of_a_gpu_is_refused_on_a_cpu(bundle: Path) -> None:
    rewritten(bundle, device="cuda")
    with pytest.raises(PlanError, match="it was made for a GPU, and cpu was chosen"):
        start(open_bundle(bundle), "cpu", QUIET)


def test_a_start_that_answers_otherwise_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "asked", lambda policy, observation, noise: torch.full_like(noise, torch.nan))
    with pytest.raises(AccuracyError, match="answered otherwise"):
        started(bundle)


def test_a_policy_that_misses_its_gate_is_no_bundle(tmp_path: Path) -> None:
    strict = resolved(precision="bf16", submodules={"vision_model": {"gate": {"sqnr_db": 200.0}}})
    with pytest.raises(AccuracyError, match="vision_model"):
        made(tmp_path / "strict", strict)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "write_example", full)
    with pytest.raises(RecordError, match="No space left"):
        made(tmp_path / "robot")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "robot").mkdir()
    with pytest.raises(RecordError, match="is there already"):
        made(tmp_path / "robot")


def test_what_no_bundle_can_hold_is_said_before_anything_is_built(tmp_path: Path) -> None:
    plan = resolved(submodules={"dit_model": {"backend": "onnxruntime"}})
    with pytest.raises(PlanError, match=r"backend onnxruntime \(dit_model\)"):
        made(tmp_path / "robot", plan)


def test_a_data_config_of_ones_own_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "robot_of_bundles.py"
    code.write_text(
        "from gr00t_trt.data import So100DataConfig\n\n\nclass Mine(So100DataConfig):\n    action_indices = range(8)\n"
    )
    settings = {"data_config": "robot_of_bundles:Mine", "embodiment_tag": "new_embodiment"}
    before = normal(resolved(), **settings)
    folder = made(tmp_path / "own", **settings).folder
    code.unlink()
    monkeypatch.delitem(sys.modules, "robot_of_bundles")
    after = started(folder).policy
    noise = torch.zeros(1, 8, 32)
    one, other = (p.get_action(p.example(), noise=noise) for p in (before, after))
    assert equal(one, other)
    assert all(len(value) == 8 for value in other.values())


def test_the_flags_of_a_normal_start() -> None:
    line = "OUT --model_path synthetic --precision bf16 --data_config so100 --dataset_path None --bracketed-instruction"
    args = parser().parse_args(line.replace("-instr", "_instr").split())
    wanted = "--model_path synthetic --data_config so100 --bracketed_instruction --precision bf16"
    assert served_flags(args) == wanted.split()


def test_the_program_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "robot"
    line = ["--model_path", "synthetic", "--precision", "fp32", "--device", "cpu"]
    assert main([str(out), *line]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert f"serve --server --bundle {out}" in said.err
    assert main([str(out), *line]) == 2
    assert "is there already" in capsys.readouterr().err


def test_starts_are_told_in_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = iter([StartFact(9.0, 5.0, 3 * 10**9), StartFact(2.0, None, None), StartFact(7.0, 4.0, 2 * 10**9),
                  StartFact(4.0, None, None)])  # fmt: skip
    asked: list[list[str]] = []
    monkeypatch.setattr(starts, "one_start", lambda argv: asked.append(argv) or next(facts))
    text = starts.table_of_starts(Path("b"), ["--model_path", "synthetic"], 2, Console(file=io.StringIO()))
    assert text.splitlines()[2:] == [
        "| from the checkpoint | 8.0 | 9.0, 7.0 | 4.5 | 3.00 |",
        "| from the bundle | 3.0 | 2.0, 4.0 | unknown | unknown |",
    ]
    assert asked == [["--model_path", "synthetic"], ["--bundle", "b"]] * 2


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"did not start: .*no such folder"):
        starts.one_start(["--bundle", str(tmp_path / "nowhere")])

"""Checkpoints of a run: whole or not there, the original's layout, frozen tensors byte for byte, what resumes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gr00t_trt.data import DatasetMetadata
from gr00t_trt.errors import CheckpointError, RecordError
from gr00t_trt.finetune import checkpoints
from gr00t_trt.finetune.checkpoints import best, latest, mark_best, restore, save
from gr00t_trt.model import load_config, load_model
from gr00t_trt.model.weight_writer import write_weights

BIAS = "action_head.model.proj_out_1.bias"
MATRIX = "action_head.model.proj_out_2.weight"
ABOUT = {"flags": {"seed": 7, "learning_rate": 1e-4}, "losses": [1.5, 0.1 + 0.2]}


def header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        found: dict[str, Any] = json.loads(opened.read(length))
    return found


def raw(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Key -> dtype, shape and bytes of a folder's tensors, read without the library."""
    out = {}
    for file in folder.glob("model*.safetensors"):
        content, own = file.read_bytes(), header(file)
        assert own.pop("__metadata__") == {"format": "pt"}
        start = 8 + struct.unpack("<Q", content[:8])[0]
        for key, entry in own.items():
            first, last = entry["data_offsets"]
            out[key] = (entry["dtype"], entry["shape"], content[start + first : start + last])
    return out


class Run:
    """Two trained parameters, one of them without weight decay, and an AdamW that has made a step."""

    def __init__(self, base: Path | str, seed: int = 0):
        self.base = base
        torch.manual_seed(seed)
        shapes = {name: p.shape for name, p in load_model(base).named_parameters()}
        self.names = {name: nn.Parameter(torch.randn(shapes[name])) for name in (BIAS, MATRIX)}
        # The other way round than by name: decayed parameters come first.
        groups = [{"params": [self.names[MATRIX]]}, {"params": [self.names[BIAS]], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2)

    def step(self) -> None:
        for index, parameter in enumerate(self.names.values()):
            parameter.grad = (index + 1) * parameter.detach().cos()
        self.optimizer.step()

    def trained(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.names.items()}

    def save(self, folder: Path, step: int, **options: Any) -> Path:
        metadata = options.pop("metadata", {})
        return save(folder, step, self.trained(), self.optimizer, self.names, ABOUT, self.base, metadata, **options)


@pytest.fixture
def toy(golden: Path) -> Path:
    return golden / "checkpoint"


@pytest.fixture
def run(toy: Path) -> Run:
    made = Run(toy)
    made.step()
    return made


def test_the_folder_is_the_originals_and_frozen_tensors_are_the_bases_bytes(
    run: Run, toy: Path, tmp_path: Path
) -> None:
    path = run.save(tmp_path, 3)
    assert path == tmp_path / "step-3"
    assert latest(tmp_path) == path
    ours, theirs = raw(path), raw(toy)
    assert ours.keys() == theirs.keys()
    assert {key for key in ours if ours[key] != theirs[key]} == {BIAS, MATRIX}
    assert all(ours[key][:2] == theirs[key][:2] for key in ours)
    for name in ("config.json", "eagle_config.json"):
        assert json.loads((path / name).read_text()) == json.loads((toy / name).read_text())
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == ours.keys()
    assert index["metadata"]["total_size"] == sum(len(entry[2]) for entry in ours.values())


def test_the_loader_gives_back_trained_and_frozen_tensors_each_in_its_dtype(
    run: Run, toy: Path, tmp_path: Path
) -> None:
    path = run.save(tmp_path, 1)

    def cast(model: nn.Module) -> None:
        model.get_submodule("backbone").to(torch.bfloat16)

    model, before = load_model(path, dtype=cast), load_model(toy).state_dict()
    for name, value in model.state_dict().items():
        expected = run.trained().get(name, before[name])
        assert value.dtype == (torch.bfloat16 if name.startswith("backbone.") else torch.float32)
        assert torch.equal(value, expected.to(value.dtype)), name


def test_a_half_precision_base_stays_half_beside_trained_fp32(run: Run, toy: Path, tmp_path: Path) -> None:
    from gr00t_trt.model.weight_files import headers
    from gr00t_trt.model.weight_writer import from_tensor

    half = tmp_path / "half"
    half.mkdir()
    for name in ("config.json", "eagle_config.json"):
        (half / name).write_bytes((toy / name).read_bytes())
    tensors = {key: value.bfloat16() for key, value in load_file(str(toy / "model.safetensors")).items()}
    write_weights(half, {key: from_tensor(value) for key, value in tensors.items()}, limit=2_000_000)
    assert len(list(half.glob("model-*.safetensors"))) > 2
    run.base = half
    path = run.save(tmp_path / "run", 1)
    kinds = {key: found.dtype for key, found in headers(path).items()}
    assert {key for key, kind in kinds.items() if kind == "F32"} == {BIAS, MATRIX}
    assert set(kinds.values()) == {"F32", "BF16"}
    assert all(raw(path)[key] == value for key, value in raw(half).items() if key not in (BIAS, MATRIX))


def test_going_on_gives_the_bits_of_an_undisturbed_run(run: Run, toy: Path, tmp_path: Path) -> None:
    path = run.save(tmp_path, 1)
    other = Run(toy, seed=1)
    found = restore(path, other.optimizer, other.names)
    assert (found.step, found.about) == (1, ABOUT)
    assert found.trained.keys() == other.names.keys()
    with torch.no_grad():
        for name, parameter in other.names.items():
            parameter.copy_(found.trained[name])
    for _ in range(3):
        run.step()
        other.step()
    for name, parameter in run.names.items():
        assert torch.equal(parameter, other.names[name])


def test_an_optimizer_without_a_state_yet(toy: Path, tmp_path: Path) -> None:
    fresh = Run(toy)
    restore(fresh.save(tmp_path, 0), fresh.optimizer, fresh.names)
    assert not fresh.optimizer.state


def test_statistics_keep_the_bases_other_tags(run: Run, toy: Path, tmp_path: Path) -> None:
    base = tmp_path / "base_with_statistics"
    base.mkdir()
    for file in toy.iterdir():
        (base / file.name).symlink_to(file)
    part = {"max": [1.0], "min": [0.0], "mean": [0.5], "std": [0.1], "q01": [0.0], "q99": [1.0]}
    shape = {"absolute": True, "rotation_type": None, "shape": [1], "continuous": True}
    entry = {
        "statistics": {"state": {"arm": part}, "action": {"arm": part}},
        "modalities": {"video": {}, "state": {"arm": shape}, "action": {"arm": shape}},
    }
    (base / "experiment_cfg").mkdir()
    text = json.dumps({"gr1": entry, "oxe_droid": entry})
    (base / "experiment_cfg" / "metadata.json").write_text(text)
    run.base = base
    own = DatasetMetadata.from_dict("gr1", {**entry, "statistics": {"state": {}, "action": {}}})
    path = run.save(tmp_path / "run", 1, metadata={"gr1": own})
    written = json.loads((path / "experiment_cfg" / "metadata.json").read_text())
    assert written["oxe_droid"] == entry
    assert written["gr1"] == own.to_dict()


def test_only_the_newest_and_the_best_stay(run: Run, tmp_path: Path) -> None:
    for step in range(1, 6):
        path = run.save(tmp_path, step, keep=2)
        if step == 2:
            mark_best(path)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-2", "step-4", "step-5"]
    assert (latest(tmp_path), best(tmp_path)) == (tmp_path / "step-5", tmp_path / "step-2")


def test_frozen_files_are_not_written_twice_and_survive_their_first_checkpoint(run: Run, tmp_path: Path) -> None:
    first = run.save(tmp_path, 1, keep=1)
    frozen = first / "model-00001-of-00002.safetensors"
    inode, before = frozen.stat().st_ino, raw(first)
    run.step()
    second = run.save(tmp_path, 2, keep=1)
    assert not first.exists()
    assert (second / frozen.name).stat().st_ino == inode
    after = raw(second)
    assert {key for key in after if after[key] != before[key]} == {BIAS, MATRIX}


def test_another_base_of_the_same_shapes_is_copied_anew(run: Run, toy: Path, tmp_path: Path) -> None:
    first = run.save(tmp_path, 1)
    other = tmp_path / "other"
    other.mkdir()
    for file in toy.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-4:] = struct.pack("<f", 0.25)
    (other / "model.safetensors").write_bytes(weights)
    run.base = other
    second = run.save(tmp_path, 2)
    changed = {key for key, value in raw(second).items() if value != raw(first)[key]}
    assert len(changed) == 1


def test_saving_a_step_again_replaces_it(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, 1)
    run.step()
    path = run.save(tmp_path, 1)
    assert torch.equal(restore(path, run.optimizer, run.names).trained[BIAS], run.names[BIAS])
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-1"]


@pytest.mark.parametrize("after", [0, 3, 8, 10])
def test_a_full_disk_leaves_the_last_one_usable(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The disk is full at the n-th file that is to reach it."""
    path = run.save(tmp_path, 1)
    before = raw(path)
    run.step()
    reached = []
    to_disk = os.fsync

    def fsync(descriptor: int) -> None:
        reached.append(descriptor)
        if len(reached) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        to_disk(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(RecordError) as caught:
            run.save(tmp_path, 2)
    assert "No space left on device" in str(caught.value)
    last = latest(tmp_path)
    assert last is not None
    assert str(last) in str(caught.value)
    assert not list(tmp_path.glob("*.tmp"))
    assert raw(path) == before
    restore(last, run.optimizer, run.names)
    assert run.save(tmp_path, 2) == latest(tmp_path)


def test_a_really_full_disk(run: Run, small_disk: Path) -> None:
    """4 MiB for a checkpoint of 13: what was there before stays, nothing half-written does."""
    (small_disk / "notes").write_text("kept")
    with pytest.raises(RecordError, match="none was written before"):
        run.save(small_disk, 1)
    assert sorted(p.name for p in small_disk.iterdir()) == ["notes"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _saving(run: Run, folder: Path, done: Any) -> None:
    for step in range(1, 10_000):
        run.save(folder, step, keep=2)
        done.value = step


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked here")
@pytest.mark.parametrize("after_s", [0.05, 0.31])
def test_killed_at_any_moment_the_latest_is_complete(run: Run, toy: Path, tmp_path: Path, after_s: float) -> None:
    forked = multiprocessing.get_context("fork")
    done = forked.Value("i", 0)
    process = forked.Process(target=_saving, args=(run, tmp_path / "run", done))
    process.start()
    deadline = time.monotonic() + 60
    while not done.value and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(after_s)
    process.kill()
    process.join()
    path = latest(tmp_path / "run")
    assert path is not None
    assert int(path.name.removeprefix("step-")) >= done.value > 0
    again = Run(toy)
    assert restore(path, again.optimizer, again.names).step >= done.value
    load_model(path)


def _no_state(path: Path) -> None:
    (path / "training" / "state.json").unlink()


def _cut(path: Path) -> None:
    file = path / "training" / "optimizer.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def _no_weights(path: Path) -> None:
    (path / "model-00002-of-00002.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_no_state, "holds no training state"), (_cut, "cannot be read"), (_no_weights, "model-00002-of-00002")],
)
def test_a_damaged_checkpoint_is_one_error(run: Run, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    path = run.save(tmp_path, 1)
    damage(path)
    with pytest.raises(CheckpointError, match=said):
        restore(path, run.optimizer, run.names)


def test_other_parameters_are_refused(run: Run, tmp_path: Path) -> None:
    path = run.save(tmp_path, 1)
    fewer = {BIAS: run.names[BIAS]}
    with pytest.raises(CheckpointError, match=f"{MATRIX} is trained in only one"):
        restore(path, torch.optim.AdamW(fewer.values()), fewer)
    wider = {**run.names, BIAS: nn.Parameter(torch.zeros(3))}
    with pytest.raises(CheckpointError, match=r"exp_avg.* has shape \[192\]"):
        restore(path, torch.optim.AdamW(wider.values()), wider)


def test_trained_tensors_without_a_place_are_refused(run: Run, tmp_path: Path) -> None:
    trained = {**run.trained(), "action_head.nothing": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"action_head\.nothing"):
        save(tmp_path, 1, trained, run.optimizer, run.names, ABOUT, run.base, {})
    assert not list(tmp_path.iterdir())


def test_a_generated_base_is_written_once_and_its_checkpoint_needs_nothing_else(tmp_path: Path) -> None:
    from gr00t_trt.data import synthetic_tokenizer
    from gr00t_trt.data.tokenizer import load_tokenizer

    run = Run("synthetic")
    path = run.save(tmp_path, 1)
    base = tmp_path / "base"
    changed = os.stat(base).st_mtime_ns
    run.save(tmp_path, 2)
    assert os.stat(base).st_mtime_ns == changed
    model, generated = load_model(path), load_model("synthetic")
    for name, value in generated.state_dict().items():
        assert torch.equal(model.state_dict()[name], run.trained().get(name, value)), name
    config = load_config(path)
    assert (config.action_head, config.backbone) == (generated.config.action_head, generated.config.backbone)
    assert (config.eagle.vision, config.eagle.text) == (generated.config.eagle.vision, generated.config.eagle.text)
    words = load_tokenizer(None, [path], config.special_tokens, config.vocab_size)
    own = synthetic_tokenizer(generated.config.special_tokens, generated.config.vocab_size)
    assert words.special_tokens == own.special_tokens
    assert words.encode("pick up the pear") == own.encode("pick up the pear")


def test_the_released_geometry_survives_its_own_configuration_file(tmp_path: Path) -> None:
    from gr00t_trt.model.config_files import read_config
    from gr00t_trt.model.config_writer import config_file, eagle_file
    from gr00t_trt.model.n1_5.synthetic import full_config

    (tmp_path / "config.json").write_text(json.dumps(config_file(full_config())))
    assert read_config(tmp_path) == full_config()
    (tmp_path / "eagle_config.json").write_text(json.dumps(eagle_file(full_config().eagle)))
    assert read_config(tmp_path) == full_config()


def test_the_files_that_hold_names_say_nothing_else(run: Run, tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None
    run.save(tmp_path, 1)
    run.save(tmp_path, 2)
    for text in ("step-7\n", "../step-1", "", "\x00"):
        (tmp_path / checkpoints.LATEST).write_text(text)
        assert latest(tmp_path) == tmp_path / "step-2"
    (tmp_path / checkpoints.LATEST).write_text("step-1\n")
    assert latest(tmp_path) == tmp_path / "step-1"


def test_more_action_columns_leave_every_robot_as_it_was(golden: Path, toy: Path, tmp_path: Path) -> None:
    from gr00t_trt.errors import PlanError
    from gr00t_trt.finetune.widths import ACTION_AXES, widen_actions

    model = load_model(toy)
    widen_actions(model, 9)
    names = {name: nn.Parameter(dict(model.named_parameters())[name].detach()) for name in ACTION_AXES}
    trained = {name: parameter.detach() for name, parameter in names.items()}
    optimizer = torch.optim.AdamW(names.values())
    path = save(tmp_path, 1, trained, optimizer, names, {}, toy, {}, action_horizon=5)
    config = json.loads((path / "config.json").read_text())
    widths = (config["action_dim"], *(config["action_head_cfg"][key] for key in ("action_dim", "max_action_dim")))
    assert (widths, config["action_horizon"], config["action_head_cfg"]["action_horizon"]) == ((9, 9, 9), 5, 5)
    wide, old = load_model(path), load_model(toy)
    wide.action_horizon = old.action_horizon
    case = load_file(str(golden / "case_b2_v2.safetensors"))
    inputs: dict[str, Any] = {key.removeprefix("in."): v for key, v in case.items() if key.startswith("in.")}
    start = torch.cat((inputs["noise"], torch.zeros(2, 6, 2)), dim=-1)
    actions = wide.get_action(inputs, noise=start)["action_pred"]
    assert torch.allclose(actions[..., :7], case["out.action_pred"], atol=1e-5)
    assert not actions[..., 7:].any()
    with pytest.raises(PlanError, match="6 columns"):
        widen_actions(old, 6)
    some = {name: trained[name] for name in list(trained)[:2]}
    with pytest.raises(CheckpointError, match=r"all of .* wider"):
        save(tmp_path, 2, some, optimizer, names, {}, toy, {})

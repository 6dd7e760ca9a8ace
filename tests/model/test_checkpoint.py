"""Loading: dtypes, shards, prefixes and aliases; and one clear error for every kind of damage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gr00t_trt.errors import CheckpointError
from gr00t_trt.model import Gr00tN1d5, load_model, model_from_tensors, resolve_checkpoint
from gr00t_trt.model.checkpoint import _empty
from gr00t_trt.model.n1_5.embedding import Embedding
from gr00t_trt.model.n1_5.synthetic import tiny_config
from gr00t_trt.model.weights import EMBEDDING, VOCABULARY_HEAD, dead_tensors

WEIGHT = "action_head.model.proj_out_1.weight"


def assert_same_weights(model: Gr00tN1d5, expected: dict[str, torch.Tensor]) -> None:
    got = model.state_dict()
    for key, value in got.items():
        assert torch.equal(value, expected[key].to(value.dtype)), key


def failure(folder: Path) -> str:
    with pytest.raises(CheckpointError) as e:
        load_model(folder)
    return str(e.value)


def test_loads_whole_in_evaluation_mode(checkpoint: Any) -> None:
    model = load_model(str(checkpoint.write()))
    assert_same_weights(model, checkpoint.tensors)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    assert set(model.stage_dtypes.values()) == {torch.float32}


def test_mixed_dtypes_per_tensor(checkpoint: Any) -> None:
    kinds = [torch.bfloat16, torch.float32, torch.float16]
    checkpoint.tensors = {k: v.to(kinds[i % 3]) for i, (k, v) in enumerate(checkpoint.tensors.items())}
    model = load_model(checkpoint.write(), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert set(model.stage_dtypes.values()) == {torch.bfloat16}
    assert_same_weights(model, checkpoint.tensors)


def test_weights_are_copies_of_the_file(checkpoint: Any) -> None:
    model = load_model(checkpoint.write())
    before = model.action_head.model.proj_out_1.weight.clone()
    file = checkpoint.folder / "model.safetensors"
    with file.open("r+b") as f:
        f.seek(file.stat().st_size // 2)
        f.write(b"\xff" * (file.stat().st_size // 2))
    assert torch.equal(model.action_head.model.proj_out_1.weight, before)


def test_sharded(checkpoint: Any) -> None:
    keys = sorted(checkpoint.tensors)
    shards = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    assert_same_weights(load_model(checkpoint.write(shards)), checkpoint.tensors)
    (checkpoint.folder / "model-00002-of-00002.safetensors").unlink()
    message = failure(checkpoint.folder)
    assert "model.safetensors.index.json: names 'model-00002-of-00002.safetensors'" in message


def test_index_that_is_none(checkpoint: Any) -> None:
    folder = checkpoint.write({"model-1.safetensors": list(checkpoint.tensors)})
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json: no weight map" in failure(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {WEIGHT: "../model-1.safetensors"}}))
    assert "names '../model-1.safetensors'" in failure(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {WEIGHT: 5}}))
    assert "names 5, which is not in" in failure(folder)


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded(checkpoint: Any, first: list[str], second: list[str]) -> Path:
    return checkpoint.write(dict(zip(SHARDS, (first, second), strict=True)))


def test_a_tensor_in_two_shards(checkpoint: Any) -> None:
    keys = sorted(checkpoint.tensors)
    message = failure(sharded(checkpoint, keys, [WEIGHT]))
    assert f"tensor {WEIGHT} is in both {SHARDS[0]} and {SHARDS[1]}" in message


def test_tensors_elsewhere_than_the_index_says(checkpoint: Any) -> None:
    keys = sorted(checkpoint.tensors)
    index = sharded(checkpoint, keys[::2], keys[1::2]) / "model.safetensors.index.json"
    honest = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**honest, keys[0]: SHARDS[1]}}))
    assert f"tensor {keys[0]} is in {SHARDS[0]}, not in {SHARDS[1]}" in failure(checkpoint.folder)
    index.write_text(json.dumps({"weight_map": {**honest, "nowhere": SHARDS[1]}}))
    assert f"tensor nowhere is not in {SHARDS[1]}" in failure(checkpoint.folder)
    index.write_text(json.dumps({"weight_map": {k: v for k, v in honest.items() if k != keys[0]}}))
    assert f"{SHARDS[0]}: tensor {keys[0]} is not in model.safetensors.index.json" in failure(checkpoint.folder)
    index.write_text(json.dumps({"weight_map": honest})[:-2] + f', "{keys[0]}": "{SHARDS[1]}"}}}}')
    assert f"key '{keys[0]}' has two values" in failure(checkpoint.folder)


def test_a_file_left_over_from_an_earlier_save(checkpoint: Any) -> None:
    plain = {key: value.clone() for key, value in checkpoint.tensors.items()}
    keys = sorted(plain)
    folder = sharded(checkpoint, keys[::2], keys[1::2])
    save_file({WEIGHT: torch.zeros(192, 96)}, str(folder / "model-00003-of-00003.safetensors"))
    assert_same_weights(load_model(folder), plain)
    save_file(plain, str(folder / "model.safetensors"))
    message = failure(folder)
    assert "two sets of weights" in message
    assert "model.safetensors.index.json" in message


def test_an_index_of_the_only_file(checkpoint: Any) -> None:
    folder = checkpoint.write({"model.safetensors": list(checkpoint.tensors)})
    assert_same_weights(load_model(folder), checkpoint.tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite(checkpoint: Any, value: float, dtype: torch.dtype) -> None:
    checkpoint.tensors[WEIGHT] = checkpoint.tensors[WEIGHT].to(dtype)
    checkpoint.tensors[WEIGHT][7, 3:5] = value
    message = failure(checkpoint.write())
    assert f"model.safetensors: {WEIGHT} holds 2 values that are NaN or infinite, of {192 * 96}" in message
    with pytest.raises(CheckpointError, match=f"the policy: {WEIGHT} holds 2 values that are NaN"):
        model_from_tensors(checkpoint.tensors, load_model("synthetic").config, where="the policy")


def test_values_of_dead_tensors_do_not_matter(checkpoint: Any, shared_tiny: Gr00tN1d5) -> None:
    for key in dead_tensors(shared_tiny.config):
        checkpoint.tensors[key][...] = float("nan")
    load_model(checkpoint.write())


def test_values_beyond_the_dtype_asked_for(checkpoint: Any) -> None:
    checkpoint.tensors[WEIGHT][0, 0] = 1e5
    folder = checkpoint.write()
    assert torch.isfinite(load_model(folder, dtype=torch.bfloat16).action_head.model.proj_out_1.weight).all()
    with pytest.raises(CheckpointError) as e:
        load_model(folder, dtype=torch.float16)
    assert f"{WEIGHT} holds 1 values beyond float16: up to 1e+05" in str(e.value)


def test_sums_that_overflow_are_no_alarm(checkpoint: Any) -> None:
    checkpoint.tensors[WEIGHT][...] = 3e38
    load_model(checkpoint.write())


def test_prefix_in_front_of_every_key(checkpoint: Any) -> None:
    plain = checkpoint.tensors
    checkpoint.tensors = {f"_groot_model.{k}": v for k, v in plain.items()}
    assert_same_weights(load_model(checkpoint.write()), plain)
    checkpoint.tensors["stray"] = torch.zeros(1)
    assert "unexpected" in failure(checkpoint.write())


def test_vocabulary_head_is_the_embedding_only_in_its_absence(checkpoint: Any) -> None:
    plain = dict(checkpoint.tensors)
    checkpoint.tensors[VOCABULARY_HEAD] = torch.full_like(plain[EMBEDDING], 3.0)
    assert_same_weights(load_model(checkpoint.write()), plain)
    del checkpoint.tensors[VOCABULARY_HEAD]
    assert_same_weights(load_model(checkpoint.write()), plain)
    checkpoint.tensors[VOCABULARY_HEAD] = checkpoint.tensors.pop(EMBEDDING)
    assert_same_weights(load_model(checkpoint.write()), plain)
    del checkpoint.tensors[VOCABULARY_HEAD]
    assert f"missing (1): {EMBEDDING}" in failure(checkpoint.write())


def test_dead_tensors_may_be_absent_but_not_misshapen(checkpoint: Any, shared_tiny: Gr00tN1d5) -> None:
    dead = dead_tensors(shared_tiny.config)
    assert len(dead) == 12
    for key in dead:
        del checkpoint.tensors[key]
    load_model(checkpoint.write())
    probe = next(k for k in dead if k.endswith("probe"))
    checkpoint.tensors[probe] = torch.zeros(1, 1, 5)
    assert f"misshapen (1): {probe} has [1, 1, 5], expected [1, 1, 96]" in failure(checkpoint.write())


def test_all_problems_in_one_error(checkpoint: Any) -> None:
    missing = sorted(k for k in checkpoint.tensors if "transformer_blocks.0" in k)
    for key in missing:
        del checkpoint.tensors[key]
    checkpoint.tensors["action_head.mask_token"] = torch.zeros(2)
    checkpoint.tensors[WEIGHT] = torch.zeros(3, 4)
    message = failure(checkpoint.write())
    assert f"missing ({len(missing)}): {missing[0]}; " in message
    assert missing[4] in message
    assert missing[5] not in message
    assert f"and {len(missing) - 5} more" in message
    assert "unexpected (1): action_head.mask_token" in message
    assert f"misshapen (1): {WEIGHT} has [3, 4], expected [192, 96]" in message


def test_integer_weights_are_refused(checkpoint: Any) -> None:
    checkpoint.tensors[WEIGHT] = checkpoint.tensors[WEIGHT].to(torch.int8)
    assert f"not floating point (1): {WEIGHT} is I8" in failure(checkpoint.write())


def test_files_cut_short_or_pointers(checkpoint: Any) -> None:
    file = checkpoint.write() / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        message = failure(checkpoint.folder)
        assert f"{file}: cannot be read" in message
        assert "download it again" in message
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in failure(checkpoint.folder)


def test_no_weights_or_no_folder(checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint.write()
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    message = failure(folder)
    assert f"{folder}: no weights" in message
    assert "weights.safetensors" in message
    assert "no such folder" in failure(tmp_path / "absent")
    assert "is a file" in failure(folder / "config.json")


class Hub(SimpleNamespace):
    """A stand-in for huggingface_hub that answers with a folder or an error."""

    def snapshot_download(self, name: str, *, allow_patterns: list[str]) -> str:
        self.asked = (name, allow_patterns)
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def test_hub_ids(checkpoint: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(answer=checkpoint.write())
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    assert_same_weights(load_model("nvidia/GR00T-N1.5-3B"), checkpoint.tensors)
    assert hub.asked[0] == "nvidia/GR00T-N1.5-3B"
    assert "model*.safetensors" in hub.asked[1]
    resolve_checkpoint("nvidia/GR00T-N1.5-3B", weights=False)
    assert "model*.safetensors" not in hub.asked[1]

    hub.answer = OSError("We couldn't connect\nlong story")
    with pytest.raises(CheckpointError) as e:
        load_model("nvidia/GR00T-N1.5-3B")
    assert "nvidia/GR00T-N1.5-3B: no such folder, and the download failed: We couldn't connect" in str(e.value)
    assert "long story" not in str(e.value)
    assert "network" in str(e.value)

    (tmp_path / "nvidia" / "GR00T-N1.5-3B").mkdir(parents=True)
    local = resolve_checkpoint("nvidia/GR00T-N1.5-3B")
    assert local is not None
    assert local.samefile(tmp_path / "nvidia" / "GR00T-N1.5-3B")


@pytest.mark.parametrize("path", ["./runs/last", "/no/such", "~/no-such-folder", "a/b/c", "runs", "here/last"])
def test_what_looks_like_a_path_is_not_asked_from_the_hub(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(CheckpointError) as e:
        load_model(path)
    assert f"{path}: no such folder\n" in str(e.value)


def test_missing_hub_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        load_model("nvidia/GR00T-N1.5-3B")


def test_generated_weights_do_not_depend_on_the_callers_default_dtype() -> None:
    wanted, before = load_model("synthetic").state_dict(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = load_model("synthetic")
    finally:
        torch.set_default_dtype(before)
    assert_same_weights(model, wanted)


def test_synthetic_is_reproducible_and_needs_no_folder(shared_tiny: Gr00tN1d5) -> None:
    assert resolve_checkpoint("synthetic") is None
    assert resolve_checkpoint("synthetic:full") is None
    assert_same_weights(load_model("synthetic", dtype=torch.float16), shared_tiny.state_dict())
    # Pinned, so that numbers recorded with synthetic weights stay comparable.
    first = shared_tiny.action_head.model.proj_out_1.weight.flatten()[:3]
    assert [round(float(x), 6) for x in first] == [-0.10822, -0.050204, 0.160198]
    norms = torch.cat([p.flatten() for n, p in shared_tiny.named_parameters() if "norm" in n and n.endswith("weight")
                       and p.dim() == 1])  # fmt: skip
    assert 0.95 < float(norms.mean()) < 1.05
    assert 0.05 < float(norms.std()) < 0.2


def test_tables_without_memory_are_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device that would import PyTorch's compiler, and a start take seconds longer."""

    def fill(*_: object) -> None:
        raise AssertionError("filled")

    monkeypatch.setattr(torch.nn.init, "normal_", fill)
    assert all(parameter.is_meta for parameter in _empty(tiny_config(), torch.float32).parameters())
    with pytest.raises(AssertionError, match="filled"):
        Embedding(2, 3)

"""Calibrations of recorded frames, and requests in 8 and 4 bits on an episode that was not calibrated on."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gr00t_trt import __version__
from gr00t_trt.__main__ import main
from gr00t_trt.backends.onednn_int8 import OnednnLinear
from gr00t_trt.common.notice import warn_once
from gr00t_trt.common.progress import Steps
from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset
from gr00t_trt.deploy.deploy import Deployment, deploy
from gr00t_trt.errors import PlanError
from gr00t_trt.measure.accuracy import compare
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.plans.schema import ARCHITECTURE
from gr00t_trt.policy.policy import Gr00tPolicy, load_policy
from gr00t_trt.quantize.calibration import read_calibration, weight_hash, weight_hashes, write_calibration
from gr00t_trt.quantize.layers import linear_layers
from gr00t_trt.quantize.linear import QuantLinear
from gr00t_trt.record.files import read_record
from gr00t_trt.tools.calibrate.observe import choose_frames

CONFIG = "fourier_gr1_arms_only"


def dataset(path: Path) -> LeRobotDataset:
    return LeRobotDataset(path, data_config(CONFIG).modality_config())


def policy_of(path: Path, config: str = CONFIG) -> Gr00tPolicy:
    return load_policy("synthetic", data_config=config, metadata=dataset(path).metadata("gr1"))


def quiet() -> Steps:
    from rich.console import Console

    return Steps(Console(quiet=True), None)


def carried_out(policy: Gr00tPolicy, calibration: Path, **settings: object) -> Deployment:
    plan = plan_from_mapping({"backend": "eager", "calibration": str(calibration), **settings}, "test")
    return deploy(policy, resolve(plan, Machine("cpu"), timed=False), quiet())


def held_out(policy: Gr00tPolicy, path: Path, rows: range) -> torch.Tensor:
    """Normalised actions of frames of episode 2, each with its own noise."""
    frames, out = dataset(path), []
    for row in rows:
        step = {key: value for key, value in frames.step(2, row).items() if not key.startswith("action.")}
        noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(row))
        out.append(policy.predict(policy.preprocess(step)[0], noise))
    return torch.cat(out)


ROWS = range(5, 465, 92)


@pytest.fixture(scope="module")
def exact(demo: Path) -> torch.Tensor:
    return held_out(policy_of(demo), demo, ROWS)


@pytest.mark.parametrize(
    ("precision", "least"), [("int8", 0.999), ("fp8", 0.999), ("nvfp4", 0.98)], ids=["int8", "fp8", "nvfp4"]
)
def test_actions_of_an_episode_that_was_not_calibrated_on(
    precision: str, least: float, demo: Path, calibrated: Path, exact: torch.Tensor
) -> None:
    policy = policy_of(demo)
    deployment = carried_out(policy, calibrated, precision=precision)
    assert deployment.backends["dit_model"] == f"eager {precision}"
    assert deployment.backends["state_encoder"] == "eager bf16"
    agreement = compare(held_out(policy, demo, ROWS), exact)
    assert agreement.cosine >= least
    notes = {result.subject: " ".join(result.notes) for result in deployment.record.submodules}
    assert "17 of 18 linear layers" in notes["dit_model"]
    assert "8 of 8 linear layers" in notes["vision_model"]
    for name, done in ((result.subject, result.quantized) for result in deployment.record.submodules):
        assert (done is not None) == (name in ARCHITECTURE.attention)
        if done is not None:
            assert (done.format, done.frames, done.calibration) == (precision, 16, read_calibration(calibrated).digest)
            assert done.weight_bytes < (0.75 if name == "vision_model" else 0.62) * done.half_bytes
            assert len(done.sqnr_db) == done.layers
            assert min(done.sqnr_db.values()) > {"int8": 25, "fp8": 26, "nvfp4": 13}[precision]


def test_the_file_says_where_it_comes_from(calibrated: Path, demo: Path) -> None:
    taken = read_calibration(calibrated).provenance
    assert (taken.model, taken.dataset, taken.data_config) == ("synthetic", demo.name, CONFIG)
    assert (taken.embodiment_tag, taken.seed, taken.denoising_steps, taken.package) == ("gr1", 0, 4, __version__)
    assert len(taken.frames) == len(set(taken.frames)) == 16
    assert {episode for episode, _ in taken.frames} == {0, 1}


def test_every_linear_layer_of_the_stages_is_in_it(calibrated: Path, demo: Path) -> None:
    calibration, model = read_calibration(calibrated), policy_of(demo).model
    layers = linear_layers(model.architecture.restructured(model, tuple(model.architecture.optimizations)))
    assert set(calibration.layers) == set(layers)
    for name, seen in calibration.layers.items():
        assert seen.channels.shape == (layers[name].in_features,)
        assert seen.amax[-1] == seen.channels.max()
        assert (seen.amax.diff() >= 0).all()
    ranked = {name for name, seen in calibration.layers.items() if set(seen.noise) == {"nvfp4"}}
    assert set(layers) - ranked == {"dit_model/proj_out_2"}


def test_one_frame_instead_of_sixteen_shows(printed: tuple[Path, str], demo: Path, capsys) -> None:
    lines = printed[1].splitlines()
    heads = [head.strip() for head in lines[0].split("  ") if head.strip()]
    assert heads[-3:] == ["1 frame saw", "4 frames saw", "8 frames saw"]
    shares = [int(line.split("%")[0].split()[-1]) for line in lines[2:6]]
    assert all(share < 100 for share in shares)
    argv = ["--model_path", "synthetic", "--dataset_path", str(demo), "--frames", "1", "--episodes", "1"]
    assert main(["calibrate", *argv]) == 0
    said = capsys.readouterr().err
    assert "1 frames: 16 or more see ranges that fewer miss" in said
    assert "one episode" in said


def test_the_ranking_is_printed_with_noise_and_bytes(printed: tuple[Path, str]) -> None:
    lines = printed[1].splitlines()
    start = next(number for number, line in enumerate(lines) if "nvfp4 alone, dB" in line)
    first = lines[start + 2].split()
    assert first[0].startswith("vision_model/")
    alone, together, saved, all_saved = map(float, first[1:])
    assert together < alone
    assert all_saved > saved > 0


def test_frames_are_spread_over_the_episodes(demo: Path) -> None:
    frames = choose_frames(dataset(demo), None, 5)
    assert [episode for episode, _ in frames] == [0, 0, 0, 1, 1]
    assert [row for episode, row in frames if episode == 1] == [117, 352]
    with pytest.raises(PlanError, match="no episode 7"):
        choose_frames(dataset(demo), [7], 5)
    with pytest.raises(PlanError, match="has 416 rows"):
        choose_frames(dataset(demo), [0], 500)


def test_other_weights_are_refused_naming_the_layer(demo: Path, calibrated: Path) -> None:
    policy = policy_of(demo)
    with torch.no_grad():
        policy.model.backbone.eagle_model.language_model.model.layers[1].mlp.down_proj.weight[3, 5] += 0.5
    with pytest.raises(PlanError, match=r"other weights: language_model/layers\.1\.down_proj of this model differs"):
        carried_out(policy, calibrated, submodules={"dit_model": {"precision": "fp8"}})


def test_weights_are_known_again_in_each_dtype() -> None:
    weight = torch.randn(32, 32)
    known = weight_hashes(weight)
    assert len(set(known)) == 4
    for held in (weight, weight.bfloat16(), weight.half(), weight.half().bfloat16(), weight.bfloat16().half()):
        assert weight_hash(held) in known
    assert weight_hash(weight + 1e-2) not in known


def test_another_data_config_is_warned_of(demo: Path, calibrated: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    policy = policy_of(demo)
    policy.config_name = "fourier_gr1_full_upper_body"
    with caplog.at_level(logging.WARNING, "gr00t_trt"):
        carried_out(policy, calibrated, submodules={"dit_model": {"precision": "fp8"}})
    (said,) = [record.getMessage() for record in caplog.records]
    assert "taken with the data config fourier_gr1_arms_only, and this one is fourier_gr1_full_upper_body" in said


def test_an_evaluation_is_refused_its_frames_and_warned_of_another_dataset(
    calibrated: Path, demo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibration = read_calibration(calibrated)
    episode, row = calibration.provenance.frames[3]
    calibration.refuse_its_frames(dataset(demo), [(2, row), (episode, row + 1)])
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "gr00t_trt"):
        calibration.refuse_its_frames(dataset(synthetic_dataset()), [(episode, row)])
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"taken of the dataset {demo.name}, and " in said
    assert "is another" in said
    with pytest.raises(PlanError, match=f"episode {episode}, row {row} was calibrated on"):
        calibration.refuse_its_frames(dataset(demo), [(2, row), (episode, row)])


def test_what_is_kept_and_a_pattern_that_matches_nothing(demo: Path, calibrated: Path) -> None:
    own = {"dit_model": {"precision": "nvfp4", "keep": ["ff", "blocks.0.*"]}}
    deployment = carried_out(policy_of(demo), calibrated, submodules=own)
    (note,) = [result.notes[0] for result in deployment.record.submodules if result.subject == "dit_model"]
    assert "7 of 18 linear layers" in note  # blocks.0 has 4, each of the others 2 in its ff, and there is proj_out_2
    assert "10 stay in bf16, as the plan says: blocks.0.ff.net.0.proj" in note
    for keep, where in ((["down_proj"], "submodule"), (["no_such"], "plan")):
        settings = {"submodules": {"dit_model": {"precision": "fp8", "keep": keep}}}
        if where == "plan":
            settings = {"submodules": {"dit_model": {"precision": "fp8"}}, "keep": keep}
        with pytest.raises(PlanError, match=f"{keep[0]!r} matches no layer"):
            carried_out(policy_of(demo), calibrated, **settings)


def test_auto_keeps_the_worst_of_the_ranking_until_the_gate_holds(demo: Path, calibrated: Path) -> None:
    def quantised(gate: float) -> int:
        own = {"dit_model": {"precision": "nvfp4", "keep": "auto", "gate": {"sqnr_db": gate, "cosine": 0.9}}}
        record = carried_out(policy_of(demo), calibrated, submodules=own).record
        (result,) = [result for result in record.submodules if result.subject == "dit_model"]
        assert result.accuracy.sqnr_db >= gate
        return int(result.notes[0].split()[1])

    assert quantised(9.0) == 17
    assert 3 <= quantised(18.0) < 14
    own = {"dit_model": {"precision": "fp8", "keep": "auto"}}
    with pytest.raises(PlanError, match=r"no ranking for fp8.*\n.*--rank fp8"):
        carried_out(policy_of(demo), calibrated, submodules=own)


@pytest.mark.parametrize("loop", ["denoise_step", "denoise_loop"])
def test_the_loop_in_one_piece_is_quantised_like_its_transformer(loop: str, demo: Path, calibrated: Path) -> None:
    policy = policy_of(demo)
    deployment = carried_out(policy, calibrated, submodules={"dit_model": {"precision": "int8"}}, loop=loop)
    assert deployment.backends[loop] == "eager int8"
    found = [one for one in policy.model.stages[loop].modules() if isinstance(one, (QuantLinear, OnednnLinear))]
    assert len(found) == 17
    assert policy.model.stages[loop] is not policy.model.eager_stage(loop)
    assert not any(isinstance(one, QuantLinear) for one in policy.model.eager_stage(loop).modules())


def test_weights_written_afterwards_are_never_answered_with_the_old_codes(demo: Path, calibrated: Path) -> None:
    policy = policy_of(demo)
    carried_out(policy, calibrated, submodules={"dit_model": {"precision": "int8"}})
    policy.get_action(policy.example())
    head: nn.Module = policy.model.action_head
    head.model.transformer_blocks[0].ff.net[2].weight.mul_(1.5)
    with pytest.raises(PlanError):
        policy.get_action(policy.example())


def test_what_is_no_calibration_is_told_in_one_error(tmp_path: Path, calibrated: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, str(other))
    short = tmp_path / "short.safetensors"
    short.write_bytes(calibrated.read_bytes()[:900])
    for path, words in ((other, "another kind"), (short, "cannot be read"), (tmp_path / "none", "no such file")):
        with pytest.raises(PlanError, match=words) as caught:
            read_calibration(path)
        assert "gr00t-trt calibrate" in str(caught.value)
    calibration = read_calibration(calibrated)
    name, seen = next(iter(calibration.layers.items()))
    broken = {**calibration.layers, name: replace(seen, channels=seen.channels * float("nan"))}
    write_calibration(replace(calibration, layers=broken), tmp_path / "nan.safetensors")
    with pytest.raises(PlanError, match="not finite"):
        read_calibration(tmp_path / "nan.safetensors")
    other = {**calibration.layers, name: replace(seen, channels=seen.channels.to(torch.complex64))}
    write_calibration(replace(calibration, layers=other), tmp_path / "complex.safetensors")
    with pytest.raises(PlanError, match=r"complex64 .* not float32"):
        read_calibration(tmp_path / "complex.safetensors")
    silent = {**calibration.layers, name: replace(seen, noise={"nvfp4": float("nan")})}
    write_calibration(replace(calibration, layers=silent), tmp_path / "nan.safetensors")
    with pytest.raises(PlanError, match="a noise that is negative or not finite"):
        read_calibration(tmp_path / "nan.safetensors")


def test_what_the_file_alone_can_say_is_told_before_a_model_is_loaded(tmp_path: Path, calibrated: Path, capsys) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(calibrated.read_bytes()[:900])
    own = "backend: eager\nprecision: bf16\ncalibration: {}\nsubmodules: {{dit_model: {{precision: fp8, keep: {}}}}}\n"
    plans = {"broken": (short, "[ff]"), "pattern": (calibrated, "[down_proj]"), "ranking": (calibrated, "auto")}
    said = {"broken": "cannot be read", "pattern": "'down_proj' matches no layer", "ranking": "has no ranking for fp8"}
    for name, words in said.items():
        (tmp_path / f"{name}.yaml").write_text(own.format(*plans[name]))
        for program in ("run", "export"):
            argv = [program, "--model_path", "synthetic", "--dataset_path", "synthetic"]
            assert main([*argv, "--config", str(tmp_path / f"{name}.yaml")]) == 2
            err = capsys.readouterr().err
            assert words in err
            assert "loading the model" not in err


def test_a_file_written_again_is_the_same(tmp_path: Path, calibrated: Path) -> None:
    write_calibration(read_calibration(calibrated), tmp_path / "again.safetensors")
    first, second = read_calibration(calibrated), read_calibration(tmp_path / "again.safetensors")
    assert (first.provenance, first.weights) == (second.provenance, second.weights)
    assert all(torch.equal(seen.channels, second.layers[name].channels) for name, seen in first.layers.items())
    assert all(seen.noise == second.layers[name].noise for name, seen in first.layers.items())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--out", "calibration.json"], "no .safetensors file"),
        (["--frames", "0"], "--frames: 0 is out of range"),
        (["--rank", "fp16"], "known: fp8, int8, nvfp4"),
        (["--episodes", "9"], "no episode 9"),
        (["--model_path", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["calibrate", "--model_path", "synthetic", "--dataset_path", "synthetic", *argv]) == 2
    assert words in capsys.readouterr().err


def test_a_layer_that_always_stays_may_be_named_too(demo: Path, calibrated: Path) -> None:
    own = {"dit_model": {"precision": "fp8", "keep": ["proj_out_2"]}}
    (note,) = [r.notes[0] for r in carried_out(policy_of(demo), calibrated, submodules=own).record.submodules]
    assert "17 of 18 linear layers" in note


def test_codes_know_the_weights_of_a_model_that_was_loaded_in_half_precision(demo: Path, calibrated: Path) -> None:
    metadata = dataset(demo).metadata("gr1")
    for dtype in (torch.bfloat16, torch.float16):
        policy = load_policy("synthetic", data_config=CONFIG, metadata=metadata, dtype=dtype)
        done = carried_out(policy, calibrated, submodules={"vl_components": {"precision": "int8"}}, precision="bf16")
        assert done.backends["vl_components"] == "eager int8"


def test_a_run_records_what_was_quantised_and_calls_the_original_by_its_own_precision(
    demo: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["run", "--model_path", "synthetic", "--dataset_path", str(demo), "--episode", "2", "--backend", "eager"]
    argv += ["--precision", "fp32", "--dit_dtype", "fp8", "--calibration", str(calibrated), "--fn_name", "dit_model"]
    argv += ["--num_iterations", "1", "--warmup_iterations", "0", "--benchmark", "python_timer", "--record", "r.json"]
    assert main(argv) == 0
    record = read_record("r.json")
    (part,) = record.submodules
    assert (part.candidate.precision, part.gate, part.passed) == ("fp8", PRECISIONS["fp8"].gate, True)
    assert part.accuracy is not None
    assert part.accuracy.sqnr_db < 30  # a bf16 stage agrees to 40 dB and more: eight bits were at work
    assert any(calibrated.name in note for note in part.notes)
    assert record.plan["calibration"] == str(calibrated)

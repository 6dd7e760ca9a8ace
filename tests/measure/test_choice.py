"""`auto`: the table decides, doubt goes to the simpler backend, and the plan that is written is the plan that ran."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fake_backends
import pytest
import torch
from fake_backends import Clock, Fake, failure

from gr00t_trt.measure.choose import default_plan_path, leader, plan_text, winner, with_choice
from gr00t_trt.plans.backends import AUTO, BACKENDS
from gr00t_trt.plans.conflicts import plan_warnings
from gr00t_trt.plans.load import load_plan, merge, plan_from_mapping, plan_to_mapping
from gr00t_trt.plans.resolve import candidates_of
from gr00t_trt.plans.schema import OPTIMIZATIONS, SUBMODULES, BuildOptions, Plan, Ranges, SubmodulePlan
from gr00t_trt.plans.submodules import resolve_submodule
from gr00t_trt.record.files import read_record
from gr00t_trt.record.result import REQUEST, Result, Status
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import Inputs, Record, new_record
from gr00t_trt.run.program import main

RUN = ["--model_path", "synthetic", "--dataset_path", "synthetic", "--device", "cpu", "--precision", "fp32",
       "--fn_name", "action_head", "--denoising_steps", "1", "--record", "r.json"]  # fmt: skip
AUTO_RUN = [*RUN, "--backend", "auto", "--write_plan", "plan.yaml"]
QUICK_DIT = {"": 20.0, "dit_model": 1.0}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with backends' costs and so on: the registry, and what `auto` tries, are then fakes of those."""

    def install(switching_ms: float = 0.0, **backends: dict[str, Any]) -> dict[str, Fake]:
        clock = Clock(switching_ms)
        fakes = [Fake(name, clock, **how) for name, how in backends.items()]
        names = fake_backends.install(monkeypatch, clock, *fakes)
        for name in [
            name for name in reversed(BACKENDS) if name not in names
        ]:  # undone backwards, the order comes back
            monkeypatch.delitem(BACKENDS, name)
        return {fake.name: fake for fake in fakes}

    return install


def chosen(record: Record) -> dict[str, str]:
    return {result.subject: result.candidate.backend for result in record.submodules}


def requests_of(record: Record) -> dict[str, Result]:
    return {result.name: result for result in record.of("comparison") if result.subject == REQUEST}


# --- the rule


def at(*ms: float) -> Samples:
    return Samples(tuple(ms))


FIVE = at(5.0, 5.1, 5.2, 5.1, 5.0)
FOUR = at(4.0, 4.1, 4.2, 4.1, 4.0)
FOUR_OR_FIVE = at(4.0, 5.2, 4.1, 4.9, 4.5)
FOUR_ONCE = at(4.0)


@pytest.mark.parametrize(("latencies", "wins", "leads"), [
    ({"eager": FIVE, "inductor": FOUR}, "inductor", "inductor"),
    ({"eager": FOUR, "inductor": FIVE}, "eager", "eager"),
    ({"eager": FOUR_OR_FIVE, "inductor": FOUR}, "eager", None),
    ({"torch_tensorrt": FOUR, "tensorrt": FOUR, "onnxruntime": FOUR, "inductor": FIVE}, "onnxruntime", None),
    ({"torch_tensorrt": FOUR, "tensorrt": FOUR_OR_FIVE, "eager": FIVE}, "tensorrt", None),
    ({"eager": FIVE, "inductor": FOUR_ONCE}, "eager", None),
    ({"torch_tensorrt": FOUR}, "torch_tensorrt", None),
])  # fmt: skip
def test_the_fastest_wins_and_doubt_goes_to_the_simpler(latencies, wins: str, leads: str | None) -> None:
    assert (winner(latencies), leader(latencies)) == (wins, leads)
    backwards = dict(reversed(latencies.items()))
    assert (winner(backwards), leader(backwards)) == (wins, leads)


# --- what is up for choice


def test_auto_stands_where_a_backend_does(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("backend: inductor\nsubmodules: {dit_model: {backend: AUTO}}\n")
    plan = load_plan(tmp_path / "p.yaml")
    assert candidates_of(plan, ("state_encoder", "dit_model")) == {
        "state_encoder": ("inductor",), "dit_model": tuple(BACKENDS),
    }  # fmt: skip
    assert candidates_of(plan, ("state_encoder",)) == {}
    assert candidates_of(plan, ("state_encoder",), ("eager", "inductor")) == {"state_encoder": ("eager", "inductor")}
    settings = {"build": {"use_fp32_acc": True}, "submodules": {"dit_model": {"decompose_attention": True}}}
    assert plan_warnings(plan_from_mapping({"backend": AUTO, **settings}, "test")) == []


# --- the choice


def test_each_submodule_gets_its_fastest_and_the_plan_is_what_ran(machine, capsys) -> None:
    fakes = machine(
        eager={"costs": {"": 8.0}},
        inductor={"costs": QUICK_DIT},
        torch_tensorrt={"costs": {"": 0.1}, "runs": False},
    )
    assert main([*AUTO_RUN, "--engine_dir", "engines", "--engine_cache", "cache"]) == 0
    assert {cache.folder for cache in fakes["torch_tensorrt"].caches} == {Path("cache")}
    record = read_record("r.json")
    fastest = {"vl_components": "eager", "state_encoder": "eager", "action_encoder": "eager", "dit_model": "inductor",
               "action_decoder": "eager"}  # fmt: skip
    assert chosen(record) == fastest
    assert [fake.built for fake in fakes.values()] == [list(fastest), list(fastest), ["vl_components"]]
    assert all(r.passed and r.latency_ms for r in record.submodules if r.candidate.backend != "eager")
    dit = next(r for r in record.submodules if r.subject == "dit_model")
    assert (dit.against.latency_ms.p50, dit.against.winner) == (pytest.approx(8.0), "inductor")
    whole = requests_of(record)
    assert list(whole) == ["original", "eager", "inductor", "torch_tensorrt", "auto"]
    assert whole["auto"].best
    assert whole["auto"].latency_ms.p50 == pytest.approx(4 * 8 + 1, rel=1e-3)
    assert "vl_components cannot run on this machine" in whole["torch_tensorrt"].why
    assert record.request.latency_ms.p50 == pytest.approx(33, rel=1e-3)
    assert record.request.first_call_ms is None
    assert record.request.passed

    text = Path("plan.yaml").read_text()
    assert "#   python run_groot_torchtrt.py --config plan.yaml --fn_name action_head\n" in text
    assert "Those of torch_tensorrt cannot run on this machine" in " ".join(text.replace("#", "").split())
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert all(any(line.startswith(f"# {word}:") for line in header) for word in ("Hardware", "Engines", "Latency"))
    assert max(map(len, header)) <= 120
    rows = {line.split()[1]: line.split()[2:] for line in header if "_" in line[:20]}
    assert rows["dit_model"] == ["8.00", "1.00", "-", "inductor"]
    assert rows["state_encoder"] == ["8.00", "20.0", "-", "eager"]

    plan = load_plan("plan.yaml")
    assert plan == plan_from_mapping(record.plan, "the record")
    assert {name: resolve_submodule(plan, name).backend for name in fastest} == fastest
    assert resolve_submodule(plan, "vision_model").backend == "eager"
    out, err = capsys.readouterr()
    assert out == "r.json\n"
    assert "plan: plan.yaml" in err
    assert main([*RUN, "--config", "plan.yaml"]) == 0
    assert chosen(again := read_record("r.json")) == fastest
    assert again.of("comparison") == []


def test_one_backend_for_all_is_taken_where_the_mixture_makes_a_slower_request(machine, capsys) -> None:
    machine(switching_ms=50.0, eager={"costs": {"": 8.0}}, inductor={"costs": {"": 9.0, "dit_model": 1.0}})
    assert main([*AUTO_RUN, "--optimizations", "none"]) == 0
    record = read_record("r.json")
    whole = requests_of(record)
    assert whole["inductor"].latency_ms.p50 < whole["auto"].latency_ms.p50
    assert set(chosen(record).values()) == {"inductor"}
    assert "inductor for all of them does" in " ".join(capsys.readouterr().err.split())
    assert load_plan("plan.yaml").submodules["state_encoder"].backend == "inductor"


def test_doubt_about_a_submodule_is_told(machine, capsys) -> None:
    machine(eager={"costs": {"": 8.0}}, inductor={"costs": {"": 8.0, "dit_model": 1.0}})
    assert main(AUTO_RUN) == 0
    assert chosen(read_record("r.json"))["action_decoder"] == "eager"
    told = " ".join(capsys.readouterr().err.split())
    assert "nothing is the fastest at vl_components, state_encoder, action_encoder, action_decoder beyond doubt" in told


def test_what_cannot_win_does_not(machine) -> None:
    fakes = machine(
        eager={"costs": {"": 8.0}},
        inductor={"costs": {"": 1.0}, "error": 0.5},
        onnxruntime={"costs": {}, "absent": "pip install it"},
        tensorrt={"costs": {"": 1.0}, "breaks": dict.fromkeys(SUBMODULES, failure("all"))},
        torch_tensorrt={"costs": {"": 1.0}, "runs": False},
    )
    assert main(AUTO_RUN) == 0
    record = read_record("r.json")
    assert set(chosen(record).values()) == {"eager"}
    assert record.exit_reason == "done"
    assert "auto" not in {r.name for r in record.of("comparison")}
    assert fakes["torch_tensorrt"].built == ["vl_components"]


def test_a_plan_that_misses_its_gates_is_not_written(machine, capsys) -> None:
    machine(eager={"costs": {"": 2.0}, "error": 0.5}, inductor={"costs": {"": 1.0}, "error": 0.5})
    assert main(AUTO_RUN) == 1
    assert not Path("plan.yaml").exists()
    assert "plan.yaml: not written" in capsys.readouterr().err
    assert read_record("r.json").exit_reason == "gate failed"


def test_what_the_user_settled_is_built_and_not_up_for_choice(machine) -> None:
    machine(eager={"costs": {"": 8.0}}, inductor={"costs": {"": 9.0, "dit_model": 1.0}})
    Path("own.yaml").write_text(
        "backend: auto\nsubmodules: {state_encoder: {backend: inductor}, vision_model: {precision: fp16}}\n"
    )
    assert main([*RUN, "--config", "own.yaml", "--write_plan", "plan.yaml"]) == 0
    record = read_record("r.json")
    assert chosen(record)["state_encoder"] == chosen(record)["dit_model"] == "inductor"
    assert chosen(record)["action_decoder"] == "eager"
    plan = load_plan("plan.yaml")
    assert plan.submodules["vision_model"] == SubmodulePlan(precision="fp16")
    assert plan.submodules["state_encoder"].backend == "inductor"
    assert [r.name for r in record.of("comparison") if r.subject == "state_encoder"] == ["inductor"]


def test_a_settled_backend_that_fails_is_an_error(machine, capsys) -> None:
    machine(eager={"costs": {}}, inductor={"costs": {}, "breaks": {"state_encoder": failure("state_encoder")}})
    Path("own.yaml").write_text("backend: auto\nsubmodules: {state_encoder: {backend: inductor}}\n")
    assert main([*RUN, "--config", "own.yaml", "--write_plan", "plan.yaml"]) == 2
    assert "state_encoder: no kernel for this" in capsys.readouterr().err
    assert sorted(p.name for p in Path().iterdir()) == ["own.yaml"]


def test_a_settled_engine_that_cannot_run_here_leaves_the_request_untimed(machine) -> None:
    machine(eager={"costs": {"": 1.0}}, inductor={"costs": {"": 2.0}}, torch_tensorrt={"costs": {}, "runs": False})
    Path("own.yaml").write_text("backend: auto\nsubmodules: {state_encoder: {backend: torch_tensorrt}}\n")
    assert main([*RUN, "--config", "own.yaml", "--write_plan", "plan.yaml"]) == 0
    record = read_record("r.json")
    assert chosen(record)["state_encoder"] == "torch_tensorrt"
    assert chosen(record)["dit_model"] == "eager"
    assert (record.request.latency_ms, record.request.status) == (None, Status.BUILT_NOT_RUN)


def test_a_loop_of_one_graph_decides_for_its_three_parts(machine) -> None:
    machine(eager={"costs": {"": 8.0}}, inductor={"costs": {"": 9.0, "denoise_loop": 1.0}})
    assert main([*AUTO_RUN, "--loop", "denoise_loop"]) == 0
    plan = load_plan("plan.yaml")
    assert plan.loop == "denoise_loop"
    assert {name: own.backend for name, own in plan.submodules.items()} == {
        "vl_components": "eager", "state_encoder": "eager",
        "action_encoder": "inductor", "dit_model": "inductor", "action_decoder": "inductor",
    }  # fmt: skip


# --- the file


@pytest.mark.parametrize("plan", [
    Plan(backend="eager"),
    Plan(backend="inductor", precision="bf16", optimizations=(), joint_backbone=True, denoising_steps=8),
    Plan(backend="eager", optimizations=tuple(OPTIMIZATIONS)[:2], ranges=Ranges(batch=(1, 1), length=(32, 400))),
    Plan(backend="eager", build=BuildOptions(use_fp32_acc=True, compute_capabilities=("8.9", "12.0"))),
], ids=str)  # fmt: skip
def test_any_plan_comes_back_from_its_file(plan: Plan) -> None:
    plan = with_choice(dataclasses.replace(plan, backend=AUTO), dict.fromkeys(SUBMODULES, plan.backend))
    record = new_record("x", plan={"precision": plan.precision}, inputs=Inputs(1, 1, 9, 4))
    Path("plan.yaml").write_text(plan_text(plan, record, Path("plan.yaml"), "all"))
    assert load_plan("plan.yaml") == plan


def test_names_from_elsewhere_stay_inside_the_comment() -> None:
    record = new_record("x", device="cuda:0", plan={"precision": "fp32"})
    record.environment = dataclasses.replace(
        record.environment, gpu="A GPU\nbackend: inductor\x1b[31m", driver="1\u2028precision: bf16"
    )
    record.results = [Result("comparison", "eager", "dit_model")]
    text = plan_text(Plan(backend="eager"), record, Path("a\nloop: denoise_loop.yaml"), "all")
    Path("plan.yaml").write_text(text)
    assert load_plan("plan.yaml") == Plan(backend="eager")
    assert "\x1b" not in text
    assert str(Path.home()) not in plan_text(Plan(), record, Path.home() / "p.yaml", "all")


def test_the_default_path_names_machine_precision_and_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3/../x")
    plan = merge(Plan(), {"precision": "bf16"})
    assert default_plan_path(torch.device("cpu"), plan, "all") == Path("plans/cpu-bf16.yaml")
    gpu = default_plan_path(torch.device("cuda:1"), plan, "dit_model")
    assert gpu == Path("plans/nvidia-h100-80gb-hbm3-x-bf16-dit_model.yaml")


def test_a_joint_backbone_decides_for_its_two_parts() -> None:
    plan = plan_from_mapping({"backend": AUTO, "joint_backbone": True}, "test")
    decided = with_choice(plan, {"eagle_backbone": "inductor", **dict.fromkeys(SUBMODULES[2:], "eager")})
    assert resolve_submodule(decided, "eagle_backbone").backend == "inductor"
    assert {name: own.backend for name, own in decided.submodules.items()} == {
        "vision_model": "inductor", "language_model": "inductor", **dict.fromkeys(SUBMODULES[2:], "eager"),
    }  # fmt: skip
    assert plan_from_mapping(plan_to_mapping(decided), "again") == decided

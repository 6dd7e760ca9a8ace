"""Whole trainings of the generated model: what they write, several processes, interruptions."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gr00t_trt.errors import DatasetError, Gr00tError
from gr00t_trt.finetune import job, launch
from gr00t_trt.finetune.checkpoints import latest
from gr00t_trt.finetune.loader import Batch
from gr00t_trt.finetune.loop import How, Trainer
from gr00t_trt.finetune.loss import ACTION_MASK, FlowMatching
from gr00t_trt.finetune.metrics import FILE, read_metrics, series
from gr00t_trt.finetune.optimizer import make_optimizer
from gr00t_trt.finetune.parts import Parts, freeze, set_training, trained_parameters, trained_tensors
from gr00t_trt.finetune.program import main
from gr00t_trt.finetune.ranks import Ranks
from gr00t_trt.finetune.slots import keep_slots
from gr00t_trt.model import load_model

FORK = multiprocessing.get_context("fork")
SMALL = ("--base_model_path", "synthetic", "--dataset_path", "synthetic", "--batch_size", "2", "--max_steps", "5")
HELD_OUT = ("--dropout", "0.2", "--eval_episodes", "1", "--eval_samples", "4")


def train(folder: Path, *more: str) -> int:
    return main([*SMALL, "--save_steps", "2", "--output_dir", str(folder), *more])


def weights(folder: Path) -> dict[str, Tensor]:
    found = latest(folder)
    assert found is not None
    return dict(load_model(found).state_dict())


def losses(folder: Path) -> list[float]:
    return series(read_metrics(folder), "loss")[1]


def in_child(work: Callable[[], object], **environment: str) -> Any:
    """A process that does `work` and ends with what it returns."""

    def run() -> None:
        # A video decoder of the parent has threads that are not there any more, and freeing it waits for them.
        gc.freeze()
        os.environ.update(environment)
        os._exit(int(work() or 0))

    process = FORK.Process(target=run)
    process.start()
    return process


def wait_for_steps(folder: Path, count: int) -> None:
    end = time.monotonic() + 60
    while not (folder / FILE).is_file() or len((folder / FILE).read_text().splitlines()) < count:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    assert train(folder, *HELD_OUT) == 0
    return folder


def test_what_a_training_leaves(undisturbed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert latest(undisturbed) == undisturbed / "step-5"
    rows = read_metrics(undisturbed)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    held = series(rows, "held_out_loss")
    assert held[0] == [2, 4, 5]
    assert held[1][-1] < held[1][0]
    assert (undisturbed / "loss.png").stat().st_size > 10_000
    assert (undisturbed / "best").read_text().strip() == f"step-{held[0][held[1].index(min(held[1]))]}"
    assert train(undisturbed, "--dropout", "0.2", "--eval_episodes", "1", "--resume") == 0
    said, path = capfd.readouterr().err, undisturbed / "step-5"
    assert f"next: gr00t-trt evaluate --model_path {path} --dataset_path synthetic --plot" in said


@pytest.mark.training
def test_flags_of_a_resumed_run_must_be_those_of_the_run(undisturbed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(undisturbed) == 2
    assert "holds the checkpoints of another run" in capfd.readouterr().err
    again = ("--resume", "--dropout", "0.2", "--eval_episodes", "1")
    assert train(undisturbed, *again, "--learning_rate", "0.1") == 2
    assert "--resume with --learning_rate 0.1" in capfd.readouterr().err
    assert train(undisturbed, *again, "--batch_size", "3") == 2
    assert "3 samples a step" in capfd.readouterr().err
    assert train(undisturbed, "--resume", "--dropout", "0.2") == 2
    assert "--eval_episodes" in capfd.readouterr().err


@pytest.mark.training
@pytest.mark.parametrize(("workers", "steps"), [(0, 3), (2, 1)])
def test_killed_and_resumed_is_as_if_nothing_had_happened(
    undisturbed: Path, tmp_path: Path, workers: int, steps: int
) -> None:
    flags = (
        "--dropout",
        "0.2",
        "--eval_episodes",
        "1",
        "--eval_samples",
        "4",
        "--dataloader_num_workers",
        str(workers),
    )
    child = in_child(lambda: train(tmp_path, *flags))
    wait_for_steps(tmp_path, steps)
    child.kill()
    child.join(60)
    if latest(tmp_path) is None:  # killed before the first checkpoint, so it starts anew
        assert train(tmp_path, *flags) == 0
    else:
        assert train(tmp_path, *flags, "--resume") == 0
    assert read_metrics_alike(tmp_path) == read_metrics_alike(undisturbed)
    expected = weights(undisturbed)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())


def read_metrics_alike(folder: Path) -> list[tuple[Any, ...]]:
    return [(row["step"], row.get("loss"), row.get("held_out_loss")) for row in read_metrics(folder)]


def test_sigterm_saves_and_ends(undisturbed: Path, tmp_path: Path) -> None:
    flags = (*HELD_OUT, "--save_steps", "100")
    child = in_child(lambda: train(tmp_path, *flags))
    wait_for_steps(tmp_path, 1)
    os.kill(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == 130
    stopped = latest(tmp_path)
    assert stopped is not None
    assert stopped.name != "step-5"
    assert train(tmp_path, *flags, "--resume") == 0
    expected = weights(undisturbed)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())


@pytest.mark.training
def test_two_processes_of_half_the_batch_are_one(tmp_path: Path) -> None:
    """4 samples a step as 1 x 4, 1 x 2 x 2 and 2 x 2; the third loss is of weights that two steps have changed."""
    flags = ("--dropout", "0", "--max_steps", "3")
    whole, parts, spread = (tmp_path / name for name in ("whole", "parts", "spread"))
    assert train(whole, *flags, "--batch_size", "4") == 0
    assert train(parts, *flags, "--gradient_accumulation_steps", "2") == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    flags = (*flags, "--num_gpus", "2")
    children = [in_child(lambda: train(spread, *flags), RANK=str(rank), **where) for rank in range(2)]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)
    assert losses(spread) == pytest.approx(losses(whole), rel=1e-6)


def toy_trainer(oracle: Any, golden: Path, rate: float) -> Trainer:
    model = load_model(golden / "checkpoint")
    slots = keep_slots(model.action_head, [24, 31])
    freeze(model, Parts())
    set_training(model, Parts())
    trained = trained_parameters(model)
    optimizer = make_optimizer(model, trained, weight_decay=0.0, fused=False)
    how = How(steps=10, peak=rate, warmup_ratio=0.0, seed=0, bf16=False)
    return Trainer(FlowMatching(model, slots), trained, optimizer, how, Ranks(0, 1, torch.device("cpu")))


def step(trainer: Trainer, inputs: dict[str, Tensor]) -> Any:
    batch = Batch(inputs, 0, 0, [0, 1], ["a: episode 1, row 2", "b: episode 3, row 4"], True)
    return trainer.step(0, [batch], entries=int(inputs[ACTION_MASK].sum()), samples=2, began=0.0)


def test_a_value_that_is_not_finite_is_named_and_changes_nothing(oracle: Any, golden: Path) -> None:
    trainer = toy_trainer(oracle, golden, 1e-3)
    before = {name: t.clone() for name, t in trained_tensors(trainer.objective.model).items()}
    inputs = {key: value.clone() for key, value in oracle.batches[0].items()}
    inputs["action"][1, 2, 3] = float("nan")
    with pytest.raises(DatasetError, match=r"step 1: .*not finite\n.*samples b: episode 3, row 4"):
        step(trainer, inputs)
    assert all(torch.equal(t, before[name]) for name, t in trained_tensors(trainer.objective.model).items())


def test_a_training_that_diverges_stops(oracle: Any, golden: Path) -> None:
    trainer, inputs = toy_trainer(oracle, golden, 1e30), oracle.batches[0]
    step(trainer, inputs)
    with pytest.raises(Gr00tError, match=r"step 1: loss .*the training has diverged\n.*episode 1, row 2"):
        step(trainer, inputs)


def test_a_batch_without_actions_is_refused(oracle: Any, golden: Path) -> None:
    inputs = {**oracle.batches[0], ACTION_MASK: torch.zeros_like(oracle.batches[0][ACTION_MASK])}
    with pytest.raises(Gr00tError, match="no action of the batch counts"):
        step(toy_trainer(oracle, golden, 1e-3), inputs)


def test_an_untrained_projector_is_not_chosen_by_mistake(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--embodiment_tag", "new_embodiment") == 2
    assert "fourier_gr1_arms_only, which was made for gr1" in capfd.readouterr().err
    assert not any(tmp_path.iterdir())


SCRIPT = """
import os, sys
rank = int(os.environ["RANK"])
print("said by", rank, "of", os.environ["WORLD_SIZE"], file=sys.stderr)
sys.exit({exits}[rank])
"""


@pytest.mark.parametrize(("exits", "status", "shown"), [((0, 0), 0, {0}), ((2, 2), 2, {0}), ((0, 2), 2, {0, 1})])
def test_several_processes_end_as_one(
    exits: Sequence[int], status: int, shown: set[int], monkeypatch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, "-S", "-c", SCRIPT.format(exits=exits)))
    assert launch.launch([], 2) == status
    said = capfd.readouterr().err
    assert {rank for rank in (0, 1) if f"said by {rank} of 2" in said} == shown


def test_metrics_that_were_cut_short_are_read_up_to_there(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_an_output_folder_nobody_named_is_a_new_one(tmp_path: Path, monkeypatch: Any) -> None:
    from gr00t_trt.finetune.flags import parse

    monkeypatch.setattr(job, "OUTPUT_DIR", str(tmp_path / "gr00t"))
    args = parse(["--dataset_path", "synthetic"])
    assert job._output_folder(args) == tmp_path / "gr00t"
    (tmp_path / "gr00t").mkdir()
    assert job._output_folder(args) == tmp_path / "gr00t-2"

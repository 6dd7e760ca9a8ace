"""One training from its flags to its checkpoints: set up, steps, saves, and what is said at the end."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import __version__
from ..common.progress import handling_signals, progress
from ..errors import Gr00tError, PlanError, UsageError
from ..policy.choice import chosen
from . import checkpoints
from .adapters import merge
from .checkpoints import About
from .flags import OUTPUT_DIR
from .loader import Batch, batches, held_out_batches
from .loop import How, Trainer
from .loss import ACTION_MASK
from .metrics import BOARD, Metrics, read_metrics, series
from .parts import load_trained, trained_tensors
from .ranks import Ranks
from .samples import Source, TrainingData, open_training_data
from .start import Prepared, Start, action_rows, named, open_board, prepare
from .watch import Watch, clock, watching

SHOWN = 10
"""Steps at either end whose mean loss is said, at most."""
NOT_COMPARED = {
    "output_dir", "resume", "num_gpus", "batch_size", "gradient_accumulation_steps", "dataset_path", "device",
    "dataloader_num_workers", "dataloader_prefetch_factor", "report_to", "save_steps", "keep", "eval_samples", "merge",
    "frame_cache", "frame_cache_gb", "video_backend", "precision",
}  # fmt: skip
"""Flags that change no weight, or are compared by what they stand for."""


def finetune(args: argparse.Namespace, console: Console, ranks: Ranks) -> int:
    """Train as the flags say; returns the exit status. Raises: Gr00tError."""
    run = Run(args, console, ranks)
    with ranks.guarded():
        run.set_up()
        stopped = run.train()
    return run.finish(stopped)


@dataclass
class Run:
    """One process's part of a training.

    Attributes:
        done: Steps. loss: Of the last one. held_out: The last loss over held-out samples; lowest: The best one so far.
    """

    args: argparse.Namespace
    console: Console
    ranks: Ranks
    done: int = 0
    loss: float | None = None
    held_out: float | None = None
    lowest: float | None = None
    saved: Path | None = None
    metrics: Metrics | None = None
    _stop: bool = False
    _began: float = field(default_factory=time.monotonic)

    def set_up(self) -> None:
        """Everything before the first step. Raises: Gr00tError, in all processes the same."""
        self.folder = self.ranks.together(lambda: _output_folder(self.args))
        self.start = Start(self.args)
        with progress(self.console) as steps:
            steps.step(f"reading {', '.join(self.args.dataset_path)}")
            options = self.ranks.together(self.start.data_options)
            self.data: TrainingData = self.ranks.in_turn(lambda: open_training_data(options, steps.advance))
            steps.step(f"loading the model: {self.args.base_model_path}")
            if self.ranks.device.type == "cuda":
                torch.backends.cuda.matmul.allow_tf32 = True  # as the original; it concerns what autocast leaves out
            self.prepared: Prepared = self.ranks.together(lambda: prepare(self.start, self.data, self.ranks))
            if self.args.resume:
                steps.step("reading the last checkpoint")
                self.ranks.together(self._resume)
        how = How(
            steps=self.args.max_steps,
            peak=self.args.learning_rate,
            warmup_ratio=self.args.warmup_ratio,
            seed=self.args.seed,
            bf16=self.start.bf16(self.ranks.device),
            whole_padding=self.args.padding == "upstream",
        )
        prepared = self.prepared
        self.trainer = Trainer(prepared.objective, prepared.trained, prepared.optimizer, how, self.ranks)
        self._introduce()

    def train(self) -> bool:
        """All steps that are left, with checkpoints on the way; whether a signal ended them early."""
        if self.done >= self.args.max_steps:
            self.saved = checkpoints.latest(self.folder)
            return False
        self.metrics = self.ranks.together(self._open_metrics)
        found: Any = self._batches()
        with (
            closing(found),
            closing(self.metrics) if self.metrics else nullcontext(),
            handling_signals(self._interrupt),
            watching(self.console, self.done, self.args.max_steps) as watch,
        ):
            return self._take_steps(found, watch)

    def _take_steps(self, found: Iterator[Batch], watch: Watch) -> bool:
        began = time.monotonic()
        while self.done < self.args.max_steps:
            micros, share = self._next(found)
            if share.stopped:
                self._say("told to stop: saving a checkpoint; once more ends at once")
                self._save(held_out=False)
                return True
            taken = self.trainer.step(self.done, micros, entries=share.entries, samples=share.samples, began=began)
            self.done, self.loss = taken.number, taken.loss
            watch.taken(taken)
            if self.metrics is not None:
                self.metrics.write_step(taken)
            began = time.monotonic()
            if self.done % self.args.save_steps == 0 or self.done == self.args.max_steps:
                self._save(held_out=True)
                began = time.monotonic()  # a save is no part of a step
        return False

    def _next(self, found: Iterator[Batch]) -> tuple[list[Batch], _Share]:
        """This process's batches of the next step, and what they add up to with those of the others.

        Raises: in all processes, the error of the first that has none; StopIteration never, as there are enough.
        """
        micros: list[Batch] = []
        error: Gr00tError | None = None
        try:
            micros = [next(found) for _ in range(self.args.gradient_accumulation_steps)]
        except Gr00tError as e:
            error = e
        entries = sum(int(batch.inputs[ACTION_MASK].sum()) for batch in micros)
        samples = sum(len(batch.names) for batch in micros)
        counts = self.ranks.sum(float(self._stop), float(error is not None), entries, samples)
        if counts[1]:
            self.ranks.refuse(error)
        return micros, _Share(counts[0] > 0, round(counts[2]), round(counts[3]))

    def finish(self, stopped: bool) -> int:
        """Say how it went; 0, or 130 where a signal has ended it."""
        if not self.ranks.first:
            return 130 if stopped else 0
        assert self.saved is not None
        if stopped:
            self._say(f"interrupted after step {self.done} of {self.args.max_steps}; saved: {self.saved}")
            self._say("go on with the same command and --resume")
            print(self.saved)
            return 130
        result = self.saved
        if self.args.merge:
            result = self.folder / f"{self.saved.name}-merged"
            if not result.exists():
                merge(self.saved, result)
        self._conclude(result)
        print(result)
        return 0

    def _interrupt(self, *_: object) -> None:
        if self._stop:  # the second one does not wait
            raise KeyboardInterrupt
        self._stop = True

    def _batches(self) -> Iterator[Batch]:
        args = self.args
        return batches(
            self.data,
            seed=args.seed,
            start_step=self.done,
            steps=args.max_steps,
            batch_size=args.batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.count,
            workers=args.dataloader_num_workers,
            accumulate=args.gradient_accumulation_steps,
            prefetch=args.dataloader_prefetch_factor,
        )

    def _open_metrics(self) -> Metrics | None:
        if not self.ranks.first:
            return None
        return Metrics(self.folder, self.done, open_board(self.folder / BOARD, self.args.report_to))

    def _save(self, *, held_out: bool) -> None:
        """A checkpoint, and the held-out loss of it."""
        if held_out and self.data.held_out:
            found: Any = held_out_batches(
                self.data,
                batch_size=self.args.batch_size,
                most=self.args.eval_samples,
                rank=self.ranks.rank,
                world_size=self.ranks.count,
            )
            self.held_out = self.trainer.held_out_loss(found)
        self.saved = self.ranks.together(lambda: self._write(held_out) if self.ranks.first else None)

    def _write(self, held_out: bool) -> Path:
        best = held_out and self.held_out is not None and (self.lowest is None or self.held_out < self.lowest)
        self.lowest = self.held_out if best else self.lowest
        prepared = self.prepared
        saved = checkpoints.save(
            self.folder,
            self.done,
            trained_tensors(prepared.model),
            prepared.optimizer,
            prepared.trained,
            self._about(),
            self.args.base_model_path,
            self.data.metadata,
            keep=self.args.keep,
            lora=self.start.lora,
            action_horizon=action_rows(self.data),
        )
        if best:
            checkpoints.mark_best(saved)
        if held_out and self.held_out is not None and self.metrics is not None:
            self.metrics.write(self.done, held_out_loss=self.held_out)
            self._say(f"step {self.done}: held-out loss {self.held_out:.4f}{', the lowest so far' if best else ''}")
        return saved

    def _about(self) -> About:
        """What a checkpoint says of the run, and `_resume` compares."""
        return {
            "flags": {**_compared(self.args), "precision": "bf16" if self.start.bf16(self.ranks.device) else "fp32"},
            "samples_a_step": self._samples_a_step(),
            "data": self.data.description,
            "versions": {"gr00t_trt": __version__, "torch": torch.__version__},
            "loss": self.loss,
            "held_out_loss": self.held_out,
            "lowest_held_out_loss": self.lowest,
        }

    def _samples_a_step(self) -> int:
        return int(self.args.batch_size * self.args.gradient_accumulation_steps * self.ranks.count)

    def _resume(self) -> None:
        path = checkpoints.latest(self.folder)
        if path is None:
            raise UsageError(
                f"--resume: {self.folder} has no checkpoint", fix="leave --resume out, or check --output_dir"
            )
        prepared = self.prepared
        restored = checkpoints.restore(path, prepared.optimizer, prepared.trained)
        _check_same(path, restored.about, self._about())
        load_trained(prepared.model, restored.trained, str(path))
        self.done = restored.step
        self.held_out, self.lowest = restored.about["held_out_loss"], restored.about["lowest_held_out_loss"]

    def _introduce(self) -> None:
        """What is about to be trained, in a few lines."""
        if self.args.report_to in ("wandb", "azure_ml"):
            self._say(f"--report_to {self.args.report_to} is not served: metrics.jsonl, and TensorBoard if installed")
        for note in self.data.notes:
            self._say(note)
        trained = list(self.prepared.trained.values())
        everything = sum(p.numel() for p in self.prepared.model.parameters())
        share = sum(p.numel() for p in trained) / everything
        precision = "bf16 products, fp32 weights" if self.start.bf16(self.ranks.device) else "fp32"
        tags = ", ".join(self.data.embodiment_ids)
        self._say(f"trained: {named(trained)} parameters, {share:.0%} of the model, for {tags}; {precision}")
        passes = self.args.max_steps * self._samples_a_step() / self.data.pass_length
        begun = f"from step {self.done} to" if self.done else ""
        steps = f"{begun} {self.args.max_steps} steps of {self._samples_a_step()} samples".strip()
        self._say(f"{steps}: every frame about {passes:.3g} times; into {self.folder}")

    def _conclude(self, result: Path) -> None:
        rows = read_metrics(self.folder)
        _, losses = series(rows, "loss")
        shown = max(1, min(SHOWN, len(losses) // 3))
        first, last = losses[:shown], losses[-shown:]
        text = f"done in {clock(time.monotonic() - self._began)}"
        if last:
            means = " -> ".join(f"{sum(part) / len(part):.4f}" for part in (first, last))
            text += f": loss {means}, each the mean over {len(last)} of {len(losses)} steps"
        self._say(text)
        self._draw(rows)
        best = checkpoints.best(self.folder)
        if best is not None and self.lowest is not None:
            self._say(f"lowest held-out loss {self.lowest:.4f}: {best}")
        if self.ranks.device.type == "cuda":
            self._say(f"GPU memory at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
        self._say(f"next: {shlex.join(next_command(self.args, self.start.sources[0], result))}")

    def _draw(self, rows: list[dict[str, float]]) -> None:
        from .plot import draw_losses

        try:
            draw_losses(self.folder / "loss.png", rows, f"{self.args.base_model_path}, step {self.done}")
        except PlanError as error:
            self._say(str(error).splitlines()[0])
        else:
            self._say(f"losses: {self.folder / 'loss.png'}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Share:
    """What all processes have for a step: whether one of them was told to stop, entries that count, samples."""

    stopped: bool
    entries: int
    samples: int


def next_command(args: argparse.Namespace, source: Source, checkpoint: Path) -> list[str]:
    """How to see what the checkpoint does with the recorded demonstrations."""
    command = ["gr00t-trt", "evaluate", "--model_path", str(checkpoint), "--dataset_path", args.dataset_path[0]]
    if chosen(args.data_config[0]):
        command += ["--data_config", args.data_config[0]]
    if getattr(source.data_config, "embodiment_tag", None) != source.tag:
        command += ["--embodiment_tag", source.tag]
    return [*command, "--plot"]


def _compared(args: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in sorted(vars(args).items()) if name not in NOT_COMPARED}


def _check_same(path: Path, stored: About, now: About) -> None:
    """Raises: UsageError for a run that was started with other flags or data, naming what differs."""
    before, after = stored["flags"], now["flags"]
    differing = [name for name in after if before.get(name) != after[name]]
    if differing:
        name = differing[0]
        raise UsageError(
            f"--resume with --{name} {after[name]}: {path} was trained with {before.get(name)}",
            fix="resume with the flags of the run, or start a new one from its checkpoint with --base_model_path",
        )
    if stored["samples_a_step"] != now["samples_a_step"]:
        raise UsageError(
            f"--resume with {now['samples_a_step']} samples a step: {path} was trained with {stored['samples_a_step']}",
            known="--batch_size times --gradient_accumulation_steps times --num_gpus",
        )
    if stored["data"] != now["data"]:
        keys = [key for key in now["data"] if stored["data"].get(key) != now["data"][key]]
        raise UsageError(f"--resume: {path} was trained on other data ({', '.join(keys)})", fix="use the same datasets")


def _output_folder(args: argparse.Namespace) -> Path:
    """The run's folder. Raises: UsageError for one that another run has written into."""
    if args.output_dir is not None or args.resume:
        folder = Path(args.output_dir or OUTPUT_DIR)
        if not args.resume and checkpoints.latest(folder) is not None:
            fix = "add --resume to go on with it, or name another folder"
            raise UsageError(f"--output_dir {folder}: holds the checkpoints of another run", fix=fix)
        return folder
    numbered = (Path(OUTPUT_DIR if n == 1 else f"{OUTPUT_DIR}-{n}") for n in range(1, 10000))
    return next(folder for folder in numbered if not folder.exists())

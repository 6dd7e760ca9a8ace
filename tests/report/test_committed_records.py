"""The records in bench, of the first schema: every figure that is shown of them is the number in the file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gr00t_trt.record.files import dumps, read_record, record_from
from gr00t_trt.record.numbers import cosine, digits
from gr00t_trt.record.result import Agreement, Result
from gr00t_trt.report import markdown
from gr00t_trt.report.markup import escape
from gr00t_trt.report.page import page
from gr00t_trt.report.png import charts_of, digest, draw_all, drawn_from
from gr00t_trt.report.terminal import render
from gr00t_trt.report.views import Loaded, load

RECORDS = sorted((Path(__file__).resolve().parents[2] / "bench" / "records").glob("*.json"))
BENCH = [path for path in RECORDS if json.loads(path.read_text(encoding="utf-8"))["schema"] == 1]
each = pytest.mark.parametrize("path", BENCH, ids=lambda path: path.stem)

Json = dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """One entry of a file: what was measured, and the baseline that its table has."""

    entry: Json
    subject: str
    latency: Json | None
    baseline: Json | None
    accuracy: Json | None

    @property
    def ratio(self) -> float | None:
        if self.latency is None or self.baseline is None:
            return None
        ratio: float = self.baseline["p50"] / self.latency["p50"]
        return ratio

    @property
    def words(self) -> list[str]:
        """Its latency and its speed-up, as a terminal shows them."""
        if self.latency is None:
            return []
        return [digits(self.latency["p50"]), *([f"{self.ratio:.2f}x"] if self.ratio else [])]


def entries(record: Json) -> Iterator[Raw]:
    """Every entry of a file of the first schema, in the order of a record's results."""
    for entry in record["submodules"]:
        yield Raw(entry, entry["name"], entry["latency_ms"], entry["eager_latency_ms"], entry["accuracy"])
    whole = record["end_to_end"]
    if record["submodules"]:
        yield Raw(whole, "request", whole["latency_ms"], whole["eager_latency_ms"], record["accuracy"]["normalised"])
    for entry in record["comparison"]:
        same = {other["backend"]: other for other in record["comparison"] if other["subject"] == entry["subject"]}
        base = same.get("plain", same["eager"])
        subject = "request" if entry["subject"] == "whole request" else entry["subject"]
        own = None if entry is base else base["latency_ms"]
        yield Raw(entry, subject, entry["latency_ms"], own, entry["accuracy"])
    for entry in record["measurements"]:
        made = entry["settings"]
        work = (made["of"], made["views"], made["batch"], made["steps"])
        # One table has one baseline: the plain model as it was timed for the row that is it, where there is one.
        rows = [row for row in record["measurements"] if row["name"] == "eager PyTorch" and row is not entry]
        same = [row for row in rows if work == tuple(row["settings"][key] for key in ("of", "views", "batch", "steps"))]
        base = None if entry["verdict"] is None else same[0]["latency_ms"] if same else entry["eager_latency_ms"]
        yield Raw(entry, made["of"], entry["latency_ms"], base, entry["accuracy"])


def pairs(path: Path) -> tuple[Loaded, list[tuple[Raw, Result]]]:
    """A record as it is read, and each of its results beside the entry that it comes from."""
    (one,) = load([str(path)])
    raw = list(entries(json.loads(path.read_text(encoding="utf-8"))))
    return one, list(zip(raw, one.record.results, strict=True))


def test_there_are_records() -> None:
    assert BENCH


@each
def test_a_record_of_the_first_schema_is_read_whole(path: Path) -> None:
    one, found = pairs(path)
    old = json.loads(path.read_text(encoding="utf-8"))
    assert old["schema"] == 1
    assert one.record.schema == 2
    for raw, result in found:
        assert result.subject == raw.subject
        if raw.latency is None:
            assert result.latency_ms is None
        else:
            derived = result.latency_ms.to_dict()
            assert derived == {**derived, **raw.latency}
        shown = Agreement() if result.accuracy is None else result.accuracy
        for key in ("cosine", "max_abs", "sqnr_db"):
            assert getattr(shown, key) == (raw.accuracy or {}).get(key)
        if result.group not in ("run", "comparison"):
            settings = raw.entry["settings"]
            made, work = result.candidate, result.workload
            assert list(made.optimizations) == settings["optimisations"]
            assert (made.backend, made.loop, made.graph) == (settings["backend"], settings["loop"], settings["graph"])
            assert (work.views, work.batch, work.steps) == (settings["views"], settings["batch"], settings["steps"])
            held = raw.entry["verdict"]
            assert (result.ratio, result.against and result.against.text) == (
                (held["ratio"], held["text"]) if held else (None, None)
            )
    assert one.record.command == old["command"]
    assert one.record.git.commit == old["git"]["commit"]
    assert len(one.record.stages) == len(old["stages"])


@each
def test_a_record_that_was_upgraded_is_one_of_today(path: Path) -> None:
    record = read_record(path)
    again = record_from(json.loads(dumps(record)), "again.json")
    assert again == record
    assert digest(again) == digest(record)


@each
def test_a_terminal_shows_the_numbers_of_the_file(path: Path) -> None:
    one, found = pairs(path)
    out = io.StringIO()
    render(one.record, Console(file=out, width=200))
    lines = [line.split() for line in out.getvalue().splitlines()]
    for view, (raw, result) in zip(one.views, found, strict=True):
        first = view.step.split() if view.measured else [view.what] if not view.whole else [result.name]
        words = raw.words if view.measured or view.whole else raw.words[:1]
        accuracy = [cosine(result.accuracy)] if raw.accuracy and view.measured else []
        for word in (*words, *accuracy):
            assert any(word in line and set(first) <= set(line) for line in lines), (first, word)


@each
def test_markdown_shows_the_numbers_of_the_file(path: Path) -> None:
    one, found = pairs(path)
    lines = [line.strip("| ").split(" | ") for line in markdown.section(one, "records/").splitlines()]
    for view, (raw, result) in zip(one.views, found, strict=True):
        if raw.latency is None:
            continue
        first = view.step if view.measured else view.what
        (row,) = (line for line in lines if line[0] == first and digits(raw.latency["p50"]) in line)
        if raw.accuracy:
            assert cosine(result.accuracy) in " | ".join(row)
        if raw.ratio and view.measured:
            times = f"{raw.ratio:.2f}×"
            assert digits(raw.baseline["p50"]) in row
            assert (f"({times})" if view.doubtful else times) in row


@each
def test_the_page_has_every_number_of_the_file(path: Path) -> None:
    one, found = pairs(path)
    text = page([one], "Real")
    for raw, _ in found:
        shown = [latency["p50"] for latency in (raw.latency, raw.baseline) if latency]
        shown += [raw.ratio] if raw.ratio else []
        shown += [raw.accuracy["cosine"]] if raw.accuracy else []
        for value in shown:
            assert f'data-value="{value!r}"' in text
    assert any(raw.latency or raw.baseline for raw, _ in found)
    assert escape(one.record.command) in text


@each
def test_pictures_are_of_the_numbers_of_the_file(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, found = pairs(path)
    pictures = draw_all(one, tmp_path)
    assert pictures
    assert {drawn_from(picture) for picture in pictures} == {digest(one.record)}
    steps = [raw for raw, result in found if result.group == "waterfall"]
    bars = charts_of(one)["waterfall"].bars if steps else ()
    for raw, bar in zip(steps, bars, strict=True):
        base = raw.entry["eager_latency_ms"] if raw.entry["verdict"] else None
        of = f" of {digits(base['p50'])}" if base else ""
        assert (bar.value, bar.shown) == (
            (raw.latency["p50"], f"{digits(raw.latency['p50'])}{of} ms")
            if raw.latency
            else (None, raw.entry["why_not"])
        )

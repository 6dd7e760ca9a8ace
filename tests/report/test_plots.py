"""Pictures: drawn, not empty, the size they should have, and marked with what they show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib import image

from gr00t_trt.errors import RecordError
from gr00t_trt.record.files import read_record, write_record
from gr00t_trt.record.result import Against, Baseline, Candidate, Result, Roofline, Status, Workload
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import ModelInfo, Record, new_record
from gr00t_trt.report import png
from gr00t_trt.report.charts import Chart, roofline_chart, stage_chart, waterfall_chart
from gr00t_trt.report.views import Loaded, rows_of, together

EAGER = Samples((46.0, 47.0, 47.9, 48.2, 50.0))


def measured(name: str, samples: Samples, **known: Any) -> Result:
    stages = {"vision_model": 9.0, "language_model": 8.0, "dit_model": 20.0, "between stages": 3.0}
    against = None if samples is EAGER else Against.of(Baseline.ORIGINAL, EAGER, samples, name)
    return Result(
        "waterfall", name, "model", workload=Workload(), status=Status.MEASURED, latency_ms=samples, against=against,
        stages_ms=stages, roofline=Roofline("NVIDIA H200", ms=2.06, percent=206 / samples.p50), **known,
    )  # fmt: skip


@pytest.fixture
def record(tmp_path: Path) -> Record:
    model = ModelInfo("synthetic:full")
    out = new_record("measure", device="cuda:0", plan={"precision": "bf16"}, model=model)
    out.environment = replace(out.environment, gpu="NVIDIA H200")
    late = "no time: about 90 s, and 3 s were left"
    out.results = [
        measured("eager PyTorch", EAGER),
        measured("+ torch.compile", Samples((11.0, 11.2, 11.1, 11.9, 12.4)), candidate=Candidate("inductor")),
        Result("waterfall", "+ one CUDA graph", "model", status=Status.NO_TIME, why=late),
    ]
    return read_record(write_record(out, tmp_path / "record.json"))


Kind = Callable[[Loaded], Chart]


def draw(kind: Kind, record: Record, path: Path) -> None:
    (one,) = together([("record.json", record)])
    png.draw(kind(one), record, path)


def roofline(one: Loaded) -> Chart:
    return roofline_chart(rows_of([one]))


def stages(one: Loaded) -> Chart:
    return stage_chart(one, "waterfall")


ALL = pytest.mark.parametrize("kind", [waterfall_chart, stages, roofline])


@ALL
def test_a_picture_is_drawn_and_says_what_of(record, tmp_path: Path, kind) -> None:
    path = tmp_path / "new" / "plot.png"
    draw(kind, record, path)
    pixels = image.imread(path)
    assert pixels.shape[1] == png.WIDTH_INCHES * png.DPI
    assert pixels.shape[0] > 250
    assert (pixels[..., :3] < 0.9).any(axis=-1).mean() > 0.01  # not all white
    assert png.drawn_from(path) == png.digest(record)


@ALL
def test_another_record_is_another_picture(record, tmp_path: Path, kind) -> None:
    draw(kind, record, tmp_path / "plot.png")
    other = copy.deepcopy(record)
    other.results[1] = measured("+ torch.compile", Samples((11.0, 11.0, 11.1, 11.9, 12.4)))
    assert png.drawn_from(tmp_path / "plot.png") != png.digest(other)


def test_the_digest_survives_writing_and_reading(record, tmp_path: Path) -> None:
    assert png.digest(record) == png.digest(read_record(tmp_path / "record.json"))


def texts(monkeypatch, record, tmp_path: Path, kind: Kind) -> str:
    """All text in a picture."""
    seen = []
    from matplotlib.figure import Figure

    save = Figure.savefig

    def keep(self, *args, **kwargs):
        from matplotlib.text import Text

        seen.extend(found.get_text() for found in self.findobj(Text))
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw(kind, record, tmp_path / "plot.png")
    return "\n".join(seen)


def test_values_and_reasons_stand_in_the_picture(monkeypatch, record, tmp_path: Path) -> None:
    text = texts(monkeypatch, record, tmp_path, waterfall_chart)
    assert "11.2 of 47.9 ms" in text
    assert "not measured: no time: about 90 s, and 3 s were left" in text
    assert "synthetic:full · NVIDIA H200 · bf16" in text


def test_what_there_was_no_time_for_stands_in_one_row(monkeypatch, record, tmp_path: Path) -> None:
    """How much was left differs from row to row."""
    late = replace(record.results[2], name="+ another", why="no time: about 90 s, and 2 s were left")
    record.results.append(late)
    lines = texts(monkeypatch, record, tmp_path, waterfall_chart).splitlines()
    assert "2 others" in lines
    assert [line for line in lines if "no time" in line] == ["not measured: there was no time left for it"]


def test_a_roofline_that_nobody_knows_is_not_drawn(monkeypatch, record, tmp_path: Path) -> None:
    record.results = [replace(result, roofline=None) for result in record.results]
    assert "nothing of this kind was measured" in texts(monkeypatch, record, tmp_path, roofline)
    (one,) = together([("record.json", record)])
    assert "roofline" not in png.charts_of(one)


def test_no_other_file_passes_for_a_picture(record, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    assert png.drawn_from(path) is None
    draw(waterfall_chart, record, path)
    whole = path.read_bytes()
    at = whole.index(png.KEY.encode()) + len(png.KEY) + 1
    for broken in (b"", b"GIF89a", whole[: at + 4], whole[:at] + b"0000" + whole[at + 4 :]):
        path.write_bytes(broken)
        assert png.drawn_from(path) is None


def test_a_path_that_cannot_be_written(record, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        draw(waterfall_chart, record, tmp_path / "file" / "plot.png")

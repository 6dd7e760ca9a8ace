"""Pictures: drawn, not empty, the size they should have, and marked with what they show."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib import image

from gr00t_trt.errors import RecordError
from gr00t_trt.measure.timers import Samples, verdict
from gr00t_trt.record import records
from gr00t_trt.report import plots

EAGER = Samples((46.0, 47.0, 47.9, 48.2, 50.0))


def measured(name: str, samples: Samples, **known: Any) -> dict[str, Any]:
    stages = {"vision_model": 9.0, "language_model": 8.0, "dit_model": 20.0, "between stages": 3.0}
    fields = {"latency_ms": samples, "eager_latency_ms": EAGER, "verdict": verdict(EAGER, samples), "stages": stages}
    share = {"device": "NVIDIA H200", "ms": 2.06, "percent": 206 / samples.p50}
    return records.measurement_entry("waterfall", name, **fields, roofline=share, **known)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    out = records.new_record("measure", device="cuda:0", plan={"precision": "bf16"}, model={"path": "synthetic:full"})
    out["environment"]["gpu"] = "NVIDIA H200"
    out["measurements"] = [
        measured("eager PyTorch", EAGER),
        measured("+ torch.compile", Samples((11.0, 11.2, 11.1, 11.9, 12.4))),
        records.measurement_entry("waterfall", "+ one CUDA graph", why_not="no time: about 90 s, and 3 s were left"),
    ]
    return records.read_record(records.write_record(out, tmp_path / "record.json"))


ALL = pytest.mark.parametrize("draw", [plots.waterfall, plots.stage_split, plots.roofline])


@ALL
def test_a_picture_is_drawn_and_says_what_of(record, tmp_path: Path, draw) -> None:
    path = tmp_path / "new" / "plot.png"
    draw(record, path)
    pixels = image.imread(path)
    assert pixels.shape[1] == plots.WIDTH_INCHES * plots.DPI
    assert pixels.shape[0] > 250
    assert (pixels[..., :3] < 0.9).any(axis=-1).mean() > 0.01  # not all white
    assert plots.drawn_from(path) == plots.digest(record)


@ALL
def test_another_record_is_another_picture(record, tmp_path: Path, draw) -> None:
    draw(record, tmp_path / "plot.png")
    other = copy.deepcopy(record)
    other["measurements"][1]["latency_ms"]["p50"] = 11.0
    assert plots.drawn_from(tmp_path / "plot.png") != plots.digest(other)


def test_the_digest_survives_writing_and_reading(record, tmp_path: Path) -> None:
    assert plots.digest(record) == plots.digest(records.read_record(tmp_path / "record.json"))


def texts(monkeypatch, record, tmp_path: Path, draw) -> str:
    """All text in a picture."""
    seen = []
    from matplotlib.figure import Figure

    save = Figure.savefig

    def keep(self, *args, **kwargs):
        from matplotlib.text import Text

        seen.extend(found.get_text() for found in self.findobj(Text))
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw(record, tmp_path / "plot.png")
    return "\n".join(seen)


def test_values_and_reasons_stand_in_the_picture(monkeypatch, record, tmp_path: Path) -> None:
    text = texts(monkeypatch, record, tmp_path, plots.waterfall)
    assert "11.2 ms   4.28×" in text
    assert "not measured: no time: about 90 s, and 3 s were left" in text
    assert "synthetic:full · NVIDIA H200 · bf16" in text


def test_a_roofline_that_nobody_knows_is_not_drawn(monkeypatch, record, tmp_path: Path) -> None:
    for row in record["measurements"]:
        row["roofline"] = None
    assert "no ceilings are known for this device" in texts(monkeypatch, record, tmp_path, plots.roofline)


def test_no_other_file_passes_for_a_picture(record, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    assert plots.drawn_from(path) is None
    plots.waterfall(record, path)
    whole = path.read_bytes()
    at = whole.index(plots.KEY.encode()) + len(plots.KEY) + 1
    for broken in (b"", b"GIF89a", whole[: at + 4], whole[:at] + b"0000" + whole[at + 4 :]):
        path.write_bytes(broken)
        assert plots.drawn_from(path) is None


def test_a_path_that_cannot_be_written(record, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        plots.waterfall(record, tmp_path / "file" / "plot.png")

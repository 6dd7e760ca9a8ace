"""`gr00t-trt report`: paths in, files out, and a way out of every mistake."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import image
from sample_records import change, found

from gr00t_trt.common.install import install_extra
from gr00t_trt.record.files import dumps, write_record
from gr00t_trt.record.result import REQUEST
from gr00t_trt.record.schema import ModelInfo
from gr00t_trt.report.png import digest, drawn_from
from gr00t_trt.report.program import main
from gr00t_trt.report.views import load


@pytest.fixture
def files(tmp_path, monkeypatch, compared, built):
    monkeypatch.chdir(tmp_path)
    for name, record in (("compared", compared), ("built", built)):
        write_record(record, f"{name}.json")
    return tmp_path


def test_paths_are_on_stdout_and_pictures_are_of_their_record_and_not_blank(files, capsys) -> None:
    assert main(["compared.json", "built.json", "--plots", "plots"]) == 0
    out, err = capsys.readouterr()
    *pictures, page = out.splitlines()
    assert page == "report.html"
    assert sorted(pictures) == sorted(map(str, Path("plots").glob("*.png")))
    kinds = {path.removeprefix("plots/compared-") for path in pictures if "compared" in path}
    assert kinds == {"latency.png", "speed-accuracy.png", "waterfall.png", "stages.png", "roofline.png"}
    assert "writing the page" in err
    assert sorted(path.name for path in files.iterdir()) == ["built.json", "compared.json", "plots", "report.html"]
    for path in pictures:
        name = "compared" if "compared" in path else "built"
        assert drawn_from(path) == digest(load([f"{name}.json"])[0].record)
        pixels = image.imread(path)[..., :3]
        assert pixels.shape[0] > 300
        assert 0.01 < (pixels.min(axis=2) < 0.9).mean() < 0.7  # ink, and room round it


def test_hostile_names_are_drawn_as_they_are(files, compared, recwarn) -> None:
    text = "$\\frac{ <b> \ud83d 👩‍🚀 \x00"
    compared.results = [*compared.of("comparison")[:2], compared.measured[0]]
    for result in compared.results[1:]:
        change(compared, result, name=text, candidate=replace(result.candidate, backend=text))
    compared.model = ModelInfo(text)
    Path("hostile.json").write_text(json.dumps(json.loads(dumps(compared))))
    assert main(["hostile.json", "--plots", "plots"]) == 0
    assert [str(one.message) for one in recwarn] == []


def test_a_picture_names_a_step_by_all_that_stands_behind_it(files, measured, monkeypatch) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    seen: dict[str, str] = {}
    save = Figure.savefig

    def keep(self, path, *args, **kwargs):
        self.canvas.draw()
        seen[Path(path).stem.removeprefix("measured-")] = "\n".join(text.get_text() for text in self.findobj(Text))
        return save(self, path, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    write_record(measured, "measured.json")
    assert main(["measured.json", "--plots", "plots"]) == 0
    assert set(seen) == {"speed-accuracy", "waterfall", "stages", "roofline"}
    for name in ("waterfall", "stages", "roofline"):
        assert "+ prompt_cache (all optimizations)\n" in seen[name]
    best = found(measured, "+ one CUDA graph").latency_ms.p50
    assert f"all optimizations, torch.compile, one CUDA graph: {best:.2f} ms" in seen["speed-accuracy"]
    assert "prompt_cache" not in seen["speed-accuracy"]


def test_the_vertical_axis_has_numbers_however_close_the_points_lie(files, compared, monkeypatch) -> None:
    from matplotlib.figure import Figure

    labels: list[str] = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        self.canvas.draw()
        labels.extend(tick.get_text() for tick in self.axes[0].get_yticklabels())
        return save(self, *args, **kwargs)

    compared.results = [result for result in compared.of("comparison") if result.subject == REQUEST]
    for place, result in enumerate(compared.results):
        if result.accuracy:
            near = replace(result.accuracy, cosine=1 - 1.1e-5 * (1 + 0.1 * place), exact=False)
            change(compared, result, accuracy=near, gate=None)
    write_record(compared, "close.json")
    monkeypatch.setattr(Figure, "savefig", keep)
    assert main(["close.json", "--plots", "plots"]) == 0
    assert {"1e-05", "1e-04"} <= set(labels)


def test_two_records_of_one_name_keep_apart(files) -> None:
    Path("other").mkdir()
    Path("other/built.json").write_text(Path("compared.json").read_text())
    assert [one.name for one in load(["built.json", "other/built.json", "built.json"])] == ["built", "built (2)"]


@pytest.mark.parametrize(
    ("argv", "what", "fix"),
    [
        ([], "missing: RECORD", "--help"),
        (["missing.json"], "missing.json: no such record", "known: built.json, compared.json"),
        (["."], "cannot be read: Is a directory", "name a record"),
        (["text.txt"], "text.txt: not a record", "name a record"),
        (["list.json"], "list.json: not a record: it has no schema number", "name a record"),
        (["damaged.json"], "damaged.json: results[0].latency_ms.p50 is a str", "known: a number, or null"),
        (["infinite.json"], "wall_s is beyond anything that can be measured", "known: numbers up to 1e+20"),
        (["built.json", "--output", "built.json/report.html"], "the page cannot be written", "--output"),
        (["built.json", "--output", "."], "a folder, not a file", "add a file name"),
        (["built.json", "--output", "/dev/null"], "a link or a device", "name a file"),
        (["built.json", "--plots", "built.json"], "built.json: no pictures can be written there", "--plots"),
        (["built.json", "--titel", "x"], "no such flag", "did you mean --title?"),
        (["built.json", "--title", " "], "--title: ' ' is empty", "leave the flag out"),
    ],
)
def test_mistakes_end_with_2_and_a_way_out(files, capsys, compared, argv, what, fix) -> None:
    Path("text.txt").write_text("latency: fast")
    Path("list.json").write_text("[1, 2]")
    compared.wall_s = 0
    Path("infinite.json").write_text(dumps(compared).replace('"wall_s": 0', '"wall_s": 1e999'))
    if argv == ["missing.json"]:
        for extra in ("list.json", "infinite.json"):
            Path(extra).unlink()
    damaged = json.loads(dumps(compared))
    damaged["results"][0]["latency_ms"]["p50"] = "fast"
    if argv == ["damaged.json"]:
        Path("damaged.json").write_text(json.dumps(damaged))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert what in err
    assert fix in err
    assert not Path("report.html").exists()


def test_without_matplotlib_the_page_works_and_the_pictures_name_the_extra(files, capsys, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["built.json"]) == 0
    assert main(["built.json", "--plots", "plots"]) == 2
    assert install_extra("plots") in capsys.readouterr().err

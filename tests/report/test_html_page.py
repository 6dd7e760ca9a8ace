"""What the page says: every figure of a record, nothing that is not in it, and no text that becomes markup."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_records import BUILT, COMPARED, change, found, plain

from gr00t_trt.errors import RecordError
from gr00t_trt.record.files import dumps, read_record
from gr00t_trt.record.numbers import digits
from gr00t_trt.record.result import REQUEST, Against, Baseline, Candidate, Result
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import ModelInfo, Record, new_record
from gr00t_trt.report import svg
from gr00t_trt.report.charts import parts, round_ticks, spelled, waterfall_chart
from gr00t_trt.report.markup import VOID, element, escape
from gr00t_trt.report.page import SCRIPT, page, style
from gr00t_trt.report.placement import SIZES, stack
from gr00t_trt.report.published import PUBLISHED
from gr00t_trt.report.views import load, together

BENCH = sorted((Path(__file__).resolve().parents[2] / "bench" / "records").glob("*.json"))


class Outline(HTMLParser):
    """Checks that elements nest, and keeps elements, attributes and text."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.open.append(tag)
        self._keep(tag, attrs)

    def handle_startendtag(self, tag, attrs) -> None:
        self._keep(tag, attrs)

    def _keep(self, tag, attrs) -> None:
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] not in ("style", "script") and "nav" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def shown(*given: Record) -> Outline:
    loaded = together((f"record-{i}.json", plain(one)) for i, one in enumerate(given))
    return Outline(page(loaded, "A title"))


def p50(result: Result) -> str:
    assert result.latency_ms
    return digits(result.latency_ms.p50)


def checks_of(record: Record) -> int:
    """How many accuracies a record has that a gate can judge."""
    return sum(result.passed is not None for result in record.results)


def section(outline: Outline, begin: str, end: str) -> str:
    return outline.text.split(begin, 1)[1].split(end, 1)[0]


def test_the_answer_names_the_fastest_and_the_gates(compared) -> None:
    text = shown(compared).text
    assert "Fastest here: torch_tensorrt bf16, p50 19.8 ms, 50.6 requests a second" in text
    assert "torch_tensorrt is 2.43x faster than the original" in text
    assert f"All {checks_of(compared)} accuracy checks pass." in text  # of comparisons and of steps


def test_steps_are_told_against_the_eager_model_that_was_timed_with_them(compared) -> None:
    last = found(compared, "one CUDA graph")
    text = section(shown(compared), "What each step brings", "What else was varied")
    assert f"{p50(last)} of {digits(last.against.latency_ms.p50)} ms" in text.replace("\u00a0", " ")
    assert "ms against the original's" in text


def test_a_step_is_red_only_where_it_is_slower_beyond_doubt() -> None:
    original = Result("waterfall", "eager PyTorch", "model", latency_ms=Samples((50.0, 51.0, 52.0, 53.0, 54.0)))
    slow = Samples((100.0, 101.0, 102.0, 103.0, 104.0))

    def step(name: str, own: tuple[float, ...], base: Samples) -> Result:
        against = Against.of(Baseline.ORIGINAL, base, Samples(own), name)
        made = Candidate("eager", optimizations=("prompt_cache",))
        return Result("waterfall", name, "model", made, latency_ms=Samples(own), against=against)

    record = new_record("measure")
    steps = {"level": (99.0, 100.0, 101.0, 102.0, 103.0), "saved": (70.0, 71.0, 72.0, 73.0, 74.0),
             "lost": (120.0, 121.0, 122.0, 123.0, 124.0)}  # fmt: skip
    record.results = [original, *(step(name, own, slow) for name, own in steps.items())]
    (one,) = together([("record.json", plain(record))])
    bars = waterfall_chart(one).bars
    assert [bar.shown for bar in bars] == ["52 ms", "101 of 102 ms", "72 of 102 ms", "122 of 102 ms"]
    drawn = re.findall(r'<rect class="(level|saved|lost)"', svg.draw(waterfall_chart(one)))
    assert drawn == list(steps)


def test_what_was_built_and_not_run_is_one_sentence(built) -> None:
    text = shown(built).text
    request = section(shown(built), "How long one request takes", "How long each submodule takes")
    assert request.count("built, not run: its engine cannot run on this machine") <= 1
    parts = section(shown(built), "How long each submodule takes", "Speed against accuracy")
    assert parts.count("built, not run") <= 1
    assert "What was not measured" in text


def test_letters_stand_apart_and_beside_labels() -> None:
    places = [(50.0, 50.0), (50.5, 50.2), (50.0, 50.1), (52.0, 50.0), (93.0, 20.0), (50.0, 96.0), (50.2, 96.0)]
    moves = stack(places, [(99.5, 20.0, 105.0)])
    assert moves[0] == 0
    for width, height in SIZES:
        at = [(x * width / 100, y * height / 100 + move) for (x, y), move in zip(places, moves, strict=True)]
        for (x, y), (a, b) in itertools.combinations(at, 2):
            assert abs(x - a) >= 20 or abs(y - b) >= 20
        assert all(0 <= y <= height for _, y in at)
        assert not height * 0.2 - 28 < at[4][1] < height * 0.2 + 8


def test_a_measuring_run_alone_answers_from_its_own_rows(compared) -> None:
    compared.results, compared.stages = compared.measured, []
    text = shown(compared).text
    assert f"Fastest here: one CUDA graph, p50 {p50(found(compared, 'one CUDA graph'))} ms" in text


class TestMeasuringRun:
    """A record of `gr00t-trt measure` on a GPU answers in the first lines, and stands beside the published figures."""

    BEST = "all optimizations, torch.compile, one CUDA graph"

    def test_the_first_lines_say_what_is_fastest_and_how_far_from_the_limit(self, measured) -> None:
        text = section(shown(measured), "A title record-0", "How long one request takes")
        assert "bf16 · NVIDIA Testing 9000 · 1 view · batch 1 · 4 steps" in text
        best = found(measured, "+ one CUDA graph")
        times = f"p50 {p50(best)} ms against {digits(best.against.latency_ms.p50)} ms"
        share = f"{best.roofline.percent:.1f} %"
        assert f"Fastest here: {self.BEST}, p50 {p50(best)} ms" in text
        assert f"{best.name} is {best.ratio:.2f}x faster than the original ({times})" in text
        assert f"That is {share} of the roofline" in text
        assert f"share of the roofline {share} {self.BEST}" in text
        assert f"slowest in a hundred {digits(best.latency_ms.p99)} ms 1000 samples" in text
        assert f"from numpy to numpy {p50(found(measured, 'get_action, numpy to numpy'))} ms" in text
        assert f"All {checks_of(measured)} accuracy checks pass." in text
        assert "prompt_cache" not in text
        assert "engines" not in text

    def test_the_ends_of_the_waterfall_come_first_and_its_steps_keep_their_names(self, measured) -> None:
        outline = shown(measured)
        short = section(outline, "How long one request takes", "Speed against accuracy")
        for name in ("eager PyTorch", "all optimizations", self.BEST):
            assert f"{name} " in short
        assert "fused_projections" not in short
        steps = section(outline, "What each step brings", "What else was varied")
        assert "+ kv_cache" in steps
        assert "+ prompt_cache (all optimizations)" in steps
        assert "+ torch.compile" in steps
        limit = section(outline, "How close to the hardware's limit", "All figures")
        assert self.BEST in limit
        assert "+ " not in limit
        assert "batch 8" in limit

    def test_it_stands_beside_what_others_have_published(self, measured) -> None:
        text = section(shown(measured), "Beside the published figures", "What was not measured")
        for name in ("eager PyTorch", self.BEST, f"get_action, numpy to numpy ({self.BEST})"):
            assert f"here: NVIDIA Testing 9000, {name}" in text
        assert "Nothing of this page is drawn here" not in text
        vision, *_ = found(measured, "every stage a graph of its own").split
        values = [f"{one.latency_ms.p50:.5g}" for one in (found(measured, "+ one CUDA graph"), vision)]
        assert f"measured NVIDIA Testing 9000 {self.BEST} {' '.join(values)}" in text
        for device in ("H100", "AGX Thor", "AGX Orin", "RTX 5090"):
            assert f"published {device}" in text

    def test_the_busiest_kernels_of_the_fastest_form_are_named(self, measured) -> None:
        text = section(shown(measured), "All figures", "Machine, versions and work")
        (kernel,) = found(measured, "+ one CUDA graph").work.busiest_kernels
        table = text.split("The kernels that take the most of one call: ")[1]
        assert table.startswith(f"{self.BEST} ")
        assert f"void gemm<__nv_bfloat16, 64>(int) 60 {kernel.ms:.3f} 25 %" in table.replace("\u00a0", " ")

    def test_what_there_was_no_time_for_is_told_once(self, measured) -> None:
        text = section(shown(measured), "What was not measured", "Machine, versions and work")
        names = "settings: several small ones, settings: searched products, TMA, cut along K"
        assert f"{names} : no latency: there was no time left for it" in text

    def test_a_form_outside_its_gate_is_not_the_answer(self, measured) -> None:
        failures = ("+ one CUDA graph: cosine 0.9 is below 0.995",)
        change(measured, found(measured, "+ one CUDA graph"), passed=False, failures=failures)
        text = shown(measured).text
        assert "Fastest here: the DiT on its own Triton kernels" in text
        assert f"1 of {checks_of(measured)} accuracy checks FAIL: {self.BEST}." in text
        assert "outside its accuracy gate: + one CUDA graph: cosine 0.9" in section_of_warnings(text)

    def test_the_plan_of_a_run_in_many_forms_is_not_shown_as_its_form(self, measured) -> None:
        text = section(shown(measured), "Machine, versions and work", "How it was measured")
        assert "form many: each row of the measuring run says its own" in text
        assert "plan bf16" in text


def test_a_backend_outside_its_gate_is_not_the_answer_and_is_told_loudly(compared) -> None:
    failures = ("cosine 0.91 is below the gate 0.995",)
    change(compared, found(compared, "torch_tensorrt", REQUEST), passed=False, failures=failures)
    text = shown(compared).text
    assert "Fastest here: inductor bf16" in text
    assert f"1 of {checks_of(compared)} accuracy checks FAIL: whole request on torch_tensorrt." in text
    reason = "whole request on torch_tensorrt: cosine 0.91 is below the gate 0.995"
    assert f"outside its accuracy gate: {reason}" in section_of_warnings(text)


def section_of_warnings(text: str) -> str:
    return text.split("How long one request takes", 1)[0]


def test_rivals_whose_spreads_touch_are_told_to_be_level(compared) -> None:
    fastest = found(compared, "torch_tensorrt", REQUEST).latency_ms
    change(compared, found(compared, "inductor", REQUEST), latency_ms=fastest)
    assert "Level with it, as the spreads overlap or are not known: torch_tensorrt bf16." in shown(compared).text


def test_engines_that_did_not_run_get_no_latency_and_say_so(built) -> None:
    outline = shown(built)
    text = outline.text
    assert "No engine has run on this machine: 7 engines were built and not timed." in text
    assert "taken with uncommitted changes: its commit does not reproduce it" in text
    open_points = section(outline, "What was not measured", "Machine, versions and work")
    assert "built, not run: its engine cannot run on this machine" in open_points
    assert "torch_tensorrt : No CUDA device: engines are built and not run." in open_points
    assert "results[7].first_call_ms was nan, and is shown as –" in open_points
    assert "share of the roofline – not computed" in text
    table = section(outline, "All figures", "Beside the published figures")
    assert "In no record: p90 ms, speed-up, build s, MB, layers, in engine, peak MB, cosine, max abs, gate." in table
    assert "In no record: p50 ms, p90 ms, p99 ms, speed-up, layers, peak MB." in table


def test_records_of_different_machines_are_not_one_comparison(compared, built) -> None:
    text = shown(compared, built).text
    assert "these records are of different machines: their latencies are not one comparison" in text
    assert text.count("NVIDIA Testing 9000") > 2
    built.model = ModelInfo("synthetic")
    assert "these records are of different models" in shown(compared, built).text
    same = shown(compared, compared).text
    assert "these records are of different" not in same


def test_published_figures_are_marked_and_have_their_sources(compared) -> None:
    outline = shown(compared)
    assert "Hatched: published by others, not measured here." in outline.text
    classes = [value for tag, name, value in outline.attributes if tag == "li" and name == "class"]
    named = [row for row in PUBLISHED["rows"] if row["end_to_end_ms"] is not None]
    assert classes.count("row c-published") == len(named) == 7
    for row in PUBLISHED["rows"]:
        assert row["publisher"] in outline.text
        assert row["source"] in outline.text


def test_the_published_figures_are_those_of_the_sources() -> None:
    whole = {(row["device"], row["path"]): row["end_to_end_ms"] for row in PUBLISHED["rows"] if row["end_to_end_ms"]}
    assert whole == {
        ("H100", "eager"): 47.88, ("AGX Thor", "eager"): 87, ("AGX Thor", "TensorRT"): 39, ("AGX Orin", "eager"): 220,
        ("AGX Orin", "TensorRT"): 93, ("RTX 5090", "vla.cpp, engine only"): 16.1,
        ("RTX 5090", "FluxVLA, Triton and a graph"): 23.5,
    }  # fmt: skip
    for row in PUBLISHED["rows"]:  # the parts of a pipeline make up most of it, and no more
        part = row["submodules_ms"]
        if row["end_to_end_ms"] and part["vision_model"]:
            loop = 4 * (part["action_encoder"] + part["dit_model"] + part["action_decoder"])
            known = part["vision_model"] + part["language_model"] + part["vl_components"] + part["state_encoder"] + loop
            assert 0.9 < (known + row["transforms_ms"]) / row["end_to_end_ms"] <= 1.0


def test_all_real_records_go_on_one_page() -> None:
    if not BENCH:
        pytest.skip("no records in bench/records")
    text = Outline(page(load([str(path) for path in BENCH]), "Real")).text
    assert all(f"#{i + 1} {path.stem}" in text for i, path in enumerate(BENCH))


def test_a_record_of_the_first_release_has_neither_list_and_renders(tmp_path) -> None:
    first = json.loads(next(path for path in BENCH if path.stem == "synthetic-full-fp16-no-gpu").read_text())
    del first["measurements"], first["comparison"]
    (tmp_path / "old.json").write_text(json.dumps(first))
    assert "No engine has run" in Outline(page(load([str(tmp_path / "old.json")]), "Old")).text


def test_the_stages_of_a_request_are_counted_once() -> None:
    values = {"preprocess": 2.0, "eagle_backbone": 20.0, "vision_model": 8.0, "language_model": 10.0, "dit_model": 9.0,
              "between stages": 1.0, "request": 32.0}  # fmt: skip
    assert dict(parts(values, {"vision_model": "eagle_backbone"})) == {
        "preprocess": 2.0, "eagle_backbone, rest": 2.0, "vision_model": 8.0, "language_model": 10.0, "dit_model": 9.0,
        "between stages": 1.0,
    }  # fmt: skip


def test_the_tenth_percentile_is_the_benchmarks_own() -> None:
    own = Samples((5.0, 1.0, 4.0, 2.5, 9.0, 3.0))
    record = plain(Record(created_utc="now", results=[Result("run", "eager", REQUEST, latency_ms=own)]))
    (taken,) = (result.latency_ms for result in record.results)
    assert taken.spread == pytest.approx(own.spread)
    assert "p10 1.75 ms, p90 7 ms" in spelled(taken)


def test_the_page_is_one_file_that_names_no_other(compared, built) -> None:
    outline = shown(compared, built)
    assert not {name for _, name, _ in outline.attributes} & {"src", "srcset", "style", "data", "action"}
    links = {value for _, name, value in outline.attributes if name in ("href", "xlink:href")}
    assert links == {f"#{value}" for tag, name, value in outline.attributes if (tag, name) == ("section", "id")}
    for text in (style(), SCRIPT):
        assert not re.search(r"https?:|//\w|@import|url\((?!#)", text.replace("// ", ""))
    assert outline.elements["script"] == outline.elements["style"] == 1


def test_ten_thousand_rows_are_drawn_in_part_and_listed_in_full(compared) -> None:
    row = found(compared, "eager", "vision_model")
    compared.results = [replace(row, latency_ms=Samples(row.latency_ms.samples[:2]))] * 10_000
    text = page(together([("many.json", compared)]), "Many")
    assert "9960 more in the table below." in text
    assert text.count('<th scope="row">vision_model</th>') == 10_000


def leaves(value, at=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*at, key))
    elif isinstance(value, list):
        for i, item in enumerate(value[:4]):
            yield from leaves(item, (*at, i))
    yield at


def slim(value):
    """The same fields with fewer entries, for speed."""
    if isinstance(value, dict):
        return {key: slim(item) for key, item in value.items()}
    return [slim(item) for item in value[:3]] if isinstance(value, list) else value


def few(results: Iterable[Result]) -> list[Result]:
    """Three of each group."""
    kept: dict[str, list[Result]] = {}
    for result in results:
        kept.setdefault(result.group, []).append(result)
    return [result for group in kept.values() for result in group[:3]]


SLIM: dict[str, Any] = {path.stem: slim(json.loads(path.read_text())) for path in BENCH}
"""Of this schema and of the first."""
for _name, _record in (("compared", COMPARED), ("built", BUILT)):
    SLIM[_name] = slim(json.loads(dumps(_record)))
    SLIM[_name]["results"] = [slim(json.loads(dumps(result))) for result in few(_record.results)]
PLACES = {name: sorted((at for at in leaves(record) if at), key=str) for name, record in SLIM.items()}
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["<script>alert(1)</script>", "\"'><img src=x>", "</title>", "-->", "]]>", "\ud800", "\x00\x1b[31m", "\u202e",
     "&lt;", "a\nb", "$\\frac{", "é👩‍🚀", "x" * 5000]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from([1e308, 5e-324, -1.0, 0, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def read(text: str) -> Record:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return read_record(file.name)


EXPECTED = {tag for record in SLIM.values() for tag in shown(read(json.dumps(record))).elements}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_any_record_renders_or_is_refused_and_no_text_becomes_markup(data) -> None:
    name = data.draw(st.sampled_from(sorted(PLACES)))
    record = copy.deepcopy(SLIM[name])
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(PLACES[name]))
        target = record
        try:
            for key in parents:
                target = target[key]
            if data.draw(st.booleans()):
                del target[last]
            else:
                target[last] = data.draw(ANYTHING)
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change took the place away
    # Through JSON and the reader, as a file would come; NaN is no JSON.
    try:
        text = json.dumps(record, allow_nan=False)
    except ValueError:
        return
    try:
        outline = shown(read(text))
    except RecordError:
        return
    assert set(outline.elements) <= EXPECTED
    assert outline.elements["script"] == 1
    assert not any(attribute.startswith("on") for _, attribute, _ in outline.attributes)
    page_text = outline.text
    assert not re.search(r"\bNaN\b|\binf\b", page_text) or "nan" in text.lower() or "inf" in text.lower()


@given(TEXTS, TEXTS)
def test_escaped_text_comes_back_as_it_was_and_stays_one_element(text, value) -> None:
    outline = Outline(element("p", text, title=value))
    assert outline.elements == {"p": 1}
    assert escape(text) == element("p", text)[3:-4]
    assert str(element("p", text)).encode("utf-8")


@given(st.floats(0, 1e20))
def test_axes_end_at_or_just_beyond_what_they_show(top) -> None:
    ticks = round_ticks(top)
    assert ticks[0] == 0
    assert 2 <= len(ticks) <= 7
    assert top * (1 - 1e-6) <= ticks[-1] <= max(top, 1e-6) * 2.51


def test_what_is_written_is_read_back_field_by_field(compared, built, measured) -> None:
    for record in (compared, built, measured):
        assert plain(record) == record
    assert set(VOID) >= {"meta", "rect"}

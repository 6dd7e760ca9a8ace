"""What a run's last table says of submodules in 8 and 4 bits; none where nothing is."""

from __future__ import annotations

import io

from rich.console import Console

from gr00t_trt.record.result import Agreement, Build, Candidate, Quantized, Result
from gr00t_trt.record.schema import Record
from gr00t_trt.report.tables import run_tables
from gr00t_trt.report.terminal import render
from gr00t_trt.report.views import together

DONE = Quantized(
    "fp8", 17, {"dit_model/proj_out_2": "the actions would get its error"}, 98.5, 436_000, 829_000, "49d076b1a5d0", 16,
    {"dit_model/blocks.0.to_q": 38.0, "dit_model/blocks.1.ff.net.2": 24.5},
)  # fmt: skip


def record(quantized: Quantized | None) -> Record:
    built = Build(engine_bytes=4_520_000, engines=1)
    whole = Agreement(10, cosine=0.998, sqnr_db=25.5)
    own = Result(
        "run", "torch_tensorrt", "dit_model", Candidate("torch_tensorrt", "fp8"), build=built, accuracy=whole,
        quantized=quantized,
    )  # fmt: skip
    return Record(results=[own])


def test_layers_sizes_and_noise() -> None:
    (one,) = together([("record.json", record(DONE))])
    made = run_tables(one)[-1]
    (row,) = made.rows
    shown = dict(zip(made.heads, (cell.text for cell in row), strict=True))
    assert (shown["submodule"], shown["layers"], shown["of weights"]) == ("dit_model", "17 of 18", "98.5 %")
    assert (shown["weights MB"], shown["engine MB"]) == ("0.436", "4.52")
    assert [cell.text for cell, head in zip(row, made.heads, strict=True) if head == "of 16 bit"] == [
        "52.6 %",
        "545.2 %",
    ]
    assert (shown["stage dB"], shown["worst layer"]) == ("25.5", "24.5")
    notes = [note for cell in row for note in cell.notes]
    assert notes == [
        "in 16 bit, the actions would get its error: proj_out_2",
        "of its own output: blocks.1.ff.net.2",
    ]


def test_a_terminal_shows_it_and_a_run_in_16_bit_has_no_such_table() -> None:
    def printed(quantized: Quantized | None) -> str:
        out = io.StringIO()
        render(record(quantized), Console(file=out, width=140))
        return out.getvalue()

    assert "Linear layers in 8 and 4 bits" in printed(DONE)
    assert "Linear layers in 8 and 4 bits" not in printed(None)


def test_what_an_older_record_lacks_is_a_dash() -> None:
    (one,) = together([("record.json", record(Quantized("int8")))])
    (row,) = run_tables(one)[-1].rows
    assert [cell.text for cell in row[2:6]] == ["-"] * 4

"""The notebooks of the documentation run as they are, and are kept without what they print."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["compile_and_compare", "evaluate_and_look"]


@each
def test_no_output_is_kept(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert all(len(line) <= 140 for cell in cells for line in "".join(cell["source"]).splitlines())


@pytest.mark.notebooks  # one of them compiles a submodule, which takes most of half a minute
@each
def test_it_runs_and_shows_pictures(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs gr00t_trt[notebooks]")
    nbformat = pytest.importorskip("nbformat", reason="needs gr00t_trt[notebooks]")
    pytest.importorskip("ipykernel", reason="needs gr00t_trt[notebooks]")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [kind for cell in book.cells for out in cell.get("outputs", ()) for kind in out.get("data", ())]
    assert "image/png" in shown

"""What README and plan headers promise: commands that parse, code that runs, files that exist, true tables."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from gr00t_trt.plans.load import load_plan, merge
from gr00t_trt.plans.schema import Plan
from gr00t_trt.run.program import overrides, parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = {
    "README.md": README,
    "bench/README.md": (ROOT / "bench" / "README.md").read_text(encoding="utf-8"),
    **{f"compile_configs/{p.name}": p.read_text(encoding="utf-8") for p in (ROOT / "compile_configs").glob("*.yaml")},
}


def _commands() -> list[tuple[str, str]]:
    found = []
    for name, text in TEXTS.items():
        joined = re.sub(r"\\\n[#\s]*", "", text)
        for match in re.finditer(r"run_groot_torchtrt\.py (--[^\n`]*)", joined):
            found.append((name, match[1].split("  ")[0].strip()))
    return found


@pytest.mark.parametrize(("where", "command"), _commands())
def test_documented_commands_parse_and_their_plans_are_valid(where: str, command: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    args, _ = parse(shlex.split(command))
    plan = load_plan(args.config) if args.config and args.config != "plan.yaml" else Plan()
    merge(plan, overrides(args))


def test_there_are_commands_to_check() -> None:
    assert {where for where, _ in _commands()} == set(TEXTS)


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    code += "\nassert action['action.left_arm'].shape == (16, 7) and action['action.left_arm'].dtype == 'float32'\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_the_plan_example_is_a_valid_plan(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "plans.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "plan.yaml").write_text(text)
    assert load_plan(tmp_path / "plan.yaml").submodules["state_encoder"].backend == "eager"


def test_links_of_the_measurements_name_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS["bench/README.md"]):
        assert (ROOT / "bench" / target).exists(), target


def test_the_tables_say_what_the_records_say() -> None:
    done = subprocess.run(
        [sys.executable, "bench/render.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_front_page_tells_the_record_s_figures_of_a_cpu() -> None:
    (line,) = (line for line in README.splitlines() if line.startswith("Without a GPU: "))
    record = json.loads((ROOT / line.partition("([record](")[2].partition(")")[0]).read_text("utf-8"))
    whole = [r for r in record["results"] if r["group"] in ("waterfall", "forms") and r["latency_ms"]]
    p50 = {r["name"]: statistics.median(r["latency_ms"]["samples"]) for r in whole}
    eager, fastest = p50[whole[0]["name"]], min(p50, key=p50.__getitem__)
    cosine = next(r["accuracy"]["cosine"] for r in whole if r["name"] == fastest)
    cosine = math.floor(cosine * 1e6) / 1e6  # a cosine is never shown better than it is
    assert line.startswith(f"Without a GPU: eager PyTorch {eager:.0f} ms, ")
    assert f"{fastest} {p50[fastest]:.0f} ms ({eager / p50[fastest]:.2f}×, cosine {cosine:.6f})" in line

"""The container files: their promises, and, on request, every step of them in a Debian root."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from dockerfiles import Image, build, debian_root, instructions

from gr00t_trt.plans.load import load_plan
from gr00t_trt.plans.shipped import shipped_plans
from gr00t_trt.run.program import parse as parse_run
from gr00t_trt.serve.flags import parse as parse_serve
from gr00t_trt.serve.flags import plan_of

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = ROOT / "containers"
DOCKERFILES = sorted(CONTAINERS.glob("*Dockerfile"))
SERVICES = [path for path in DOCKERFILES if path.name != "client.Dockerfile"]


def _named(dockerfile: Path) -> dict[str, str]:
    return dict(instructions(dockerfile))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_made_of_files_that_are_there_and_that_the_context_sends(dockerfile: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, rest in instructions(dockerfile):
        if name == "COPY" and not rest.startswith("--from="):
            assert set(rest.split()[:-1]) <= sent
            assert all((ROOT / source).exists() for source in rest.split()[:-1])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_does_not_run_as_root_and_names_its_base_by_version(dockerfile: Path) -> None:
    assert int(_named(dockerfile)["USER"]) > 1000
    name, base = instructions(dockerfile)[0]
    assert name == "ARG"
    assert re.fullmatch(r"BASE_IMAGE=[\w./-]+:[\w.-]*\d[\w.-]*", base)


@pytest.mark.parametrize("dockerfile", SERVICES, ids=lambda path: path.name)
def test_a_service_starts_by_its_command_and_is_asked_for_its_health_where_it_listens(
    dockerfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GR00T_API_TOKEN", "secret")
    said = _named(dockerfile)
    assert json.loads(said["ENTRYPOINT"]) == ["gr00t-trt"]
    program, *argv = json.loads(said["CMD"])
    assert program == "serve"
    args = parse_serve(argv)
    assert args.config in shipped_plans()
    plan_of(args)
    assert f"127.0.0.1:{args.http_port}/health" in said["HEALTHCHECK"]
    assert said["EXPOSE"].split() == [str(args.port), str(args.http_port)]
    assert said["VOLUME"] == "/cache"


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    command = [hadolint, "--no-color", "--config", CONTAINERS / "hadolint.yaml", *DOCKERFILES]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == ""


def test_the_composed_service_and_its_client_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR00T_API_TOKEN", "secret")
    services = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"]
    program, *argv = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word) for word in services["policy"]["command"]]
    args = parse_serve(argv)
    assert program == "serve"
    assert args.host == "0.0.0.0"
    plan_of(args)
    assert services["policy"]["ports"] == [f"{port}:{port}" for port in (args.port, args.http_port)]
    assert services["client"]["command"] == ["policy"]
    for service in services.values():
        assert (CONTAINERS / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert "GR00T_API_TOKEN" in service["environment"]


def test_the_workflow_for_engines_runs_commands_that_parse() -> None:
    workflow = yaml.safe_load((CONTAINERS / "engines_ci.yaml").read_text())
    steps = {step["name"]: step["run"] for step in workflow["jobs"]["build"]["steps"] if "run" in step}
    words = [
        string.Template(word).substitute(workflow["env"])
        for word in shlex.split(steps["Build and check"].replace("\\\n", ""))
    ]
    assert words[:2] == ["gr00t-trt", "run"]
    args, _ = parse_run(words[2:])
    assert args.config in shipped_plans()
    assert args.record in steps["Report"]


def test_plans_for_jetson_ask_for_a_backend_that_their_image_installs() -> None:
    orin, thor = (_named(CONTAINERS / f"{name}.Dockerfile") for name in ("orin", "thor"))
    assert load_plan("jetson_orin").backend == "tensorrt"  # Torch-TensorRT has no release for it
    assert "onnx" in orin["ARG"]
    assert load_plan("jetson_thor").backend == "torch_tensorrt"
    assert thor["CMD"].endswith('"jetson_thor"]')


# --- every step, in a Debian root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if os.geteuid() != 0 or not shutil.which("debootstrap") or not Path("/etc/debian_version").exists():
        pytest.skip("needs root and debootstrap on Debian")
    folder = tmp_path_factory.mktemp("debian")
    yield debian_root(folder / "root")
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serving(image: Image) -> Iterator[int]:
    """The image's service with the synthetic model, on free ports; gives the port of ZeroMQ once it is healthy."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    script = f"exec gr00t-trt serve --server --model_path synthetic --port {ports[0]} --http_port {ports[1]}"
    server = subprocess.Popen(image.argv(script), env=image.env)
    check = " ".join(map(shlex.quote, json.loads(image.healthcheck.partition("CMD ")[2])))
    try:
        for _ in range(120):
            time.sleep(1)
            try:
                image.run(check.replace(":8000/", f":{ports[1]}/"))
                break
            except AssertionError:
                assert server.poll() is None
        yield ports[0]
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0


def _client(base: Path, at: Path) -> Image:
    python = "apt-get update -q && apt-get install -qy python3-pip && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED"
    return build(CONTAINERS / "client.Dockerfile", ROOT, base, at, prepare=python)


@pytest.mark.packaging
def test_the_service_and_the_client_are_built_start_and_understand_each_other(base: Path, tmp_path: Path) -> None:
    args = {"EXTRAS": "serve,onnx"}  # TensorRT's libraries come from an index of NVIDIA's own
    image = build(CONTAINERS / "Dockerfile", ROOT, base, tmp_path / "service", args=args)
    assert "torch 2" in image.run("gr00t-trt --version")
    assert "jetson_thor" in image.run("gr00t-trt plans")
    client = _client(base, tmp_path / "client")
    client.run("python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec(\"torch\") is not None)'")
    with serving(image) as port:
        assert "action.left_arm: (16, 7)" in client.run(f"gr00t-trt-ask localhost --port {port}")
        assert image.run("stat -c %a /cache") == "700\n"


@pytest.mark.packaging
def test_the_steps_for_orin(base: Path, tmp_path: Path) -> None:
    args = {"TORCH_INDEX": "https://pypi.org/simple", "TORCH_VERSION": "2.13.0"}  # in place of NVIDIA's own for Jetson
    image = build(CONTAINERS / "orin.Dockerfile", ROOT, base, tmp_path, args=args)
    assert "torch 2.13.0" in image.run("gr00t-trt --version")
    assert "backend: tensorrt" in image.run("gr00t-trt plans jetson_orin")


@pytest.mark.packaging
def test_the_steps_for_thor_leave_the_images_own_torch_in_place(base: Path, tmp_path: Path) -> None:
    python = "apt-get update -q && apt-get install -qy python3-pip && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED"
    image = build(
        CONTAINERS / "thor.Dockerfile",
        ROOT,
        base,
        tmp_path,
        prepare=f"{python} && pip install --no-cache-dir torch==2.13.0",
    )
    assert "torch 2.13.0" in image.run("gr00t-trt --version")
    assert "backend: torch_tensorrt" in image.run("gr00t-trt plans jetson_thor")

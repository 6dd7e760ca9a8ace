"""Other weights in a deployment: the bits of a fresh start, at once or not at all, and nothing built that was there."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_graphs import FakeCapturer
from rich.console import Console
from torch import nn
from trained_pair import write_pair

import gr00t_trt
from gr00t_trt.backends.base import BuildContext, Built
from gr00t_trt.common.progress import Steps
from gr00t_trt.compile import capture
from gr00t_trt.compile.build import set_precision
from gr00t_trt.deploy.deploy import Deployment, deploy
from gr00t_trt.deploy.weights import Swap, Swapped, swap
from gr00t_trt.engines.key import weights_hash
from gr00t_trt.errors import AccuracyError, BackendError, CheckpointError, PlanError
from gr00t_trt.finetune.checkpoints import save
from gr00t_trt.finetune.widths import ACTION_AXES, widen_actions
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.backends import BACKENDS, Availability
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.policy.policy import Gr00tPolicy

QUIET = Steps(Console(file=io.StringIO()), None)
NOISE = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3))
compile_module = torch.compile
FAST = {"precision": "fp32", "loop": "denoise_loop", "denoising_steps": 1}
ONE = {"batch": [1, 1], "views": [1, 1]}
PLAIN = {"optimizations": [], "loop": "submodules", "denoising_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``old`` and ``new``, whose action head and statistics were trained."""
    return write_pair(tmp_path_factory.mktemp("weights"))


class Start:
    """Starts of one plan, all of which see the same request."""

    def __init__(self, **settings: Any):
        self.resolved = resolve(plan_from_mapping({"backend": "eager", **settings}, "test"), Machine("cpu"))

    def load(self, path: Path) -> Gr00tPolicy:
        return gr00t_trt.load_policy(path, dtype=partial(set_precision, plan=self.resolved.plan))

    def __call__(self, path: Path) -> Deployment:
        return deploy(self.load(path), self.resolved, QUIET)

    def swap(self, deployment: Deployment, path: Path, **settings: Any) -> Swapped:
        return swap(deployment, partial(self.load, path), QUIET, **settings)


def actions(deployment: Deployment) -> dict[str, np.ndarray]:
    policy = deployment.policy
    return policy.get_action(policy.example(), noise=NOISE)


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    assert all(np.array_equal(value, two[key]) for key, value in one.items())


def differ(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return any(not np.array_equal(value, two[key]) for key, value in one.items())


Expected = dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def served(folder: Path) -> Deployment:
    """The old checkpoint, for tests that leave it as it is."""
    return Start(**FAST)(folder / "old")


@pytest.fixture(scope="module")
def expected(folder: Path, served: Deployment) -> Expected:
    """The actions of a fresh start with each checkpoint."""
    return {"old": actions(served), "new": actions(Start(**FAST)(folder / "new"))}


@pytest.mark.parametrize(
    "settings",
    [
        {**PLAIN, "precision": "bf16"},
        {**PLAIN, "precision": "fp32", "submodules": {"action_decoder": {"backend": "inductor"}}, "ranges": ONE},
    ],
    ids=["eager", "compiled"],
)
def test_the_bits_are_those_of_a_fresh_start(
    folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled by torch.compile, but for the C++, which takes seconds: its guards and weights are those of a start."""
    monkeypatch.setattr(
        "gr00t_trt.backends.inductor.backend.torch.compile",
        lambda module, **_: compile_module(module, backend="eager", fullgraph=True),
    )
    start = Start(**settings)
    served, fresh = start(folder / "old"), start(folder / "new")
    policy, before = served.policy, actions(served)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    swapped = start.swap(served, folder / "new")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert swapped.deployment.policy is policy
    assert_same(actions(served), actions(fresh))
    assert differ(actions(served), before)
    assert (swapped.changed, swapped.unchanged) == (114, 63)
    assert (swapped.reused, swapped.rebuilt) == ((), ())
    assert swapped.agreement == fresh.record.request.accuracy == swapped.deployment.record.request.accuracy


def test_there_and_back(folder: Path, served: Deployment, expected: Expected) -> None:
    """What the restructured model has computed from weights follows them, and so do the statistics."""
    start = Start(**FAST)
    assert differ(expected["old"], expected["new"])
    for name in ("new", "old"):
        start.swap(served, folder / name, check=name == "old")
        assert_same(actions(served), expected[name])


class Baked:
    """As a compiler whose engines hold the weights that they were built from, and keep for the next build."""

    name, capturable = "torch_tensorrt", "one shape"

    def __init__(self) -> None:
        self.built: list[str] = []
        self.cache: dict[str, nn.Module] = {}
        self.spoil: Callable[[str], float] = lambda name: 0.0

    def availability(self) -> Availability:
        return Availability(True, "")

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        key = f"{target.name} {weights_hash(target.module)}"
        known = key in self.cache
        if not known:
            self.built.append(target.name)
        engine = self.cache.setdefault(key, copy.deepcopy(target.module))
        error = self.spoil(target.name)
        return Built(call=lambda *args: engine(*args) + error, runs=False, build_s=0.0, from_cache=known)


@pytest.fixture
def baked(monkeypatch: pytest.MonkeyPatch) -> Baked:
    made, row = Baked(), copy.copy(BACKENDS["torch_tensorrt"])
    row.__dict__["backend"] = made
    monkeypatch.setitem(BACKENDS, "torch_tensorrt", row)
    return made


ENGINES = {**FAST, "backend": "torch_tensorrt"}


def test_engines_of_the_same_weights_are_kept_and_all_others_built(
    folder: Path, baked: Baked, expected: Expected
) -> None:
    start = Start(**ENGINES)
    served = start(folder / "old")
    assert baked.built == list(served.parts)
    before = {name: part.built for name, part in served.parts.items()}
    baked.built.clear()
    swapped = start.swap(served, folder / "new")
    assert swapped.reused == ("vision_model", "language_model", "state_encoder")
    assert swapped.rebuilt == tuple(baked.built) == ("vl_components", "denoise_loop")
    assert all((swapped.deployment.parts[name].built is before[name]) == (name in swapped.reused) for name in before)
    assert_same(actions(served), expected["new"])
    assert {name for name in swapped.seconds if name in before} == {"vl_components", "denoise_loop"}
    baked.built.clear()
    back = start.swap(swapped.deployment, folder / "old")
    assert (back.from_cache, baked.built) == (("vl_components", "denoise_loop"), [])
    assert_same(actions(served), expected["old"])


@pytest.mark.parametrize("where", ["denoise_loop", "build"])
def test_engines_that_miss_their_gate_or_cannot_be_built_change_nothing(folder: Path, baked: Baked, where: str) -> None:
    start = Start(**ENGINES)
    served = start(folder / "old")
    before = actions(served)

    def spoil(name: str) -> float:
        if where == "build":
            raise BackendError("no kernel for this")
        return 0.3 if name == where else 0.0

    baked.spoil = spoil
    with pytest.raises(BackendError if where == "build" else AccuracyError, match=r"no kernel|denoise_loop: cosine"):
        start.swap(served, folder / "new")
    assert_same(actions(served), before)


def test_actions_that_miss_their_gate_bring_the_old_weights_back(
    folder: Path, served: Deployment, monkeypatch: pytest.MonkeyPatch, expected: Expected
) -> None:
    """Found only when the weights are in place: the gate of the actions is raised meanwhile."""
    statistics = served.policy.metadata
    made = Swap(served, Start(**FAST).load(folder / "new"), QUIET)
    made.prepare()
    assert_same(actions(served), expected["old"])
    monkeypatch.setattr("gr00t_trt.deploy.weights.judge", lambda name, *_: (f"{name}: cosine 0.2 is below 0.9",))
    with pytest.raises(AccuracyError, match=r"actions: cosine 0\.2"):
        made.commit()
    assert_same(actions(served), expected["old"])
    assert served.policy.metadata is statistics


def test_graphs_are_captured_anew_of_the_new_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, expected: Expected
) -> None:
    capturers: list[FakeCapturer] = []

    def capturer_for(device: torch.device) -> FakeCapturer:
        capturers.append(FakeCapturer())
        return capturers[-1]

    monkeypatch.setattr(capture, "capturer_for", capturer_for)
    start = Start(**FAST, cuda_graph="startup", cuda_graph_lengths=[300])
    served = start(folder / "old")
    lengths = served.policy.model.graphs.prompt_lengths
    start.swap(served, folder / "new")
    assert served.policy.model.graphs.prompt_lengths == lengths
    before = capturers[0].captured, capturers[0].replays
    found = actions(served)
    assert (capturers[0].captured, capturers[0].replays) == (before[0], before[1] + 1)
    assert_same(found, expected["new"])


def _wider(policy: Gr00tPolicy, root: Path) -> Path:
    widen_actions(policy.model, 40)
    names = {name: nn.Parameter(dict(policy.model.named_parameters())[name].detach()) for name in ACTION_AXES}
    trained = {name: parameter.detach() for name, parameter in names.items()}
    own = {"gr1": policy.metadata}
    return save(root, 1, trained, torch.optim.AdamW(names.values()), names, {}, "synthetic", own)


def test_another_geometry_is_refused(served: Deployment, tmp_path: Path, expected: Expected) -> None:
    with pytest.raises(CheckpointError, match=r"action_head\.action_dim is 40, and 32"):
        Start(**FAST).swap(served, _wider(gr00t_trt.load_policy("synthetic"), tmp_path))
    assert_same(actions(served), expected["old"])


def test_another_robot_is_refused(served: Deployment) -> None:
    with pytest.raises(CheckpointError, match="data configs differ: fourier_gr1_arms_waist"):
        swap(served, lambda: gr00t_trt.load_policy("synthetic", data_config="fourier_gr1_arms_waist"), QUIET)
    with pytest.raises(CheckpointError, match="embodiment tags differ: new_embodiment"):
        swap(served, lambda: gr00t_trt.load_policy("synthetic", embodiment_tag="new_embodiment"), QUIET)


def test_a_deployment_that_was_not_built_here_is_refused(folder: Path, served: Deployment) -> None:
    bundled = Deployment(served.policy, served.backends, served.record)
    with pytest.raises(PlanError, match="nothing was built here"):
        Start(**FAST).swap(bundled, folder / "new")

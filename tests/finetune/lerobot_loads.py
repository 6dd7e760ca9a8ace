"""The original's model code, which LeRobot 0.4 carries, on a checkpoint of ours; for a Python that has lerobot.

    HF_LEROBOT_HOME=EMPTY python lerobot_loads.py GOLDEN RUN

GOLDEN is the folder of the toy checkpoint. A step of a training that began with it is written into RUN, every weight of
the action head changed. Prints a JSON object: how far the actions of the original's code are from ours, and from those
of the base model.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "deploy"))
from lerobot_policy import WIDTH, chunk, lay_out_assets, policy, without_flash_attention

from gr00t_trt.finetune.checkpoints import save
from gr00t_trt.finetune.optimizer import make_optimizer
from gr00t_trt.model import load_model


def main(golden: Path, run: Path) -> dict[str, float]:
    lay_out_assets()
    without_flash_attention()
    base = golden / "checkpoint"
    model, generator = load_model(base), torch.Generator().manual_seed(0)
    names = {name: weight for name, weight in model.named_parameters() if name.startswith("action_head.")}
    with torch.no_grad():
        for weight in names.values():
            weight += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    trained = {name: weight.detach() for name, weight in names.items()}
    optimizer = make_optimizer(model, names, weight_decay=0.0, fused=False)
    step = save(run, 1, trained, optimizer, names, {}, base, {})
    case = load_file(str(golden / "case_b1_v1.safetensors"))
    theirs, before = chunk(policy(False, step), case), chunk(policy(False, base), case)
    inputs = {key.removeprefix("in."): value for key, value in case.items() if key.startswith("in.")}
    noise = inputs.pop("noise")
    with torch.inference_mode():
        ours = load_model(step).get_action(inputs, noise=noise)["action_pred"][..., :WIDTH]
    return {"to_ours": float((theirs - ours).abs().max()), "to_base": float((theirs - before).abs().max())}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = main(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(found))

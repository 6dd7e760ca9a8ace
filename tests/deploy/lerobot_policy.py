"""LeRobot's own GrootPolicy before and after `accelerate`, for a Python that has lerobot and our package on its path.

    HF_LEROBOT_HOME=EMPTY python lerobot_policy.py GOLDEN

GOLDEN is the folder of the toy checkpoint with what the original computed.
Prints one JSON list, an entry for every way of running the policy.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.groot import groot_n1
from lerobot.policies.groot.configuration_groot import GrootConfig
from lerobot.policies.groot.modeling_groot import GrootPolicy
from safetensors.torch import load_file
from torch import Tensor
from transformers import SiglipVisionModel

import gr00t_trt
from gr00t_trt.errors import Gr00tError
from gr00t_trt.plans.load import plan_from_mapping

GOLDEN = Path(sys.argv[1])

ASSETS = ("vocab.json", "merges.txt", "added_tokens.json", "chat_template.json", "special_tokens_map.json")
CONFIGS = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
WIDTH = 5


def lay_out_assets() -> None:
    """What LeRobot would download: the toy's geometry in the place of the released one's, and no tokenizer."""
    folder = groot_n1.HF_LEROBOT_HOME / groot_n1.DEFAULT_TOKENIZER_ASSETS_REPO
    folder.mkdir(parents=True)
    for name in (*ASSETS, *CONFIGS):
        (folder / name).write_text("{}")
    eagle = json.loads((GOLDEN / "checkpoint" / "eagle_config.json").read_text())
    classes = ("configuration_eagle2_5_vl.Eagle25VLConfig", "modeling_eagle2_5_vl.Eagle25VLForConditionalGeneration")
    eagle |= {"auto_map": dict(zip(("AutoConfig", "AutoModel"), classes, strict=True)), "_attn_implementation": "sdpa"}
    (folder / "config.json").write_text(json.dumps(eagle))


def without_flash_attention() -> None:
    """The vision tower asks for FlashAttention, which is for GPUs."""
    made = SiglipVisionModel.__init__

    def init(self: Any, config: Any) -> None:
        config._attn_implementation = "sdpa"
        made(self, config)

    SiglipVisionModel.__init__ = init


def policy(use_bf16: bool, checkpoint: Path = GOLDEN / "checkpoint") -> GrootPolicy:
    camera = {"observation.images.camera": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 224, 224))}
    config = GrootConfig(
        base_model_path=str(checkpoint),
        use_bf16=use_bf16,
        chunk_size=6,
        n_action_steps=6,
        max_state_dim=9,
        max_action_dim=7,
        device="cpu",
        input_features=camera,
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(WIDTH,))},
    )
    return GrootPolicy(config).eval()


def chunk(policy: GrootPolicy, case: dict[str, Tensor]) -> Tensor:
    """Its actions from the case's noise."""
    randn, inputs = torch.randn, {k.removeprefix("in."): v for k, v in case.items() if k.startswith("in.")}
    torch.randn = lambda *args, **kwargs: case["in.noise"].to(kwargs.get("dtype") or torch.float32)
    try:
        return policy.predict_action_chunk(inputs)
    finally:
        torch.randn = randn


def agreement(policy: GrootPolicy, case: dict[str, Tensor], precision: str | None) -> dict[str, Any]:
    plan = None if precision is None else plan_from_mapping({"backend": "eager", "precision": precision}, "test")
    before = chunk(policy, case)
    done = gr00t_trt.accelerate(policy, plan)
    after = chunk(policy, case)
    inputs = {k.removeprefix("in."): v for k, v in case.items() if k.startswith("in.")}
    policy.reset()
    one = policy.select_action(inputs)
    next(policy._groot_model.action_head.model.parameters()).data.mul_(1.01)
    try:
        policy.predict_action_chunk(inputs)
        refused = ""
    except Gr00tError as error:
        refused = str(error)
    next(policy._groot_model.action_head.model.parameters()).data.div_(1.01)
    done.restore()
    a, b, recorded = (x.double().flatten() for x in (after, before, case["out.action_pred"][..., :WIDTH]))
    return {
        "plan": precision or "default",
        "runs": done.deployment.backends["dit_model"],
        "dtypes": [str(before.dtype), str(after.dtype), str(one.dtype)],
        "shapes": [list(before.shape), list(after.shape), list(one.shape)],
        "cosine": float(torch.cosine_similarity(a, b, dim=0)),
        "max_abs": float((a - b).abs().max()),
        "max_abs_to_recorded": float((a - recorded).abs().max()),
        "refused": refused,
    }


def main() -> list[dict[str, Any]]:
    lay_out_assets()
    without_flash_attention()
    case, out = load_file(str(GOLDEN / "case_b1_v1.safetensors")), []
    for weights, use_bf16, plans in (
        (torch.float32, True, (None, "bf16")),
        (torch.float32, False, (None,)),
        (torch.bfloat16, True, (None, "bf16")),
    ):
        subject = policy(use_bf16).to(weights)
        about = {"use_bf16": use_bf16, "weights": str(weights)}
        out += [{**about, **agreement(subject, case, precision)} for precision in plans]
    return out


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        results = main()
    print(json.dumps(results))

"""What the real LeRobot makes of a tiny GR00T N1.5; run by a Python that has LeRobot, see `test_lerobot_real.py`.

    python lerobot_reference.py FOLDER

FOLDER holds `base` (a checkpoint in NVIDIA's layout), `assets` (tokenizer and configuration of the Eagle processor) and
`request.json`. Written beside them: `pretrained_model`, saved as LeRobot's training does; `expected.safetensors`; and a
LoRA adapter of the base with the weights that PEFT merges it to.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
REQUEST = json.loads((FOLDER / "request.json").read_text())
HOME = FOLDER / "lerobot_home"
os.environ |= {"HF_LEROBOT_HOME": str(HOME), "HF_HOME": str(FOLDER / "hf_home"), "HF_HUB_OFFLINE": "1"}
ASSETS = HOME / "lerobot" / "eagle2hg-processor-groot-n1p5"
shutil.copytree(FOLDER / "assets", ASSETS)

import torch  # noqa: E402
from lerobot.configs.types import FeatureType, PolicyFeature  # noqa: E402
from lerobot.policies.groot.configuration_groot import GrootConfig  # noqa: E402
from lerobot.policies.groot.modeling_groot import GrootPolicy  # noqa: E402
from lerobot.policies.groot.processor_groot import make_groot_pre_post_processors  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402


def without_flash_attention() -> None:
    """The Eagle model insists on a library for GPUs; plain attention computes the same."""
    PreTrainedModel._check_and_adjust_attn_implementation = lambda *_, **__: "eager"


def make_policy() -> GrootPolicy:
    shapes = {f"observation.images.{name}": tuple(shape) for name, shape in REQUEST["cameras"].items()}
    config = GrootConfig(
        base_model_path=str(FOLDER / "base"),
        input_features={
            **{key: PolicyFeature(FeatureType.VISUAL, shape) for key, shape in shapes.items()},
            "observation.state": PolicyFeature(FeatureType.STATE, (REQUEST["width"],)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (REQUEST["width"],))},
        embodiment_tag=REQUEST["embodiment_tag"],
        device="cpu",
        use_bf16=False,
    )
    return GrootPolicy(config).eval()


def save_adapter(model: torch.nn.Module) -> None:
    names = ["action_head.model.transformer_blocks.0.attn1.to_q", "action_head.model.transformer_blocks.1.attn1.to_v"]
    options = LoraConfig(r=4, lora_alpha=12, target_modules=names, use_rslora=REQUEST["use_rslora"])
    adapted = get_peft_model(model, options)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.peft_config["default"].base_model_name_or_path = str(FOLDER / "base")
    adapted.save_pretrained(str(FOLDER / "adapter"))
    merged = adapted.merge_and_unload().state_dict()
    save_file(
        {f"{name}.weight": merged[f"{name}.weight"].clone() for name in names}, str(FOLDER / "merged.safetensors")
    )


def main() -> None:
    torch.set_num_threads(1)
    without_flash_attention()
    policy = make_policy()
    stats = {key: {name: torch.tensor(value) for name, value in own.items()} for key, own in REQUEST["stats"].items()}
    preprocessor, postprocessor = make_groot_pre_post_processors(policy.config, dataset_stats=stats)
    for part in (policy, preprocessor, postprocessor):
        part.save_pretrained(FOLDER / "pretrained_model")
    given = load_file(FOLDER / "observation.safetensors")
    images = {key: value.permute(2, 0, 1).float() / 255 for key, value in given.items() if "images" in key}
    expected = {}
    for number, task in enumerate(REQUEST["tasks"]):
        inputs = preprocessor({**images, "observation.state": given["observation.state"], "task": task})
        torch.manual_seed(number)
        chunk = policy.predict_action_chunk(inputs)
        torch.manual_seed(number)
        head = policy._groot_model.action_head.config
        expected[f"{number}.noise"] = torch.randn(1, head.action_horizon, head.action_dim)
        for key in ("state", "embodiment_id", "eagle_pixel_values", "eagle_input_ids", "eagle_attention_mask"):
            expected[f"{number}.{key}"] = inputs[key].clone().contiguous()
        expected[f"{number}.action"] = torch.stack([postprocessor(row) for row in chunk[0][:, None]])[:, 0]
    save_file(expected, str(FOLDER / "expected.safetensors"))
    save_adapter(policy._groot_model)


if __name__ == "__main__":
    main()

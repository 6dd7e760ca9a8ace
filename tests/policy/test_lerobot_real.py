"""A checkpoint that the real LeRobot saves, in the Python that GR00T_TRT_LEROBOT_PYTHON names: inputs and actions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CAMERAS, WIDTH, eagle_config, statistics, write_base, write_vocabulary
from safetensors.torch import load_file, save_file

from gr00t_trt.model import load_model
from gr00t_trt.policy import load_policy

PYTHON = os.environ.get("GR00T_TRT_LEROBOT_PYTHON")
TASKS = ["pick up the cube", "", "don't drop it"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% set ns = namespace(n=0) %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{% set ns.n = ns.n + 1 %}<image-{{ ns.n }}>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The conversation as the original's template renders it."""

pytestmark = pytest.mark.skipif(not PYTHON, reason="GR00T_TRT_LEROBOT_PYTHON names no Python with LeRobot")


def write_assets(folder: Path, model: Any) -> None:
    write_vocabulary(folder, dict(model.config.special_tokens))
    code = {"AutoConfig": "configuration_eagle2_5_vl.Eagle25VLConfig",
            "AutoModel": "modeling_eagle2_5_vl.Eagle25VLForConditionalGeneration"}  # fmt: skip
    images = {
        "auto_map": {"AutoImageProcessor": "image_processing_eagle2_5_vl_fast.Eagle25VLImageProcessorFast",
                     "AutoProcessor": "processing_eagle2_5_vl.Eagle25VLProcessor"},
        "image_processor_type": "Eagle25VLImageProcessorFast",
        "processor_class": "Eagle25VLProcessor",
        "size": {"height": 224, "width": 224},
        "do_resize": False,
        "do_pad": False,
        "max_dynamic_tiles": 12,
        "min_dynamic_tiles": 1,
        "use_thumbnail": True,
    }  # fmt: skip
    processor = {
        "auto_map": {"AutoProcessor": "processing_eagle2_5_vl.Eagle25VLProcessor"},
        "processor_class": "Eagle25VLProcessor",
        "tokens_per_tile": 256,
    }
    files = {
        "config.json": {**eagle_config(model), "auto_map": code},
        "preprocessor_config.json": images,
        "processor_config.json": processor,
        "generation_config.json": {},
        "special_tokens_map.json": {"pad_token": "<|endoftext|>"},
        "chat_template.json": {"chat_template": TEMPLATE},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lerobot_reference.py` leaves behind."""
    folder = tmp_path_factory.mktemp("lerobot")
    model = load_model("synthetic")
    write_base(folder / "base", model)
    write_assets(folder / "assets", model)
    random = np.random.default_rng(1)
    images = {f"observation.images.{name}": random.integers(0, 256, (h, w, 3), dtype=np.uint8)
              for name, (_, h, w) in CAMERAS.items()}  # fmt: skip
    state = torch.tensor(random.normal(size=WIDTH), dtype=torch.float32)
    tensors = {key: torch.from_numpy(image) for key, image in images.items()}
    save_file({**tensors, "observation.state": state}, str(folder / "observation.safetensors"))
    request = {"cameras": CAMERAS, "width": WIDTH, "embodiment_tag": "so100", "stats": statistics(), "tasks": TASKS}
    (folder / "request.json").write_text(json.dumps({**request, "use_rslora": True}))
    script = Path(__file__).with_name("lerobot_reference.py")
    done = subprocess.run([str(PYTHON), str(script), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("number", range(len(TASKS)))
def test_inputs_and_actions_are_those_of_lerobot(saved: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(saved / "lerobot_home"))
    policy = load_policy(saved / "pretrained_model")
    given = load_file(saved / "observation.safetensors")
    observation = {f"video.{name}": given[f"observation.images.{name}"][None].numpy() for name in CAMERAS}
    observation["state.state"] = given["observation.state"][None].numpy()
    observation["annotation.human.task_description"] = [TASKS[number]]
    expected = load_file(saved / "expected.safetensors")
    want = {key.removeprefix(f"{number}."): value for key, value in expected.items() if key.startswith(f"{number}.")}
    inputs, batched = policy.preprocess(observation)
    assert torch.equal(inputs["eagle_input_ids"], want["eagle_input_ids"])
    assert torch.equal(inputs["eagle_attention_mask"], want["eagle_attention_mask"])
    assert torch.equal(inputs["embodiment_id"], want["embodiment_id"])
    assert torch.equal(inputs["state"].float(), want["state"])
    torch.testing.assert_close(inputs["eagle_pixel_values"], want["eagle_pixel_values"], rtol=0, atol=1e-6)
    output = policy.model.get_action(inputs, noise=want["noise"])["action_pred"]
    action = policy.postprocess(output, batched=batched)
    np.testing.assert_allclose(action["action.action"], want["action"].numpy(), atol=1e-5)


def test_a_lora_adapter_is_applied_as_peft_merges_it(saved: Path) -> None:
    base, adapted = load_model(saved / "base").state_dict(), load_model(saved / "adapter").state_dict()
    merged = load_file(saved / "merged.safetensors")
    for name, value in adapted.items():
        if name in merged:
            assert not torch.equal(value, base[name])
            torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)
        else:
            assert torch.equal(value, base[name])

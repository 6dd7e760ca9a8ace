"""The flags that name a policy and its data, declared once for all programs. Never imports torch."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError

FRAME_RULES = {"torchcodec": "on_screen", "torchvision_av": "on_screen", "decord": "nearest"}
"""Published video backend -> the rule by which it picks the frame of a row. Frames are always decoded with PyAV."""


class Default(str):
    """The value of a text flag that nobody chose, so that a checkpoint may know better."""


FLAGS: dict[str, dict[str, Any]] = {
    "model_path": {
        "default": "nvidia/GR00T-N1.5-3B",
        "metavar": "PATH",
        "help": "checkpoint folder, hub id, `synthetic` (tiny) or `synthetic:full` [%(default)s]",
    },
    "dataset_path": {
        "metavar": "PATH",
        "help": "LeRobot dataset whose observation is used, or `synthetic` [%(default)s]",
    },
    "data_config": {
        "default": Default("fourier_gr1_arms_only"),
        "metavar": "NAME",
        "help": "keys and transforms: a built-in name or module:Class [%(default)s; LeRobot's checkpoints: their own]",
    },
    "embodiment_tag": {
        "default": Default("gr1"),
        "metavar": "TAG",
        "help": "projector and statistics: gr1, oxe_droid, agibot_genie1, new_embodiment [%(default)s]",
    },
    "metadata": {"metavar": "PATH", "help": "metadata.json to use instead of the checkpoint's own"},
    "tokenizer": {"metavar": "PATH", "help": "tokenizer folder, tokenizer.json or hub id [found by itself]"},
    "bracketed_instruction": {
        "action": "store_true",
        "default": False,
        "help": "put the instruction into the prompt as ['text'], as the original does for single requests",
    },
    "denoising_steps": {"type": int, "metavar": "N", "help": "Euler steps per action chunk [4]"},
    "episode": {"type": int, "default": 0, "metavar": "N", "help": "episode of the observation [%(default)s]"},
    "step": {"type": int, "default": 0, "metavar": "N", "help": "row within the episode [%(default)s]"},
    "frame_lookup": {
        "default": "index",
        "metavar": "RULE",
        "help": "video frame of a row: index (frame i for row i), nearest, on_screen [%(default)s]",
    },
    "seed": {"type": int, "default": 0, "metavar": "N", "help": "seed of the initial noise [%(default)s]"},
    "device": {"metavar": "DEVICE", "help": "cuda:0, cpu [cuda:0 where there is one]"},
}
"""Flag -> how argparse is told of it; the fields of `source.Source`, and what goes with them."""

POLICY = (
    *("model_path", "data_config", "embodiment_tag", "denoising_steps", "metadata", "tokenizer"),
    "bracketed_instruction",
)
"""Those that say which policy is meant."""


def optional(text: str) -> str | None:
    """A text flag that takes `None` for nothing, as NVIDIA's programs do."""
    return None if text == "None" else text


def source_flags(group: Any, *names: str, helps: dict[str, str] | None = None, **defaults: Any) -> None:
    """Add some of `FLAGS`.

    Args:
        helps: Other words for some of them. defaults: Other defaults; a text flag whose default is None takes `None`.
    """
    for name in names:
        how = dict(FLAGS[name])
        if name in defaults:
            how["default"] = defaults[name]
            if isinstance(how["default"], str):
                how["default"] = Default(how["default"])
            if defaults[name] is None:
                how["type"] = optional
        how["help"] = (helps or {}).get(name, how["help"])
        group.add_argument(f"--{name}", **how)


def check_seed(value: int) -> None:
    """Raises: UsageError for one that no generator takes."""
    check_range("seed", value)


def check_range(flag: str, value: int) -> None:
    """Raises: UsageError for a number outside 0 to 2^63 - 1."""
    if not 0 <= value < 2**63:
        raise UsageError(f"--{flag}: {value} is out of range", known="0 to 2^63 - 1")

"""Data: datasets on disk, observations, and the arithmetic between them and the model's inputs and actions."""

from ..common.interface import ModalityConfig
from .concat_transform import ConcatTransform
from .embodiments import DATA_CONFIGS, DataConfig, Processing, data_config
from .lerobot import FRAME_LOOKUPS, LeRobotDataset
from .metadata import EMBODIMENT_TAGS, DatasetMetadata, PartInfo, Statistics, VideoInfo, embodiment_index, metadata_path
from .observation import example_observation, validate_observation
from .prompt import Prompter, bracketed
from .state_action_transforms import (
    StateActionDropout,
    StateActionPerturbation,
    StateActionSinCosTransform,
    StateActionToTensor,
    StateActionTransform,
)
from .synthetic import synthetic_dataset, write_synthetic_dataset
from .tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer, synthetic_tokenizer
from .transforms import DEFAULT_TEXT, ComposedModalityTransform, GR00TTransform, ModalityTransform
from .video_transforms import (
    VideoColorJitter,
    VideoCrop,
    VideoGrayscale,
    VideoHorizontalFlip,
    VideoRandomGrayscale,
    VideoRandomPosterize,
    VideoRandomRotation,
    VideoResize,
    VideoToNumpy,
    VideoToTensor,
)

read_metadata = DatasetMetadata.load

__all__ = [
    "DATA_CONFIGS", "DEFAULT_TEXT", "EMBODIMENT_TAGS", "FRAME_LOOKUPS", "SPECIAL_TOKENS", "ComposedModalityTransform",
    "ConcatTransform", "DataConfig", "DatasetMetadata", "GR00TTransform", "LeRobotDataset", "ModalityConfig",
    "ModalityTransform", "PartInfo", "Processing", "Prompter", "StateActionDropout", "StateActionPerturbation",
    "StateActionSinCosTransform", "StateActionToTensor", "StateActionTransform", "Statistics", "Tokenizer",
    "VideoColorJitter", "VideoCrop", "VideoGrayscale", "VideoHorizontalFlip", "VideoInfo", "VideoRandomGrayscale",
    "VideoRandomPosterize", "VideoRandomRotation", "VideoResize", "VideoToNumpy", "VideoToTensor", "bracketed",
    "data_config", "embodiment_index", "example_observation", "load_tokenizer", "metadata_path", "read_metadata",
    "synthetic_dataset", "synthetic_tokenizer", "validate_observation", "write_synthetic_dataset",
]  # fmt: skip


def __getattr__(name: str) -> type[DataConfig]:
    # The classes of the built-in data configs, for subclassing: So100DataConfig and so on.
    for cls in DATA_CONFIGS.values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

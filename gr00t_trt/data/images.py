"""Camera frames that are stored as PNG or JPEG images in a parquet column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..common.video_file import decode_image
from ..errors import DatasetError
from .layout import inside
from .meta_files import shown
from .rows import EpisodeRows


def stored_images(rows: EpisodeRows, feature: str, indices: np.ndarray, root: Path, most_pixels: int) -> np.ndarray:
    """The images of some rows, uint8 RGB [T, H, W, 3].

    Args:
        feature: The column, of ``{"bytes": ..., "path": ...}``, of bytes, or of paths inside the dataset.
        indices: int64 [T], rows of the episode.
        root: The dataset's folder.
        most_pixels: Of one image; a larger one is not decoded.
    Raises: DatasetError naming file, column and row.
    """
    images = []
    for row in indices.tolist():
        where = f"{rows.table.path}: column {feature!r}, row {row}"
        data = _encoded(rows.image(feature, row), root, where)
        images.append(decode_image(data, where, most_pixels))
    if len({image.shape for image in images}) > 1:
        raise DatasetError(f"{rows.table.path}: images of column {feature!r} differ in size")
    return np.stack(images)


def _encoded(value: Any, root: Path, where: str) -> bytes:
    """The bytes of an image that lies in the column or in a file of its own."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(data, bytes):
        return data
    if not isinstance(path, str) or not inside(path):
        raise DatasetError(f"{where}: {shown(value)}", known="bytes of an image, or a path inside the dataset folder")
    file = root / path
    try:
        return file.read_bytes()
    except OSError as error:
        what = f"{where}: {file} cannot be read: {error.strerror}"
        raise DatasetError(what, fix="fetch the file, or the whole dataset, again") from error

"""State and action vectors between physical units and the model's [-1, 1].

Source: Isaac-GR00T, gr00t/data/transform/state_action.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from ..errors import ObservationError, PlanError, unknown
from .device import on_host
from .metadata import ROTATIONS, DatasetMetadata, Statistics
from .rotations import BOUNDS, WIDTHS, convert
from .transforms import Data, Draw, ModalityTransform, get

MODES = ("min_max", "q99", "mean_std", "binary", "scale")


class Normalizer:
    """One part's normalisation, element-wise in the dtype of its input.

    Args:
        mode: One of `MODES`.
        statistics: Of width D, in physical units.
    Raises: PlanError for an unknown mode; by `inverse` for ``scale``, which has none.
    """

    def __init__(self, mode: str, statistics: Statistics):
        if mode not in MODES:
            raise unknown(PlanError, "normalization mode", mode, MODES)
        self.mode = mode
        self._statistics = {name: torch.from_numpy(getattr(statistics, name)) for name in vars(statistics)}
        self._tables: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] physical to normalised. Only ``q99`` clamps; constant columns give 0 (min_max, scale) or x."""
        if self.mode == "binary":
            return (x > 0.5).to(x.dtype)
        table = self._table(x)
        divided = (x - table["offset"]) / table["divisor"]
        if self.mode == "mean_std":
            return torch.where(table["varies"], divided, x)
        if self.mode == "scale":
            return torch.where(table["varies"], divided, torch.zeros_like(x))
        scaled = 2 * divided - 1
        if self.mode == "min_max":
            return torch.where(table["varies"], scaled, torch.zeros_like(x))
        return torch.where(table["varies"], scaled, x).clamp(-1, 1)

    def inverse(self, y: Tensor) -> Tensor:
        """[..., D] normalised to physical, without clamping; constant columns give their value."""
        if self.mode == "binary":
            return (y > 0.5).to(y.dtype)
        if self.mode == "scale":
            raise PlanError("normalization mode scale has no inverse", known="min_max, q99, mean_std, binary")
        table = self._table(y)
        if self.mode == "mean_std":
            return y * table["span"] + table["offset"]
        return (y + 1) / 2 * table["span"] + table["offset"]

    def _table(self, x: Tensor) -> dict[str, Tensor]:
        """In the dtype and on the device of `x`: offset, span, which columns vary, and span as a divisor.

        Kept, so that a device gets its copy once.
        """
        key = (x.dtype, x.device)
        if key not in self._tables:
            get = {name: value.to(x.dtype) for name, value in self._statistics.items()}
            if self.mode == "mean_std":
                offset, span = get["mean"], get["std"]
            elif self.mode == "scale":
                span = torch.maximum(get["min"].abs(), get["max"].abs())
                offset = torch.zeros_like(span)
            else:
                low, high = ("q01", "q99") if self.mode == "q99" else ("min", "max")
                offset, span = get[low], get[high] - get[low]
            varies = span != 0
            # Where a column does not vary the quotient is not used.
            table = {"offset": offset, "span": span, "varies": varies, "divisor": torch.where(varies, span, 1.0)}
            self._tables[key] = {name: value.to(x.device) for name, value in table.items()}
        return self._tables[key]


class StateActionToTensor(ModalityTransform):
    """numpy to torch and back, keeping the dtype unless told otherwise; tensors on an accelerator stay there.

    Args:
        apply_to: Full keys.
        input_dtypes: Key -> numpy dtype that the value must have.
        output_dtypes: Key -> torch dtype to cast to.
    """

    def __init__(
        self,
        apply_to: Iterable[str],
        input_dtypes: Mapping[str, DTypeLike] | None = None,
        output_dtypes: Mapping[str, torch.dtype] | None = None,
    ):
        super().__init__(apply_to)
        self.input_dtypes, self.output_dtypes = dict(input_dtypes or {}), dict(output_dtypes or {})

    def apply(self, data: Data) -> Data:
        return self._each(data, self._to_tensor)

    def _to_tensor(self, key: str, value: Any) -> Tensor:
        value = value if isinstance(value, Tensor) else torch.tensor(np.asarray(value))
        wanted = self.input_dtypes.get(key)
        given = str(value.dtype).removeprefix("torch.")
        if wanted is not None and given != np.dtype(wanted).name:
            raise ObservationError(f"{key} is {given}", known=f"{np.dtype(wanted)} by the data config")
        return value.to(self.output_dtypes.get(key, value.dtype))

    def unapply(self, data: Data) -> Data:
        return self._each(data, lambda _, x: x.detach().numpy() if isinstance(x, Tensor) and on_host(x) else x)


class StateActionTransform(ModalityTransform):
    """Rotations to another representation, then normalisation; the inverse undoes both.

    Arithmetic and results keep the dtype of the values that are passed in.

    Args:
        apply_to: Full keys.
        normalization_modes: Key -> one of `MODES`; keys without one pass unchanged.
        target_rotations: Key -> one of the rotation types; the metadata says what it is converted from.
    Raises: by `set_metadata`, PlanError for a mode or rotation that the part does not permit.
    """

    def __init__(
        self,
        apply_to: Iterable[str],
        normalization_modes: Mapping[str, str] | None = None,
        target_rotations: Mapping[str, str] | None = None,
        **training: Any,
    ):
        super().__init__(apply_to)
        self.normalization_modes = dict(normalization_modes or {})
        self.target_rotations = dict(target_rotations or {})
        for key in [*self.normalization_modes, *self.target_rotations]:
            if key not in self.apply_to:
                raise unknown(PlanError, "StateActionTransform: key outside apply_to", key, self.apply_to)
        for key, mode in self.normalization_modes.items():
            if mode not in MODES:
                raise unknown(PlanError, f"normalization_modes: {key}", mode, MODES)
        for key, rotation in self.target_rotations.items():
            if rotation not in ROTATIONS:
                raise unknown(PlanError, f"target_rotations: {key}", rotation, ROTATIONS)
        self._rotations: dict[str, tuple[str, str]] = {}
        self._normalizers: dict[str, Normalizer] = {}

    def set_metadata(self, metadata: DatasetMetadata) -> None:
        self._rotations, self._normalizers = {}, {}
        for key, target in self.target_rotations.items():
            source = metadata.part(key).rotation_type
            if source is None:
                raise PlanError(
                    f"{key}: to be converted to {target}, but the metadata gives it no rotation_type",
                    known=ROTATIONS,
                    fix="set rotation_type for the part in modality.json and in the checkpoint's metadata.json",
                )
            if source.startswith("euler") and target.startswith("euler") and source != target:
                raise PlanError(f"{key}: {source} to {target}: Euler angles are not converted to another order")
            if source != target:
                self._check_action(key, metadata.part(key).width, source, target)
                self._rotations[key] = (source, target)
        for key, mode in self.normalization_modes.items():
            self._normalizers[key] = Normalizer(mode, self._statistics(key, mode, metadata))

    @staticmethod
    def _check_action(key: str, width: int, source: str, target: str) -> None:
        """The model's actions are cut into parts by the metadata's widths, so a part cannot have two of them."""
        if key.startswith("action.") and WIDTHS[target] != width:
            raise PlanError(
                f"{key}: {source}, {width} wide, converted to {target}, {WIDTHS[target]} wide",
                known="actions keep the width that the dataset gives them",
                fix=f"leave {key} out of target_rotations, or store it as {target}",
            )

    def _statistics(self, key: str, mode: str, metadata: DatasetMetadata) -> Statistics:
        info = metadata.part(key)
        if not info.continuous and mode != "binary":
            raise PlanError(f"{key}: {mode} on a part that is not continuous", known="binary")
        if key not in self._rotations:
            return metadata.statistics(key)
        source, target = self._rotations[key]
        if not info.absolute:
            raise PlanError(
                f"{key}: {mode} on a relative rotation converted from {source} to {target}",
                known="relative rotations have no fixed bounds",
                fix="drop the mode or the conversion",
            )
        if mode != "min_max" or target not in BOUNDS:
            raise PlanError(
                f"{key}: {mode} on a rotation converted from {source} to {target}",
                known=f"min_max on {', '.join(BOUNDS)}",
            )
        bound = np.full(WIDTHS[target], BOUNDS[target], dtype=np.float64)
        zero, one = np.zeros_like(bound), np.ones_like(bound)
        return Statistics(max=bound, min=-bound, mean=zero, std=one, q01=-bound, q99=bound)

    def check(self, data: Data) -> None:
        for key, (source, _) in self._rotations.items():
            # Dividing by its length would give NaN, which a device could only report by stalling.
            if source == "quaternion" and key in data and not np.any(data[key], axis=-1).all():
                raise ObservationError(
                    f"{key} holds a quaternion of length 0", known="(w, x, y, z), (1, 0, 0, 0) for no rotation"
                )

    def apply(self, data: Data) -> Data:
        return self._each(data, self._forward)

    def _forward(self, key: str, value: Any) -> Tensor:
        value = torch.as_tensor(value)
        if key in self._rotations:
            value = convert(value, *self._rotations[key])
        return self._normalizers[key].forward(value) if key in self._normalizers else value

    def unapply(self, data: Data) -> Data:
        return self._each(data, self._inverse)

    def _inverse(self, key: str, value: Any) -> Tensor:
        value = torch.as_tensor(value)
        if key in self._normalizers:
            value = self._normalizers[key].inverse(value)
        return convert(value, *reversed(self._rotations[key])) if key in self._rotations else value


class StateActionSinCosTransform(ModalityTransform):
    """[..., D] angles in radians to [..., 2 D]: all sines, then all cosines. There is no inverse.

    A GPU's sines may differ from the host's in the last bits of their dtype; normalising gives the same bits.
    """

    def apply(self, data: Data) -> Data:
        angles = {key: torch.as_tensor(get(data, key)) for key in self.apply_to}
        return {**data, **{key: torch.cat([x.sin(), x.cos()], dim=-1) for key, x in angles.items()}}


class StateActionPerturbation(ModalityTransform):
    """In training, noise on the listed keys, each kept within its own least and greatest value; else nothing.

    Args:
        std: Standard deviation of the noise, in the unit that the values have at this place of the chain.
    """

    def __init__(self, apply_to: Iterable[str], std: float = 0.0):
        super().__init__(apply_to)
        self.std = std

    def apply_training(self, data: Data, draw: Draw | None) -> Data:
        if draw is None or not self.std:
            return self.apply(data)
        random = draw(f"noise on {', '.join(self.apply_to)}")

        def change(_: str, value: Any) -> Tensor:
            value = torch.as_tensor(value)
            noise = torch.randn(value.shape, generator=random, dtype=torch.float64)
            return (value + (noise * self.std).to(value.dtype)).clamp(value.min(), value.max())

        return self._each(data, change)


class StateActionDropout(ModalityTransform):
    """In training, all listed keys zero with a probability of `dropout_prob`; else nothing."""

    def __init__(self, apply_to: Iterable[str], dropout_prob: float = 0.0):
        super().__init__(apply_to)
        self.dropout_prob = dropout_prob

    def apply_training(self, data: Data, draw: Draw | None) -> Data:
        if draw is None or not self.dropout_prob:
            return self.apply(data)
        chance = torch.rand((), generator=draw(f"dropout of {', '.join(self.apply_to)}"), dtype=torch.float64)
        if chance >= self.dropout_prob:
            return self.apply(data)
        return self._each(data, lambda _, value: torch.zeros_like(torch.as_tensor(value)))

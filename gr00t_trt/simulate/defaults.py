"""Which environment is played where none is named, and with which robot's keys. Never imports torch or gymnasium."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_ENV = "gr00t_trt/SO101PickPlace-v0"
MESH_ENV = "gr00t_trt/SO101PickPlaceMesh-v0"
"""The same scene with the arm drawn as its meshes, which takes a CPU eight times as long."""
OURS = (DEFAULT_ENV, MESH_ENV)

GR1_FORM = "gr1_unified/{}_GR1ArmsAndWaistFourierHands_Env"
_CLOSED = "CupToDrawer PotatoToMicrowave MilkToMicrowave BottleToCabinet WineToCabinet CanToDrawer"
_NOVEL = (
    "CuttingboardToBasket CuttingboardToCardboardbox CuttingboardToPan CuttingboardToPot "
    "CuttingboardToTieredbasket PlacematToBasket PlacematToBowl PlacematToPlate PlacematToTieredshelf "
    "PlateToBowl PlateToCardboardbox PlateToPan PlateToPlate TrayToCardboardbox TrayToPlate TrayToPot "
    "TrayToTieredbasket TrayToTieredshelf "
)
GR1_24 = (
    *(GR1_FORM.format(f"PnP{name}Close") for name in _CLOSED.split()),
    *(GR1_FORM.format(f"PosttrainPnPNovelFrom{name}SplitA") for name in _NOVEL.split()),
)
"""The ids of RoboCasa's 24 GR1 table-top tasks, in the order in which their authors list them."""


@dataclass(frozen=True)
class Defaults:
    """What is meant where the user says nothing.

    Attributes:
        max_episode_steps: Low-level steps after which an episode has failed.
    """

    data_config: str
    embodiment_tag: str
    max_episode_steps: int


def defaults_of(env_id: str) -> Defaults:
    """The robot and the time limit of an environment; those of RoboCasa's GR1 tasks for one that is not ours."""
    if env_id in OURS:
        return Defaults("so100", "new_embodiment", 150)
    return Defaults("fourier_gr1_arms_waist", "gr1", 1440)

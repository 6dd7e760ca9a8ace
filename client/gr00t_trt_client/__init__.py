"""The client of gr00t_trt's inference service, without PyTorch.

from gr00t_trt_client import RobotInferenceClient

with RobotInferenceClient("192.168.0.7", timeout_ms=2000, resize=True) as policy:
    action = policy.get_action(observation)  # {"action.left_arm": float32 [16, 7], ...}
"""

from .errors import Gr00tError, ServiceError
from .serve.client import RobotInferenceClient
from .serve.http_client import HttpInferenceClient

__version__ = "0.1.0"
__all__ = ["Gr00tError", "HttpInferenceClient", "RobotInferenceClient", "ServiceError"]

"""The inference service: the policy behind ZeroMQ and HTTP, as Isaac-GR00T's clients expect it, and clients for it.

On the machine with the model:

    python -m gr00t_trt.serve --server --use_torch_tensorrt --precision fp16 --host 0.0.0.0

On the robot, which needs numpy, msgpack and pyzmq alone:

    from gr00t_trt.serve.client import RobotInferenceClient

    with RobotInferenceClient("192.168.0.7", timeout_ms=2000, resize=True) as policy:
        action = policy.get_action(observation)  # {"action.left_arm": float32 [16, 7], ...}
"""

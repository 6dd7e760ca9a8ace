"""`gr00t-trt run`, which is `run_groot_torchtrt.py`: compile, check and time the model."""

"""TensorRT by way of ONNX, for TensorRT and TensorRT-RTX."""

"""ONNX files, and ONNX Runtime."""

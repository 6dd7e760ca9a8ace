"""Torch-TensorRT, for TensorRT and TensorRT-RTX."""

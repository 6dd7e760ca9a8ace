"""`gr00t-trt export`: the submodules as ONNX files."""

"""TensorRT engines on disk: what identifies one, where it is kept, and what its manifest says."""

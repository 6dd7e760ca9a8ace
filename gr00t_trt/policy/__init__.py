"""Observation in, action out: the model with its data config, statistics and tokenizer."""

from .policy import Gr00tPolicy, ModelPolicy, TensorPolicy, load_policy

__all__ = ["Gr00tPolicy", "ModelPolicy", "TensorPolicy", "load_policy"]

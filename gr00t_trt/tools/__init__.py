"""Programs that look into what others use: a gate that is missed, ranges of activations, statistics."""

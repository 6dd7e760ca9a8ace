"""The calibration program: what the inputs of every linear layer reach in recorded frames, and which layers suffer."""

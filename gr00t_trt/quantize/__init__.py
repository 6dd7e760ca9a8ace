"""Linear layers in 8 and 4 bits: formats, the operator and its reference, calibrations, and which layers are kept."""

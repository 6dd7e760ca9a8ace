"""The metadata program: statistics of a dataset, in the form that a checkpoint carries them."""

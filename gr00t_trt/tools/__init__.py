"""Programs that look into what others use: a submodule that misses its gate, the statistics of a dataset."""

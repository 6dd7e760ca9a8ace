"""Records: the typed results of a run, written and read as JSON. Never imports torch."""

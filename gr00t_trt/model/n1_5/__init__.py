"""GR00T N1.5: the plain networks, and in `fast` the restructured ones."""

"""A policy compiled as a plan says, ready to answer requests."""

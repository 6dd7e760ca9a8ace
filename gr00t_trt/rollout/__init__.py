"""A policy drives a robot: observe, ask, act; in one process or with a server, one after another or overlapped."""

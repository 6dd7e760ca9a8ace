"""Shared by all packages: files, progress, command lines, devices. Knows nothing of models."""

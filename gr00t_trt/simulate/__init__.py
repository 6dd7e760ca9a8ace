"""Policies in simulated worlds: gymnasium environments, success rates with their intervals, videos, recordings."""

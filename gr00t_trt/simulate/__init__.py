"""Policies in simulated worlds: gymnasium environments, success rates, videos, and a table-top scene of our own."""

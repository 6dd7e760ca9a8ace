"""Offline evaluation: what a policy would have done in recorded episodes, against what was done."""

"""Bundles: a policy as it was built, in one folder, from which a service starts without its checkpoint."""

"""A plan carried out on a policy that then answers requests."""

"""A simulated network adapter with an SA table, and the host's side of it."""

"""A deterministic simulation of the lease engine."""

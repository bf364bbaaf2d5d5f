"""Leases on blobs that must go in time."""

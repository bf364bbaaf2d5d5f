"""The HTTP side and the packs."""

__version__ = "0.1.0"

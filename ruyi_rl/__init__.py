"""Train familial models: one network, several exits, one run."""

__version__ = "0.1.0"

"""Adapters: one base, and for each task a few megabytes of weights that were trained while the base stayed frozen."""

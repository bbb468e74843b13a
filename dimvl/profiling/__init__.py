"""Profiles a few real training steps: time by part of the model."""

from dimvl.profiling.measure import Profile, profile

__all__ = ["Profile", "profile"]

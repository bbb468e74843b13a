"""Scores by the official protocols."""

"""Retrieval: images found by texts, and texts by images."""

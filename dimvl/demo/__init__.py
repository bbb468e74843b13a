"""The demo: raw images in, scores, exports and a report out."""

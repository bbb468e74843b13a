"""Multiple choice: one of several candidate texts."""

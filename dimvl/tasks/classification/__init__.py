"""Classification: one or several images, with a text or without, to labels of a list."""

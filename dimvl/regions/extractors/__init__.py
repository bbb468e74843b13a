"""Images to regions, composed: where they are, what they look like, what they are called.

`load.py` opens each part by the name that the user gives; `composed.py` makes one extractor of them.
"""

"""Frozen image networks whose feature map covers the whole image: how the regions of an image look.

`load_backbone` in load.py opens one by name; pooling.py turns its maps into the features of boxes and cells.
"""

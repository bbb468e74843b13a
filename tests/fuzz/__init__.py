"""Structure-aware flips and edits of every kind of file that dimvl reads; see `__main__.py`."""

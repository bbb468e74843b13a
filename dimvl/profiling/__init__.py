"""Profiles a few real training steps: time by part of the model.

`scopes.py` names the parts and marks them in a model, `timeline.py` assigns time to parts, `measure.py` runs the steps
and relates time to operations and bytes, and `table.py` formats the result.
"""

from dimvl.profiling.measure import Profile, profile

__all__ = ["Profile", "profile"]

"""Where the time of a training step goes: a few real steps under torch's profiler, told by part of the model.

`scopes.py` names the parts and marks them in a model made for this, `timeline.py` gives each moment to a part,
`measure.py` runs the steps and sets times beside operations and bytes, and `table.py` writes it down.
"""

from dimvl.profiling.measure import Profile, profile

__all__ = ["Profile", "profile"]

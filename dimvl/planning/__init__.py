"""Estimates a run's parameters, memory, compute and I/O from its configuration alone.

`data.py` reads the sizes of the data or assumes them, `step.py` estimates an average optimiser step, and `memory.py`,
`cluster.py` and `dimvl/model/flops.py` what it costs; `plan.py` combines them, and `table.py` formats the result.
"""

from dimvl.planning.cluster import Cluster
from dimvl.planning.data import DataOverrides
from dimvl.planning.plan import Plan, make_plan

__all__ = ["Cluster", "DataOverrides", "Plan", "make_plan"]

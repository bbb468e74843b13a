"""Estimates a run's parameters, memory, compute and I/O from its configuration alone.

`data.py` reads the sizes of the data or assumes them; `memory.py`, `cluster.py` and `dimvl/model/flops.py` estimate the
cost of an optimiser step; `plan.py` combines them for the average step, and `table.py` formats the result.
"""

from dimvl.planning.cluster import Cluster
from dimvl.planning.data import DataOverrides
from dimvl.planning.plan import Plan, make_plan

__all__ = ["Cluster", "DataOverrides", "Plan", "make_plan"]

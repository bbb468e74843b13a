"""What a run will take, told from its configuration alone: parameters, memory, arithmetic, features a second.

`data.py` says what is known of the data and what is assumed, `step.py` what an average optimiser step holds, and
`memory.py` and `cluster.py` what that costs, beside `dimvl/model/flops.py`; `plan.py` puts it together, and `table.py`
writes it down.
"""

from dimvl.planning.cluster import Cluster
from dimvl.planning.data import DataOverrides
from dimvl.planning.plan import Plan, make_plan

__all__ = ["Cluster", "DataOverrides", "Plan", "make_plan"]

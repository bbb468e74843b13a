"""What a run will take, told from its configuration alone: parameters, memory, arithmetic, features a second.

`data.py` says what is known of the data and what is assumed, `work.py` what an average micro-batch holds, `flops.py` and
`memory.py` what it costs, `plan.py` puts it together, and `table.py` writes it down.
"""

#from dimvl.planning.plan import Cluster, Plan, make_plan

#__all__ = ["Cluster", "Plan", "make_plan"]

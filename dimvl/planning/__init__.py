"""Estimates a run's parameters, memory, compute and I/O from its configuration alone."""

from dimvl.planning.cluster import Cluster
from dimvl.planning.cpu import CpuEstimate, estimate_cpu
from dimvl.planning.data import DataOverrides
from dimvl.planning.plan import Plan, make_plan

__all__ = ["Cluster", "CpuEstimate", "DataOverrides", "Plan", "estimate_cpu", "make_plan"]

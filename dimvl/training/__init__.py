"""Training: engine, loop, optimiser, checkpoints, report."""

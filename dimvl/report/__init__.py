"""Pages about runs: their parts, which the demo shares, and the page of one run."""

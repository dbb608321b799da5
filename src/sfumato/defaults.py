"""How samples are drawn unless something else is asked for; chosen by bench/solvers.py."""

__all__ = ["GRID", "SAMPLER", "STEPS"]

SAMPLER = "dpm++3m"
"""Of those with one network call a step it came nearest to the data at 5 to 12 calls, and as near as any to the
converged sample."""

GRID = "logsnr"
"""Where the steps stop."""

STEPS = 12
"""From about here on more steps do not bring samples nearer to the data."""

"""What a run has written: config, checkpoints, figures, and the threshold that follows."""

from .folder import RunError
from .threshold import Expected, PairStatistics, RunVerdict, Threshold

__all__ = ["Expected", "PairStatistics", "RunError", "RunVerdict", "Threshold"]

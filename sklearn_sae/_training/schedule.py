"""Schedules of the learning rate and the horizon."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LEARNING_RATES", "Schedule"]


def _one_cycle(progress: float) -> float:
    """Rise for 30 % of training, then fall, both as a cosine (Smith & Topin, 2019)."""
    peak = 0.3
    if progress < peak:
        return _cosine(1 / 25, 1.0, progress / peak)
    return _cosine(1.0, 1e-4 / 25, (progress - peak) / (1 - peak))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _exponential(progress: float) -> float:
    """Rise as a cosine for 10 % of training, then fall exponentially to 1 % of the peak."""
    peak = 0.1
    if progress < peak:
        return _cosine(1 / 25, 1.0, progress / peak)
    return 0.01 ** ((progress - peak) / (1 - peak))


LEARNING_RATES = {
    "exponential": _exponential,
    "onecycle": _one_cycle,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class Schedule:
    """Learning rate and horizon as functions of progress, the completed share of training."""

    learning_rate: float
    shape: str
    n_bins: int
    horizon_start: int
    horizon_step: int
    horizon_growth: float

    def learning_rate_at(self, progress: float) -> float:
        return self.learning_rate * LEARNING_RATES[self.shape](progress)

    def horizon_at(self, progress: float) -> int:
        """Number of bins that the loss sees: all, once ``horizon_growth`` of training is done."""
        if progress >= self.horizon_growth:
            return self.n_bins
        start = min(self.horizon_start, self.n_bins)
        n_rises = math.ceil((self.n_bins - start) / self.horizon_step)
        # A share of epochs is rarely exact in binary; a rise must not come one epoch late.
        n_done = math.floor(progress / self.horizon_growth * n_rises + 1e-9)
        return min(self.n_bins, start + self.horizon_step * n_done)

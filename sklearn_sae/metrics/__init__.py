"""How good rates, latents and dynamics are: against the truth, or against spikes not shown.

Functions of arrays compare what is with what was inferred. Three of those that take an estimator,
`co_smoothing_score`, `forward_prediction_score` and `cycle_consistency`, go wherever scikit-learn
takes ``scoring=``; `co_smoothing_rates` gives rates to draw and to compare. `baselines` scores
methods without dynamics, to be beaten.

Everywhere a set of trials is an array (n_trials, n_bins, n), a list of arrays (n_bins_i, n) for
trials of unequal length, or the (n_bins, n) of a single trial.
"""

from ._accuracy import bits_per_spike, psth_r2, rate_r2, state_r2
from ._attractors import power_spectrum_distance, state_space_divergence
from ._baselines import baselines
from ._scorers import (
    co_smoothing_rates,
    co_smoothing_score,
    cycle_consistency,
    forward_prediction_score,
)

__all__ = [
    "baselines",
    "bits_per_spike",
    "co_smoothing_rates",
    "co_smoothing_score",
    "cycle_consistency",
    "forward_prediction_score",
    "power_spectrum_distance",
    "psth_r2",
    "rate_r2",
    "state_r2",
    "state_space_divergence",
]

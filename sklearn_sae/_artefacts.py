"""Counts so large that they drown all others in a likelihood."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import rel_entr

from ._batches import Trials

__all__ = ["warn_of_artefacts"]

#: Fewer spikes in a bin are a burst.
SMALLEST = 20
#: An artefact has at least so many times the neuron's mean count, and a tenth of a spike.
MANY = 50
#: Artefacts are few, and carry much. Counts that scatter, however much, are not both at once.
MOST_ENTRIES = 1e-3
SMALLEST_SHARE = 0.2
#: Trials looked at together.
N_TRIALS = 256


def warn_of_artefacts(trials: Trials, rates: np.ndarray, stacklevel: int) -> None:
    """Warn if a few entries carry most of what a model of the counts can explain.

    That is their deviance from constant ``rates`` ``(n_neurons,)``, y log(y / m) - y + m at a count
    of y and a mean of m. Neurons without a spike in ``fit``, of rate zero, are not looked at.
    """
    known = rates > 0
    largest = np.where(known, np.maximum(SMALLEST, MANY * (rates + 0.1)), np.inf)
    pieces = np.array_split(np.arange(len(trials)), -(-len(trials) // N_TRIALS))
    if not any((trials.stored(rows)[0].max(axis=(0, 1)) > largest).any() for rows in pieces):
        return
    total = of_artefacts = worst = 0.0
    n_found = n_observed = 0
    first = 0, 0, 0
    for rows in pieces:
        counts, observed = trials.stored(rows)
        seen = known & (np.ones(counts.shape, dtype=bool) if observed is None else observed)
        counts = counts.astype(np.float64)
        deviance = np.where(seen, rel_entr(counts, rates) - counts + rates, 0.0)
        found = np.where(seen & (counts > largest), deviance, 0.0)
        total += deviance.sum()
        of_artefacts += found.sum()
        n_found, n_observed = n_found + int((found > 0).sum()), n_observed + int(seen.sum())
        if found.max() > worst:
            worst = found.max()
            row, at, neuron = (int(i) for i in np.unravel_index(found.argmax(), found.shape))
            first = int(rows[row]), at, neuron
    if n_found and n_found <= MOST_ENTRIES * n_observed and of_artefacts > SMALLEST_SHARE * total:
        trial, at, neuron = first
        warnings.warn(
            f"{n_found} entries of X, {n_found / n_observed:.2g} of all, carry "
            f"{of_artefacts / total:.0%} of what its likelihood has to explain; most of all bin "
            f"{at} of trial {trial}, neuron {neuron}, whose mean count is {rates[neuron]:.2g}. If "
            "they are artefacts, set them to NaN: not observed.",
            UserWarning,
            stacklevel=stacklevel,
        )

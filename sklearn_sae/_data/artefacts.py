"""A warning of artefacts: a few counts or signals so large that they dominate the likelihood."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import rel_entr

from .trials import Trials

__all__ = ["warn_of_artefacts"]

#: Fewer spikes in a bin are taken for a burst, not an artefact.
SMALLEST = 20
#: An artefact has at least this many times the neuron's mean count plus a tenth of a spike.
MANY = 50
#: An artefact of a signal is at least this many standard deviations from the neuron's mean.
FAR = 20
#: Artefacts are few and carry much of the deviance; overdispersed counts are not both at once.
MOST_ENTRIES = 1e-3
SMALLEST_SHARE = 0.2
#: Trials looked at together.
N_TRIALS = 256


def warn_of_artefacts(trials: Trials, rates: np.ndarray, of_counts: bool, stacklevel: int) -> None:
    """Warn if a few entries carry much of the deviance of the data from constant ``rates``.

    The deviance of a count y from a rate m is y log(y / m) - y + m; ``rates`` are ``(n_neurons,)``,
    and neurons of rate zero, which never fired in ``fit``, are ignored. The deviance of a signal is
    half its squared distance from the mean in standard deviations, if these are known.
    """
    of_signals = trials.units.centre is not None
    if not (of_counts or of_signals):
        return
    known = (rates > 0) | of_signals
    far = FAR if of_signals else np.maximum(SMALLEST, MANY * (rates + 0.1))
    largest = np.where(known, far, np.inf)
    pieces = np.array_split(np.arange(len(trials)), -(-len(trials) // N_TRIALS))
    if not any((_sizes(trials, rows)[0].max(axis=(0, 1)) > largest).any() for rows in pieces):
        return
    total = of_artefacts = worst = 0.0
    n_found = n_observed = 0
    first = 0, 0, 0
    for rows in pieces:
        sizes, observed = _sizes(trials, rows)
        seen = known & (np.ones(sizes.shape, dtype=bool) if observed is None else observed)
        sizes = sizes.astype(np.float64)
        terms = sizes**2 / 2 if of_signals else rel_entr(sizes, rates) - sizes + rates
        deviance = np.where(seen, terms, 0.0)
        found = np.where(seen & (sizes > largest), deviance, 0.0)
        total += deviance.sum()
        of_artefacts += found.sum()
        n_found, n_observed = n_found + int((found > 0).sum()), n_observed + int(seen.sum())
        if found.max() > worst:
            worst = found.max()
            row, at, neuron = (int(i) for i in np.unravel_index(found.argmax(), found.shape))
            first = int(rows[row]), at, neuron
    if n_found and n_found <= MOST_ENTRIES * n_observed and of_artefacts > SMALLEST_SHARE * total:
        trial, at, neuron = first
        if of_signals:
            against = f"{(2 * worst) ** 0.5:.3g} standard deviations from its mean"
        else:
            against = f"whose mean count is {rates[neuron]:.2g}"
        warnings.warn(
            f"{n_found} entries of X, {n_found / n_observed:.2g} of all, carry "
            f"{of_artefacts / total:.0%} of what its likelihood has to explain; most of all bin "
            f"{at} of trial {trial}, neuron {neuron}, {against}. If they are artefacts, set them "
            "to NaN: not observed.",
            UserWarning,
            stacklevel=stacklevel,
        )


def _sizes(trials: Trials, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Read trials ``rows``: counts, or distances of signals from the mean in std; and their mask.

    Both are ``(n_rows, n_bins, n_neurons)``; the mask is None if everything was observed.
    """
    values, observed = trials.read(rows)
    return (values if trials.units.centre is None else np.abs(values)), observed

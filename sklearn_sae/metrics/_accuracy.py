"""Rates, latents and spikes: what was inferred against what is."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from .._data.masked import as_array
from ._trials import Array, as_trials, matching, rows


def rate_r2(true: Any, pred: Any) -> float:
    r"""Coefficient of determination of rates, the mean over neurons.

    :math:`1 - \sum_t (r_t - \hat r_t)^2 / \sum_t (r_t - \bar r)^2` for each neuron, over all bins
    of all trials; then the mean over neurons [1]_. A neuron whose true rate is constant has no such
    coefficient, and is left out.

    Parameters
    ----------
    true, pred : trials of rates
        Of the same shape.

    Returns
    -------
    float
        At most 1.

    Raises
    ------
    ValueError
        If the shapes differ, or all true rates are constant.

    Warns
    -----
    UserWarning
        If the true rates of some neurons are constant.

    References
    ----------
    .. [1] Sedler, A. R., Versteeg, C. & Pandarinath, C. (2023). Expressive architectures enhance
       interpretability of dynamics-based neural population models. NBDT.
       https://doi.org/10.51628/001c.73987

    Examples
    --------
    >>> from sklearn_sae.metrics import rate_r2
    >>> rate_r2([[1.0, 1.0], [3.0, 3.0]], [[1.0, 2.0], [3.0, 2.0]])
    0.5
    """
    true, pred = matching("true", true, "pred", pred)
    return mean_r2("true", true, pred)


def state_r2(
    true: Any,
    inferred: Any,
    *,
    direction: str = "true->inferred",
    train: ArrayLike | None = None,
    multioutput: str = "uniform_average",
) -> float:
    """Coefficient of determination of an affine map between true and inferred latents.

    The map is fitted by least squares over all bins of all trials; R2 is the mean over the
    dimensions predicted. "true->inferred" asks whether everything in the inferred latents is in the
    true ones: latents invented by the model lower it. "inferred->true" asks whether everything true
    was found. A dimension that is constant has no R2, and is left out. The defaults are the
    paper's [1]_. A map of many dimensions fits by chance; ``train`` scores it on trials that it was
    not fitted to. The Computation-through-Dynamics Benchmark does so and weighs dimensions by their
    variance [2]_: give ``train`` and ``multioutput="variance_weighted"`` to follow it.

    Parameters
    ----------
    true, inferred : trials of latents
        With as many trials and bins; dimensions may differ.
    direction : {"true->inferred", "inferred->true"}, default="true->inferred"
        From which latents the others are predicted.
    train : array-like of int or bool, default=None
        Trials that the map is fitted to; the others are scored. None fits and scores all.
    multioutput : {"uniform_average", "variance_weighted"}, default="uniform_average"
        How the dimensions predicted are averaged: all alike, or by their variance.

    Returns
    -------
    float
        At most 1; in-sample, at least 0.

    Raises
    ------
    ValueError
        If trials do not match, ``direction`` or ``multioutput`` is unknown, ``train`` leaves
        nothing to fit or to score, or all that is to be predicted is constant.

    Warns
    -----
    UserWarning
        If some of the dimensions predicted are constant, and all would weigh alike.

    References
    ----------
    .. [1] Sedler, A. R., Versteeg, C. & Pandarinath, C. (2023), as in `rate_r2`.
    .. [2] Versteeg, C. et al. (2025). Computation-through-Dynamics Benchmark: simulated datasets
       and quality metrics for dynamical models of neural activity. bioRxiv 2025.02.07.637062.
       ``get_signal_r2_linear`` in
       https://github.com/snel-repo/ComputationThroughDynamicsToolkit

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.metrics import state_r2
    >>> z = np.random.default_rng(0).normal(size=(5, 20, 2))
    >>> round(state_r2(z, 3 * z[..., ::-1] + 1), 6)
    1.0
    """
    if direction not in ("true->inferred", "inferred->true"):
        raise ValueError(
            f'direction must be "true->inferred" or "inferred->true", got {direction!r}.'
        )
    if multioutput not in ("uniform_average", "variance_weighted"):
        raise ValueError(
            f'multioutput must be "uniform_average" or "variance_weighted", got {multioutput!r}.'
        )
    trials = as_trials("true", true), as_trials("inferred", inferred)
    if [len(z) for z in trials[0]] != [len(z) for z in trials[1]]:
        raise ValueError("true and inferred must have as many trials, of as many bins each.")
    source, target = trials if direction == "true->inferred" else trials[::-1]
    fitted = np.ones(len(source), dtype=bool)
    scored = fitted
    if train is not None:
        fitted = np.zeros(len(source), dtype=bool)
        fitted[as_array("train", train)] = True
        scored = ~fitted
        if not fitted.any() or not scored.any():
            raise ValueError(
                f"train must leave trials to fit and trials to score; it names {fitted.sum()} of "
                f"{len(source)}. Give some of the trials, or None."
            )
    affine = LinearRegression().fit(rows(source, fitted), rows(target, fitted))
    predicted = affine.predict(rows(source, scored))
    name = direction.partition("->")[2]
    return mean_r2(name, rows(target, scored), predicted, multioutput)


def bits_per_spike(rates: Any, spikes: Any, null_rates: ArrayLike | None = None) -> float:
    r"""Poisson log-likelihood beyond that of constant rates, in bits for each spike.

    .. math:: \frac{1}{n_{sp} \log 2} \sum_{t, i}
              \log p(y_{ti} \mid \lambda_{ti}) - \log p(y_{ti} \mid \bar\lambda_i)

    as the Neural Latents Benchmark defines it [1]_: sums over observed entries, :math:`n_{sp}`
    their spikes, rates below 1e-9 counted as 1e-9.

    Parameters
    ----------
    rates : trials of rates
        Predicted, in counts per bin.
    spikes : trials of counts
        Of the same shape. NaN is an entry not observed.
    null_rates : array-like of shape (n_neurons,), default=None
        Constant rates to compare with. None, as in the benchmark, is the mean of ``spikes``.

    Returns
    -------
    float
        0 is no better than constant rates.

    Raises
    ------
    ValueError
        If shapes differ, a rate is negative, or no spike was observed.

    References
    ----------
    .. [1] Pei, F., Ye, J., Zoltowski, D. et al. (2021). Neural Latents Benchmark '21: evaluating
       latent variable models of neural population activity. NeurIPS Datasets and Benchmarks.
       arXiv:2109.04463.

    Examples
    --------
    >>> from sklearn_sae.metrics import bits_per_spike
    >>> round(bits_per_spike([[0.0], [2.0]], [[0], [2]]), 6)
    1.0
    """
    rates, spikes = matching("rates", rates, "spikes", spikes)
    seen = ~np.isnan(spikes)
    if np.any(rates[seen] < 0):
        raise ValueError("rates must be expected counts >= 0; got negative ones. Log-rates?")
    n_spikes = spikes[seen].sum()
    if not n_spikes > 0:
        raise ValueError("spikes has no spike in any observed entry: bits per spike has no value.")
    if null_rates is None:
        null_rates = np.where(seen, spikes, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    null = np.broadcast_to(as_array("null_rates", null_rates, float), spikes.shape)
    gain = log_likelihood(rates[seen], spikes[seen]) - log_likelihood(null[seen], spikes[seen])
    return float(gain / n_spikes / np.log(2))


def psth_r2(rates: ArrayLike, spikes: ArrayLike, conditions: ArrayLike | None = None) -> float:
    """Coefficient of determination of trial-averaged rates against trial-averaged spikes.

    The peri-stimulus time histogram (PSTH) of a neuron in a condition is its mean count in each
    bin over the trials of that condition. R2 is taken over the bins of all conditions, then the
    mean over neurons [1]_. The benchmark smooths its PSTHs first; smooth ``spikes`` in
    the same way to follow it. Bins that no trial of a condition has are left out, and so are
    neurons that were not observed at all, and those whose PSTH is constant, which have no R2.

    Parameters
    ----------
    rates : array-like of shape (n_trials, n_bins, n_neurons)
        Predicted rates.
    spikes : array-like of shape (n_trials, n_bins, n_neurons)
        Counts. NaN is an entry not observed, and left out of both averages.
    conditions : array-like of shape (n_trials,), default=None
        Label of each trial's condition; None takes all trials as one condition.

    Returns
    -------
    float
        At most 1.

    Raises
    ------
    ValueError
        If shapes do not match, nothing was observed, or every PSTH is constant. Trials of unequal
        length cannot be averaged.

    Warns
    -----
    UserWarning
        If some neurons' PSTHs are constant.

    References
    ----------
    .. [1] Pei, F. et al. (2021), as in `bits_per_spike`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.metrics import psth_r2
    >>> spikes = np.array([[[0], [2]], [[2], [4]]])
    >>> psth_r2(np.array([[[1.0], [3.0]], [[1.0], [3.0]]]), spikes)
    1.0
    """
    rates, spikes = as_array("rates", rates, float), as_array("spikes", spikes, float)
    if rates.ndim != 3 or rates.shape != spikes.shape:
        raise ValueError(
            "rates and spikes must both have one shape (n_trials, n_bins, n_neurons), got "
            f"{rates.shape} and {spikes.shape}."
        )
    labels = np.zeros(len(spikes)) if conditions is None else as_array("conditions", conditions)
    if labels.shape != (len(spikes),):
        raise ValueError(
            f"conditions must have one label for each of {len(spikes)} trials, got shape "
            f"{labels.shape}."
        )
    seen = ~np.isnan(spikes)
    trials = [labels == label for label in np.unique(labels)]
    count = np.concatenate([seen[i].sum(axis=0) for i in trials])
    true, pred = (
        np.concatenate([np.where(seen[i], x[i], 0.0).sum(axis=0) for i in trials])
        / np.maximum(count, 1)
        for x in (spikes, rates)
    )
    if not count.any():
        raise ValueError("spikes holds only NaN: nothing was observed to compare rates with.")
    seen = count.any(axis=0)
    constant = _constant("the PSTH", np.where(count > 0, true, np.nan)[:, seen])
    _warn_of_constant("the PSTH", np.flatnonzero(seen)[constant], stacklevel=3)
    per_neuron = [
        r2_score(true[count[:, i] > 0, i], pred[count[:, i] > 0, i])
        for i in np.flatnonzero(seen)[~constant]
    ]
    return float(np.mean(per_neuron))


def mean_r2(name: str, true: Array, pred: Array, multioutput: str = "uniform_average") -> float:
    """R2 of the columns that vary, averaged alike or by their variance."""
    constant = _constant(name, true)
    if multioutput == "uniform_average":
        _warn_of_constant(name, np.flatnonzero(constant), stacklevel=4)
    return float(r2_score(true[:, ~constant], pred[:, ~constant], multioutput=multioutput))


def _constant(name: str, true: Array) -> NDArray[np.bool_]:
    """Which columns are constant, and have no R2; NaN aside, and not all of them."""
    spread = np.fmax.reduce(true) - np.fmin.reduce(true)
    # A mean is rounded, so a constant may seem to vary about it.
    constant = np.asarray(spread <= 1e-12 * np.fmax.reduce(np.abs(true)))
    if constant.all():
        raise ValueError(f"{name} is constant in every column, so that R2 has no value.")
    return constant


def _warn_of_constant(name: str, columns: NDArray[np.integer], stacklevel: int) -> None:
    if len(columns):
        warnings.warn(
            f"{name} is constant in {len(columns)} column(s), the first of them {columns[0]}: such "
            "a column has no R2, and is left out of the mean.",
            UserWarning,
            stacklevel=stacklevel,
        )


def log_likelihood(rates: Array, spikes: Array) -> float:
    rates = np.maximum(rates, 1e-9)
    return float(np.sum(spikes * np.log(rates) - rates - gammaln(spikes + 1)))

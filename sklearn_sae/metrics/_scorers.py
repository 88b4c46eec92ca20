"""Scores of a fitted estimator, usable as scikit-learn's ``scoring=``."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.utils import check_random_state

from .._data.masked import refuse_masked
from .._data.validation import if_known
from ._accuracy import bits_per_spike, mean_r2
from ._trials import Array, as_trials, rows


def co_smoothing_score(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    held_out: float = 0.25,
    random_state: Any = 0,
    inputs: Any = None,
) -> float:
    """Bits per spike on neurons that the estimator was not shown.

    The same neurons are hidden (set to NaN) in all trials, predicted from the others, and compared
    with constant rates, ``estimator.null_rates_`` [1]_. (The benchmark takes the constant rates
    from the hidden spikes themselves, and so gives slightly less.) Neurons that never fired in
    ``fit`` have none, and are left out. The likelihood is Poisson's, whatever that of the
    estimator.

    Parameters
    ----------
    estimator : fitted estimator
        With ``predict`` and ``null_rates_``; or a pipeline that ends in one, or a search over one.
    X : trials of counts
        NaN is an entry not observed, and not scored.
    y : None
        Ignored.
    held_out : float, default=0.25
        Share of the neurons to hide, more than 0 and less than 1; at least one is hidden and one
        is not.
    random_state : int, RandomState or None, default=0
        Draws the hidden neurons.
    inputs : array of shape (n_trials, n_bins, n_inputs), list of (n_bins_i, n_inputs), or None
        Known inputs, for an estimator that was fitted with them. ``scoring=`` hands on none, so
        search by the estimator's own score then.

    Returns
    -------
    float
        Higher is better; 0 is no better than constant rates.

    Raises
    ------
    ValueError
        If ``held_out`` is not a share, there are fewer than 2 neurons, or the estimator is one with
        ``likelihood="gaussian"``.

    References
    ----------
    .. [1] Pei, F. et al. (2021), as in `bits_per_spike`.

    Examples
    --------
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn_sae.metrics import co_smoothing_score
    >>> cross_val_score(est, spikes, scoring=co_smoothing_score)  # doctest: +SKIP
    """
    trials = as_trials("X", X)
    n_neurons = trials[0].shape[1]
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be a share between 0 and 1, got {held_out!r}.")
    if n_neurons < 2:
        raise ValueError("X must have 2 neurons or more, one to hide and one to show; it has 1.")
    n_hidden = int(np.clip(round(held_out * n_neurons), 1, n_neurons - 1))
    hidden = check_random_state(random_state).permutation(n_neurons)[:n_hidden]
    masks = [np.isin(np.arange(n_neurons), hidden) & np.ones((len(x), 1), bool) for x in trials]
    return _hidden_bits_per_spike(estimator, X, trials, masks, inputs)


def co_smoothing_rates(
    estimator: Any, X: Any, *, parts: Any = 4, random_state: Any = 0, inputs: Any = None
) -> NDArray[np.floating] | list[NDArray[np.floating]]:
    """Rates of all neurons, each predicted by an estimator that was not shown it.

    The neurons are cut into parts. One part after the other is hidden (set to NaN) in all trials
    and predicted from the rest. ``bits_per_spike`` of these rates is co-smoothing of all neurons,
    against the constant rates of those very spikes as in the benchmark [1]_; of
    ``rates[..., i]``, that of neuron ``i``.

    Parameters
    ----------
    estimator : fitted estimator
        With ``predict``; or a pipeline that ends in one, or a search over one.
    X : trials of counts
        NaN is an entry not observed.
    parts : int or list of arrays of int, default=4
        Number of parts, at least 2 and of nearly equal size, into which the neurons are cut at
        random; or the parts themselves, as positions of neurons, such as those of each area.
        Every neuron must be in one of them.
    random_state : int, RandomState or None, default=0
        Draws the parts, if ``parts`` is a number.
    inputs : array of shape (n_trials, n_bins, n_inputs), list of (n_bins_i, n_inputs), or None
        Known inputs, for an estimator that was fitted with them.

    Returns
    -------
    array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
        Expected counts per bin; a list if ``X`` was one.

    Raises
    ------
    ValueError
        If ``parts`` is no number of parts that the neurons can be cut into, or does not hold every
        neuron once.

    See Also
    --------
    co_smoothing_score : One number from one share of the neurons, for ``scoring=``.

    References
    ----------
    .. [1] Pei, F. et al. (2021), as in `bits_per_spike`.

    Examples
    --------
    >>> from sklearn_sae.metrics import bits_per_spike, co_smoothing_rates
    >>> bits_per_spike(co_smoothing_rates(est, spikes), spikes)  # doctest: +SKIP
    """
    trials = as_trials("X", X)
    rates: list[Array] = [np.empty(x.shape, dtype=np.float32) for x in trials]
    for part in neuron_parts(parts, trials[0].shape[1], random_state):
        shown = [x.copy() for x in trials]
        for x in shown:
            x[:, part] = np.nan
        predicted = _predict(estimator, shown, X, inputs)
        for x, from_others in zip(rates, predicted, strict=True):
            x[:, part] = from_others[:, part]
    return rates if isinstance(X, list | tuple) else np.stack(rates)


def forward_prediction_score(
    estimator: Any, X: Any, y: Any = None, *, n_bins: Any = 10, inputs: Any = None
) -> float:
    """Bits per spike on the last bins of each trial, which the estimator was not shown.

    The last ``n_bins`` bins of each trial are hidden (set to NaN) for all neurons, predicted from
    those before, and compared with constant rates, ``estimator.null_rates_`` [1]_; see
    `co_smoothing_score`.

    Parameters
    ----------
    estimator : fitted estimator
        With ``predict`` and ``null_rates_``; or a pipeline that ends in one, or a search over one.
    X : trials of counts
        NaN is an entry not observed. A trial ends with its last bin that has anything observed.
    y : None
        Ignored.
    n_bins : int, default=10
        Number of bins to hide.
    inputs : array of shape (n_trials, n_bins, n_inputs), list of (n_bins_i, n_inputs), or None
        Known inputs, for an estimator that was fitted with them. ``scoring=`` hands on none, so
        search by the estimator's own score then.

    Returns
    -------
    float
        Higher is better; 0 is no better than constant rates.

    Raises
    ------
    ValueError
        If ``n_bins`` is not positive, a trial has no bin more than that, or the estimator is one
        with ``likelihood="gaussian"``.

    References
    ----------
    .. [1] Pei, F. et al. (2021), as in `bits_per_spike`.

    Examples
    --------
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn_sae.metrics import forward_prediction_score
    >>> cross_val_score(est, spikes, scoring=forward_prediction_score)  # doctest: +SKIP
    """
    if not isinstance(n_bins, int | np.integer) or n_bins < 1:
        raise ValueError(f"n_bins must be an integer >= 1, got {n_bins!r}.")
    trials = as_trials("X", X)
    masks = []
    for i, x in enumerate(trials):
        observed = np.flatnonzero(~np.isnan(x).all(axis=1))
        end = observed[-1] + 1 if observed.size else 0
        if end - n_bins < 1 or observed[0] >= end - n_bins:
            raise ValueError(
                f"n_bins must leave every trial an observed bin; trial {i} ends after {end} bins, "
                f"and {n_bins} were to be hidden. Hide fewer, or leave out short trials."
            )
        bins = np.arange(len(x))[:, None]
        masks.append((bins >= end - n_bins) & (bins < end) & np.ones(x.shape, dtype=bool))
    return _hidden_bits_per_spike(estimator, X, trials, masks, inputs)


def cycle_consistency(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    noise: float = 0.0,
    random_state: Any = 0,
    inputs: Any = None,
) -> float:
    """How much of the latents can be read back from the rates that they give.

    Latents are mapped to log-rates (to rates, if the estimator has ``likelihood="gaussian"``), and
    an affine map from those back to latents is fitted by least squares. The score is its R2, in
    which dimensions weigh by their variance. Latent activity that the readout does not show to the
    neurons lowers it: activity that the data cannot have asked for [1]_. With a linear readout and
    no ``noise`` only what the readout loses altogether can lower it, as when there are more latents
    than neurons; noise on the log-rates makes what it shows faintly count as well [2]_. (Readouts
    may be nonlinear there, and the way back is a small network; they are linear here.)

    Parameters
    ----------
    estimator : fitted estimator
        With ``transform`` and ``inverse_transform``.
    X : trials of counts
        NaN is an entry not observed.
    y : None
        Ignored.
    noise : float, default=0.0
        Standard deviation of Gaussian noise that is added to the log-rates after the fit, as a
        share of the standard deviation of each neuron's log-rate.
    random_state : int, RandomState or None, default=0
        Draws the noise.
    inputs : array of shape (n_trials, n_bins, n_inputs), list of (n_bins_i, n_inputs), or None
        Known inputs, for an estimator that was fitted with them.

    Returns
    -------
    float
        At most 1.

    Raises
    ------
    ValueError
        If ``noise`` is negative, or no latent varies.

    References
    ----------
    .. [1] Versteeg, C., Sedler, A. R., McCart, J. D. & Pandarinath, C. (2023). Expressive dynamics
       models with nonlinear injective readouts enable reliable recovery of latent features from
       neural activity. NeurIPS Workshop on Symmetry and Geometry in Neural Representations,
       PMLR 228. arXiv:2309.06402.
    .. [2] Versteeg, C. et al. (2025), as in `state_r2`; ``compute_nl_cycle_consistency``.

    Examples
    --------
    >>> from sklearn_sae.metrics import cycle_consistency
    >>> cycle_consistency(est, spikes, noise=0.1)  # doctest: +SKIP
    """
    if not noise >= 0:
        raise ValueError(f"noise must be a standard deviation >= 0, got {noise!r}.")
    latents = _best(estimator).transform(X, **if_known(inputs))
    rates = rows(as_trials("rates", estimator.inverse_transform(latents)))
    states = rows(as_trials("latents", latents))
    output = np.log(np.maximum(rates, 1e-9)) if _of_counts(estimator) else rates
    back = LinearRegression().fit(output, states)
    draws = check_random_state(random_state).normal(size=output.shape)
    noisy = output + noise * output.std(axis=0) * draws
    return mean_r2("latents", states, back.predict(noisy), "variance_weighted")


def _hidden_bits_per_spike(
    estimator: Any, X: Any, trials: list[Array], masks: list[NDArray[np.bool_]], inputs: Any
) -> float:
    """Hide the entries under the masks, predict, and score those alone."""
    if not _of_counts(estimator):
        raise ValueError(
            'Bits per spike need counts, but the estimator has likelihood="gaussian". Use its own '
            "score, or R2 of what predict gives."
        )
    shown = [np.where(mask, np.nan, x) for x, mask in zip(trials, masks, strict=True)]
    null_rates = _last_step(estimator).null_rates_
    # Any spike of a neuron that never fired in fit would be an infinite gain.
    scored = [mask & (null_rates > 0) for mask in masks]
    hidden = [np.where(mask, x, np.nan) for x, mask in zip(trials, scored, strict=True)]
    rates = _predict(estimator, shown, X, inputs)
    return bits_per_spike(rates, hidden, null_rates)


def _best(estimator: Any) -> Any:
    """What a search has found: its own methods take no inputs."""
    return getattr(estimator, "best_estimator_", estimator)


def _last_step(estimator: Any) -> Any:
    """The sequential autoencoder within a search or a pipeline."""
    best = _best(estimator)
    return best[-1] if hasattr(best, "steps") else best


def _of_counts(estimator: Any) -> bool:
    last = _last_step(estimator)
    if hasattr(last, "model_"):
        # Parameters may have been set since.
        return last.model_.likelihood.of_counts
    return getattr(last, "likelihood", "poisson") != "gaussian"


def _predict(estimator: Any, trials: list[Array], X: Any, inputs: Any) -> Any:
    """Rates of ``trials`` in the form of ``X``: a pipeline's transformers may take no other."""
    shown = trials if isinstance(X, list | tuple) else np.stack(trials)
    return _best(estimator).predict(shown, **if_known(inputs))


def neuron_parts(parts: Any, n_neurons: int, random_state: Any) -> list[NDArray[np.integer]]:
    if isinstance(parts, int | np.integer):
        if not 2 <= parts <= n_neurons:
            raise ValueError(
                f"parts must be a number from 2 to that of the neurons, {n_neurons}; got {parts}."
            )
        return np.array_split(check_random_state(random_state).permutation(n_neurons), parts)
    refuse_masked("parts", parts)
    given = [np.ravel(part) for part in parts] if np.iterable(parts) else []
    if (
        min(map(len, given), default=0) < 1
        or len(given) < 2
        or sorted(np.concatenate(given).tolist()) != list(range(n_neurons))
    ):
        raise ValueError(
            f"parts must be a number, or hold each of the neurons 0 to {n_neurons - 1} once, in "
            f"two or more lists of positions; got {parts!r}."
        )
    return [part.astype(int) for part in given]

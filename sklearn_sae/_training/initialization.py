"""Initialization of readout and initial conditions from principal components."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from .._data.trials import Trials
from .._model.likelihoods import Likelihood

__all__ = ["pca_start"]

SMOOTHING_BINS = 3.0
MOST_VALUES_FOR_PCA = 5_000_000


def pca_start(
    trials: Trials,
    likelihood: Likelihood,
    n_latents: int,
    latent_scale: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Initialize readout and initial conditions by PCA of the output of smoothed counts.

    The output of counts is their log; see ``Likelihood.smoothed_output``.

    Returns the readout's weight ``(n_neurons, n_latents + 1)`` and the initial conditions
    ``(n_trials, n_latents)``. Latents beyond the number of principal components start at a small
    random readout and at zero.

    The latents are the principal components in their own proportions, rotated at random. If each
    were scaled to unit variance, components of noise would start as large as those of signal, and
    the dynamics would fit them; without the rotation, some latents would hold noise only.
    """
    n_neurons = trials.n_neurons
    n_for_pca = max(1, MOST_VALUES_FOR_PCA // (trials.n_bins * n_neurons))
    chosen = np.sort(rng.permutation(len(trials))[:n_for_pca])
    activity = _smoothed_output(trials, likelihood, chosen, trials.n_bins).reshape(-1, n_neurons)
    activity = activity[~np.isnan(activity).all(axis=1)]
    if activity.size > MOST_VALUES_FOR_PCA:  # a single trial; drawn, as a stride may meet a rhythm
        n_rows = max(2, MOST_VALUES_FOR_PCA // n_neurons)
        activity = activity[np.sort(rng.permutation(len(activity))[:n_rows])]
    with np.errstate(invalid="ignore"):  # NaN for a neuron that none of the chosen trials has
        mean = np.nansum(activity, axis=0) / np.isfinite(activity).sum(axis=0)
    centred = np.nan_to_num(activity - mean)
    variances, directions, noise = _principal_components(centred, n_latents)
    n_found = len(variances)
    # As in probabilistic PCA (Tipping & Bishop, 1999), the variance of the components left out is
    # noise, and its share in each component is removed from initial conditions.
    signal = np.clip(1 - noise / np.maximum(variances, 1e-12), 0.0, 1.0)
    # Rotated latents then have a size of ``latent_scale`` on average.
    size = np.sqrt(max(variances.sum() / n_latents, 1e-6)) / latent_scale
    turn = np.linalg.qr(rng.normal(size=(n_latents, n_latents)))[0]

    weight = rng.normal(scale=0.01, size=(n_neurons, n_latents + 1))
    weight[:, :n_found] = directions * size
    weight[:, :-1] = weight[:, :-1] @ turn
    weight[:, -1] = likelihood.bias(trials.mean_counts())
    initial = np.zeros((len(trials), n_latents))
    first_bins = min(trials.n_bins, int(4 * SMOOTHING_BINS) + 1)
    for start in range(0, len(trials), n_for_pca):
        rows = np.arange(start, min(start + n_for_pca, len(trials)))
        first = np.nan_to_num(_smoothed_output(trials, likelihood, rows, first_bins)[:, 0] - mean)
        initial[rows] = first @ directions * signal / size @ turn[:n_found]
    return torch.from_numpy(weight).float(), torch.from_numpy(initial).float()


def _principal_components(
    centred: np.ndarray, n_components: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """PCA of ``centred`` ``(n_rows, n_neurons)``.

    Returns variances ``(n_found,)``, directions ``(n_neurons, n_found)``, and the mean variance in
    all other directions. If there are fewer rows than neurons, the inner products of the rows are
    diagonalised instead of the covariance: they have the same nonzero eigenvalues, and the time is
    cubic in the rows. Directions without variance are then not returned.
    """
    n_rows, n_neurons = centred.shape
    if n_rows < n_neurons:
        variances, rows = np.linalg.eigh(centred @ centred.T / n_rows)
        total = variances.sum()
        order = np.argsort(variances)[::-1][:n_components]
        order = order[variances[order] > n_rows * np.finfo(variances.dtype).eps * variances[-1]]
        variances, directions = variances[order], centred.T @ rows[:, order]
        noise = max(total - variances.sum(), 0.0) / (n_neurons - len(order))
        return variances, directions / np.sqrt(n_rows * variances), noise
    variances, directions = np.linalg.eigh(centred.T @ centred / n_rows)
    order = np.argsort(variances)[::-1][:n_components]
    noise = np.delete(variances, order).mean() if len(order) < n_neurons else 0.0
    return variances[order], directions[:, order], noise


def _smoothed_output(
    trials: Trials, likelihood: Likelihood, rows: np.ndarray, n_bins: int
) -> np.ndarray:
    """Output ``(n_rows, n_bins, n_neurons)`` whose rates are smoothed counts.

    It is NaN where nothing was observed nearby, and after a trial's last observed bin.
    """
    counts, observed = trials.read(rows, n_bins)
    smoothed = gaussian_filter1d(counts.astype(np.float32), SMOOTHING_BINS, axis=1, mode="constant")
    support = np.ones((1, counts.shape[1], 1)) if observed is None else observed.astype(np.float32)
    support = gaussian_filter1d(support, SMOOTHING_BINS, axis=1, mode="constant")
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.asarray(np.where(support > 1e-3, smoothed / support, np.nan))
    if observed is not None:
        from_the_end = np.asarray(observed.any(axis=2))[:, ::-1]
        within = np.asarray(np.logical_or.accumulate(from_the_end, axis=1))[:, ::-1]
        rates[~within] = np.nan
    return likelihood.smoothed_output(rates)

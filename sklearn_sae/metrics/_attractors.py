"""Free-running trajectories: whether two systems behave alike in the long run."""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.utils import check_random_state

from ._trials import Array, as_trials, rows, same_width


def state_space_divergence(
    true: Any,
    generated: Any,
    *,
    method: str = "auto",
    n_bins: int = 30,
    n_samples: int = 1000,
    random_state: Any = 0,
) -> float:
    r"""D_stsp: divergence between the parts of state space that two systems visit.

    The Kullback-Leibler divergence :math:`\sum_k p_k \log (p_k / q_k)`, in nats, of the generated
    occupancy q from the true p [1]_, estimated as in [2]_:

    * "bins": histograms of ``n_bins`` bins in each dimension, from the least to the greatest true
      value and a tenth of the true standard deviation beyond either; 1e-5 is added to every count.
      (Earlier papers take two standard deviations about zero instead [3]_.)
    * "gmm": a Gaussian of the true standard deviations around every point;
      :math:`\frac1n \sum_i \log p(x_i) / q(x_i)` over ``n_samples`` draws from p [4]_. The papers
      z-score the data first, so that these deviations are 1.

    Parameters
    ----------
    true, generated : trials of latents or rates
        Long free-running trajectories, in the same coordinates: map latents of a model to the true
        ones first. The number of points may differ.
    method : {"auto", "bins", "gmm"}, default="auto"
        "auto" is "bins" up to 5 dimensions, as histograms of more are empty almost everywhere.
    n_bins : int, default=30
        For "bins".
    n_samples : int, default=1000
        For "gmm".
    random_state : int, RandomState or None, default=0
        Draws the samples of "gmm".

    Returns
    -------
    float
        0 where the two are equal; infinite where ``generated`` is not finite, or none of it lies in
        the histogram.

    Raises
    ------
    ValueError
        If dimensions differ or ``method`` is unknown.

    References
    ----------
    .. [1] Koppe, G., Toutounji, H., Kirsch, P., Lis, S. & Durstewitz, D. (2019). Identifying
       nonlinear dynamical systems via generative recurrent neural networks with applications to
       fMRI. PLoS Comput. Biol. 15, e1007263.
    .. [2] Hess, F., Monfared, Z., Brenner, M. & Durstewitz, D. (2023). Generalized teacher forcing
       for learning chaotic dynamics. ICML, PMLR 202, 13017-13049. arXiv:2306.04406.
    .. [3] Brenner, M. et al. (2022). Tractable dendritic RNNs for reconstructing nonlinear
       dynamical systems. ICML, PMLR 162.
    .. [4] Hershey, J. R. & Olsen, P. A. (2007). Approximating the Kullback Leibler divergence
       between Gaussian mixture models. ICASSP 4, 317-320.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.metrics import state_space_divergence
    >>> x = np.random.default_rng(0).normal(size=(1000, 2))
    >>> state_space_divergence(x, x), state_space_divergence(x, x + 1) > 1
    (0.0, True)
    """
    if method not in ("auto", "bins", "gmm"):
        raise ValueError(f'method must be "auto", "bins" or "gmm", got {method!r}.')
    x, y = rows(as_trials("true", true)), rows(as_trials("generated", generated))
    same_width("true", x, "generated", y)
    if not np.all(np.isfinite(y)):
        return np.inf
    if method == "bins" or (method == "auto" and x.shape[1] <= 5):
        return _binned_divergence(x, y, n_bins)
    # A dimension that the truth holds constant has no scale of its own.
    scale = np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    return _gaussian_divergence(x / scale, y / scale, n_samples, check_random_state(random_state))


def power_spectrum_distance(true: Any, generated: Any, *, smoothing: float = 1.0) -> float:
    r"""D_H: Hellinger distance between power spectra, the mean over dimensions.

    Each trial and dimension is z-scored; its squared Fourier amplitudes are smoothed over
    frequencies by a Gaussian and divided by their sum, then averaged over trials to spectra p
    (true) and q (generated). The distance is
    :math:`\frac{1}{\sqrt 2} \| \sqrt p - \sqrt q \|_2`, and D_H its mean over dimensions [1]_ [2]_.

    Parameters
    ----------
    true, generated : trials of latents or rates
        Free-running trajectories in the same coordinates, all of the same number of bins.
    smoothing : float, default=1.0
        Standard deviation of the Gaussian, in frequencies of the discrete Fourier transform,
        ``1 / n_bins`` per bin apart. It is a choice for the data: the authors' code has 2 for [1]_,
        where it also leaves out high frequencies, and 20 for [2]_, on long trajectories. 0 does
        not smooth.

    Returns
    -------
    float
        Between 0 and 1; 1 where ``generated`` is not finite. A constant counts as all power at
        frequency 0.

    Raises
    ------
    ValueError
        If dimensions or lengths differ, or ``smoothing`` is negative.

    References
    ----------
    .. [1] Mikhaeil, J. M., Monfared, Z. & Durstewitz, D. (2022). On the difficulty of learning
       chaotic dynamics with RNNs. NeurIPS. arXiv:2110.07238.
    .. [2] Hess, F. et al. (2023), as in `state_space_divergence`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.metrics import power_spectrum_distance
    >>> t = np.arange(1000)[:, None]
    >>> slow, fast = np.sin(0.1 * t), np.sin(1.0 * t)
    >>> power_spectrum_distance(slow, 2 * slow), power_spectrum_distance(slow, fast) > 0.9
    (0.0, True)
    """
    if not 0 <= smoothing < np.inf:
        raise ValueError(f"smoothing must be a standard deviation >= 0, got {smoothing!r}.")
    x, y = as_trials("true", true), as_trials("generated", generated)
    same_width("true", x[0], "generated", y[0])
    lengths = {len(trial) for trial in x + y}
    if len(lengths) > 1:
        raise ValueError(
            "true and generated must all have as many bins, so that their frequencies are the "
            f"same; got {sorted(lengths)}. Cut the longer ones."
        )
    if not all(np.all(np.isfinite(trial)) for trial in y):
        return 1.0
    p, q = (_spectra(np.stack(trials), smoothing) for trials in (x, y))
    return float(np.mean(np.linalg.norm(np.sqrt(p) - np.sqrt(q), axis=0) / np.sqrt(2)))


def _binned_divergence(x: Array, y: Array, n_bins: int) -> float:
    margin = 0.1 * x.std(axis=0)
    low, high = x.min(axis=0) - margin, x.max(axis=0) + margin
    width = np.where(high > low, (high - low) / n_bins, 1.0)
    cells = [np.floor((points - low) / width).astype(int) for points in (x, y)]
    inside = [points[np.all((points >= 0) & (points < n_bins), axis=1)] for points in cells]
    if not len(inside[1]):
        return np.inf
    # Only cells that either visits are kept; all others share one value of p and one of q.
    visited, index = np.unique(np.concatenate(inside), axis=0, return_inverse=True)
    index = index.ravel()
    p = np.bincount(index[: len(inside[0])], minlength=len(visited))
    q = np.bincount(index[len(inside[0]) :], minlength=len(visited))
    n_cells = float(n_bins) ** x.shape[1]
    alpha = 1e-5
    p_total, q_total = p.sum() + alpha * n_cells, q.sum() + alpha * n_cells
    p, q = (p + alpha) / p_total, (q + alpha) / q_total
    elsewhere = (n_cells - len(visited)) * alpha / p_total * np.log(q_total / p_total)
    return float(np.sum(p * np.log(p / q)) + elsewhere)


def _gaussian_divergence(
    x: Array, y: Array, n_samples: int, random_state: np.random.RandomState
) -> float:
    around = random_state.randint(len(x), size=n_samples)
    samples = x[around] + random_state.normal(size=(n_samples, x.shape[1]))
    return float(np.mean(_log_density(samples, x) - _log_density(samples, y)))


def _log_density(samples: Array, centres: Array) -> Array:
    """Log-density, but for a constant, of one Gaussian around each centre."""
    # All distances at once would take gigabytes for long trajectories.
    chunks = np.array_split(samples, -(-len(samples) * len(centres) // 10_000_000))
    each = [logsumexp(-0.5 * cdist(chunk, centres, "sqeuclidean"), axis=1) for chunk in chunks]
    return np.concatenate(each) - np.log(len(centres))


def _spectra(x: Array, smoothing: float) -> Array:
    """Normalised spectra (n_frequencies, dim), averaged over trials."""
    centred = x - x.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(centred, axis=1)) ** 2
    total = power.sum(axis=1, keepdims=True)
    constant = np.broadcast_to(total <= 1e-24 * np.sum(x**2, axis=1, keepdims=True), power.shape)
    power = np.where(constant, 0.0, power / np.where(total > 0, total, 1.0))
    power[:, 0][constant[:, 0]] = 1.0
    # Below an eighth, SciPy cuts the kernel down to one point, or divides by zero.
    if smoothing >= 0.125:
        power = np.maximum(gaussian_filter1d(power, smoothing, axis=1), 0.0)
    return np.mean(power / power.sum(axis=1, keepdims=True), axis=0)

"""The best rates that the spikes allow when system and readout are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .._data.masked import as_array
from ._differences import typical_scale
from ._integration import rk4_with_jacobian
from ._systems import Array, System

_MAX_SUBSTEPS = 64


def oracle_rates(
    data: Bunch, trials: Any = None, *, max_iter: int = 50, return_latents: bool = False
) -> Any:
    r"""Rates from the maximum-likelihood initial condition under the true system and readout.

    For each trial, the initial condition :math:`z_0` that maximises the Poisson log-likelihood

    .. math:: \sum_{t, i} y_{ti} \log \lambda_{ti}(z_0) - \lambda_{ti}(z_0), \qquad
              \log \lambda_t(z_0) = W^\top z_t(z_0) + b,

    by Fisher scoring (for this likelihood the same as Gauss-Newton): with sensitivities
    :math:`S_t = \partial z_t / \partial z_0` from the variational equation
    :math:`\dot S = J(z) S`, gradient :math:`\sum_t S_t^\top W (y_t - \lambda_t)` and information
    :math:`\sum_t S_t^\top W \operatorname{diag}(\lambda_t) W^\top S_t`. Steps are damped trial by
    trial until they raise the likelihood. The search starts at the true initial condition, so that
    no better optimum is missed for want of a start; what remains between these rates and the true
    ones is spike noise, and no model that infers one initial condition from the same spikes can be
    expected to come nearer.

    Parameters
    ----------
    data : Bunch
        What `make_chaotic_spikes` returned.
    trials : array-like of int, default=None
        Trials to work on, such as ``data.validation``; None is all.
    max_iter : int, default=50
        Greatest number of steps, tried or taken.
    return_latents : bool, default=False
        Whether to return the states as well.

    Returns
    -------
    rates : ndarray of shape (n_trials, n_bins, n_neurons)
        Expected counts per bin.
    latents : ndarray of shape (n_trials, n_bins, dim)
        States, if ``return_latents``.

    Raises
    ------
    NotImplementedError
        If the system has a delay, and so no initial condition to speak of.
    RuntimeError
        If the trajectories in ``data`` are not those of its system.

    References
    ----------
    Green, P. J. (1984). Iteratively reweighted least squares for maximum likelihood estimation,
    and some robust and resistant alternatives. J. R. Stat. Soc. B 46, 149-192.

    Examples
    --------
    >>> from sklearn_sae.datasets import make_chaotic_spikes, oracle_rates
    >>> data = make_chaotic_spikes("Arneodo", n_trials=20, random_state=0)
    >>> oracle_rates(data, data.test).shape
    (4, 70, 10)
    """
    trials = np.arange(len(data.spikes)) if trials is None else as_array("trials", trials)
    spikes, truth = data.spikes[trials], data.latents[trials]
    substeps = _substeps(data.system, truth, data.bin_width)

    def evaluate(z0: Array, counts: Array) -> tuple[Array, ...]:
        z, s = _rollout(data.system, z0, truth.shape[1], data.bin_width, substeps)
        return z, *_likelihood(z, s, counts, data.log_rate_weights, data.log_rate_bias)

    # The sensitivities of the rates are the great arrays; this keeps them under 200 MB each.
    at_once = max(1, 25_000_000 // (truth[0].size * spikes.shape[2]))
    chunks = np.array_split(np.arange(len(trials)), -(-len(trials) // at_once))
    fitted = [_maximise(evaluate, truth[i, 0], spikes[i], max_iter) for i in chunks]
    latents = np.concatenate(fitted)
    rates = np.exp(latents @ data.log_rate_weights + data.log_rate_bias)
    return (rates, latents) if return_latents else rates


def _maximise(
    evaluate: Callable[[Array, Array], tuple[Array, ...]],
    start: Array,
    spikes: Array,
    max_iter: int,
) -> Array:
    """Damped Fisher scoring from given initial conditions; the states it ends with."""
    z0 = start.copy()
    current = evaluate(z0, spikes)
    latents, value, gradient, information = current
    damping = np.full(len(z0), 1e-3)
    active = np.arange(len(z0))
    for _ in range(max_iter):
        if not active.size:
            break
        diagonal = np.einsum("ndd->nd", information[active])
        # A relative floor, for directions that the spikes say next to nothing of.
        ridge = damping[active, None] * (diagonal + 1e-9 * diagonal.max(axis=1, keepdims=True))
        damped = information[active] + ridge[:, :, None] * np.eye(z0.shape[1])
        step = np.linalg.solve(damped, gradient[active][..., None])[..., 0]
        tried = evaluate(z0[active] + step, spikes[active])
        gain = tried[1] - value[active]
        better = gain > 0
        taken = active[better]
        z0[taken] += step[better]
        for kept, new in zip(current, tried, strict=True):
            kept[taken] = new[better]
        damping[active] *= np.where(better, 0.1, 10.0)
        # Where even a vanishing step does not climb, this is the top, to rounding.
        settled = (better & (gain < 1e-7)) | (damping[active] > 1e8)
        active = active[~settled]
    return latents


def _likelihood(
    z: Array, sensitivity: Array, counts: Array, weights: Array, bias: Array
) -> tuple[Array, Array, Array]:
    """Log-likelihood of each trial, its gradient by z0, and the Fisher information on z0."""
    # A step that is refused later may have led anywhere, to infinity too.
    with np.errstate(over="ignore", invalid="ignore"):
        log_rates = z @ weights + bias
        rates = np.exp(log_rates)
        value = (counts * log_rates - rates).sum(axis=(1, 2))
        slope = np.swapaxes(np.swapaxes(sensitivity, -1, -2) @ weights, 1, 2)
        gradient = np.einsum("ndti,nti->nd", slope, counts - rates)
        scaled = (slope * rates[:, None]).reshape(*slope.shape[:2], -1)
        information = scaled @ np.swapaxes(slope.reshape(scaled.shape), 1, 2)
    return np.where(np.isfinite(value), value, -np.inf), gradient, information


def _substeps(system: System, truth: Array, bin_width: float) -> int:
    """Fewest steps per bin, by doubling, that reproduce known trajectories."""
    sample = truth[:: max(1, len(truth) // 100)]
    scale = typical_scale(truth.reshape(-1, truth.shape[-1]))
    substeps = 1
    while substeps <= _MAX_SUBSTEPS:
        z, _ = _rollout(system, sample[:, 0], truth.shape[1], bin_width, substeps)
        if np.sqrt(np.mean(((z - sample) / scale) ** 2)) < 1e-3:
            return substeps
        substeps *= 2
    raise RuntimeError(
        f"data.latents do not follow data.system to 0.1 percent, even with {_MAX_SUBSTEPS} "
        "integration steps per bin. Give the Bunch as make_chaotic_spikes returned it."
    )


def _rollout(
    system: System, z0: Array, n_bins: int, bin_width: float, substeps: int
) -> tuple[Array, Array]:
    """States (n, n_bins, dim) and their derivatives by z0 (n, n_bins, dim, dim)."""
    h = bin_width / substeps
    z = z0
    s: Array = np.broadcast_to(np.eye(z0.shape[1]), (*z0.shape, z0.shape[1]))
    states, sensitivities = [z], [s]

    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(n_bins - 1):
            for _ in range(substeps):
                z, s = rk4_with_jacobian(system.vector_field, system.jacobian, z, s, h)
            states.append(z)
            sensitivities.append(s)
    return np.stack(states, axis=1), np.stack(sensitivities, axis=1)

"""Spike counts of neurons driven by a chaotic system, made as the paper made them."""

import math
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch, check_random_state

from ._attractors import Arneodo, Lorenz, MacArthur, Rossler
from ._mackey_glass import MackeyGlass
from ._systems import Array, CustomSystem, System

_SYSTEMS = {cls.__name__: cls for cls in (Lorenz, Rossler, Arneodo, MackeyGlass, MacArthur)}
_TRIALS = ("contiguous", "independent")


def make_chaotic_spikes(
    system: Any,
    *,
    n_trials: int = 2000,
    n_bins: int = 70,
    n_neurons: int = 10,
    points_per_period: float | None = None,
    trials: str = "contiguous",
    random_state: Any = None,
) -> Bunch:
    r"""Simulate Poisson spike counts of neurons that read out a chaotic system.

    With latents :math:`z_t`, readout weights :math:`W` drawn from the uniform distribution on
    (-0.5, 0.5) and columns sorted by their first row, activity :math:`z_t W` is z-scored for each
    neuron over all trials and bins; the rate is its exponential, and counts are Poisson [1]_.

    Parameters
    ----------
    system : System, str, or dysts system
        What drives the neurons: an object such as ``Lorenz(rho=30)``; one of the names "Lorenz",
        "Rossler", "Arneodo", "MackeyGlass", "MacArthur"; a `CustomSystem`, for equations of your
        own; or an object of the package dysts.
    n_trials : int, default=2000
        Number of trials, at least 3.
    n_bins : int, default=70
        Number of bins in a trial.
    n_neurons : int, default=10
        Number of neurons. The paper has 100 for MackeyGlass and MacArthur.
    points_per_period : float, default=None
        Bins in one period of the system. None is the paper's choice: 35, Lorenz 100, MacArthur 70.
    trials : {"contiguous", "independent"}, default="contiguous"
        "contiguous": one trajectory, cut into consecutive trials, as in the paper; the last bin of
        one trial is followed by the first of the next. "independent": between any two trials the
        trajectory runs on, unseen, for 2 to 3 periods, drawn uniformly, so that each trial starts
        at a point of the attractor of its own.
    random_state : int, RandomState, Generator or None, default=None
        Decides everything that is drawn. An int gives the same data every time.

    Returns
    -------
    Bunch
        With these entries:

        spikes : ndarray of shape (n_trials, n_bins, n_neurons)
            Counts, integers.
        rates : ndarray of shape (n_trials, n_bins, n_neurons)
            Expected counts per bin.
        latents : ndarray of shape (n_trials, n_bins, dim)
            States of the system, in its own units.
        readout : ndarray of shape (dim, n_neurons)
            Weights as drawn.
        log_rate_weights, log_rate_bias : ndarrays of shape (dim, n_neurons) and (n_neurons,)
            The whole readout with all scaling in it:
            ``rates = exp(latents @ log_rate_weights + log_rate_bias)``.
        train, validation, test : ndarrays of int
            The paper's split of the trials, 64 / 16 / 20 percent.
        bin_width : float
            System time in a bin, ``period / points_per_period``.
        system : System
            The system itself.

    Raises
    ------
    ValueError
        If a name, a number or ``trials`` is not one of those allowed, or a dysts system has a
        delay, unbounded variables, or equations that depend on time.
    TypeError
        If ``system`` is none of the things it may be.
    RuntimeError
        If the trajectory cannot be integrated.

    Notes
    -----
    For an int ``random_state`` the readout weights and the split are those of the paper to the
    last digit, and so are start, parameters and bin width of the trajectory. The trajectory
    is not: the paper integrated at a relative tolerance of 1e-3 (MackeyGlass by Euler steps from a
    random history), here it is 1e-9 or less, and chaos makes any difference grow until, after some
    periods, the two are different stretches of one attractor; counts differ with it. The paper's
    times also run to ``n * bin_width`` in ``n`` points, a bin width greater by 1 part in ``n``.
    MacArthur's latents are z-scored before the readout, as in the paper; ``latents`` are not.

    References
    ----------
    .. [1] Sedler, A. R., Versteeg, C. & Pandarinath, C. (2023). Expressive architectures enhance
       interpretability of dynamics-based neural population models. Neurons, Behavior, Data
       analysis, and Theory. https://doi.org/10.51628/001c.73987

    Examples
    --------
    >>> from sklearn_sae.datasets import make_chaotic_spikes
    >>> data = make_chaotic_spikes("Arneodo", n_trials=10, random_state=0)
    >>> data.spikes.shape, data.latents.shape, len(data.train)
    ((10, 70, 10), (10, 70, 3), 6)
    """
    system = _as_system(system)
    _check_count("n_trials", n_trials, 3, "train, validation and test need one trial each")
    _check_count("n_bins", n_bins, 1)
    _check_count("n_neurons", n_neurons, 1)
    if points_per_period is None:
        points_per_period = system.points_per_period
    if not 0 < points_per_period < math.inf:
        raise ValueError(
            f"points_per_period must be a positive number or None, got {points_per_period!r}."
        )
    if trials not in _TRIALS:
        raise ValueError(f"trials must be one of {_TRIALS}, got {trials!r}.")

    seed = _seed(random_state)
    bin_width = system.period / points_per_period
    latents = system.sample(_times(system, n_trials, n_bins, bin_width, trials, seed))

    # One stream for weights and then counts: with an int the weights are the paper's own.
    rng = np.random.default_rng(seed)
    readout = rng.uniform(-0.5, 0.5, (system.dim, n_neurons))
    readout = readout[:, np.argsort(readout[0])]
    weights, bias = _scaled_readout(latents, readout, system.standardize)
    rates = np.exp(latents @ weights + bias)
    spikes = rng.poisson(rates)

    rest, test = train_test_split(np.arange(n_trials), test_size=0.2, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.2, random_state=seed)
    return Bunch(
        spikes=spikes.reshape(n_trials, n_bins, n_neurons),
        rates=rates.reshape(n_trials, n_bins, n_neurons),
        latents=latents.reshape(n_trials, n_bins, system.dim),
        readout=readout,
        log_rate_weights=weights,
        log_rate_bias=bias,
        train=train,
        validation=validation,
        test=test,
        bin_width=bin_width,
        system=system,
    )


def _times(
    system: System, n_trials: int, n_bins: int, bin_width: float, trials: str, seed: int
) -> Array:
    times = np.arange(n_trials * n_bins) * bin_width
    if trials == "independent":
        # A stream of its own, so that both kinds of trials have the same readout.
        rng = np.random.default_rng([seed, 1])
        unseen = rng.uniform(2, 3, n_trials).cumsum() * system.period
        times += np.repeat(unseen, n_bins)
    return times


def _scaled_readout(latents: Array, readout: Array, standardize: bool) -> tuple[Array, Array]:
    """Weights and bias for which log-rates have mean 0 and variance 1, neuron by neuron."""
    scale = latents.std(axis=0) if standardize else np.ones(latents.shape[1])
    weights = readout / np.where(scale > 0, scale, 1.0)[:, None]
    activity = latents @ weights
    spread = activity.std(axis=0)
    # A latent at rest (a fixed point) drives nothing; its neurons fire at rate 1.
    resting = spread <= 1e-12 * (1 + np.abs(activity).max(axis=0))
    weights = np.where(resting, 0.0, weights / np.where(resting, 1.0, spread))
    return weights, -(latents @ weights).mean(axis=0)


def _as_system(system: Any) -> System:
    if isinstance(system, str):
        if system not in _SYSTEMS:
            raise ValueError(
                f"system must be one of {sorted(_SYSTEMS)} or a system object, got {system!r}."
            )
        return _SYSTEMS[system]()
    if isinstance(system, System):
        return system
    # dysts is recognised by what its objects carry, so that it need not be installed.
    if all(hasattr(system, name) for name in ("ic", "period", "make_trajectory")):
        return _from_dysts(system)
    raise TypeError(
        "system must be a System object, a name, or a dysts system, got "
        f"{system!r}. Wrap a function as CustomSystem(function, start, period=...); "
        "give an object, Lorenz(), rather than the class Lorenz."
    )


def _from_dysts(system: Any) -> CustomSystem:
    name = type(system).__name__
    if not hasattr(system, "rhs") or getattr(system, "delay", False):
        raise ValueError(
            f"The dysts system {name} has a delay, and its state is not a vector. Use "
            "MackeyGlass of this package, or a system without a delay."
        )
    if hasattr(system, "_postprocessing"):
        raise ValueError(
            f"The dysts system {name} has variables that grow without bound, which no readout "
            "can follow. Choose a bounded system, or wrap bounded equations in CustomSystem."
        )
    start = np.asarray(system.ic, dtype=float)
    start = start[0] if start.ndim == 2 else start
    now, later = (np.asarray(system.rhs(start, t)) for t in (0.0, system.period / 3))
    if not np.allclose(now, later):
        raise ValueError(
            f"The equations of the dysts system {name} depend on time, and a state alone does not "
            "decide what follows. Choose another, or make time a state variable of a CustomSystem."
        )
    # dysts stores states that lie on the attractor.
    return CustomSystem(
        lambda z: np.asarray(system.rhs(z, 0.0)), start, period=system.period, burn_in=0.0
    )


def _seed(random_state: Any) -> int:
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    if random_state is None:
        # check_random_state(None) would draw from NumPy's global generator.
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31))


def _check_count(name: str, value: Any, least: int, why: str = "") -> None:
    if not isinstance(value, int | np.integer) or value < least:
        reason = f": {why}" if why else ""
        raise ValueError(f"{name} must be an integer >= {least}{reason}; got {value!r}.")

"""Co-smoothing without dynamics: what a model should beat before its dynamics are believed."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from sklearn.decomposition import FactorAnalysis
from sklearn.linear_model import PoissonRegressor
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch, check_random_state

from .._data.masked import as_array
from ._accuracy import bits_per_spike, log_likelihood
from ._scorers import neuron_parts
from ._trials import Array, as_trials, rows, same_width

WIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # standard deviations of the Gaussian window, in bins
ALPHAS = (10.0, 1.0, 0.1, 0.01)
N_FACTORS = 10
# Width and ridge are chosen for all neurons at once, from what they do for some of them.
N_FOLDS = 3
N_CHOOSING = 24


def baselines(
    X_train: Any, X_test: Any, *, conditions: Any = None, parts: Any = 4, random_state: Any = 0
) -> Bunch:
    r"""Co-smoothing of methods without dynamics, to be beaten before dynamics are believed.

    Each neuron of ``X_test`` is predicted from the others, as in `co_smoothing_rates`, by methods
    that learn from ``X_train``. All neurons are scored, in bits per spike beyond their constant
    rates in ``X_train`` [1]_:

    * ``mean``: those constant rates; 0.
    * ``psth``: the mean count in each bin over the training trials (of the same condition) and
      one trial more, which has the neuron's constant rate in every bin. Without it a spike where no
      training trial had one would cost 20 bits or more. The other neurons are not used.
    * ``regression``: Poisson regression on the shown neurons' smoothed square roots of counts
      :math:`x`, standardized. Weights and offset minimise, over the training bins in which the
      hidden neuron was observed,

      .. math:: \frac{1}{n} \sum_t \left( e^{w \cdot x_t + b} - y_t (w \cdot x_t + b) \right)
                + \frac{\alpha}{2} \lVert w \rVert^2 .

      Rates beyond the neuron's largest count in ``X_train`` are cut to that.
    * ``factor_analysis``: the same on ten factors of these, standardized again; smoothing first and
      factors second is the two-stage method of [2]_.

    The standard deviation of the Gaussian window (0.5, 1, 2, 4 or 8 bins; it looks ahead as well
    as back) and :math:`\alpha` (0.01, 0.1, 1 or 10) are those under which 24 neurons drawn at
    random, or all if they are fewer, are predicted best in training trials left out of the fit.
    The trials are cut into three runs, left out in turn, so that windows of a recording that
    overlap mostly stay together.

    Parameters
    ----------
    X_train : trials of counts
        To learn from, at least two trials. NaN is an entry not observed: it is not fitted,
        smoothing averages over what was observed nearby, and where nothing was, a shown neuron
        counts as its mean.
    X_test : trials of counts
        To predict, of the same neurons. NaN is an entry not observed, and not scored.
    conditions : (labels of X_train, labels of X_test), default=None
        Label of each trial's condition, for ``psth``. None takes all trials as one condition.
    parts : int or list of arrays of int, default=4
        Parts of the neurons that are hidden in turn, as in `co_smoothing_rates`.
    random_state : int, RandomState or None, default=0
        Draws the parts, if ``parts`` is a number: for an int, those of `co_smoothing_rates` with
        the same. Draws too the neurons for which window and ridge are chosen.

    Returns
    -------
    sklearn.utils.Bunch
        A dict from the name of each method to its bits per spike, in the order above. ``psth`` is
        left out unless all trials have one length.

    Raises
    ------
    ValueError
        If a count is negative or infinite, there are fewer than two training trials in which
        anything was observed, the neurons of ``X_train`` and ``X_test`` differ in number,
        ``conditions`` has not one label for each trial, ``parts`` is not as `co_smoothing_rates`
        takes it, or no neuron that fired in ``X_train`` fired in ``X_test``.

    See Also
    --------
    co_smoothing_rates : The rates to compare with, those of an estimator.

    Notes
    -----
    Neurons that never fired in ``X_train`` are not scored, as in `co_smoothing_score`: the gain
    over a constant rate of 0 is infinite. If there are any, leave them out of what is compared, by
    scoring the spikes ``np.where(est.null_rates_ > 0, X_test, np.nan)``.

    References
    ----------
    .. [1] Pei, F. et al. (2021), as in `bits_per_spike`.
    .. [2] Yu, B. M., Cunningham, J. P., Santhanam, G., Ryu, S. I., Shenoy, K. V. & Sahani, M.
       (2009). Gaussian-process factor analysis for low-dimensional single-trial analysis of neural
       population activity. J. Neurophysiol. 102, 614-635. https://doi.org/10.1152/jn.90941.2008

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.metrics import baselines
    >>> rng = np.random.default_rng(0)
    >>> shared = np.cumsum(rng.normal(size=(40, 30, 1)), axis=1) / 8  # a random walk in each trial
    >>> spikes = rng.poisson(np.exp(shared * rng.normal(size=12)))
    >>> found = baselines(spikes[:30], spikes[30:])
    >>> list(found)
    ['mean', 'psth', 'regression', 'factor_analysis']
    >>> found.mean < found.regression
    True

    The number of an estimator, to put beside these:

    >>> from sklearn_sae.metrics import bits_per_spike, co_smoothing_rates
    >>> rates = co_smoothing_rates(est, spikes[30:])  # doctest: +SKIP
    >>> bits_per_spike(rates, spikes[30:], est.null_rates_)  # doctest: +SKIP
    """
    train, test = _counts("X_train", X_train), _counts("X_test", X_test)
    same_width("X_train", train[0], "X_test", test[0])
    labels = _labels(conditions, train, test)
    # One generator, from which co_smoothing_rates would draw the same parts first.
    rng = check_random_state(random_state)
    groups = neuron_parts(parts, train[0].shape[1], rng)

    # A trial without an entry would still be a trial of a fold.
    some = np.array([not np.isnan(x).all() for x in train])
    train, of_train = [x for x, keep in zip(train, some, strict=True) if keep], labels[0][some]
    if len(train) < 2:
        raise ValueError(
            f"X_train must have 2 trials or more in which something was observed, to leave some "
            f"out in turn; it has {len(train)}. Cut a long recording by sklearn_sae.io.chop."
        )

    null_rates = _means(train)
    fired = null_rates > 0
    spikes = np.where(fired, rows(test), np.nan)
    if not np.nansum(spikes) > 0:
        raise ValueError(
            "X_test has no spike of a neuron that fired in X_train: bits per spike have no value."
        )
    rates = {"mean": np.broadcast_to(null_rates, spikes.shape)}
    if len({len(x) for x in (*train, *test)}) == 1:
        rates["psth"] = rows(_psth(train, of_train, labels[1], null_rates))
    regression = _Regression(train, test, groups, rng.permutation(np.flatnonzero(fired)))
    rates["regression"] = regression.rates(_standardized)
    rates["factor_analysis"] = regression.rates(_factors)
    return Bunch(**{name: bits_per_spike(x, spikes, null_rates) for name, x in rates.items()})


def _psth(
    trials: list[Array], labels: NDArray[Any], wanted: NDArray[Any], null_rates: Array
) -> list[Array]:
    """The histogram of each wanted label's condition; one never seen has the constant rates."""
    x = np.stack(trials)
    seen = ~np.isnan(x)
    filled = np.where(seen, x, 0.0)
    histograms = {
        label: (filled[labels == label].sum(axis=0) + null_rates)
        / (seen[labels == label].sum(axis=0) + 1)
        for label in np.unique(wanted)
    }
    return [histograms[label] for label in wanted]


Features = Callable[[Array, Array], tuple[Array, Array]]


class _Regression:
    """Poisson regression of each hidden neuron on features of the neurons shown.

    Bins of all trials lie below each other as rows. Those in which no neuron was observed are not
    used, so that padding with NaN changes nothing.
    """

    def __init__(
        self,
        train: list[Array],
        test: list[Array],
        groups: list[NDArray[np.integer]],
        fired: NDArray[np.integer],
    ):
        self.groups = groups
        self.fired = fired
        self.choosing = fired[:N_CHOOSING]
        self.counts = rows(train)
        self.null_rates = _means(train)
        self.smooth = {width: (_smooth(train, width), _smooth(test, width)) for width in WIDTHS}
        trial = np.repeat(np.arange(len(train)), [len(x) for x in train])
        self.observed = ~np.isnan(self.counts).all(axis=1)
        folds = KFold(min(N_FOLDS, len(train))).split(train)
        self.folds = [np.isin(trial, held) for _, held in folds]

    def rates(self, features: Features) -> Array:
        """Rates of all neurons in the test trials, after a choice of width and ridge."""
        gained = {
            (width, alpha): gain
            for width in WIDTHS
            for alpha, gain in zip(ALPHAS, self._left_out(features, width), strict=True)
        }
        width, alpha = max(gained, key=lambda setting: gained[setting])
        smooth, new = self.smooth[width]
        fit = self.observed
        rates = self._predict(features, smooth[fit], self.counts[fit], new, (alpha,), self.fired)[0]
        return np.where(np.isnan(rates), self.null_rates, rates)

    def _left_out(self, features: Features, width: float) -> Array:
        """Log-likelihood of training trials left out of the fit, under each ridge."""
        smooth = self.smooth[width][0]
        total = np.zeros(len(ALPHAS))
        for held in self.folds:
            fit, left_out = self.observed & ~held, self.observed & held
            rates = self._predict(
                features, smooth[fit], self.counts[fit], smooth[left_out], ALPHAS, self.choosing
            )
            y = self.counts[left_out][:, self.choosing]
            seen = ~np.isnan(y)
            total += [log_likelihood(r[:, self.choosing][seen], y[seen]) for r in rates]
        return total

    def _predict(
        self,
        features: Features,
        smooth: Array,
        counts: Array,
        new: Array,
        alphas: tuple[float, ...],
        neurons: NDArray[np.integer],
    ) -> Array:
        """Rates of some neurons in new rows, under each ridge; NaN for all others."""
        rates = np.full((len(alphas), len(new), counts.shape[1]), np.nan)
        for group in self.groups:
            hidden = np.intersect1d(group, neurons)
            if not hidden.size:
                continue
            shown = np.setdiff1d(np.arange(counts.shape[1]), group)
            x, new_x = features(smooth[:, shown], new[:, shown])
            for neuron in hidden:
                rates[:, :, neuron] = _regress(x, counts[:, neuron], new_x, alphas)
        return rates


def _regress(x: Array, y: Array, new: Array, alphas: tuple[float, ...]) -> Array:
    """Rates of one neuron in new rows, under each ridge."""
    seen = ~np.isnan(y)
    if not np.any(y[seen] > 0) or not x.shape[1]:
        return np.full((len(alphas), len(new)), y[seen].mean() if seen.any() else 0.0)
    # From a strong ridge to a weak one, each from where the last one ended.
    model = PoissonRegressor(max_iter=1000, warm_start=True)
    x, y = x[seen], y[seen]
    with np.errstate(over="ignore"):
        rates = [model.set_params(alpha=alpha).fit(x, y).predict(new) for alpha in alphas]
    # The exponential of more activity than was ever seen has no bound.
    return np.minimum(rates, y.max())


def _smooth(trials: list[Array], width: float) -> Array:
    """Square roots of counts, averaged over what was observed nearby; NaN where nothing was."""
    smooth = []
    for x in trials:
        seen = ~np.isnan(x)
        total, weight = (
            gaussian_filter1d(a, width, axis=0, mode="constant")
            for a in (np.where(seen, np.sqrt(x), 0.0), seen.astype(float))
        )
        smooth.append(np.divide(total, weight, out=np.full(x.shape, np.nan), where=weight > 0))
    return rows(smooth)


def _standardized(x: Array, new: Array) -> tuple[Array, Array]:
    """The columns that vary in the first, in its units; what is missing is at its mean."""
    varies = np.fmax.reduce(x) - np.fmin.reduce(x) > 1e-9 * np.fmax.reduce(np.abs(x))
    x, new = x[:, varies], new[:, varies]
    if not varies.any():
        return x, new
    scaler = StandardScaler().fit(x)
    return np.nan_to_num(scaler.transform(x)), np.nan_to_num(scaler.transform(new))


def _factors(x: Array, new: Array) -> tuple[Array, Array]:
    x, new = _standardized(x, new)
    n_factors = min(N_FACTORS, x.shape[1], len(x) - 1)
    if n_factors < 1:
        return x, new
    analysis = FactorAnalysis(n_factors, random_state=0).fit(x)
    return _standardized(analysis.transform(x), analysis.transform(new))


def _means(trials: list[Array]) -> Array:
    x = rows(trials)
    seen = ~np.isnan(x)
    return np.where(seen, x, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)


def _counts(name: str, value: Any) -> list[Array]:
    trials = as_trials(name, value)
    x = rows(trials)
    if np.any((x < 0) | np.isinf(x)):
        raise ValueError(
            f"{name} must hold counts, finite and >= 0, with NaN where nothing was observed; its "
            f"values go from {np.nanmin(x):g} to {np.nanmax(x):g}. Bits per spike have no meaning "
            "for other signals."
        )
    return trials


def _labels(
    conditions: Any, train: list[Array], test: list[Array]
) -> tuple[NDArray[Any], NDArray[Any]]:
    if conditions is None:
        return np.zeros(len(train)), np.zeros(len(test))
    if not isinstance(conditions, list | tuple) or len(conditions) != 2:
        raise ValueError(
            "conditions must be a pair, labels of the trials of X_train and of those of X_test; "
            f"got {conditions!r}."
        )
    of_train, of_test = (as_array("conditions", labels) for labels in conditions)
    if of_train.shape != (len(train),) or of_test.shape != (len(test),):
        raise ValueError(
            f"conditions must have one label for each of {len(train)} trials of X_train and "
            f"{len(test)} of X_test, got shapes {of_train.shape} and {of_test.shape}."
        )
    return of_train, of_test

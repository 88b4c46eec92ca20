"""Spikes of a trial, and the rates inferred from them."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

from .._data.masked import as_array, refuse_masked
from .._data.validation import if_known
from ._style import FOUND, TRUE, finish, grid_of_axes, label_grid


class RateDisplay:
    """Spikes, predicted rates with bands, and true rates where they are known, of one trial.

    Parameters
    ----------
    rates : array of shape (n_bins, n_neurons)
        Predicted, in spikes per bin.
    std : array of shape (n_bins, n_neurons) or None, default=None
        Standard deviations, from ``predict(X, return_std=True)``.
    spikes : array of shape (n_bins, n_neurons) or None, default=None
        Counts; NaN where not observed.
    true_rates : array of shape (n_bins, n_neurons) or None, default=None
        Expected counts, if known.
    of_counts : bool, default=True
        False for the values of any sign that ``likelihood="gaussian"`` is for: bands are Gaussian
        instead of lognormal, axes go below zero, and ``bin_size`` is for the time alone.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for each neuron.
    figure_ : matplotlib Figure
        Where it was drawn.
    rates_, true_rates_, spikes_, bands_ : lists of matplotlib artists
        One for each neuron; empty where there is nothing to draw.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.plotting import RateDisplay
    >>> rates = np.exp(np.sin(np.arange(30)[:, np.newaxis] / 5 + np.arange(8)))
    >>> display = RateDisplay(rates, spikes=np.random.default_rng(0).poisson(rates))
    >>> len(display.plot(neurons=[0, 5]).rates_)
    2
    """

    def __init__(
        self,
        rates: Any,
        *,
        std: Any = None,
        spikes: Any = None,
        true_rates: Any = None,
        of_counts: bool = True,
    ) -> None:
        self.rates = rates
        self.std = std
        self.spikes = spikes
        self.true_rates = true_rates
        self.of_counts = of_counts

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        inputs: Any = None,
        trial: int = 0,
        true_rates: Any = None,
        neurons: Any = None,
        coverage: float = 0.9,
        bin_size: float | None = None,
        ax: Any = None,
    ) -> RateDisplay:
        """Predict the rates of one trial and draw them on its spikes.

        Parameters
        ----------
        estimator : NODESAE or RNNSAE
            Fitted. Bands are drawn if ``inference="semi-amortized"``.
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if the estimator was fitted with some.
        trial : int, default=0
            Which trial.
        true_rates : array like X, default=None
            Expected counts per bin, if known.
        neurons : sequence of int, default=None
            Which neurons; None: the six whose rates vary most.
        coverage : float, default=0.9
            Probability within the bands.
        bin_size : float, default=None
            Seconds in a bin, for an axis in seconds and rates in spikes per second.
        ax : sequence of matplotlib Axes, default=None
            One for each neuron; None makes a figure.

        Returns
        -------
        RateDisplay
            With the artists.
        """
        refuse_masked("X", X)
        if not -len(X) <= trial < len(X):
            raise ValueError(f"trial must be a row of X, which holds {len(X)}; got {trial}.")
        one = [X[trial]]
        known = if_known(None if inputs is None else [inputs[trial]])
        if hasattr(estimator, "model_variance_"):
            rates, std = (values[0] for values in estimator.predict(one, return_std=True, **known))
        else:
            rates, std = estimator.predict(one, **known)[0], None
        true = None
        if true_rates is not None:
            if len(true_rates) != len(X) or np.shape(true_rates[trial]) != rates.shape:
                raise ValueError(
                    "true_rates must be like X, of all trials: it holds "
                    f"{len(true_rates)}, the first of shape {np.shape(true_rates[0])}; X holds "
                    f"{len(X)}, and X[{trial}] has shape {rates.shape}."
                )
            true = as_array("true_rates", true_rates[trial])
        display = cls(
            rates,
            std=std,
            spikes=X[trial],
            true_rates=true,
            of_counts=estimator.model_.likelihood.of_counts,
        )
        return display.plot(ax=ax, neurons=neurons, coverage=coverage, bin_size=bin_size)

    def plot(
        self,
        *,
        ax: Any = None,
        neurons: Any = None,
        coverage: float = 0.9,
        bin_size: float | None = None,
    ) -> RateDisplay:
        """Draw; parameters as in `from_estimator`.

        Returns
        -------
        RateDisplay
            With the artists.
        """
        for name in ("std", "spikes", "true_rates"):
            refuse_masked(name, getattr(self, name))
        rates = as_array("rates", self.rates, float)
        if rates.ndim != 2:
            raise ValueError(
                f"rates must be those of one trial, (n_bins, n_neurons), got shape {rates.shape}."
            )
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must be a probability between 0 and 1, got {coverage!r}.")
        if neurons is None:
            neurons = np.sort(np.argsort(rates.std(axis=0))[-6:])
        neurons = np.atleast_1d(neurons)
        self.axes_ = grid_of_axes(type(self).__name__, ax, len(neurons), "neurons")
        self.figure_ = self.axes_[0].figure
        self.rates_: list[Any] = []
        self.true_rates_: list[Any] = []
        self.spikes_: list[Any] = []
        self.bands_: list[Any] = []
        time = np.arange(len(rates)) * (bin_size or 1.0)
        scale = 1 / bin_size if bin_size and self.of_counts else 1.0
        for axis, neuron in zip(self.axes_, neurons, strict=True):
            self._draw(axis, int(neuron), rates, time, scale, coverage)
            axis.set_title(f"neuron {neuron}")
            if self.of_counts:
                axis.set_ylim(bottom=0)
            finish(axis)
        time_label, rate_label = (
            ("time (bins)", "spikes per bin") if bin_size is None else ("time (s)", "spikes per s")
        )
        if not self.of_counts:
            rate_label = "value"
        label_grid(self.axes_, time_label, rate_label, own=ax is None)
        if ax is None:
            handles, labels = self.axes_[0].get_legend_handles_labels()
            self.figure_.legend(
                handles, labels, frameon=False, fontsize=11, ncols=2 if len(neurons) == 1 else 4,
                loc="outside upper center",
            )  # fmt: skip
        else:
            self.axes_[0].legend(frameon=False, fontsize=11, loc="best")
        return self

    def _draw(
        self, axis: Any, neuron: int, rates: Any, time: Any, scale: float, coverage: float
    ) -> None:
        if self.spikes is not None:
            counts = np.asarray(self.spikes, dtype=float)[:, neuron] * scale
            # Points rather than bars: a count of 0 is seen, and so is one not observed.
            (dots,) = axis.plot(
                time, counts, ".", color="#6B7680", ms=6, zorder=1, clip_on=False,
                label="spikes" if self.of_counts else "observed",
            )  # fmt: skip
            self.spikes_.append(dots)
        if self.std is not None:
            find_band = lognormal_band if self.of_counts else gaussian_band
            low, high = find_band(rates[:, neuron], self.std, neuron, coverage)
            band = axis.fill_between(
                time,
                low * scale,
                high * scale,
                color=FOUND,
                alpha=0.3,
                lw=0,
                label=f"{100 * coverage:.0f} % band",
            )
            self.bands_.append(band)
        if self.true_rates is not None:
            true = np.asarray(self.true_rates, dtype=float)[:, neuron] * scale
            self.true_rates_.append(axis.plot(time, true, color=TRUE, lw=2, label="true")[0])
        (line,) = axis.plot(
            time, rates[:, neuron] * scale, color=FOUND, lw=2, ls="--", label="predicted"
        )
        self.rates_.append(line)


def lognormal_band(rates: Any, std: Any, neuron: int, coverage: float) -> tuple[Any, Any]:
    """Ends of the interval that holds ``coverage`` of a lognormal with these medians and std."""
    ratio = np.asarray(std, dtype=float)[:, neuron] / rates
    # std = median * sqrt((e^v - 1) e^v), solved for the variance v of the log.
    sigma = np.sqrt(np.log((1 + np.sqrt(1 + 4 * ratio**2)) / 2))
    reach = NormalDist().inv_cdf(0.5 + coverage / 2)
    return rates * np.exp(-reach * sigma), rates * np.exp(reach * sigma)


def gaussian_band(rates: Any, std: Any, neuron: int, coverage: float) -> tuple[Any, Any]:
    """Ends of the interval that holds ``coverage`` of a Gaussian with these means and std."""
    reach = NormalDist().inv_cdf(0.5 + coverage / 2) * np.asarray(std, dtype=float)[:, neuron]
    return rates - reach, rates + reach

"""Likelihoods: distributions of counts given rates, and rates given the readout's output.

The readout's output o is the log-rate of counts; with a Gaussian likelihood it is the rate, in
units of the neuron's standard deviation from its mean. Given o, each likelihood is a member of an
exponential family, ``log p(y | o) = y a(o) - b(o) + c(y)`` [McCullagh & Nelder, Generalized Linear
Models, 1989]. The normaliser c does not matter for inference.

Outputs and counts are ``(n_bins, n_neurons, n_trials)``, parameters of neurons ``(n_neurons, 1)``.
"""

from .base import Likelihood
from .counts import NegativeBinomial, Poisson
from .gaussian import Gaussian

__all__ = ["LIKELIHOODS", "Gaussian", "Likelihood", "NegativeBinomial", "Poisson"]

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "gaussian": Gaussian,
}

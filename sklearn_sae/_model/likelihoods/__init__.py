"""How counts scatter around rates, and how rates follow from what the readout gives.

The readout's output o is the log-rate of counts; of a Gaussian's values it is the rate itself, but
for the neuron's mean and scale. Given o, each likelihood is a member of an exponential family,
``log p(y | o) = y a(o) - b(o) + c(y)`` [McCullagh & Nelder, Generalized Linear Models, 1989]; c,
which inference need not know, is the normaliser.

Outputs and counts are ``(n_bins, n_neurons, n_trials)``; what belongs to neurons is
``(n_neurons, 1)``.
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

"""Precisions that float32 can't hold still give factors, and uncertainty: no fit fails for it."""

import numpy as np
import pytest
import torch
from common import CPU, batch_of, generator, make_problem, variance_of_rollouts

from sklearn_sae._data.trials import Trials
from sklearn_sae._inference.newton import refine
from sklearn_sae._inference.posterior import LaplacePosterior
from sklearn_sae._inference.prior import Prior
from sklearn_sae._inference.safe_linalg import safe_cholesky
from sklearn_sae._model.inputs import Inputs


def test_a_sound_matrix_is_factored_as_ever():
    root = torch.randn(20, 4, 4, generator=generator())
    matrices = root @ root.mT + torch.eye(4)
    expected = torch.linalg.cholesky(matrices)
    broken = torch.diag_embed(torch.tensor([[1.0, -1.0, 1.0, 1.0]]))
    factors = safe_cholesky(torch.cat([matrices, broken]), torch.eye(4))
    assert torch.equal(safe_cholesky(matrices, torch.eye(4)), expected)
    assert torch.equal(factors[:-1], expected)


def test_what_rounding_took_is_given_back():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator()).double())[0]
    exact = (turn * torch.tensor([1e12, 4.0, 2.0])) @ turn.T
    spoilt = exact.float()[None] - 1e5 * torch.eye(3)
    factor = safe_cholesky(spoilt, 2 * torch.eye(3)).double()[0]
    covariance = torch.cholesky_inverse(factor)
    assert turn[:, 0] @ covariance @ turn[:, 0] < 1e-6  # what is certain stays so
    # Nothing is claimed of the rest beyond what the prior tells.
    left = torch.linalg.eigvalsh(covariance)[1:]
    torch.testing.assert_close(left, torch.full_like(left, 0.5))


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_overflow_leaves_the_prior(value):
    prior = torch.diag(torch.tensor([2.0, 3.0]))
    factor = safe_cholesky(torch.full((1, 2, 2), value), prior)
    torch.testing.assert_close(torch.cholesky_inverse(factor)[0], torch.linalg.inv(prior))
    nothing = safe_cholesky(torch.full((1, 2, 2), value), torch.full((2, 2), torch.nan))
    assert torch.cholesky_inverse(nothing).isfinite().all()


def stretched(likelihood="poisson", activation="tanh", factor=1.0, n_bins=500, n_trials=20):
    """Dynamics that stretch one direction, and trials far longer than those they were fitted to."""
    model, prior, _, start = make_problem(
        n_trials=n_trials,
        n_bins=2,
        dtype=torch.float32,
        activation=activation,
        likelihood=likelihood,
    )
    for weight in model.dynamics.parameters():
        weight.mul_(factor)
    counts = np.random.default_rng(0).poisson(1.0, (n_trials, n_bins, 6)).astype(float)
    return model, prior, counts, 3 * start


# On each, cholesky_inverse was an error, or covariances were NaN.
CASES = [
    ("poisson", "tanh", 1.0, 500),
    ("poisson", "tanh", 3.0, 500),
    ("poisson", "relu", 1.0, 500),
    ("negative_binomial", "relu", 3.0, 70),
    ("gaussian", "relu", 1.0, 500),
]


@pytest.mark.parametrize(("likelihood", "activation", "factor", "n_bins"), CASES)
def test_uncertainty_of_stretching_dynamics(likelihood, activation, factor, n_bins):
    model, prior, counts, variables = stretched(likelihood, activation, factor, n_bins)
    batch = batch_of(counts, torch.float32)
    posterior = LaplacePosterior(model, prior, batch, variables)
    first = posterior.latent_covariances[:, 0]
    # Spikes can only add to what the prior tells.
    assert (first.diagonal(dim1=1, dim2=2) > 0).all()
    widest = 1 / torch.linalg.eigvalsh(prior.precision)[0]
    assert (torch.linalg.eigvalsh(first) < 1.001 * widest).all()
    assert posterior.latent_std(0.1).isfinite().all()
    assert not posterior.rate_std(0.1)[posterior.rates.isfinite()].isnan().any()
    trials = Trials(counts, has_missing=False)
    assert np.isfinite(variance_of_rollouts(model, trials, variables.T.contiguous()))


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_inferred_inputs_of_stretching_dynamics(factor):
    model, prior, counts, variables = stretched("poisson", "relu", factor, n_bins=100)
    model.inputs = Inputs(3, 0, 2, generator()).requires_grad_(False)
    model.inputs.variance.fill_(0.5)
    prior = Prior(prior.mean, prior.precision, model.inputs)
    batch = batch_of(counts, torch.float32)
    found = refine(model, prior, batch, variables, max_iter=2)
    posterior = LaplacePosterior(model, prior, batch, found)
    assert (posterior.input_std() <= 1.001 * 0.5**0.5).all()  # false of NaN
    assert posterior.mean_output.shape == batch.counts.shape
    posterior.input_statistics()


def test_a_prior_of_samples_that_overflow_is_no_error():
    for samples in (torch.full((5, 2), torch.nan), torch.tensor([[1e30, 0.0], [-1e30, 1.0]])):
        Prior.from_samples(samples)


def test_model_variance_of_a_lost_model_is_no_error():
    model, _, counts, variables = stretched(n_bins=5, n_trials=4)
    trials = Trials(counts, has_missing=False)
    variance = variance_of_rollouts(model, trials, torch.full((4, 3), torch.nan, device=CPU))
    assert np.isfinite(variance)

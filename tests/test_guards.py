"""Constants that were tuned on data: fits of small examples do not show it if one is changed."""

import numpy as np
import pytest
import torch
from common import generator, make_model, variance_of_rollouts

from sklearn_sae import NODESAE
from sklearn_sae._data.trials import Trials
from sklearn_sae._model.inputs import Inputs, InputStatistics

# ------------------------------------------------------------------ what weights leave open


@pytest.mark.parametrize("n_bins", [2, 40])
def test_variance_due_to_the_weights(n_bins):
    # Counts without noise: residuals show nothing, and the share of the weights is left alone.
    model = make_model(dtype=torch.float32)
    z0 = torch.randn(3, 20, generator=generator())
    rates = model.output(z0, n_bins).exp().permute(2, 0, 1).double()
    trials = Trials(rates.numpy(), has_missing=False)
    # An MLP of 3, 8 and 3 units and a readout to 6 neurons, with biases, less an affine change of
    # the latents.
    n_weights = 8 * (3 + 1) + 3 * (8 + 1) + 6 * (3 + 1) - 3 * (3 + 1)
    # Spikes of a neuron that varies on its own tell less.
    n_spikes = float((rates / model.likelihood.private_dispersion[:, 0]).sum())
    expected = n_weights / (n_spikes + 400 * n_weights)
    assert variance_of_rollouts(model, trials, z0.T) == pytest.approx(expected, rel=1e-5)


def test_rates_leave_an_affine_change_of_the_latents_open():
    model = make_model(n_latents=2, n_neurons=4, seed=1).requires_grad_()
    z0 = torch.randn(2, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    free = [z0, *(weight for weight in model.generative_parameters() if weight.numel())]
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(x, free, retain_graph=True)])
        for x in model.output(z0, 15).flatten()
    ]
    jacobian = torch.stack(rows)
    singular = torch.linalg.svdvals(jacobian / jacobian.norm(dim=0)).numpy()
    assert len(singular) == sum(part.numel() for part in free)
    # An affine change of two latents is 2 x 3 numbers, and all the others can be told.
    assert singular[-6:].max() < 1e-12 * singular[0]
    assert singular[-7] > 1e-9 * singular[0]


# ------------------------------------------------------------------ inferred inputs


def test_inputs_are_held_below_the_evidence_while_trials_are_seen_in_part():
    squared, determined = torch.tensor([12.0, 6.0]), torch.tensor([10.0, 10.0])
    none = torch.zeros(2)
    statistics = InputStatistics(squared, determined, none, none, 0, 0)
    for shrink, share in ((False, 1.0), (True, 0.6)):
        inputs = Inputs(3, 0, 2, generator())
        before = inputs.variance.clone()
        inputs.learn_prior(statistics, shrink=shrink)
        np.testing.assert_allclose(
            inputs.variance / before, share * squared / determined, rtol=1e-6
        )


def test_a_fit_holds_inputs_down_until_it_sees_whole_trials(spikes, monkeypatch):
    held = []

    def learn_prior(self, sums, shrink, learn=Inputs.learn_prior):
        held.append(shrink)
        learn(self, sums, shrink)

    monkeypatch.setattr(Inputs, "learn_prior", learn_prior)
    NODESAE(
        n_latents=2, hidden_sizes=(8,), n_inferred_inputs=1, max_epochs=40, random_state=0,
        device="cpu",
    ).fit(spikes)  # fmt: skip
    assert held[0] and not held[-1]
    assert held == sorted(held, reverse=True)

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln
from scipy.stats import poisson

from sklearn_sae._data.trials import Trials
from sklearn_sae._inference.data_term import log_likelihood, mean_loss
from sklearn_sae._inference.scoring import bits_gained, hidden_entries
from sklearn_sae._model.likelihoods import Poisson

CPU = torch.device("cpu")
seeds = st.integers(0, 2**32 - 1)


def batch_of(data):
    has_missing = any(np.isnan(trial).any() for trial in data)
    return Trials(data, has_missing=has_missing).batch(np.arange(len(data)), CPU)


def recording(seed=0, n_trials=5, n_bins=7, n_neurons=4, missing=0.0):
    """Counts with holes, rates that are not theirs, and which entries were observed."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2.0, (n_trials, n_bins, n_neurons)).astype(float)
    rates = rng.gamma(4.0, 0.5, counts.shape)
    observed = rng.random(counts.shape) >= missing
    observed[:, 0, 0] = True
    return np.where(observed, counts, np.nan), rates, observed


def log_of(rates):
    return torch.from_numpy(np.log(rates)).float().permute(1, 2, 0)


# --- likelihood ----------------------------------------------------------------------------------


@given(seeds, st.sampled_from([0.0, 0.3, 0.9]))
@settings(max_examples=30, deadline=None)
def test_log_likelihood_is_scipys(seed, missing):
    counts, rates, observed = recording(seed, missing=missing)
    batch = batch_of(counts)
    y = np.where(observed, counts, 0)
    terms = np.where(observed, poisson.logpmf(y, rates) + gammaln(y + 1), 0)
    likelihood = log_likelihood(Poisson(4), log_of(rates), batch.counts, batch.mask)
    np.testing.assert_allclose(likelihood, terms.sum((1, 2)), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        mean_loss(Poisson(4), log_of(rates), batch),
        -terms.sum() / observed.sum(),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("extreme", [200.0, math.inf, -math.inf, math.nan])
def test_rates_where_nothing_was_observed_are_not_looked_at(extreme):
    # A free run may leave every bound after a trial's end; it must not spoil the observed part.
    counts, rates, _ = recording(missing=0.3)
    batch = batch_of(counts)
    log_rates = log_of(rates)
    results = []
    for elsewhere in (0.0, extreme):
        leaf = torch.where(batch.mask, log_rates, elsewhere).requires_grad_()
        loss = mean_loss(Poisson(4), leaf, batch)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0])
    assert results[1][0].isfinite()
    assert not results[1][1][~batch.mask].any()


def test_mean_loss_is_smallest_at_the_rates_that_made_the_counts():
    rng = np.random.default_rng(0)
    rates = rng.gamma(4.0, 0.5, (200, 10, 4))
    batch = batch_of(rng.poisson(rates).astype(float))
    losses = [mean_loss(Poisson(4), log_of(scale * rates), batch) for scale in (0.8, 1.0, 1.25)]
    assert min(losses) == losses[1]


# --- which entries a score hides -----------------------------------------------------------------


@given(seeds, st.sampled_from([0.0, 0.3, 0.95]), st.sampled_from([0.05, 0.2, 0.9]))
@settings(max_examples=50, deadline=None)
def test_hidden_entries(seed, missing, fraction):
    counts, _, observed = recording(seed, missing=missing)
    hidden = hidden_entries(batch_of(counts), fraction).permute(2, 0, 1).numpy()
    assert hidden.dtype == bool
    assert not (hidden & ~observed).any()
    for row, seen in zip(hidden, observed, strict=True):
        neurons, chosen = seen.any(0), row.any(0)
        if neurons.sum() > 1:
            # All that was observed of each.
            assert np.array_equal(row, seen & chosen)
            n_hidden, n_seen = chosen.sum(), neurons.sum()
        else:
            n_hidden, n_seen = row.sum(), seen.sum()
        assert n_hidden == min(max(1, round(fraction * n_seen)), n_seen - 1)
    assert ((observed & ~hidden).sum((1, 2)) >= 1).all()


def test_of_a_trial_with_a_single_neuron_entries_are_hidden():
    counts = np.full((1, 10, 3), np.nan)
    counts[0, :, 1] = 2
    hidden = hidden_entries(batch_of(counts), 0.2)
    assert hidden[:, 1].sum() == 2 == hidden.sum()


def test_one_observed_entry_is_left_alone_and_two_are_shared():
    counts = np.full((2, 3, 2), np.nan)
    counts[0, 1, 1] = 4
    counts[1, 0] = 1, 2
    hidden = hidden_entries(batch_of(counts), 0.2)
    assert hidden.sum((0, 1)).tolist() == [0, 1]


def test_the_draw_does_not_know_padding():
    counts, _, _ = recording(n_bins=9)
    lengths = [9, 4, 2, 7, 9]
    ragged = [trial[:n] for trial, n in zip(counts, lengths, strict=True)]
    padded = np.full((5, 30, 4), np.nan)
    for row, trial in zip(padded, ragged, strict=True):
        row[: len(trial)] = trial
    expected = hidden_entries(batch_of(ragged), 0.3)
    hidden = hidden_entries(batch_of(padded), 0.3)
    assert torch.equal(hidden[:9], expected)
    assert not hidden[9:].any()
    full = hidden_entries(batch_of(counts), 0.3)
    assert torch.equal(full[:, :, [0, 4]], expected[:, :, [0, 4]])


def test_the_draw_does_not_know_the_batch():
    counts, _, _ = recording(n_trials=7)
    trials = Trials(counts, has_missing=False)
    together = hidden_entries(next(trials.chunks(7, CPU)), 0.2)
    apart = [hidden_entries(batch, 0.2) for batch in trials.chunks(3, CPU)]
    assert len(apart) == 3
    assert torch.equal(torch.cat(apart, dim=2), together)


def test_the_draw_is_uniform_and_differs_between_trials():
    counts, _, _ = recording(n_trials=2000, n_bins=2, n_neurons=12)
    hidden = hidden_entries(batch_of(counts), 0.25).double()
    assert torch.equal(hidden[0], hidden[1])
    assert hidden[0].sum(0).unique().tolist() == [3.0]
    # Four standard errors of a share of 1/4 among 2000.
    np.testing.assert_allclose(hidden[0].mean(1), 0.25, atol=4 * math.sqrt(0.25 * 0.75 / 2000))
    assert len(hidden[0].unique(dim=1).T) > 150


def test_no_global_draw():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    counts, _, _ = recording()
    first = hidden_entries(batch_of(counts), 0.2)
    assert np.random.random() == expected
    assert torch.equal(hidden_entries(batch_of(counts), 0.2), first)


# --- bits per spike ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_bits_per_spike_by_the_definition(missing):
    counts, rates, observed = recording(missing=missing)
    batch = batch_of(counts)
    null_rates = np.array([1.0, 2.0, 3.0, 0.5])
    entries = hidden_entries(batch, 0.3)
    hidden = entries.permute(2, 0, 1).numpy()
    y = np.where(observed, counts, 0)
    gain = poisson.logpmf(y, rates) - poisson.logpmf(y, np.broadcast_to(null_rates, y.shape))
    sums = bits_gained(
        Poisson(4), log_of(rates), torch.from_numpy(null_rates).float(), batch, entries
    )
    assert sums.dtype == torch.float64
    np.testing.assert_allclose(
        sums, [gain[hidden].sum() / math.log(2), y[hidden].sum()], rtol=1e-4, atol=1e-4
    )


def test_the_null_model_gains_nothing():
    counts, rates, _ = recording()
    null_rates = torch.tensor([1.0, 2.0, 3.0, 0.0])
    log_rates = null_rates.clamp(min=1e-9).log()[None, :, None].expand(7, 4, 5)
    batch = batch_of(counts)
    gain, n_spikes = bits_gained(
        Poisson(4), log_rates, null_rates, batch, hidden_entries(batch, 0.5)
    )
    assert gain == 0
    assert n_spikes > 0


def test_a_neuron_silent_in_training_is_not_scored():
    counts, rates, _ = recording()
    batch = batch_of(counts)
    null_rates = torch.tensor([0.5, 0.0, 2.0, 1.0])
    entries = batch.observed().clone()
    sums = bits_gained(Poisson(4), log_of(rates), null_rates, batch, entries)
    entries[:, 1] = False
    null_rates[1] = 1.0
    assert torch.equal(bits_gained(Poisson(4), log_of(rates), null_rates, batch, entries), sums)
    assert sums.isfinite().all()

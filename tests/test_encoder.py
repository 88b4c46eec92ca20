import numpy as np
import pytest
import torch
from common import generator

from sklearn_sae._data.batches import Batch
from sklearn_sae._data.trials import Trials
from sklearn_sae._model.encoder import Encoder, drop, hide_at_random
from sklearn_sae._model.likelihoods import Poisson

CPU = torch.device("cpu")
MEAN = np.array([0.3, 2.0, 0.0, 5.0])


def make_encoder(dropout=0.0, seed=0):
    mean = torch.from_numpy(MEAN).float()
    return Encoder(mean, Poisson(4).spread(mean), 3, 6, dropout, generator(seed))


def counts(n_trials=5, n_bins=8, seed=0):
    return np.random.default_rng(seed).poisson(MEAN, (n_trials, n_bins, 4)).astype(float)


def batch_of(array):
    trials = Trials(array, has_missing=bool(np.isnan(array).any()))
    return trials.batch(np.arange(len(array)), CPU)


def pad(array, n_bins):
    return np.pad(array, ((0, 0), (0, n_bins), (0, 0)), constant_values=np.nan)


@torch.no_grad()
def test_it_is_a_bidirectional_gru_of_standardised_counts():
    encoder, x = make_encoder(), counts()
    standard = (x - MEAN) / np.sqrt(np.maximum(MEAN, 0.01))
    gru = torch.nn.GRU(4, 6, bidirectional=True, batch_first=True)
    gru.load_state_dict(encoder.gru.state_dict())
    outputs = gru(torch.from_numpy(standard).float())[0]
    summary = torch.cat([outputs[:, -1, :6], outputs[:, 0, 6:]], dim=1)
    expected = encoder.weight[:, :-1] @ summary.T + encoder.weight[:, -1:]
    torch.testing.assert_close(encoder(batch_of(x)), expected)
    assert expected.shape == (3, 5)


@torch.no_grad()
def test_padding_changes_nothing():
    encoder, x = make_encoder(), counts()
    expected = encoder(batch_of(x))
    torch.testing.assert_close(encoder(batch_of(pad(x, 30))), expected, rtol=0, atol=1e-6)
    ragged = pad(x, 3)
    ragged[1, 5:] = np.nan
    ragged[2, 1:] = np.nan
    z0 = encoder(batch_of(ragged))
    torch.testing.assert_close(z0[:, 3:], expected[:, 3:], rtol=0, atol=1e-6)
    for row, n_bins in ((1, 5), (2, 1)):
        alone = encoder(batch_of(x[row : row + 1, :n_bins]))
        torch.testing.assert_close(z0[:, row : row + 1], alone, rtol=0, atol=1e-6)
    assert (z0[:, 1] - expected[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_an_unobserved_entry_stands_for_the_neurons_mean():
    encoder, x = make_encoder(), counts()
    holes = np.random.default_rng(1).random(x.shape) < 0.3
    holes[:, -1] = False
    expected = encoder(batch_of(np.where(holes, MEAN, x)))
    torch.testing.assert_close(
        encoder(batch_of(np.where(holes, np.nan, x))), expected, rtol=0, atol=1e-6
    )
    hidden = batch_of(x).hide(torch.from_numpy(holes.transpose(1, 2, 0)))
    torch.testing.assert_close(encoder(hidden), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_entry_hidden_on_purpose_is_not_seen_even_in_the_last_bin():
    encoder, x = make_encoder(), counts()
    hidden = torch.zeros(8, 4, 5, dtype=torch.bool)
    hidden[-2:] = True
    other = x.copy()
    other[:, -2:] += 7
    expected = encoder(batch_of(x).hide(hidden))
    assert torch.equal(encoder(batch_of(other).hide(hidden)), expected)


@torch.no_grad()
def test_dropout_needs_a_generator():
    encoder, batch = make_encoder(dropout=0.5), batch_of(counts())
    without = encoder(batch)
    assert torch.equal(encoder(batch), without)
    assert torch.equal(encoder(batch), make_encoder(dropout=0.0)(batch))
    dropped = encoder(batch, generator(3))
    assert not torch.equal(dropped, without)
    assert torch.equal(encoder(batch, generator(3)), dropped)
    assert torch.equal(make_encoder(dropout=0.0)(batch, generator(3)), without)


def test_drop_keeps_the_mean():
    ones = torch.ones(200, 100)
    dropped = drop(ones, 0.25, generator())
    assert torch.equal(dropped.unique(), torch.tensor([0, 1 / 0.75]))
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    assert drop(ones, 0.25, None) is ones


def test_nothing_global_is_drawn_and_the_seed_decides():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    encoder = make_encoder(dropout=0.3)
    encoder(hide_at_random(batch_of(counts()), 0.2, generator()), generator())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = make_encoder(), make_encoder(seed=1)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(encoder.gru.weight_hh_l0, other.gru.weight_hh_l0)
    assert not torch.equal(encoder.weight, other.weight)


@torch.no_grad()
def test_a_rare_spike_does_not_blow_up():
    encoder = make_encoder()
    assert encoder.spread.min() == pytest.approx(0.1)
    x = np.zeros((1, 8, 4))
    x[0, 3, 2] = 3
    assert encoder(batch_of(x)).isfinite().all()


# --- coordinated dropout -------------------------------------------------------------------------


def test_hide_at_random():
    x = counts(n_trials=50, n_bins=40)
    x[:, 30:, 1] = np.nan
    batch = batch_of(x)
    seen = hide_at_random(batch, 0.3, generator())
    assert isinstance(seen, Batch)
    assert not (seen.observed() & ~batch.observed()).any()
    share = seen.observed().sum() / batch.observed().sum()
    assert share == pytest.approx(0.7, abs=0.02)
    assert torch.equal(seen.counts, torch.where(seen.observed(), batch.counts, 0))
    assert torch.equal(hide_at_random(batch, 0.3, generator()).mask, seen.mask)
    assert not torch.equal(hide_at_random(batch, 0.3, generator(1)).mask, seen.mask)
    assert hide_at_random(batch, 0.0, generator()) is batch

"""Small recordings and models that every test can afford."""

import os

# Threads that wait for each other cost more than these sizes gain. Worker processes inherit both;
# joblib would give them more of the missing one, and torch listens to MKL's first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae._base import BaseSAE

torch.set_num_threads(1)

#: Enough to learn a rotation from ``spikes``, in a second or less. Bits repeat on the CPU only.
SMALL = {
    "n_latents": 2,
    "hidden_sizes": (16,),
    "encoder_size": 8,
    "max_epochs": 40,
    "device": "cpu",
    "random_state": 0,
}

MODELS = {
    "NODESAE": NODESAE(**SMALL),
    "NODESAE amortized": NODESAE(**SMALL, inference="amortized"),
    "RNNSAE": RNNSAE(**SMALL),
}


@pytest.fixture(params=list(MODELS))
def estimator(request):
    """Each kind of model, not fitted."""
    return MODELS[request.param].__class__(**MODELS[request.param].get_params())


@pytest.fixture(scope="session", params=list(MODELS))
def fitted(request, spikes):
    """Each kind of model, fitted to ``spikes``; shared, so leave it as it is."""
    return MODELS[request.param].__class__(**MODELS[request.param].get_params()).fit(spikes)


@pytest.fixture
def rollouts(monkeypatch):
    """Fits by rollouts from initial conditions, as with inferred inputs, but without these."""
    monkeypatch.setattr(BaseSAE, "_on_paths", lambda self: False)


@pytest.fixture
def node():
    """A small NODESAE, not fitted."""
    return NODESAE(**SMALL)


@pytest.fixture
def rnn():
    """A small RNNSAE, not fitted."""
    return RNNSAE(**SMALL)


@pytest.fixture(scope="session")
def spikes():
    """24 trials of 12 bins: six neurons tuned to a phase that turns once, from anywhere."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (24, 1, 1)) + 0.5 * np.arange(12)[:, np.newaxis]
    counts = rng.poisson(np.exp(1.2 * np.sin(phase + np.arange(6))))
    counts.flags.writeable = False
    return counts


@pytest.fixture(scope="session")
def holes(spikes):
    """The same with every kind of hole: short trials, lost entries, a lost bin, a lost neuron."""
    rng = np.random.default_rng(1)
    counts = spikes.astype(float)
    for trial, n_bins in zip(counts, rng.integers(5, 13, len(counts)), strict=True):
        trial[n_bins:] = np.nan
    counts[rng.random(counts.shape) < 0.1] = np.nan
    counts[2, 3] = np.nan
    counts[4:8, :, 1] = np.nan
    counts.flags.writeable = False
    return counts

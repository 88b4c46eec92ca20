"""What several test modules share, so that none of them imports another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from sklearn_sae._data.batches import Batch
from sklearn_sae._data.trials import Trials
from sklearn_sae._inference.data_term import log_likelihood
from sklearn_sae._inference.linearisation import linearise
from sklearn_sae._inference.model_variance import model_variance
from sklearn_sae._inference.posterior import LaplacePosterior
from sklearn_sae._inference.prior import Prior
from sklearn_sae._inference.smoother import backward
from sklearn_sae._model.autoencoder import SequentialAutoencoder
from sklearn_sae._model.dynamics import Flow, Map
from sklearn_sae._model.likelihoods import LIKELIHOODS
from sklearn_sae._model.readout import LinearReadout
from sklearn_sae._model.solvers import RungeKutta
from sklearn_sae._model.state_maps import MLP, GRUCell, TanhCell

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

DYNAMICS = {
    "ode": lambda mlp, n, generator: Flow(mlp, RungeKutta("midpoint"), 10.0),
    "ode, rk4": lambda mlp, n, generator: Flow(mlp, RungeKutta("rk4", 2), 10.0),
    "gru": lambda mlp, n, generator: Map(GRUCell(n, generator), None),
    "residual rnn": lambda mlp, n, generator: Map(TanhCell(n, generator), 0.2),
    "residual mlp": lambda mlp, n, generator: Map(mlp, 0.1),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(
    kind="ode",
    n_latents=3,
    n_neurons=6,
    seed=0,
    dtype=torch.float64,
    activation="tanh",
    likelihood="poisson",
):
    generator = torch.Generator().manual_seed(seed)
    mlp = MLP(n_latents, (8,), activation, generator)
    mlp.weights[-1].data.mul_(20)
    weight = torch.randn(n_neurons, n_latents + 1, generator=generator)
    weight = weight / n_latents**0.5
    dynamics = DYNAMICS[kind](mlp, n_latents, generator)
    scatter = LIKELIHOODS[likelihood](n_neurons)
    for name, learned in scatter.state_dict().items():
        smallest = {"centre": 0.0, "private_dispersion": 1.0}.get(name, 0.5)
        learned.copy_(torch.rand(learned.shape, generator=generator) + smallest)
    model = SequentialAutoencoder(dynamics, readout_of(weight), scatter, None)
    return model.to(dtype).requires_grad_(False)


def readout_of(weight):
    readout = LinearReadout(len(weight), weight.shape[1] - 1, generator())
    readout.weight = torch.nn.Parameter(weight)
    return readout


def expand(model, prior, batch, variables, damping=None):
    """Expand the log-posterior: its linearisation, the pass backwards, and the damping."""
    latents = model.rollout(variables, len(batch.counts), batch.inputs)
    linear = linearise(model, prior, batch, variables, latents, model.readout(latents))
    damping = torch.zeros_like(latents[0, 0]) if damping is None else damping
    return linear, backward(linear, damping), damping


def make_problem(
    kind="ode", n_trials=5, n_bins=12, missing=0.0, seed=0, dtype=torch.float64, **settings
):
    """A model, a prior, spikes the model made, and initial conditions far from theirs."""
    model = make_model(kind, seed=seed, dtype=dtype, **settings)
    n_latents = model.readout.weight.shape[1] - 1
    rng = np.random.default_rng(seed)
    truth = torch.from_numpy(rng.normal(size=(n_latents, n_trials))).to(dtype)
    rates = model.output(truth, n_bins).clamp(max=8).exp().permute(2, 0, 1).numpy()
    counts = rng.poisson(rates).astype(float)
    counts[rng.random(counts.shape) < missing] = np.nan
    counts[:, 0] = np.nan_to_num(counts[:, 0])
    batch = batch_of(counts, dtype)
    table = torch.from_numpy(rng.normal(size=(40, n_latents))).to(dtype)
    start = torch.from_numpy(rng.normal(size=(n_latents, n_trials))).to(dtype)
    return model, Prior.from_samples(table), batch, start


def batch_of(counts, dtype=torch.float64):
    trials = Trials(counts, has_missing=bool(np.isnan(counts).any()))
    batch = trials.batch(np.arange(len(counts)), CPU)
    return Batch(batch.counts.to(dtype), batch.mask, batch.lengths, batch.rows)


def log_posterior(model, prior, batch, z0):
    output = model.output(z0, len(batch.counts))
    fit = log_likelihood(model.likelihood, output, batch.counts, batch.mask)
    return fit + prior.log_density(z0)


def variance_of_rollouts(model, trials, table):
    """``model_variance`` from initial conditions, and inputs, in a table of trials."""
    n_latents = model.readout.n_latents
    prior = Prior.from_samples(table[:, :n_latents], model.inputs)

    def posterior_of(batch, rows):
        return LaplacePosterior(model, prior, batch, table[rows].T.contiguous())

    return model_variance(model, trials, posterior_of, table.device)


def run_script(script, *arguments, cwd=None):
    """Run a script of this checkout; standard output and error come as text."""
    # The scripts belong to this checkout, whatever else is installed.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_example(example, *arguments, cwd):
    """Run an example at its small size."""
    return run_script(Path("examples", example), "--quick", *arguments, cwd=cwd)


def succeed(*args, **kwargs):
    """What an example prints."""
    result = run_example(*args, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout


def number(name, text):
    found = re.search(rf"{name}:?\s+(-?\d+\.\d+)", text)
    assert found, f"no number after {name!r} in:\n{text}"
    return float(found[1])

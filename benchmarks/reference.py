"""The paper's recipe in plain PyTorch, as its authors' description has it: what speed.py times.

python benchmarks/reference.py [--quick]

A bidirectional torch.nn.GRU reads a trial; its last states give the initial condition through a
linear layer; torchdiffeq's dopri5 at tolerance 1e-3 integrates a tanh perceptron over one unit of
time; a linear layer gives log-rates. Adam, two batches of 640 trials an epoch, dropout 0.05. No
tricks and no slow-downs: every part is the library's own.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchdiffeq import odeint

from sklearn_sae.datasets import make_chaotic_spikes

BATCH_SIZE = 640
BINS_PER_RISE, EPOCHS_PER_RISE = 5, 150
#: The published median of the steps after which the NODE is within 0.01 of its final rate R2.
STEPS_TO_CONVERGE = 2400


class Reference(nn.Module):
    """Encoder, neural ODE and readout on spikes ``(n_trials, n_bins, n_neurons)``."""

    def __init__(self, n_neurons, n_latents=3):
        super().__init__()
        self.encoder = nn.GRU(n_neurons, 64, batch_first=True, bidirectional=True)
        self.to_initial_condition = nn.Linear(128, n_latents)
        self.field = nn.Sequential(nn.Linear(n_latents, 128), nn.Tanh(), nn.Linear(128, n_latents))
        self.readout = nn.Linear(n_latents, n_neurons)
        self.dropout = nn.Dropout(0.05)

    def forward(self, spikes):
        _, last = self.encoder(spikes)
        summary = self.dropout(torch.cat([*last], dim=-1))
        z0 = self.dropout(self.to_initial_condition(summary))
        times = torch.linspace(0, 1, spikes.shape[1])
        latents = odeint(
            lambda t, z: self.field(z), z0, times, method="dopri5", rtol=1e-3, atol=1e-3
        )
        return self.readout(latents.transpose(0, 1))


def train(spikes, n_epochs, seed=0, clock=time.perf_counter):
    """Yield the seconds of each step of a model that learns ``spikes``."""
    torch.manual_seed(seed)
    spikes = torch.from_numpy(np.asarray(spikes)).float()
    model = Reference(spikes.shape[2])
    adam = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=1e-5)
    for epoch in range(n_epochs):
        horizon = BINS_PER_RISE * (1 + epoch // EPOCHS_PER_RISE)
        for rows in torch.randperm(len(spikes)).split(BATCH_SIZE):
            start = clock()
            batch = spikes[rows]
            loss = functional.poisson_nll_loss(
                model(batch)[:, :horizon], batch[:, :horizon], full=True
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
            yield clock() - start


def seconds_per_step(spikes, n_epochs=5, clock=time.perf_counter):
    """The median over steps, the first epoch's left out."""
    seconds = list(train(spikes, n_epochs + 1, clock=clock))
    return float(np.median(seconds[len(seconds) // (n_epochs + 1) :]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few trials")
    n_trials = 40 if parser.parse_args().quick else 2000
    data = make_chaotic_spikes("Arneodo", n_trials=n_trials, random_state=0)
    seconds = seconds_per_step(data.spikes[data.train])
    print(f"{torch.get_num_threads()} threads: {seconds:.3f} s a step")
    print(f"{STEPS_TO_CONVERGE} steps: {STEPS_TO_CONVERGE * seconds:.0f} s")

"""How much each neuron varies on its own: measured while it is hidden from inference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._data.trials import Trials
from .._inference.inference import Inference
from .._inference.memory import trials_at_once

__all__ = ["private_dispersion"]

#: Bins over which residuals are added up: bursts and drifts of a neuron last, spike noise does not.
WINDOW = 20
#: Parts of the neurons that are hidden in turn.
N_PARTS = 4
#: So many trials tell as much as all do, in a share of the time.
MOST_TRIALS = 160


@torch.no_grad()
def private_dispersion(
    inference: Inference, trials: Trials, table: Tensor, n_bins: int | None = None
) -> Tensor:
    """Dispersion of each neuron ``(n_neurons, 1)``, at least 1, from the first ``n_bins``.

    The score s of a neuron, the derivative of its log-likelihood by its output, has the Fisher
    information g as its variance, if the neuron does what the likelihood says around a rate that is
    right. With the neuron hidden from inference, what it shares with others is in its rate; what
    lasts for longer than a bin adds up in sums over windows of bins: the dispersion is the mean of
    sum(s)^2 over that of sum(g). For Poisson counts s are the residuals, and g the rates. What the
    other neurons leave open of the rate counts as the neuron's own.

    Parameters
    ----------
    inference : Inference
    trials : Trials
    table : Tensor of shape (n_trials, ...)
        Where inference starts in each trial.
    n_bins : int or None
        Bins to look at; None are all.
    """
    model = inference.model
    n_neurons, device = model.readout.n_neurons, table.device
    n_bins = n_bins or trials.n_bins
    if n_neurons == 1:
        return torch.ones_like(model.likelihood.private_dispersion)
    rows = trials.some_rows(MOST_TRIALS)
    parts = np.array_split(np.random.default_rng(0).permutation(n_neurons), min(N_PARTS, n_neurons))
    squares, expected = torch.zeros(2, n_neurons, dtype=torch.float64, device=device)
    some = trials.subset(rows)
    size = max(1, trials_at_once(model, n_bins) // len(parts))
    for batch in some.chunks(size, device, n_bins):
        start = table[torch.as_tensor(rows[batch.rows], device=device)].movedim(0, -1)
        repeats = [1] * (start.ndim - 1) + [len(parts)]
        seen = batch.hide_in_turn(parts)
        posterior = inference.infer(seen, start.repeat(*repeats))
        unseen = ~batch.observed()
        for part, output in zip(parts, posterior.mean_output.chunk(len(parts), 2), strict=True):
            neurons = torch.as_tensor(part, device=device)
            score, information = (
                values.masked_fill(unseen, 0.0)[:, neurons]
                for values in model.likelihood.score_and_information(output, batch.counts)
            )
            for window in score.tensor_split(max(1, round(len(score) / WINDOW))):
                squares[neurons] += window.sum(0, dtype=torch.float64).square().sum(1)
            expected[neurons] += information.sum((0, 2), dtype=torch.float64)
    found = (squares / expected.clamp(min=1e-12)).nan_to_num(nan=1.0, posinf=1.0)
    return found.clamp(min=1.0)[:, None].to(model.likelihood.private_dispersion.dtype)

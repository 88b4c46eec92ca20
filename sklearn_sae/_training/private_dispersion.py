"""How much each neuron varies on its own: measured while it is hidden from inference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._data.trials import Trials
from .._inference.inference import SemiAmortized
from .._inference.memory import trials_at_once
from .._inference.posterior import LARGEST_VARIANCE

__all__ = ["private_dispersion"]

#: Bins over which residuals are added up: bursts and drifts of a neuron last, spike noise does not.
WINDOW = 20
#: Parts of the neurons that are hidden in turn.
N_PARTS = 4
#: So many trials tell as much as all do, in a share of the time.
MOST_TRIALS = 160


@torch.no_grad()
def private_dispersion(
    inference: SemiAmortized, trials: Trials, variables: Tensor, n_bins: int
) -> Tensor:
    """Dispersion of each neuron ``(n_neurons, 1)``, at least 1, from the first ``n_bins``.

    The score s of a neuron, the derivative of its log-likelihood by its output, has the Fisher
    information g as its variance, if the neuron does what the likelihood says around a rate that is
    right. With the neuron hidden from inference, what it shares with others is in its rate; what
    lasts for longer than a bin adds up in sums over windows of bins, whose mean square is

        mean(sum(s)^2) = dispersion mean(sum(g)) + mean(sum(g sd)^2).

    There sd is the standard deviation of the output that the other neurons leave open; it is taken
    to last for a window. For Poisson counts s are the residuals, and g the rates.

    Parameters
    ----------
    inference : SemiAmortized
    trials : Trials
    variables : Tensor of shape (n_trials, n_variables)
        Latent variables of the trials, where inference starts.
    n_bins : int
        Bins to look at.
    """
    model = inference.model
    n_neurons, device = model.readout.n_neurons, variables.device
    if n_neurons == 1:
        return torch.ones_like(model.likelihood.private_dispersion)
    rows = trials.some_rows(MOST_TRIALS)
    parts = np.array_split(np.random.default_rng(0).permutation(n_neurons), min(N_PARTS, n_neurons))
    squares, expected = torch.zeros(2, n_neurons, dtype=torch.float64, device=device)
    some = trials.subset(rows)
    for batch in some.chunks(trials_at_once(model, n_bins), device, n_bins):
        start = variables[torch.as_tensor(rows[batch.rows], device=device)].T
        for part in parts:
            neurons = torch.as_tensor(part, device=device)
            hidden = torch.zeros_like(batch.counts, dtype=torch.bool)
            hidden[:, neurons] = True
            posterior = inference.infer(batch.hide(hidden), start)
            score, information = model.likelihood.score_and_information(
                posterior.mean_output, batch.counts
            )
            left_open = information * posterior.output_variance.clamp(0, LARGEST_VARIANCE).sqrt()
            unseen = ~batch.observed()
            score, information, left_open = (
                _window_sums(values.masked_fill(unseen, 0.0)[:, neurons].double())
                for values in (score, information, left_open)
            )
            squares[neurons] += (score.square() - left_open.square()).sum((0, 2))
            expected[neurons] += information.sum((0, 2))
    found = (squares / expected.clamp(min=1e-12)).nan_to_num(nan=1.0, posinf=1.0)
    return found.clamp(min=1.0)[:, None].to(model.likelihood.private_dispersion.dtype)


def _window_sums(values: Tensor) -> Tensor:
    """Sums ``(n_windows, n_neurons, n_trials)`` over windows of bins."""
    windows = values.tensor_split(max(1, round(len(values) / WINDOW)))
    return torch.stack([window.sum(0) for window in windows])

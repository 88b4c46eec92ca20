"""Number of trials that fit into memory during inference."""

from __future__ import annotations

import torch

from .._model.autoencoder import SequentialAutoencoder

__all__ = ["most_values", "trials_at_once"]

#: Numbers that inference may hold at a time on the CPU (256 MB in float32), and the share of free
#: memory that they may take on a GPU, where few large operations are faster.
MOST_VALUES = 64_000_000
SHARE_OF_GPU = 1 / 8
MOST_TRIALS = 512


def most_values(device: torch.device) -> int:
    """Number of float32 values that inference may hold at a time."""
    if device.type != "cuda":
        return MOST_VALUES
    free, _ = torch.cuda.mem_get_info(device)
    return max(MOST_VALUES, int(SHARE_OF_GPU * free / 4))


def trials_at_once(model: SequentialAutoencoder, n_bins: int) -> int:
    """Number of trials that inference can take together within ``most_values``."""
    n_neurons, n_latents = model.readout.n_neurons, model.readout.n_latents
    n_states = n_latents + model.n_inferred
    # Weights have a row per hidden unit; scalars have no rows.
    weights = [*model.dynamics.parameters()]
    widest = max((len(weight) for weight in weights if weight.ndim), default=1)
    per_bin = 4 * n_states**2 + 2 * n_latents * widest + 6 * n_neurons
    return max(
        1,
        min(
            MOST_TRIALS, most_values(next(model.readout.parameters()).device) // (n_bins * per_bin)
        ),
    )

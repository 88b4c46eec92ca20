"""Encoder: a bidirectional GRU that maps spikes to the initial condition in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .._data.batches import Batch
from .layers import affine, uniform_weight

__all__ = ["Encoder", "hide_at_random"]


class Encoder(nn.Module):
    """Bidirectional GRU over a trial; a linear map of its last states is the initial condition.

    Counts are standardised by the mean and spread of each neuron ``(n_neurons,)``, and unobserved
    entries set to zero, the neuron's mean. Bins after a trial's last observed one are not read, so
    that padding changes nothing.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        mean_counts: Tensor,
        spread: Tensor,
        n_latents: int,
        size: int,
        dropout: float,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        n_neurons = len(mean_counts)
        self.register_buffer("mean", mean_counts[:, None])
        self.register_buffer("spread", spread[:, None])
        self.dropout = dropout
        # The constructor draws from torch's global generator; those weights are drawn again below.
        device = "meta" if generator is None else "cpu"
        with torch.random.fork_rng(devices=[]):
            self.gru = nn.GRU(n_neurons, size, bidirectional=True, device=device)
        with torch.no_grad():
            for parameter in self.gru.parameters():
                parameter.uniform_(-(size**-0.5), size**-0.5, generator=generator)
        self.weight = uniform_weight(n_latents, 2 * size, generator)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Initial conditions ``(n_latents, n_trials)``; with a ``generator``, dropout is on."""
        x = (batch.counts - self.mean) / self.spread
        if batch.mask is not None:
            x = x * batch.mask
        x = x.permute(0, 2, 1)
        bins: Tensor | PackedSequence = x
        if (batch.lengths < len(x)).any():
            lengths = torch.as_tensor(batch.lengths, device="cpu")
            bins = pack_padded_sequence(x, lengths, enforce_sorted=False)
        _, (forwards, backwards) = self.gru(bins)
        summary = torch.cat((forwards, backwards), dim=1).T
        summary = drop(summary, self.dropout, generator)
        return affine(self.weight, summary)


def drop(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Apply dropout with an explicit generator, so that no global random state is involved."""
    if generator is None or probability == 0:
        return x
    keep = torch.rand(x.shape, generator=generator, device="cpu") >= probability
    return x * keep.to(x.device) / (1 - probability)


def hide_at_random(batch: Batch, fraction: float, generator: torch.Generator) -> Batch:
    """Hide a random ``fraction`` of all entries (coordinated dropout of the encoder's input)."""
    if fraction == 0:
        return batch
    hidden = torch.rand(batch.counts.shape, generator=generator, device="cpu") < fraction
    return batch.hide(hidden.to(batch.counts.device))

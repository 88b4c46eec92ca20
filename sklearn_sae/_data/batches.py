"""A minibatch of trials on a device, with trials on the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Some trials on a device.

    A batch of several models has an axis of models before that of neurons.

    Attributes
    ----------
    counts : Tensor of shape (n_bins, n_neurons, n_trials)
        Spike counts, or values of any sign with a Gaussian likelihood; zero where not observed.
    mask : boolean Tensor of the shape of counts, or None
        True where observed; None if every entry was observed.
    lengths : int array of shape (n_trials,)
        Number of bins up to each trial's last observed one.
    rows : int array of shape (n_trials,)
        Indices of the trials in the recording.
    inputs : Tensor of shape (n_bins_of_inputs, n_inputs, n_trials) or None
        Known inputs, which may go on after the last bin of the counts.
    """

    counts: Tensor
    mask: Tensor | None
    lengths: np.ndarray
    rows: np.ndarray
    inputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def hide(self, hidden: Tensor) -> Batch:
        """Mark entries as not observed; ``hidden`` is boolean, of the shape of ``counts``."""
        mask = ~hidden if self.mask is None else self.mask & ~hidden
        return replace(self, counts=self.counts * mask, mask=mask)

    def hide_in_turn(self, parts: Sequence[np.ndarray]) -> Batch:
        """Repeat the batch for each part of the neurons, with that part marked as not observed.

        ``parts`` are arrays of indices.
        """
        n = len(parts)
        hidden = torch.zeros(n, self.counts.shape[1], dtype=torch.bool, device=self.counts.device)
        for row, part in zip(hidden, parts, strict=True):
            row[torch.as_tensor(part, device=row.device)] = True
        several = Batch(
            self.counts.repeat(1, 1, n),
            None if self.mask is None else self.mask.repeat(1, 1, n),
            np.tile(self.lengths, n),
            np.tile(self.rows, n),
            None if self.inputs is None else self.inputs.repeat(1, 1, n),
        )
        of_trials = hidden.T.repeat_interleave(len(self), dim=1)
        return several.hide(of_trials.expand_as(several.counts))

    def only(self, trials: Tensor) -> Batch:
        """Select trials by their positions ``(n_selected,)`` in the batch."""
        positions = trials.cpu().numpy()
        return Batch(
            self.counts[..., trials],
            None if self.mask is None else self.mask[..., trials],
            self.lengths[positions],
            self.rows[positions],
            None if self.inputs is None else self.inputs[..., trials],
        )

    def longer(self, n_bins: int) -> Batch:
        """Append bins in which nothing is observed, up to ``n_bins`` bins in all."""
        n_more = n_bins - len(self.counts)
        if n_more <= 0:
            return self
        unseen = self.counts.new_zeros(n_more, *self.counts.shape[1:])
        mask = torch.cat([self.observed(), unseen.bool()])
        return replace(self, counts=torch.cat([self.counts, unseen]), mask=mask)

    def n_observed(self) -> Tensor | int:
        """Count the observed entries, 1 at least; ``(n_models,)`` if there are several models."""
        if self.mask is None:
            n_bins, *_, n_neurons, n_trials = self.counts.shape
            return n_bins * n_neurons * n_trials
        return self.mask.sum((0, -2, -1)).clamp(min=1)

    def observed(self) -> Tensor:
        """Return the mask, of the shape of ``counts``, also if every entry was observed."""
        return torch.ones_like(self.counts, dtype=torch.bool) if self.mask is None else self.mask

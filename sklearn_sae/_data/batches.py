"""A minibatch of trials on a device, with trials on the last axis."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Some trials on a device: ``counts`` and ``mask`` are ``(n_bins, n_neurons, n_trials)``.

    ``mask`` is None where every entry was observed; ``counts`` is zero where it was not. (With a
    Gaussian likelihood, counts are values of any sign.)
    ``lengths`` holds the number of bins up to each trial's last observed one, ``rows`` where the
    trials stand in the recording. ``inputs``, if any are known, are ``(n_bins, n_inputs,
    n_trials)``, and may go on after the last bin of the counts.
    """

    counts: Tensor
    mask: Tensor | None
    lengths: np.ndarray
    rows: np.ndarray
    inputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def hide(self, hidden: Tensor) -> Batch:
        """The same batch without the entries in ``hidden`` (boolean, shaped like counts)."""
        mask = ~hidden if self.mask is None else self.mask & ~hidden
        return replace(self, counts=self.counts * mask, mask=mask)

    def only(self, trials: Tensor) -> Batch:
        """Some of the trials, by their positions in the batch."""
        positions = trials.cpu().numpy()
        return Batch(
            self.counts[..., trials],
            None if self.mask is None else self.mask[..., trials],
            self.lengths[positions],
            self.rows[positions],
            None if self.inputs is None else self.inputs[..., trials],
        )

    def longer(self, n_bins: int) -> Batch:
        """The same batch, up to ``n_bins`` at least, with bins in which nothing is observed."""
        n_more = n_bins - len(self.counts)
        if n_more <= 0:
            return self
        unseen = self.counts.new_zeros(n_more, *self.counts.shape[1:])
        mask = torch.cat([self.observed(), unseen.bool()])
        return replace(self, counts=torch.cat([self.counts, unseen]), mask=mask)

    def n_observed(self) -> Tensor | int:
        """Entries that were observed, at least 1; of each model, if there are several."""
        if self.mask is None:
            n_bins, *_, n_neurons, n_trials = self.counts.shape
            return n_bins * n_neurons * n_trials
        return self.mask.sum((0, -2, -1)).clamp(min=1)

    def observed(self) -> Tensor:
        """The mask, also where everything was observed."""
        return torch.ones_like(self.counts, dtype=torch.bool) if self.mask is None else self.mask

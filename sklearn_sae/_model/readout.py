"""Latents to log-rates, or to rates: a linear readout."""

from __future__ import annotations

from torch import Tensor, nn

from .mlp import affine

__all__ = ["Readout"]


class Readout(nn.Module):
    """output = weight @ latents + bias, with the bias in the weight's last column.

    The output is the log-rates, or what else the likelihood makes rates of.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    @property
    def n_latents(self) -> int:
        return self.weight.shape[1] - 1

    def forward(self, latents: Tensor) -> Tensor:
        """Output of latents ``(n_bins, n_latents, n_trials)``, or of one bin's."""
        return affine(self.weight, latents)

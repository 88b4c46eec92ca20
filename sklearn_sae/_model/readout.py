"""Latents to the output: log-rates, or what else the likelihood makes rates of."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .layers import affine

__all__ = ["LinearReadout", "Readout"]

#: With fewer trials and more pairs of latents, a product for each bin takes up to a hundred times
#: as long as one of all bins; else no longer, or it does not matter.
FEW_TRIALS = 32
FEW_PAIRS = 64


class Readout(nn.Module, ABC):
    """Output of each neuron as a function of the latents of the same bin."""

    def __init__(self, n_neurons: int, n_latents: int) -> None:
        super().__init__()
        self.n_neurons, self.n_latents = n_neurons, n_latents

    @abstractmethod
    def forward(self, latents: Tensor) -> Tensor:
        """Output ``(n_bins, n_neurons, n_trials)`` of latents, or that of one bin.

        Models that are trained together have weights with a leading axis, and latents ``(n_bins,
        n_models, n_latents, n_trials)``; see ``affine``.
        """

    @abstractmethod
    def jacobian(self, latents: Tensor) -> Tensor:
        """Derivatives ``(n_bins, n_neurons, n_latents, n_trials)`` at given latents."""

    @abstractmethod
    def start_at(self, weight: Tensor) -> None:
        """Become the affine map of this ``weight`` ``(n_neurons, n_latents + 1)``, bias last.

        As nearly as possible, if the readout has another form; it is where a fit starts.
        """

    @property
    def n_redundant(self) -> int:
        """Weights that can be undone by an affine change of the latents."""
        return self.n_latents * (self.n_latents + 1)

    def pullback(
        self, latents: Tensor, score: Tensor, information: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score and information by the output, ``(n_bins, n_neurons, n_trials)``, by the latents.

        Of shapes ``(n_bins, n_trials, n_latents)`` and ``(n_bins, n_trials, n_latents,
        n_latents)``.
        """
        jacobian = self.jacobian(latents)
        return (
            torch.einsum("tnk,tndk->tkd", score, jacobian),
            torch.einsum("tnk,tndk,tnek->tkde", information, jacobian, jacobian),
        )

    def output_variance(self, latents: Tensor, covariance: Tensor) -> Tensor:
        """Variance ``(n_bins, n_neurons, n_trials)`` of the output, to first order.

        ``covariance`` is that of the latents, ``(n_trials, n_bins, n_latents, n_latents)``.
        """
        jacobian = self.jacobian(latents)
        return torch.einsum("ktde,tndk,tnek->tnk", covariance, jacobian, jacobian)

    def unit_covariance(self, latents: Tensor) -> Tensor:
        """Covariance of latents for an output variance of 1, on average over neurons.

        It can be added to one of shape ``(n_trials, n_bins, n_latents, n_latents)``.
        """
        jacobian = self.jacobian(latents).permute(3, 0, 1, 2)
        return _unit_covariance(jacobian)


class LinearReadout(Readout):
    """output = weight @ latents + bias, with the bias in the weight's last column."""

    def __init__(self, n_neurons: int, n_latents: int, device: str = "cpu") -> None:
        super().__init__(n_neurons, n_latents)
        self.weight = nn.Parameter(torch.zeros(n_neurons, n_latents + 1, device=device))

    def forward(self, latents: Tensor) -> Tensor:
        return affine(self.weight, latents)

    def jacobian(self, latents: Tensor) -> Tensor:
        n_bins, _, n_trials = latents.shape
        return self.weight[:, :-1, None].expand(n_bins, -1, -1, n_trials)

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        self.weight.copy_(weight)

    # What follows is that of any readout, without a Jacobian for each trial and bin.

    def pullback(
        self, latents: Tensor, score: Tensor, information: Tensor
    ) -> tuple[Tensor, Tensor]:
        score = (self.weight[:, :-1].T @ score).permute(0, 2, 1)
        information = _contracted(self._pairs(), information)
        return score, information.unflatten(2, (self.n_latents, self.n_latents))

    def output_variance(self, latents: Tensor, covariance: Tensor) -> Tensor:
        return (covariance.flatten(2) @ self._pairs().T).permute(1, 2, 0)

    def unit_covariance(self, latents: Tensor) -> Tensor:
        return _unit_covariance(self.weight[:, :-1])

    def _pairs(self) -> Tensor:
        """Products of all pairs of a neuron's weights, ``(n_neurons, n_latents**2)``."""
        kernel = self.weight[:, :-1]
        return (kernel[:, :, None] * kernel[:, None, :]).flatten(1)


def _unit_covariance(kernel: Tensor) -> Tensor:
    n_neurons, n_latents = kernel.shape[-2:]
    return torch.linalg.pinv(kernel.mT @ kernel) * (n_neurons / min(n_latents, n_neurons))


def _contracted(pairs: Tensor, values: Tensor) -> Tensor:
    """Sum ``values`` ``(n_bins, n_neurons, n_trials)`` over neurons with the weights ``pairs``.

    These are ``(n_neurons, n_pairs)``, and the result ``(n_bins, n_trials, n_pairs)``.
    """
    n_bins, n_neurons, n_trials = values.shape
    if n_trials >= FEW_TRIALS or pairs.shape[1] <= FEW_PAIRS:
        return (pairs.T @ values).permute(0, 2, 1)
    # A product for each bin would have hardly any columns: one product of all bins instead.
    rows = values.permute(0, 2, 1).reshape(-1, n_neurons)
    return (rows @ pairs).unflatten(0, (n_bins, n_trials))

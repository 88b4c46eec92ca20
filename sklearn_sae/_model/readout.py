"""Readout of the latents: its output is log-rates or rates, depending on the likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .layers import affine

__all__ = ["LinearReadout", "Readout"]

#: With fewer trials and more pairs of latents, a product for each bin takes up to a hundred times
#: as long as one product of all bins; otherwise about as long.
FEW_TRIALS = 32
FEW_PAIRS = 64


class Readout(nn.Module, ABC):
    """Interface of readouts: the output of each neuron, given the latents of the same bin.

    Latents are ``(n_bins, n_latents, n_trials)``. Subclasses are made from ``(n_neurons, n_latents,
    generator)``, where no generator means shapes only, on torch's meta device; before training
    ``start_at`` is called, or weights are loaded.
    """

    def __init__(self, n_neurons: int, n_latents: int) -> None:
        super().__init__()
        self.n_neurons, self.n_latents = n_neurons, n_latents

    @abstractmethod
    def forward(self, latents: Tensor) -> Tensor:
        """Output ``(n_bins, n_neurons, n_trials)``, or ``(n_neurons, n_trials)`` of one bin.

        Models that are trained together have weights with a leading axis, and latents ``(n_bins,
        n_models, n_latents, n_trials)``; see ``affine``.
        """

    @abstractmethod
    def jacobian(self, latents: Tensor) -> Tensor:
        """Derivatives ``(n_bins, n_neurons, n_latents, n_trials)`` of the output by the latents."""

    @abstractmethod
    def start_at(self, weight: Tensor) -> None:
        """Initialise to the affine map ``weight`` ``(n_neurons, n_latents + 1)``, bias last.

        A readout that is not affine comes as close to it as it can.
        """

    def rescale(self, factor: float) -> None:
        """Give the same output for latents that are ``1 / factor`` as large."""
        raise NotImplementedError

    def penalty(self) -> Tensor | float:
        """Half the squared weights over the variances of their prior."""
        return 0.0

    @property
    def n_redundant(self) -> int:
        """Number of weights that an affine change of the latents makes redundant."""
        return self.n_latents * (self.n_latents + 1)

    def pullback(
        self, latents: Tensor, score: Tensor, information: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Convert score and information by the output to those by the latents.

        Given are ``(n_bins, n_neurons, n_trials)`` each; returned are ``(n_bins, n_trials,
        n_latents)`` and ``(n_bins, n_trials, n_latents, n_latents)``.
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
        """Covariance of the latents that gives an output variance of 1, averaged over neurons.

        It broadcasts to ``(n_trials, n_bins, n_latents, n_latents)``.
        """
        jacobian = self.jacobian(latents).permute(3, 0, 1, 2)
        return _unit_covariance(jacobian)


class LinearReadout(Readout):
    """Linear readout, output = weight @ latents + bias; the bias is the weight's last column."""

    def __init__(
        self, n_neurons: int, n_latents: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(n_neurons, n_latents)
        device = "meta" if generator is None else "cpu"
        self.weight = nn.Parameter(torch.zeros(n_neurons, n_latents + 1, device=device))

    def forward(self, latents: Tensor) -> Tensor:
        return affine(self.weight, latents)

    def jacobian(self, latents: Tensor) -> Tensor:
        n_bins, _, n_trials = latents.shape
        return self.weight[:, :-1, None].expand(n_bins, -1, -1, n_trials)

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        self.weight.copy_(weight)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        self.weight[:, :-1].mul_(factor)

    def penalty(self) -> Tensor | float:
        return self.weight[:, :-1].square().sum() / 2

    # The methods below compute what those of Readout do, without a Jacobian per trial and bin.

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
    """Sum ``values`` ``(n_bins, n_neurons, n_trials)`` over neurons, weighted by ``pairs``.

    ``pairs`` are ``(n_neurons, n_pairs)``, and the result ``(n_bins, n_trials, n_pairs)``.
    """
    n_bins, n_neurons, n_trials = values.shape
    if n_trials >= FEW_TRIALS or pairs.shape[1] <= FEW_PAIRS:
        return (pairs.T @ values).permute(0, 2, 1)
    # A product for each bin would have hardly any columns: one product of all bins instead.
    rows = values.permute(0, 2, 1).reshape(-1, n_neurons)
    return (rows @ pairs).unflatten(0, (n_bins, n_trials))

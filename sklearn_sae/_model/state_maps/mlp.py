"""Multilayer perceptron, used as a vector field or as an ``"mlp"`` cell."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..activations import ACTIVATIONS
from ..layers import Layers, affine, uniform_weight
from .base import StateMap

__all__ = ["MLP"]


class MLP(StateMap):
    """Multilayer perceptron, ``n_latents -> hidden_sizes -> n_latents``.

    The units of the first layer are initialised to switch throughout the space of latents of unit
    size; drawn like the others, they would all switch near the origin. The last layer starts twenty
    times smaller, so that the initial vector field is close to zero and long rollouts stay bounded.
    """

    def __init__(
        self,
        n_latents: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        sizes = [n_latents, *hidden_sizes, n_latents]
        self.weights = nn.ParameterList(
            uniform_weight(n_out, n_in, generator)
            for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)
        )
        with torch.no_grad():
            self.weights[0][:, :-1].mul_(2)
            self.weights[0][:, -1].mul_(4)
            self.weights[-1].mul_(0.05)

    @classmethod
    def from_parameters(
        cls,
        n_latents: int,
        hidden_sizes: Any,
        activation: str,
        generator: torch.Generator | None,
    ) -> Self:
        sizes = tuple(hidden_sizes)
        if not sizes or any(not isinstance(size, Integral) or size < 1 for size in sizes):
            raise ValueError(f"hidden_sizes must hold one or more ints >= 1; got {hidden_sizes!r}.")
        return cls(n_latents, sizes, activation, generator)

    def layers(self) -> Layers:
        return Layers([*self.weights], self.activation)

    def forward(self, z: Tensor) -> Tensor:
        *hidden, last = self.weights
        for weight in hidden:
            z = self.activation(affine(weight, z))
        return affine(last, z)

    def jacobian(self, z: Tensor) -> Tensor:
        return self.with_jacobian(z)[1]

    def with_jacobian(self, z: Tensor, inner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        *hidden, last = self.weights
        chain = hidden[0][:, :-1, None]
        if inner is not None:
            chain = (chain[:, :, 0] @ inner.flatten(1)).unflatten(1, inner.shape[1:])
        x = z
        for weight, following in zip(hidden, [*hidden[1:], last], strict=True):
            x = self.activation(affine(weight, x))
            slope = self.activation.slope(x)
            # (out, hidden) x (hidden, in) products, weighed by the slope of each hidden unit.
            if chain.shape[2] == 1:
                pairs = following[:, None, :-1] * chain[:, :, 0].T[None]
                chain = (pairs.flatten(0, 1) @ slope).unflatten(0, (len(following), -1))
            else:
                # In place, as this is a product by now: new memory takes as long as the product.
                weighed = chain.mul_(slope[:, None])
                chain = (following[:, :-1] @ weighed.flatten(1)).unflatten(1, chain.shape[1:])
        return affine(last, x), chain

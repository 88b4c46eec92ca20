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

#: Precisions of the prior of weights beside a linear part, for latents of unit size: those that
#: make the map nonlinear, and those of the linear part.
NONLINEAR_PRECISION = 30.0
LINEAR_PRECISION = 0.01


class MLP(StateMap):
    """Multilayer perceptron, ``n_latents -> hidden_sizes -> n_latents``.

    The units of the first layer are initialised to switch throughout the space of latents of unit
    size; drawn like the others, they would all switch near the origin. The last layer starts twenty
    times smaller, so that the initial vector field is close to zero and long rollouts stay bounded.

    Without hidden layers it is an affine map. With ``linear`` there is a linear part beside hidden
    layers, so that the map can start as a linear one.
    """

    def __init__(
        self,
        n_latents: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        generator: torch.Generator | None,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        sizes = [n_latents, *hidden_sizes, n_latents]
        self.weights = nn.ParameterList(
            uniform_weight(n_out, n_in, generator)
            for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)
        )
        device = "meta" if generator is None else "cpu"
        #: The linear part; None without one, or if the map is affine anyway.
        self.linear = None
        if linear and hidden_sizes:
            self.linear = nn.Parameter(torch.zeros(n_latents, n_latents, device=device))
        with torch.no_grad():
            if hidden_sizes:
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
        linear: bool = False,
    ) -> Self:
        sizes = tuple(hidden_sizes)
        if any(not isinstance(size, Integral) or size < 1 for size in sizes):
            raise ValueError(
                f"hidden_sizes must hold ints >= 1, or nothing for linear dynamics; got "
                f"{hidden_sizes!r}."
            )
        return cls(n_latents, sizes, activation, generator, linear)

    def layers(self) -> Layers | None:
        if self.linear is not None or len(self.weights) == 1:
            return None
        return Layers([*self.weights], self.activation)

    @property
    def is_affine(self) -> bool:
        return len(self.weights) == 1

    @torch.no_grad()
    def start_at(self, matrix: Tensor, whitening: Tensor | None = None) -> bool:
        *hidden, last = self.weights
        if hidden and self.linear is None:
            return False
        last.zero_()
        (last[:, :-1] if self.linear is None else self.linear).copy_(matrix)
        if hidden and whitening is not None:
            hidden[0][:, :-1] = hidden[0][:, :-1] @ whitening
        return True

    @torch.no_grad()
    def add_offset(self, offset: Tensor) -> None:
        self.weights[-1][:, -1].add_(offset)

    @torch.no_grad()
    def rescale(self, factor: float) -> bool:
        *hidden, last = self.weights
        if hidden:
            hidden[0][:, :-1].mul_(factor)
            last.div_(factor)
        else:
            last[:, -1].div_(factor)
        return True

    def penalty(self) -> Tensor | float:
        if self.linear is None:
            return 0.0
        nonlinear = self.weights[-1][:, :-1].square().sum()
        linear = self.linear.square().sum()
        return (NONLINEAR_PRECISION * nonlinear + LINEAR_PRECISION * linear) / 2

    def forward(self, z: Tensor) -> Tensor:
        *hidden, last = self.weights
        x = z
        for weight in hidden:
            x = self.activation(affine(weight, x))
        value = affine(last, x)
        return value if self.linear is None else value + self.linear @ z

    def jacobian(self, z: Tensor) -> Tensor:
        return self.with_jacobian(z)[1]

    def with_jacobian(self, z: Tensor, inner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        *hidden, last = self.weights
        if not hidden:
            chain = last[:, :-1, None].expand(-1, -1, z.shape[1])
            if inner is not None:
                chain = (last[:, :-1] @ inner.flatten(1)).unflatten(1, inner.shape[1:])
            return affine(last, z), chain
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
        if self.linear is None:
            return affine(last, x), chain
        along = self.linear[:, :, None]
        if inner is not None:
            along = (self.linear @ inner.flatten(1)).unflatten(1, inner.shape[1:])
        return affine(last, x) + self.linear @ z, chain + along

"""The multilayer perceptron behind a vector field or an ``"mlp"`` cell.

Everything inside the package keeps trials on the last axis: a state is ``(n_latents, n_trials)``,
so that a layer is one matrix product from the left, which is several times faster on thin states
than the row-wise product. A layer's bias is the last column of its weight matrix.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from .activations import ACTIVATIONS

__all__ = ["MLP", "StateMap", "affine", "uniform_weight"]


def uniform_weight(n_out: int, n_in: int, generator: torch.Generator | None) -> nn.Parameter:
    """Draw a ``(n_out, n_in + 1)`` weight-and-bias matrix, uniform within +- 1/sqrt(n_in).

    Without a ``generator`` it has a shape only (on torch's meta device) and takes no memory.
    """
    if generator is None:
        return nn.Parameter(torch.empty(n_out, n_in + 1, device="meta"))
    draw = torch.rand(n_out, n_in + 1, generator=generator, device="cpu")
    return nn.Parameter((2 * draw - 1) / n_in**0.5)


def affine(weight: Tensor, x: Tensor) -> Tensor:
    """Apply ``weight``, with the bias in its last column, to ``x``.

    That is ``(n_in, n_trials)`` or ``(n_bins, n_in, n_trials)``. Weights of several models,
    ``(n_models, n_out, n_in + 1)``, are applied to ``(n_bins, n_models, n_in, n_trials)``.
    """
    if weight.ndim == 3:
        return weight[..., :-1] @ x + weight[..., -1:]
    if x.ndim == 2:
        return torch.addmm(weight[:, -1:], weight[:, :-1], x)
    return torch.baddbmm(weight[:, -1:], weight[:, :-1].expand(len(x), -1, -1), x)


class StateMap(nn.Module):
    """A learned map of states ``(n_latents, n_trials)``, that also knows its derivative."""

    @abstractmethod
    def jacobian(self, z: Tensor) -> Tensor:
        """Jacobians ``(n_latents out, n_latents in, n_trials)`` at the columns of ``z``."""


class MLP(StateMap):
    """``n_latents -> hidden_sizes -> n_latents`` with the activation between layers.

    The first layer starts with units that switch all over the space that latents of unit size
    visit; drawn as the others, they would all switch near the origin. The last layer starts twenty
    times smaller, so that a fresh vector field is close to standing still and a rollout over many
    bins starts out tame.
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

    def forward(self, z: Tensor) -> Tensor:
        *hidden, last = self.weights
        for weight in hidden:
            z = self.activation(affine(weight, z))
        return affine(last, z)

    def jacobian(self, z: Tensor) -> Tensor:
        return self.with_jacobian(z)[1]

    def with_jacobian(self, z: Tensor, inner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What it makes of the columns of ``z``, and the Jacobians there.

        ``inner`` ``(n_latents, n_in, n_trials)``, if given, multiplies them from the right.
        """
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
                # In place: it is no weight any more, and memory takes as long as the product.
                weighed = chain.mul_(slope[:, None])
                chain = (following[:, :-1] @ weighed.flatten(1)).unflatten(1, chain.shape[1:])
        return affine(last, x), chain

"""Layers of a network: affine maps, and activations between them.

Everything inside the package keeps trials on the last axis: a state is ``(n_latents, n_trials)``,
so that a layer is one matrix product from the left, which is several times faster on thin states
than the row-wise product. A layer's bias is the last column of its weight matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .activations import Activation

__all__ = ["Layers", "affine", "uniform_weight"]


class Layers(NamedTuple):
    """Affine maps ``(n_out, n_in + 1)`` with an activation after each but the last."""

    weights: list[Tensor]
    activation: Activation


def uniform_weight(n_out: int, n_in: int, generator: torch.Generator | None) -> nn.Parameter:
    """Draw a ``(n_out, n_in + 1)`` weight-and-bias matrix, uniform within +- 1/sqrt(n_in).

    Without a ``generator`` it is on torch's meta device: a shape that takes no memory.
    """
    if generator is None:
        return nn.Parameter(torch.empty(n_out, n_in + 1, device="meta"))
    draw = torch.rand(n_out, n_in + 1, generator=generator, device="cpu")
    return nn.Parameter((2 * draw - 1) / n_in**0.5)


def affine(weight: Tensor, x: Tensor) -> Tensor:
    """Apply ``weight`` ``(n_out, n_in + 1)``, with the bias in its last column, to ``x``.

    ``x`` is ``(n_in, n_trials)`` or ``(n_bins, n_in, n_trials)``. Weights of several models,
    ``(n_models, n_out, n_in + 1)``, are applied to ``(n_bins, n_models, n_in, n_trials)``.
    """
    if weight.ndim == 3:
        return weight[..., :-1] @ x + weight[..., -1:]
    if x.ndim == 2:
        return torch.addmm(weight[:, -1:], weight[:, :-1], x)
    return torch.baddbmm(weight[:, -1:], weight[:, :-1].expand(len(x), -1, -1), x)

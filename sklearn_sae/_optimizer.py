"""Adam in a slowly rotating basis (SOAP) for weights; Adam row by row for initial conditions.

Vector fields are badly conditioned: the directions that shape the slow dynamics have gradients
orders of magnitude below the others, and mixed among the weights, where Adam's scaling of single
coordinates cannot reach them. SOAP keeps running averages of ``G G^T`` and ``G^T G`` for each
weight matrix, and runs Adam in their eigenbases. The weight matrices of a sequential autoencoder
are small, so the extra cost is too, and far fewer steps are needed. Those that are small enough
have one basis for all their numbers, that of ``g g^T`` with the gradient as a vector g.

Reference: Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson & Kakade, "SOAP: Improving
and Stabilizing Shampoo using Adam", ICLR 2025. Adam: Kingma & Ba, ICLR 2015. Decoupled weight
decay: Loshchilov & Hutter, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OPTIMIZERS", "RowAdam", "Soap"]

#: Longer sides keep their own basis: an eigenbasis of many neurons costs more than it gives.
LARGEST_ROTATED_SIDE = 256
#: Smaller weights are rotated as one vector, which knows how rows and columns go together. Of
#: larger ones too few gradients are remembered for that.
LARGEST_WHOLE = 256
STEPS_BETWEEN_ROTATIONS = 10


class _Moments:
    """Running moments of one weight's gradient and, for SOAP, the bases they live in."""

    def __init__(self, weight: Tensor, rotate: bool) -> None:
        if rotate and weight.numel() <= LARGEST_WHOLE:
            weight = weight.reshape(-1, 1)
        self.mean = torch.zeros_like(weight)
        self.square = torch.zeros_like(weight)
        sides = range(weight.ndim) if rotate and weight.ndim == 2 else ()
        self.rotated = [s for s in sides if 1 < weight.shape[s] <= LARGEST_ROTATED_SIDE]
        self.spread: dict[int, Tensor] = {}
        self.basis: dict[int, Tensor] = {}

    def track(self, gradient: Tensor, decay: float) -> None:
        for side in self.rotated:
            spread = gradient @ gradient.T if side == 0 else gradient.T @ gradient
            if side in self.spread:
                self.spread[side].lerp_(spread, 1 - decay)
            else:
                self.spread[side] = spread
                self.basis[side] = torch.linalg.eigh(spread)[1].flip(1)

    def refresh_bases(self) -> None:
        """One power iteration towards the eigenbasis, kept in order of the eigenvalues."""
        for side in self.rotated:
            spread, basis = self.spread[side], self.basis[side]
            order = (basis * (spread @ basis)).sum(dim=0).argsort(descending=True)
            self.square = self.square.index_select(side, order)
            self.basis[side] = torch.linalg.qr(spread @ basis[:, order])[0]

    def state_dict(self) -> dict[str, Tensor]:
        state = {"mean": self.mean, "square": self.square}
        for side in self.basis:
            state |= {f"spread{side}": self.spread[side], f"basis{side}": self.basis[side]}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean, self.square = state["mean"], state["square"]
        sides = [side for side in self.rotated if f"basis{side}" in state]
        self.spread = {side: state[f"spread{side}"] for side in sides}
        self.basis = {side: state[f"basis{side}"] for side in sides}

    def into_basis(self, x: Tensor) -> Tensor:
        if 0 in self.basis:
            x = self.basis[0].T @ x
        return x @ self.basis[1] if 1 in self.basis else x

    def out_of_basis(self, x: Tensor) -> Tensor:
        if 0 in self.basis:
            x = self.basis[0] @ x
        return x @ self.basis[1].T if 1 in self.basis else x


class Soap:
    """Optimise weights by Adam in rotating eigenbases; ``rotate=False`` leaves plain Adam.

    Weight decay is decoupled, or else an L2 penalty.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        *,
        rotate: bool = True,
        betas: tuple[float, float] = (0.95, 0.95),
        weight_decay: float = 0.0,
        decoupled: bool = True,
        eps: float = 1e-8,
    ) -> None:
        self.weights = list(weights)
        self.betas, self.weight_decay, self.eps = betas, weight_decay, eps
        self.decoupled = decoupled
        self.moments = [_Moments(weight, rotate) for weight in self.weights]
        self.n_steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float, clip_norm: float | None) -> None:
        """Follow the weights' gradients once, and clear them."""
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.weights, clip_norm)
        self.n_steps += 1
        beta1, beta2 = self.betas
        correct1, correct2 = 1 - beta1**self.n_steps, 1 - beta2**self.n_steps
        for weight, moments in zip(self.weights, self.moments, strict=True):
            if weight.grad is None:
                continue
            if not self.decoupled:
                weight.grad.add_(weight, alpha=self.weight_decay)
            gradient = weight.grad.reshape(moments.mean.shape)
            moments.track(gradient, beta2)
            moments.mean.lerp_(gradient, 1 - beta1)
            rotated = moments.into_basis(gradient)
            moments.square.mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
            mean = moments.into_basis(moments.mean) / correct1
            update = mean / ((moments.square / correct2).sqrt_() + self.eps)
            if self.decoupled:
                weight.mul_(1 - learning_rate * self.weight_decay)
            step = moments.out_of_basis(update).reshape(weight.shape)
            weight.sub_(step, alpha=learning_rate)
            weight.grad = None
            if self.n_steps % STEPS_BETWEEN_ROTATIONS == 0:
                moments.refresh_bases()

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on beside the weights; not a copy."""
        state = {"n_steps": torch.tensor([self.n_steps], dtype=torch.float64, device="cpu")}
        for i, moments in enumerate(self.moments):
            state |= {f"{i}.{name}": tensor for name, tensor in moments.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on as the optimiser whose ``state_dict`` this was."""
        self.n_steps = int(state["n_steps"])
        for i, (weight, moments) in enumerate(zip(self.weights, self.moments, strict=True)):
            prefix = f"{i}."
            moments.load_state_dict(
                {
                    name.removeprefix(prefix): tensor.to(weight.device)
                    for name, tensor in state.items()
                    if name.startswith(prefix)
                }
            )


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "soap": {"rotate": True, "betas": (0.95, 0.95)},
    "adam": {"rotate": False, "betas": (0.9, 0.999), "decoupled": False},
}


class RowAdam:
    """Adam for a table of which a step touches some rows only; each row counts its own steps."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.mean = torch.zeros_like(table)
        self.square = torch.zeros_like(table)
        self.n_steps = torch.zeros(len(table), 1, device=table.device)

    def step(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> None:
        n_steps = self.n_steps[rows] + 1
        mean = self.mean[rows].lerp(gradient, 0.1)
        square = self.square[rows].lerp(gradient**2, 0.001)
        self.n_steps[rows], self.mean[rows], self.square[rows] = n_steps, mean, square
        mean = mean / (1 - 0.9**n_steps)
        square = square / (1 - 0.999**n_steps)
        # No epsilon beside the gradient's own size: a trial's gradient shrinks with the batch.
        self.table[rows] -= learning_rate * mean / (square.sqrt() + 1e-15)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on beside the table; not a copy."""
        return {"mean": self.mean, "square": self.square, "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on as the one whose ``state_dict`` this was."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

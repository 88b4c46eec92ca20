"""Adam in a slowly rotating basis (SOAP) for weights; Adam row by row for initial conditions.

Vector fields are badly conditioned: directions that shape the slow dynamics have gradients orders
of magnitude below the others, and are mixtures of many weights, which Adam's scaling of single
weights cannot separate. SOAP keeps running averages of ``G G^T`` and ``G^T G`` of the gradient G of
each weight matrix, and runs Adam in their eigenbases. The weight matrices of a sequential
autoencoder are small, so the extra cost is small, and far fewer steps are needed. The smallest
matrices have one eigenbasis, that of ``g g^T`` with the gradient flattened to a vector g.

Reference: Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson & Kakade, "SOAP: Improving
and Stabilizing Shampoo using Adam", ICLR 2025. Adam: Kingma & Ba, ICLR 2015. Decoupled weight
decay: Loshchilov & Hutter, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OPTIMIZERS", "RowAdam", "Soap"]

#: Longer sides are not rotated: an eigenbasis of many neurons costs more than it gains.
LARGEST_ROTATED_SIDE = 256
#: Weights of at most this size are rotated as one vector, so that correlations of rows and columns
#: count. For larger ones the running average holds too few gradients.
LARGEST_WHOLE = 256
#: Directions with a smaller share of all squared gradients hardly rotate: rounding errors would
#: decide their rotation, and thereby the fit.
SMALLEST_TURNING_SHARE = 1e-3
#: Gradients of a direction below this ratio to the largest are taken for rounding errors.
SMALLEST_RATIO = 1e-5
FIRST_ROTATIONS = 10
STEPS_BETWEEN_ROTATIONS = 20


class _Moments:
    """Running moments of the gradient of one weight and, for SOAP, its eigenbases.

    ``mean`` and ``square`` are ``(n_models, ...)``, in the eigenbases; models are independent of
    each other.
    """

    def __init__(self, weight: Tensor, rotate: bool) -> None:
        if rotate and weight[0].numel() <= LARGEST_WHOLE:
            # As a row, because its products with many bases take a third of the time of a column's.
            weight = weight.reshape(len(weight), 1, -1)
        self.mean = torch.zeros_like(weight)
        self.square = torch.zeros_like(weight)
        sides = (1, 2) if rotate and weight.ndim == 3 else ()
        self.rotated = [s for s in sides if 1 < weight.shape[s] <= LARGEST_ROTATED_SIDE]
        self.spread: dict[int, Tensor] = {}
        self.basis: dict[int, Tensor] = {}

    def track(self, gradient: Tensor, decay: float) -> None:
        for side in self.rotated:
            pair = (gradient, gradient.mT) if side == 1 else (gradient.mT, gradient)
            if side in self.spread:
                self.spread[side].baddbmm_(*pair, beta=decay, alpha=1 - decay)
            else:
                self.spread[side] = pair[0] @ pair[1]
                n = pair[0].shape[1]
                axes = torch.eye(n, dtype=gradient.dtype, device=gradient.device)
                self.basis[side] = axes.repeat(len(gradient), 1, 1)
                # Not by an eigenvalue solver, which may fail on matrices of such a low rank.
                for _ in range(FIRST_ROTATIONS):
                    self._rotate(side)

    def refresh_bases(self) -> None:
        """Take one power iteration towards the eigenbases, ordered by eigenvalues."""
        mean = self.out_of_basis(self.mean)
        for side in self.rotated:
            self._rotate(side)
        self.mean = self.into_basis(mean)

    def _rotate(self, side: int) -> None:
        spread, basis = self.spread[side], self.basis[side]
        still = SMALLEST_TURNING_SHARE * spread.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        turned = spread @ basis + still[..., None] * basis
        size = (basis * turned).sum(dim=1)
        order = size.where(size > 2 * still, 0.0).argsort(descending=True, stable=True)
        of_square = order[:, :, None] if side == 1 else order[:, None]
        self.square = self.square.gather(side, of_square.expand_as(self.square))
        ordered = turned.gather(2, order[:, None].expand_as(turned))
        # Q as of linalg.qr, without the time for R.
        self.basis[side] = torch.linalg.householder_product(*torch.geqrf(ordered))

    def scale(self, correction: float) -> Tensor:
        """Denominator of Adam, ``(n_models, ...)``: root mean squares, above rounding errors."""
        root = (self.square / correction).sqrt_()
        if not self.rotated:
            return root
        return root + SMALLEST_RATIO * root.amax((1, 2), keepdim=True)

    def state_dict(self) -> dict[str, Tensor]:
        state = {"mean": self.mean, "square": self.square}
        for side in self.basis:
            state |= {f"spread{side}": self.spread[side], f"basis{side}": self.basis[side]}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["mean"].shape != self.mean.shape:
            raise ValueError(f"moments of shape {tuple(state['mean'].shape)}")
        self.mean, self.square = state["mean"], state["square"]
        sides = [side for side in self.rotated if f"basis{side}" in state]
        self.spread = {side: state[f"spread{side}"] for side in sides}
        self.basis = {side: state[f"basis{side}"] for side in sides}

    def into_basis(self, x: Tensor) -> Tensor:
        if 1 in self.basis:
            x = self.basis[1].mT @ x
        return x @ self.basis[2] if 2 in self.basis else x

    def out_of_basis(self, x: Tensor) -> Tensor:
        if 1 in self.basis:
            x = self.basis[1] @ x
        return x @ self.basis[2].mT if 2 in self.basis else x


class Soap:
    """SOAP, which is Adam in rotating eigenbases; ``rotate=False`` gives plain Adam.

    Weight decay is decoupled, or else an L2 penalty. The ``weights`` may be those of ``n_models``
    models of the same shapes, one model after the other; they are optimized independently.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        *,
        n_models: int = 1,
        rotate: bool = True,
        betas: tuple[float, float] = (0.95, 0.95),
        weight_decay: float = 0.0,
        decoupled: bool = True,
        eps: float = 1e-8,
    ) -> None:
        weights = list(weights)
        self.betas, self.weight_decay, self.eps = betas, weight_decay, eps
        self.decoupled = decoupled
        n_each = len(weights) // n_models
        #: For each weight, that weight of every model.
        self.groups: list[list[Tensor]] = [[*weights[i::n_each]] for i in range(n_each)]
        with torch.no_grad():
            self.moments = [_Moments(torch.stack(group), rotate) for group in self.groups]
        self.n_steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float, clip_norm: float | None) -> None:
        """Take one step along the gradients of the weights, and clear these."""
        self.n_steps += 1
        beta1, beta2 = self.betas
        correct1, correct2 = 1 - beta1**self.n_steps, 1 - beta2**self.n_steps
        for group, moments, gradient in self._gradients(clip_norm):
            if not self.decoupled:
                gradient = gradient + self.weight_decay * torch.stack(group)
            gradient = gradient.reshape(moments.mean.shape)
            moments.track(gradient, beta2)
            gradient = moments.into_basis(gradient)
            moments.mean.lerp_(gradient, 1 - beta1)
            moments.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            update = moments.mean / correct1 / (moments.scale(correct2) + self.eps)
            for weight, step in zip(group, moments.out_of_basis(update), strict=True):
                if self.decoupled and self.weight_decay:
                    weight.mul_(1 - learning_rate * self.weight_decay)
                weight.sub_(step.reshape(weight.shape), alpha=learning_rate)
                weight.grad = None
            if self.n_steps % STEPS_BETWEEN_ROTATIONS == 0:
                moments.refresh_bases()

    def _gradients(self, clip_norm: float | None) -> list[tuple[list[Tensor], _Moments, Tensor]]:
        """Groups that have gradients, with clipped gradients ``(n_models, ...)``."""
        moving = [
            (group, moments)
            for group, moments in zip(self.groups, self.moments, strict=True)
            if group[0].grad is not None
        ]
        gradients = [
            torch.stack([weight.grad for weight in group if weight.grad is not None])
            for group, _ in moving
        ]
        if clip_norm is not None and gradients:
            norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])
            shrink = (clip_norm / (norms.norm(dim=0) + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(shrink.reshape(-1, *[1] * (gradient.ndim - 1)))
        return [(*of_group, gradient) for of_group, gradient in zip(moving, gradients, strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied, without the weights."""
        state = {"n_steps": torch.tensor([self.n_steps], dtype=torch.float64, device="cpu")}
        for i, moments in enumerate(self.moments):
            state |= {f"{i}.{name}": tensor for name, tensor in moments.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""
        self.n_steps = int(state["n_steps"])
        for i, (group, moments) in enumerate(zip(self.groups, self.moments, strict=True)):
            prefix = f"{i}."
            moments.load_state_dict(
                {
                    name.removeprefix(prefix): tensor.to(group[0].device)
                    for name, tensor in state.items()
                    if name.startswith(prefix)
                }
            )


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "soap": {"rotate": True, "betas": (0.95, 0.95)},
    "adam": {"rotate": False, "betas": (0.9, 0.999), "decoupled": False},
}


class RowAdam:
    """Adam for tables of which a step updates some rows only; each row counts its own steps.

    All tables have the same shape. Moments are ``(n_tables, n_rows, n_columns)``.
    """

    def __init__(self, tables: Sequence[Tensor]) -> None:
        self.tables = tables
        self.mean = torch.stack([torch.zeros_like(table) for table in tables])
        self.square = torch.zeros_like(self.mean)
        self.n_steps = self.mean.new_zeros(*self.mean.shape[:2], 1)
        self._which = torch.arange(len(tables), device=self.mean.device)[:, None]

    def step(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Update ``rows`` ``(n_tables, n)`` by their ``gradient`` ``(n_tables, n, n_columns)``."""
        which = self._which, rows
        n_steps = self.n_steps[which] + 1
        mean = self.mean[which].lerp_(gradient, 0.1)
        square = self.square[which].lerp_(gradient.square(), 0.001)
        self.n_steps[which], self.mean[which], self.square[which] = n_steps, mean, square
        # A tiny epsilon, because a trial's gradient shrinks as the batch grows.
        step = mean.div_(square.sqrt_().add_(1e-15))
        step *= (1 - 0.999**n_steps).sqrt_() / (1 - 0.9**n_steps)
        for table, of_table, along in zip(self.tables, rows, step, strict=True):
            table.index_add_(0, of_table, along, alpha=-learning_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied, without the tables."""
        return {"mean": self.mean, "square": self.square, "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

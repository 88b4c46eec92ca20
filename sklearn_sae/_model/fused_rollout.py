"""Rollouts of fixed Runge-Kutta steps as one operation, with a hand-written backward pass.

A rollout is hundreds of small matrix products, whose time goes into overhead, not arithmetic. Four
things make this path several times faster than automatic differentiation of the same loop, with
the same result: one state per column (see ``layers``); biases carried by a row of ones; activations
folded into the weights where that is faster (see ``Activation.fold``); and loops over prepared
operations, because looking them up takes as long as running them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .activations import Activation
from .layers import Layers
from .runge_kutta import Tableau

__all__ = ["FusedSteps", "joint_rollout", "rollout"]


@dataclass(frozen=True)
class FusedSteps:
    """Steps of dz/dt = ``layers(z)``: ``n_substeps`` in a bin, each of ``step_size``."""

    layers: Layers
    tableau: Tableau
    n_substeps: int
    step_size: float


def rollout(steps: FusedSteps, z0: Tensor, n_bins: int, jumps: Tensor | None = None) -> Tensor:
    """Latents ``(n_bins, n_latents, n_trials)`` from initial conditions ``z0``.

    At the end of each bin the latents jump by ``jumps`` ``(n_bins - 1, n_latents, n_trials)``.
    """
    return _rollout(steps, steps.layers.weights, z0, n_bins, jumps)


def joint_rollout(
    several: Sequence[FusedSteps],
    z0: Sequence[Tensor],
    n_bins: int,
    jumps: Sequence[Tensor | None],
) -> Tensor:
    """Roll out several models that differ only in their weights, together.

    Returns latents ``(n_bins, n_models, n_latents, n_trials)``.
    """
    weights = zip(*(steps.layers.weights for steps in several), strict=True)
    stacked = [torch.stack(of_all) for of_all in weights]
    present = [each for each in jumps if each is not None]
    together = torch.stack(present, dim=1) if present else None
    return _rollout(several[0], stacked, torch.stack([*z0]), n_bins, together)


def _rollout(
    steps: FusedSteps, weights: list[Tensor], z0: Tensor, n_bins: int, jumps: Tensor | None
) -> Tensor:
    if not torch.is_grad_enabled():
        # The function below keeps what its backward pass needs whenever an input requires grad.
        z0, weights = z0.detach(), [weight.detach() for weight in weights]
        jumps = None if jumps is None else jumps.detach()
    weights = [*weights[:-1], weights[-1] * steps.step_size]
    activation, weights = steps.layers.activation.fold(weights)
    weights = [*(_with_one(weight, activation) for weight in weights[:-1]), weights[-1]]
    return _Rollout.apply(z0, jumps, n_bins, steps.tableau, steps.n_substeps, activation, *weights)


def _with_one(weight: Tensor, activation: Activation) -> Tensor:
    """Append a unit whose output is always 1 to the ``weight`` of a hidden layer."""
    row = torch.zeros_like(weight[..., :1, :])
    row[..., -1] = activation.before_one
    return torch.cat([weight, row], dim=-2)


def _with_ones(z: Tensor, n: int, size: int) -> Tensor:
    """Make ``n`` empty ``(size + 1, n_trials)`` blocks whose last row is 1, for the biases."""
    block = z.new_empty(n, *z.shape[:-2], size + 1, z.shape[-1])
    block[..., size, :] = 1
    return block


class _Rollout(torch.autograd.Function):
    """Rollout of one model, or of several, along the first axis of weights and states."""

    @staticmethod
    def forward(
        ctx: Any,
        z0: Tensor,
        jumps: Tensor | None,
        n_bins: int,
        tableau: Tableau,
        n_substeps: int,
        activation: Activation,
        *weights: Tensor,
    ) -> Tensor:
        n_latents = z0.shape[-2]
        n_evaluations = (n_bins - 1) * n_substeps * len(tableau.b)
        keep = any(ctx.needs_input_grad)
        states = _with_ones(z0, n_evaluations if keep else 1, n_latents)
        layers = _LayerOperations(weights, activation, z0)
        stages = [torch.empty_like(z0) for _ in tableau.b]
        rows = [_terms(row, stages) for row in tableau.a]
        at_last = _terms(tableau.b, stages)
        latents = z0.new_empty(n_bins, *z0.shape)
        latents[0] = z0
        inputs, without_ones = states.unbind(), states[..., :n_latents, :].unbind()
        bins = latents.unbind()
        i = 0
        for t in range(1, n_bins):
            z, end = bins[t - 1], bins[t]
            for _ in range(n_substeps):
                for terms, k in zip(rows, stages, strict=True):
                    _combine(z, terms, without_ones[i])
                    layers.product(weights[-1], layers.forward(inputs[i]), out=k)
                    i += keep
                _combine(z, at_last, end)
                z = end
            if jumps is not None:
                z.add_(jumps[t - 1])
        ctx.settings = tableau, n_substeps, activation, jumps is not None
        if keep:
            ctx.save_for_backward(states, *weights)
        return latents

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_latents,) = gradients
        tableau, n_substeps, activation, has_jumps = ctx.settings
        states, *weights = ctx.saved_tensors
        inputs, d_bins = states.unbind(), d_latents.unbind()
        d_z = d_bins[-1].clone()
        d_inputs = [torch.empty_like(d_z) for _ in tableau.b]
        layers = _LayerOperations(weights, activation, d_z)
        pulls = []
        for s, b in enumerate(tableau.b):
            later = zip(tableau.a[s + 1 :], d_inputs[s + 1 :], strict=True)
            d_stage, sums = _sum([(b, d_z), *((row[s], d) for row, d in later)])
            pulls.append((sums, layers.backward_from(d_stage, d_inputs[s])))
        pulls.reverse()
        d_jumps = torch.empty_like(d_latents[1:]) if has_jumps else None
        i = len(inputs)
        for t in range(len(d_bins) - 2, -1, -1):
            if d_jumps is not None:
                d_jumps[t] = d_z
            for _ in range(n_substeps):
                for sums, of_layers in pulls:
                    for operation in sums:
                        operation()
                    i -= 1
                    of_layers(inputs[i])
                for d_input in d_inputs:
                    d_z.add_(d_input)
            d_z.add_(d_bins[t])
        return d_z, d_jumps, None, None, None, None, *layers.d_weights()


class _LayerOperations:
    """Evaluations of the hidden layers, and the sum of their gradients.

    The backward pass recomputes hidden units: those of a whole rollout would not fit into the
    cache, and reading them from memory would take longer.
    """

    def __init__(self, weights: Sequence[Tensor], activation: Activation, z: Tensor) -> None:
        self.activation = activation
        single = z.ndim == 2
        self.product = torch.mm if single else torch.bmm
        sizes = [(*z.shape[:-2], weight.shape[-2], z.shape[-1]) for weight in weights[:-1]]
        self.hidden = [z.new_empty(*size) for size in sizes]
        self.d_hidden = [torch.empty_like(h) for h in self.hidden]
        activations = [activation.in_place(h) for h in self.hidden]
        self.steps = [*zip(weights, self.hidden, activations, strict=False)]
        # The last row of the first layer's input is 1, not part of the state.
        self.weights_t = [weights[0][..., :-1].mT, *(weight.mT for weight in weights[1:])]
        # Products of thin matrices take a third of the time if the result is wide, not tall.
        self.tall = [weight.shape[-2] > weight.shape[-1] for weight in weights]
        self.d_wide = [
            torch.zeros_like(weight.mT if tall else weight, memory_format=torch.contiguous_format)
            for weight, tall in zip(weights, self.tall, strict=True)
        ]
        self.add_up = [d.addmm_ if single else d.baddbmm_ for d in self.d_wide]

    def forward(self, x: Tensor) -> Tensor:
        """Units ``([n_models,] n_hidden + 1, n_trials)`` of the last hidden layer."""
        product = self.product
        for weight, h, activate in self.steps:
            product(weight, x, out=h)
            activate()
            x = h
        return x

    def backward_from(self, d_output: Tensor, d_input: Tensor) -> Callable[[Tensor], None]:
        """Make the backward pass of one evaluation, as a function of its input.

        It writes the gradient by the input to ``d_input``, given that by the output in
        ``d_output``, and adds up those of the weights.
        """
        d_outputs = [*self.d_hidden, d_output]
        later: list[Callable[[], object]] = []
        for layer in reversed(range(1, len(d_outputs))):
            d_above, d_below, h = d_outputs[layer], d_outputs[layer - 1], self.hidden[layer - 1]
            pair = (h, d_above.mT) if self.tall[layer] else (d_above, h.mT)
            later += [
                partial(self.add_up[layer], *pair),
                partial(self.product, self.weights_t[layer], d_above, out=d_below),
                self.activation.backward_in_place(d_below, h),
            ]
        forward, tall, add_up = self.forward, self.tall[0], self.add_up[0]
        d_first, d_first_t = d_outputs[0], d_outputs[0].mT
        into_input = partial(self.product, self.weights_t[0], d_first, out=d_input)

        def backward(x: Tensor) -> None:
            forward(x)
            for operation in later:
                operation()
            if tall:
                add_up(x, d_first_t)
            else:
                add_up(d_first, x.mT)
            into_input()

        return backward

    def d_weights(self) -> list[Tensor]:
        return [d.mT if tall else d for d, tall in zip(self.d_wide, self.tall, strict=True)]


#: Terms of a weighted sum: weights and tensors.
Terms = list[tuple[float, Tensor]]


def _terms(coefficients: tuple[float, ...], stages: list[Tensor]) -> Terms:
    return [(c, k) for c, k in zip(coefficients, stages, strict=False) if c]


def _combine(z: Tensor, terms: Terms, out: Tensor) -> None:
    """Write ``z + sum(weight * tensor)`` to ``out``, which may be ``z`` itself."""
    base = z
    for weight, k in terms:
        base = torch.add(base, k, alpha=weight, out=out)
    if base is z and out is not z:
        out.copy_(z)


def _sum(terms: Terms) -> tuple[Tensor, list[Callable[[], object]]]:
    """Prepare the sum of ``terms``: the tensor that will hold it, and the operations to run.

    The gradient of a stage is such a sum, over the step and the later stages that use it.
    """
    (weight, first), *others = [term for term in terms if term[0]]
    if weight == 1 and not others:
        return first, []
    total = torch.empty_like(first)
    # Numbers outside of tensors take twice the time.
    scale = torch.tensor(weight, dtype=first.dtype, device="cpu")
    scaled = partial(torch.mul, first, scale, out=total)
    return total, [scaled, *(partial(total.add_, d, alpha=weight) for weight, d in others)]

r"""The log-posterior of a trial's causes, to second order, by dynamic programming.

The causes of a trial are its initial condition and, where inputs are inferred, the inputs of all
bins. With s = (z, u) the latents and the input of a bin, the model linearised around given causes
is ds_{t+1} = A_t ds_t + E e_{t+1}, with the innovations e of the inputs, which are standard normal.
What the spikes of bins t and later say about s_t is quadratic, -ds' L_t ds / 2 + l_t' ds, and
follows backwards in time: what the best (in other words, the mean) innovation leaves of bin t + 1,

    M = I + E' L_{t+1} E,   e_{t+1} = K ds_t + k,   K = -M^-1 E' L_{t+1} A_t,
    L_t = G_t + A_t' (L_{t+1} - L_{t+1} E M^-1 E' L_{t+1}) A_t,

with G_t the Fisher information of the bin's spikes, and likewise l_t. Together with the prior, L_0
is the precision of s_0. One pass forwards then gives the Newton step, or, from M^-1 as the
covariance of e_{t+1} given s_t, that of every bin. This is the linear-quadratic regulator's
recursion, and equal to a Kalman smoother's result; without inputs, L_0 is the Fisher information of
the initial condition, in time linear in bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .._model.inputs import InputStatistics
from .prior import Prior
from .safe_linalg import safe_cholesky

__all__ = ["Expansion"]

#: With fewer trials and more pairs of latents, a product for each bin takes up to a hundred times
#: as long as one of all bins; else no longer, or it does not matter.
FEW_TRIALS = 32
FEW_PAIRS = 64


class _Gain(NamedTuple):
    """The innovation after a bin given its state: ``feedback @ ds + offset``, and its covariance.

    None of it is whitened: it is already that by which the inputs change.
    """

    feedback: Tensor
    offset: Tensor
    covariance: Tensor


class Expansion:
    """Of ``causes`` whose ``latents`` and ``output`` are given.

    ``damping`` ``(n_trials,)`` adds so many times its diagonal to the precision of the first state,
    and to that of all innovations (Levenberg, Marquardt).

    Attributes
    ----------
    gradient, precision : Tensor of shape (n_trials, n_states) and (n_trials, n_states, n_states)
        Of the state of the first bin, all later innovations being at their best.
    """

    def __init__(
        self,
        model: SequentialAutoencoder,
        prior: Prior,
        batch: Batch,
        causes: Tensor,
        latents: Tensor,
        output: Tensor,
        damping: Tensor | None = None,
    ) -> None:
        self.n_bins, self.n_latents, self.n_trials = latents.shape
        self.inputs = model.inputs
        self.lengths = torch.as_tensor(batch.lengths, device=latents.device)
        inferred = model.inferred_inputs(causes, self.n_bins)
        self.inferred = inferred
        self.n_inputs = 0 if inferred is None else inferred.shape[1]
        self.transitions = self._linearise(model, latents)
        self.gains: list[_Gain] = []
        self.damping = latents.new_zeros(self.n_trials) if damping is None else damping
        self.gradient, self.precision = self._backwards(model, prior, batch, causes, output)
        self.latents, self.output = latents, output

    @classmethod
    def at(
        cls, model: SequentialAutoencoder, prior: Prior, batch: Batch, causes: Tensor
    ) -> Expansion:
        """The expansion around ``causes``, with their latents and output found."""
        latents = model.rollout(causes, len(batch.counts), batch.inputs)
        return cls(model, prior, batch, causes, latents, model.readout(latents))

    # ------------------------------------------------------------------ what it is good for

    def newton_step(self) -> Tensor:
        """Change of the causes; NaN for a trial whose precision is singular."""
        ridge = torch.diag_embed(self.damping[:, None] * self.precision.diagonal(dim1=1, dim2=2))
        # solve_ex, unlike solve, gives NaN for a singular trial instead of an error for all.
        state = torch.linalg.solve_ex(self.precision + ridge, self.gradient)[0]
        if not self.n_inputs:
            return state.T
        steps = [state.T]
        for transition, gain in zip(self.transitions, self.gains, strict=False):
            innovation = _times(gain.feedback, state) + gain.offset
            state = _times(transition, state)
            state[:, self.n_latents :] += innovation
            steps.append(state[:, self.n_latents :].T)
        return torch.cat(steps)

    def covariances(self) -> Tensor:
        """Of the states of all bins: ``(n_trials, n_bins, n_states, n_states)``."""
        return self._forwards()[0]

    def _forwards(self) -> tuple[Tensor, list[Tensor]]:
        """Covariances of all bins, and with those of the next bin for all but the last."""
        # Spikes add to what the prior tells, whatever rounding or overflow made of their part.
        factor = safe_cholesky(self.precision, self.prior_precision)
        covariance = torch.cholesky_inverse(factor)
        found, with_next = [covariance], []
        for t in range(self.n_bins - 1):
            closed = self._closed_loop(t)
            with_next.append(closed @ covariance)
            covariance = with_next[-1] @ closed.transpose(1, 2)
            if t < len(self.gains):
                covariance[:, self.n_latents :, self.n_latents :] += self.gains[t].covariance
            elif self.inputs is not None and self.n_inputs:
                of_last = torch.diag(self.inputs.innovation_std**2)
                covariance[:, self.n_latents :, self.n_latents :] += of_last
            found.append(covariance)
        return torch.stack(found, dim=1), with_next

    def input_statistics(self) -> InputStatistics:
        """Sums, up to each trial's last observed bin, of which the inputs' prior is learned."""
        assert self.inputs is not None and self.inferred is not None
        inputs, n_latents = self.inputs, self.n_latents
        covariances, products = self._forwards()
        own = covariances[:, :-1, n_latents:, n_latents:].diagonal(dim1=2, dim2=3)
        # The last bin's input is none of the sums: nothing is known of it.
        with_next = torch.stack(products, dim=1)[:, :-1, n_latents:, n_latents:]
        with_next = with_next.diagonal(dim1=2, dim2=3)
        phi = inputs.correlation
        news = own[:, 1:] - 2 * phi * with_next + phi**2 * own[:, :-1]
        open_share = torch.cat(
            [own[:, :1] / inputs.variance, news / inputs.innovation_std**2], dim=1
        )
        u = self.inferred.permute(2, 0, 1)
        innovations = inputs.innovations(self.inferred).permute(2, 0, 1)
        # An input moves the bin that follows; beyond the last, everything may overflow.
        bins = torch.arange(1, self.n_bins, device=u.device)
        within = (bins < self.lengths[:, None])[..., None]

        def total(values: Tensor, where: Tensor) -> Tensor:
            return values.masked_fill(~where, 0.0).sum((0, 1))

        return InputStatistics(
            total(innovations.square(), within),
            total(1 - open_share, within),
            total(own + u**2, within),
            total(with_next + u[:, 1:] * u[:, :-1], within[:, 1:]),
            int(within.sum()),
            int(within[:, 1:].sum()),
        )

    # ------------------------------------------------------------------ the two passes

    def _linearise(self, model: SequentialAutoencoder, latents: Tensor) -> list[Tensor]:
        """A_t of every bin but the last."""
        columns = latents[:-1].permute(1, 0, 2).flatten(1)
        jacobians = model.dynamics.step_jacobian(columns)
        jacobians = jacobians.unflatten(2, (self.n_bins - 1, self.n_trials))
        # They may overflow after a trial's end, where spikes say nothing.
        jacobians = jacobians.permute(2, 3, 0, 1).contiguous().nan_to_num_(0.0, 0.0, 0.0)
        if not self.n_inputs:
            return list(jacobians)
        assert self.inputs is not None
        n_latents, n_states = self.n_latents, self.n_latents + self.n_inputs
        transitions = latents.new_zeros(self.n_bins - 1, self.n_trials, n_states, n_states)
        transitions[:, :, :n_latents, :n_latents] = jacobians
        transitions[:, :, :n_latents, n_latents:] = self.inputs.matrix()
        transitions[:, :, n_latents:, n_latents:] = torch.diag(self.inputs.correlation)
        return list(transitions)

    def _backwards(
        self,
        model: SequentialAutoencoder,
        prior: Prior,
        batch: Batch,
        causes: Tensor,
        output: Tensor,
    ) -> tuple[Tensor, Tensor]:
        score, information = self._of_spikes(model, batch, output)
        n_latents, n_states = self.n_latents, self.n_latents + self.n_inputs
        gradient = output.new_zeros(self.n_trials, n_states)
        precision = output.new_zeros(self.n_trials, n_states, n_states)
        innovations = None
        if self.inferred is not None:
            assert self.inputs is not None
            innovations = self.inputs.innovations(self.inferred).permute(0, 2, 1)
        gains = []
        for t in range(self.n_bins - 1, -1, -1):
            if t < self.n_bins - 1:
                backwards = self.transitions[t].transpose(1, 2)
                # The input of the last bin moves nothing, so nothing is known of it.
                if innovations is not None and t < self.n_bins - 2:
                    gain, gradient, precision = self._best_innovation(
                        t, gradient, precision, innovations[t + 1]
                    )
                    gains.append(gain)
                gradient = _times(backwards, gradient)
                precision = torch.bmm(torch.bmm(backwards, precision), self.transitions[t])
                precision = precision.add(precision.transpose(1, 2)).mul_(0.5)
            gradient[:, :n_latents].add_(score[t])
            precision[:, :n_latents, :n_latents].add_(information[t])
        self.gains = gains[::-1]
        prior_gradient, self.prior_precision = prior.of_first_state(causes[:n_states])
        return gradient + prior_gradient, precision + self.prior_precision

    def _best_innovation(
        self, t: int, gradient: Tensor, precision: Tensor, now: Tensor
    ) -> tuple[_Gain, Tensor, Tensor]:
        """Leave the innovation after bin ``t`` to its best, given the state of that bin."""
        assert self.inputs is not None
        std = self.inputs.innovation_std
        rows = std[:, None] * precision[:, self.n_latents :]
        identity = torch.eye(self.n_inputs, dtype=std.dtype, device=std.device)
        inner = rows[:, :, self.n_latents :] * std + (1 + self.damping)[:, None, None] * identity
        factor = safe_cholesky(inner, identity)
        pull = std * gradient[:, self.n_latents :] - now
        solved = torch.cholesky_solve(torch.cat([rows, pull[..., None]], dim=2), factor)
        feedback, offset = -solved[:, :, :-1], solved[:, :, -1]
        through = rows.transpose(1, 2)
        gain = _Gain(
            std[:, None] * (feedback @ self.transitions[t]),
            std * offset,
            std[:, None] * torch.cholesky_inverse(factor) * std,
        )
        return gain, gradient - _times(through, offset), precision + through @ feedback

    def _of_spikes(
        self, model: SequentialAutoencoder, batch: Batch, output: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score ``(n_bins, n_trials, D)`` and information ``(n_bins, n_trials, D, D)``."""
        score, information = model.likelihood.score_and_information(output, batch.counts)
        if batch.mask is not None:
            score = score.masked_fill(~batch.mask, 0.0)
            information = information.masked_fill(~batch.mask, 0.0)
        kernel = model.readout.weight[:, :-1]
        pairs = (kernel[:, :, None] * kernel[:, None, :]).flatten(1)
        score = (kernel.T @ score).permute(0, 2, 1)
        information = _contracted(pairs, information)
        return score, information.unflatten(2, (self.n_latents, self.n_latents))

    def _closed_loop(self, t: int) -> Tensor:
        """A_t with the mean innovation that its state brings about."""
        if t >= len(self.gains):
            return self.transitions[t]
        closed = self.transitions[t].clone()
        closed[:, self.n_latents :] += self.gains[t].feedback
        return closed


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


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.bmm(matrices, vectors[:, :, None])[:, :, 0]

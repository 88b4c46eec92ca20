"""Inputs to the dynamics: known ones, and ones that are inferred from the spikes.

Between one bin and the next an input u moves the latents by W u, on top of where the dynamics take
them. It is as if the vector field had a pulse at the end of the bin; for linear dynamics and inputs
that are constant within a bin, no discretisation is lost by that.

Inferred inputs have a prior: each is an autoregressive process of first order, as in LFADS
[Pandarinath et al., Nature Methods 2018], with a variance and a correlation from bin to bin that
are learned by maximising the evidence. What they cost is counted in that evidence, so that the
variance of an input that explains nothing goes to zero. The columns of their W have unit norm,
otherwise a small variance and a large W would escape the prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["InputStatistics", "Inputs"]

#: Standard deviation of inferred inputs at first, in latents of unit size: evidence lets it grow.
FIRST_STD = 0.01
SMALLEST_VARIANCE = 1e-8
#: Variances may change by this factor in one update: the posterior is of the old one.
LARGEST_FACTOR = 4.0
LARGEST_CORRELATION = 0.99
#: While trials are seen in part only, dynamics still learn what inputs could explain as well: the
#: inputs' variances are then held below what the evidence asks for.
SHRINKAGE_WHILE_GROWING = 0.6


@dataclass
class InputStatistics:
    """Sums over trials and bins, one number for each input, of which its prior is learned.

    ``innovations`` are what is new in each bin, in units of the prior's standard deviation.
    """

    squared_innovations: Tensor
    determined: Tensor
    squares: Tensor
    products: Tensor
    n_squares: int
    n_products: int

    def __add__(self, other: InputStatistics) -> InputStatistics:
        return InputStatistics(
            *(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__)
        )


class Inputs(nn.Module):
    """How inputs move latents, and what is expected of those that are inferred."""

    correlation: Tensor
    variance: Tensor

    def __init__(
        self, n_latents: int, n_known: int, n_inferred: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        device = "meta" if generator is None else "cpu"
        self.n_inferred = n_inferred
        self.known = nn.Parameter(torch.zeros(n_latents, n_known, device=device))
        if generator is None or n_inferred == 0:
            directions = torch.zeros(n_latents, n_inferred, device=device)
        else:
            directions = torch.randn(n_latents, n_inferred, generator=generator, device="cpu")
            if n_inferred <= n_latents:
                directions = torch.linalg.qr(directions)[0]
        self.directions = nn.Parameter(directions)
        self.register_buffer("correlation", torch.full((n_inferred,), 0.5, device=device))
        self.register_buffer("variance", torch.full((n_inferred,), FIRST_STD**2, device=device))

    def matrix(self) -> Tensor:
        """Unit directions ``(n_latents, n_inferred)`` of the inferred inputs."""
        return self.directions / self.directions.norm(dim=0).clamp(min=1e-12)

    @property
    def innovation_std(self) -> Tensor:
        return ((1 - self.correlation**2) * self.variance).sqrt()

    def jumps(self, known: Tensor | None, inferred: Tensor | None) -> Tensor | None:
        """By what latents jump after each bin: ``(n_bins - 1, n_latents, n_trials)``.

        ``known`` inputs are ``(n_bins, n_known, n_trials)``, of which the last moves nothing
        within these bins; ``inferred`` ones are ``(n_bins - 1, n_inferred, n_trials)``.
        """
        jumps = None if known is None else self.known @ known[:-1]
        if inferred is None:
            return jumps
        moved = self.matrix() @ inferred
        return moved if jumps is None else jumps + moved

    def innovations(self, inferred: Tensor) -> Tensor:
        """What is new in every bin, with a standard normal prior; shaped like ``inferred``."""
        first = inferred[:1] / self.variance.sqrt()[:, None]
        news = inferred[1:] - self.correlation[:, None] * inferred[:-1]
        return torch.cat([first, news / self.innovation_std[:, None]])

    def statistics(
        self, inferred: Tensor, variance: Tensor, with_next: Tensor, lengths: Tensor
    ) -> InputStatistics:
        """Sums, up to each trial's last observed bin, from which the prior is learned.

        Parameters
        ----------
        inferred : Tensor of shape (n_bins - 1, n_inferred, n_trials)
            Posterior means of the inputs.
        variance : Tensor of shape (n_trials, n_bins - 1, n_inferred)
            Their posterior variances.
        with_next : Tensor of shape (n_trials, n_bins - 2, n_inferred)
            Their posterior covariances with themselves in the next bin.
        lengths : Tensor of shape (n_trials,)
            Bins up to each trial's last observed one.
        """
        phi, n_bins = self.correlation, len(inferred) + 1
        news = variance[:, 1:] - 2 * phi * with_next + phi**2 * variance[:, :-1]
        open_share = torch.cat(
            [variance[:, :1] / self.variance, news / self.innovation_std**2], dim=1
        )
        u = inferred.permute(2, 0, 1)
        innovations = self.innovations(inferred).permute(2, 0, 1)
        # An input moves the bin that follows; beyond the last, everything may overflow.
        bins = torch.arange(1, n_bins, device=u.device)
        within = (bins < lengths[:, None])[..., None]

        def total(values: Tensor, where: Tensor) -> Tensor:
            return values.masked_fill(~where, 0.0).sum((0, 1))

        return InputStatistics(
            total(innovations.square(), within),
            total(1 - open_share, within),
            total(variance + u**2, within),
            total(with_next + u[:, 1:] * u[:, :-1], within[:, 1:]),
            int(within.sum()),
            int(within[:, 1:].sum()),
        )

    def continued(self, inferred: Tensor, n_more: int) -> Tensor:
        """With the prior mean, given the last bin, for bins that follow."""
        bins = torch.arange(1, n_more + 1, device=inferred.device)
        decay = self.correlation[None, :, None] ** bins[:, None, None]
        return torch.cat([inferred, decay * inferred[-1:]])

    @torch.no_grad()
    def learn_prior(self, sums: InputStatistics, shrink: bool) -> None:
        """Climb the evidence, given statistics of all training trials.

        The variance by MacKay's rule [Neural Computation 1992]: squared innovations over the number
        of them that spikes determine. Unlike expectation maximisation, which has the same fixed
        points, it is as fast where an input explains little. The correlation is that of
        neighbouring bins, under the posterior. ``shrink`` variances stay below the best.
        """
        if sums.n_products:
            correlation = (sums.products / sums.n_products) / (sums.squares / sums.n_squares)
            correlation = correlation.clamp(-LARGEST_CORRELATION, LARGEST_CORRELATION)
            self.correlation.copy_(torch.where(correlation.isnan(), self.correlation, correlation))
        factor = sums.squared_innovations / sums.determined.clamp(min=1e-6)
        if shrink:
            factor = SHRINKAGE_WHILE_GROWING * factor
        factor = factor.nan_to_num(nan=1.0).clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
        self.variance.mul_(factor).clamp_(min=SMALLEST_VARIANCE)

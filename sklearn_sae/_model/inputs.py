"""Inputs to the dynamics: known ones, and ones that are inferred from the spikes.

Between one bin and the next an input u adds W u to the latents that the dynamics give, like a pulse
of the vector field at the end of the bin. For linear dynamics and inputs that are constant within a
bin, this is no restriction.

The prior of each inferred input is an autoregressive process of first order, as in LFADS
[Pandarinath et al., Nature Methods 2018], with a learned variance and correlation from bin to bin.
The prior variance of each input is learned by maximising the evidence (automatic relevance
determination) and shrinks to zero for unneeded inputs. The columns of their W have unit norm:
otherwise a large W could make up for a small variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["InputStatistics", "Inputs"]

#: Initial standard deviation of inferred inputs, in latents of unit size; the evidence raises it.
FIRST_STD = 0.01
SMALLEST_VARIANCE = 1e-8
#: Largest factor of a variance in one update, because the posterior is that of the old variance.
LARGEST_FACTOR = 4.0
LARGEST_CORRELATION = 0.99
#: While the horizon grows, dynamics still learn what inputs could explain too: until then the
#: inputs' variances are held below those that maximise the evidence, by this factor an update.
SHRINKAGE_WHILE_GROWING = 0.6


@dataclass
class InputStatistics:
    """Sums over trials and bins, from which the prior of each inferred input is learned.

    Attributes
    ----------
    squared_innovations : Tensor of shape (n_inferred,)
        Squared posterior means of the innovations, in units of their prior standard deviations.
    determined : Tensor of shape (n_inferred,)
        Number of innovations that the spikes determine: 1 - posterior over prior variance, summed.
    squares, products : Tensor of shape (n_inferred,)
        Posterior means of an input's square, and of its product with itself in the next bin.
    n_squares, n_products : int
        Number of terms of these two sums.
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
    """Directions in which inputs move the latents, and the prior of inferred inputs."""

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
        """Jumps ``(n_bins - 1, n_latents, n_trials)`` of the latents after each bin but the last.

        ``known`` inputs are ``(n_bins, n_known, n_trials)``, of which the last moves nothing
        within these bins; ``inferred`` ones are ``(n_bins - 1, n_inferred, n_trials)``.
        """
        jumps = None if known is None else self.known @ known[:-1]
        if inferred is None:
            return jumps
        moved = self.matrix() @ inferred
        return moved if jumps is None else jumps + moved

    def innovations(self, inferred: Tensor) -> Tensor:
        """Innovations of ``inferred`` inputs, of the same shape; their prior is standard normal."""
        first = inferred[:1] / self.variance.sqrt()[:, None]
        news = inferred[1:] - self.correlation[:, None] * inferred[:-1]
        return torch.cat([first, news / self.innovation_std[:, None]])

    def statistics(
        self, inferred: Tensor, variance: Tensor, with_next: Tensor, lengths: Tensor
    ) -> InputStatistics:
        """Sums up to each trial's last observed bin, from which the prior is learned.

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
        """Append ``n_more`` bins with the prior mean of the inputs, given the last bin."""
        bins = torch.arange(1, n_more + 1, device=inferred.device)
        decay = self.correlation[None, :, None] ** bins[:, None, None]
        return torch.cat([inferred, decay * inferred[-1:]])

    @torch.no_grad()
    def learn_prior(self, sums: InputStatistics, shrink: bool) -> None:
        """Take one step up the evidence, given statistics of all training trials.

        The variance follows MacKay's rule [Neural Computation 1992]: squared innovations over the
        number of them that the spikes determine. Expectation maximisation has the same fixed points
        but is slow where an input explains little. The correlation is that of neighbouring bins
        under the posterior. ``shrink`` holds variances below those that maximise the evidence.
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

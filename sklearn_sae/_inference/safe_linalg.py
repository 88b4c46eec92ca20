"""Factors of precisions that rounding or overflow may have spoilt: never an error."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["safe_cholesky"]


def safe_cholesky(matrices: Tensor, least: Tensor) -> Tensor:
    """Lower factors of ``(n, D, D)`` precisions, each of which holds at least ``least`` (D, D).

    Information adds to a prior, but where dynamics stretch one direction by 1e4, float32 loses what
    is known of the others: eigenvalues come out at zero or below, or all overflows. Such a matrix
    gets the smallest eigenvalue of ``least`` where its own are smaller, and is ``least`` itself if
    it is not finite, so that what is not certain is not claimed. All others are factored as by
    `torch.linalg.cholesky`, to the last bit.
    """
    factors, failed = torch.linalg.cholesky_ex(matrices)
    bad = (failed != 0) | ~factors.isfinite().flatten(1).all(1)
    if bad.any():
        factors[bad] = _mended_factors(matrices[bad], least)
    return factors


def _mended_factors(matrices: Tensor, least: Tensor) -> Tensor:
    # Few, and some devices have no float64.
    exact, floor = matrices.cpu().double(), least.cpu().double()
    if not floor.isfinite().all():
        # Of a model that diverged; nothing is known, but nothing fails.
        floor = torch.eye(len(floor), dtype=floor.dtype, device="cpu")
    finite = exact.isfinite().flatten(1).all(1)
    exact = torch.where(finite[:, None, None], exact, floor)
    values, directions = torch.linalg.eigh(exact)
    smallest = torch.linalg.eigvalsh(floor)[0].clamp(min=torch.finfo(torch.float32).tiny)
    # Rounding leaves the mended matrix itself short of positive by a share of its largest value.
    smallest = torch.maximum(smallest, 1e-14 * values[:, -1:])
    scaled = directions * values.clamp(min=smallest).sqrt()[:, None, :]
    # The R of this QR is a factor that needs no second, rounded, product.
    upper = torch.linalg.qr(scaled.mT).R
    upper = upper * upper.diagonal(dim1=1, dim2=2).sign()[:, :, None]
    return upper.mT.to(matrices)

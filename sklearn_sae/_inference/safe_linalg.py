"""Cholesky factors of precision matrices, even if rounding or overflow has spoilt these."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["safe_cholesky"]


def safe_cholesky(matrices: Tensor, least: Tensor) -> Tensor:
    """Lower factors ``(n, D, D)`` of precisions that are at least ``least`` ``(D, D)`` in theory.

    Each precision is the sum of a prior precision ``least`` and of information. Where dynamics
    stretch one direction by 1e4, float32 loses the information on the others: eigenvalues come out
    at zero or below, or overflow. Eigenvalues of such a matrix are raised to the smallest one of
    ``least``; a matrix that is not finite is replaced by ``least``. So uncertainty is never
    understated. All other matrices are factored as by `torch.linalg.cholesky`, to the last bit.
    """
    factors, failed = torch.linalg.cholesky_ex(matrices)
    bad = (failed != 0) | ~factors.isfinite().flatten(1).all(1)
    if bad.any():
        factors[bad] = _mended_factors(matrices[bad], least)
    return factors


def _mended_factors(matrices: Tensor, least: Tensor) -> Tensor:
    # On the CPU, because they are few and some devices have no float64.
    exact, floor = matrices.cpu().double(), least.cpu().double()
    if not floor.isfinite().all():
        # The model has diverged: nothing is known, but nothing fails.
        floor = torch.eye(len(floor), dtype=floor.dtype, device="cpu")
    finite = exact.isfinite().flatten(1).all(1)
    exact = torch.where(finite[:, None, None], exact, floor)
    values, directions = torch.linalg.eigh(exact)
    smallest = torch.linalg.eigvalsh(floor)[0].clamp(min=torch.finfo(torch.float32).tiny)
    # Rounding errors of eigenvalues are a share of the largest one.
    smallest = torch.maximum(smallest, 1e-14 * values[:, -1:])
    scaled = directions * values.clamp(min=smallest).sqrt()[:, None, :]
    # QR gives the factor without another product, which would be rounded.
    upper = torch.linalg.qr(scaled.mT).R
    upper = upper * upper.diagonal(dim1=1, dim2=2).sign()[:, :, None]
    return upper.mT.to(matrices)

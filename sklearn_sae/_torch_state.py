"""Isolation of fits and inference from torch settings in the rest of the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["own_torch_state"]

AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def own_torch_state(*, grad: bool = False) -> Iterator[None]:
    """Compute with torch's original settings; the present ones are restored afterwards.

    Within, tensors are float32 and on the CPU unless they say otherwise, nothing is cast
    automatically, gradients are recorded if ``grad``, and tensors can be changed later on, as those
    made under ``inference_mode`` cannot. It is for whole methods: around a ``yield`` it would hold
    for the caller as well. Random states and the choice of deterministic algorithms are left alone.
    """
    with ExitStack() as stack:
        stack.enter_context(_float32)
        # Only if need be: any default device makes every call of torch slower.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # In this order: leaving inference mode turns gradients on.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        yield


class _SharedDefault:
    """Default dtype, which all threads share: the last thread to leave restores it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.before = dtype, dtype
        self.n_within = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            if self.n_within == 0:
                self.before = torch.get_default_dtype()
                torch.set_default_dtype(self.dtype)
            self.n_within += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.n_within -= 1
            if self.n_within == 0:
                torch.set_default_dtype(self.before)


_float32 = _SharedDefault(torch.float32)

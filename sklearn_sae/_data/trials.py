"""Trials as the user gave them, read batch by batch.

A recording stays in its own dtype and place (a memory map stays on disk); only the trials of a
batch are converted. NaN, the padding of ragged trials and entries hidden on purpose all become one
thing: a mask of observed entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batches import Batch
from .units import Units

__all__ = ["Trials"]

#: Entries read together, so that a memory map is never loaded whole.
CHUNK = 8_000_000
#: A signal whose standard deviation is below this many steps of its dtype has lost its digits.
COARSEST = 100
#: Range of standard deviations whose squares, and sums of them, float64 can hold.
SMALLEST_SCALE, LARGEST_SCALE = 1e-150, 1e150


class Trials:
    """A checked recording.

    ``data`` is an array ``(n_trials, n_bins, n_neurons)`` or a list of ``(n_bins_i, n_neurons)``;
    known ``inputs`` are an array ``(n_trials, n_bins_of_inputs, n_inputs)`` with at least as many
    bins as the longest trial.
    """

    def __init__(
        self,
        data: np.ndarray | Sequence[np.ndarray],
        *,
        has_missing: bool,
        inputs: np.ndarray | None = None,
    ) -> None:
        self.data: Any = data
        self.is_list = not isinstance(data, np.ndarray)
        self.has_missing = has_missing
        self.n_neurons: int = data[0].shape[-1]
        #: Centre and scale of Gaussian signals. ``read`` gives values in these units, also of
        #: subsets, so that conversion to float32 loses no digits.
        self.units = Units()
        # An array's trials are all equally long.
        self.n_bins: int = max(map(len, data))
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.data)

    def subset(self, rows: np.ndarray) -> Trials:
        """Select trials by index; a memory map is not copied until a batch is read."""
        return _Subset(self, rows)

    def some_rows(self, most: int) -> np.ndarray:
        """Rows of all trials or, if they are more than ``most``, of so many drawn at random.

        They are not evenly spaced, because conditions may alternate, and always the same.
        """
        return np.sort(np.random.default_rng(0).permutation(len(self))[:most])

    def read(
        self, rows: np.ndarray, n_bins: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read counts ``(n_rows, n_bins, n_neurons)`` and their mask, None if all were observed.

        Counts are zero where not observed. Gaussian signals are in ``units``.
        """
        counts, observed = self.stored(rows, n_bins)
        if self.units.centre is not None:
            counts = self.units.to_network(counts)  # float64, whatever the data are
            if observed is not None:
                counts[~observed] = 0.0
        return counts, observed

    def stored(
        self, rows: np.ndarray, n_bins: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read counts and mask as ``read`` does, but in the units of the data."""
        if not self.is_list:
            counts = self.data[rows, :n_bins]
            if not self.has_missing:
                return counts, None
        else:
            counts = _pad([self.data[row] for row in rows], min(self.n_bins, n_bins or self.n_bins))
            if not np.issubdtype(counts.dtype, np.floating):
                return counts, None
        missing = np.isnan(counts)
        if not missing.any():
            return counts, None
        return np.where(missing, 0, counts), ~missing

    def batch(self, rows: np.ndarray, device: torch.device, n_bins: int | None = None) -> Batch:
        """Make a batch of the given trials, cut to their first ``n_bins`` bins."""
        counts, observed = self.read(rows, n_bins)
        lengths = _lengths(counts, observed)
        mask = None if observed is None else _trials_last(observed, device, bool)
        inputs = None
        if self.inputs is not None:
            inputs = _trials_last(self.inputs[rows], device, self.inputs.dtype)
        return Batch(_trials_last(counts, device, np.float32), mask, lengths, rows, inputs)

    def chunks(self, size: int, device: torch.device, n_bins: int | None = None) -> Iterator[Batch]:
        """Yield all trials in order, in batches of ``size``."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))), device, n_bins)

    def view(self, row: int) -> np.ndarray:
        """One trial as it is stored, without a copy."""
        return self.data[row]

    def lengths(self) -> np.ndarray:
        """Bins of each trial up to its last observed one ``(n_trials,)``, at least 1."""
        rows = (np.arange(i, min(i + 256, len(self))) for i in range(0, len(self), 256))
        return np.concatenate([_lengths(*self.stored(some)) for some in rows])

    def mean_counts(self, unobserved: np.ndarray | float = 0.0) -> np.ndarray:
        """Mean count per bin ``(n_neurons,)`` over each neuron's observed entries.

        A neuron that was never observed has ``unobserved``.
        """
        total = np.zeros(self.n_neurons)
        n_observed = np.zeros(self.n_neurons)
        for start in range(0, len(self), 256):
            rows = np.arange(start, min(start + 256, len(self)))
            counts, observed = self.stored(rows)
            total += counts.sum(axis=(0, 1), dtype=np.float64)
            n_observed += (
                counts.shape[0] * counts.shape[1] if observed is None else observed.sum(axis=(0, 1))
            )
        return np.where(n_observed > 0, total / np.maximum(n_observed, 1), unobserved)

    def find_units(self) -> Units:
        """Find the mean and standard deviation of each neuron; a constant one has a scale of 1.

        Raises ValueError if a neuron varies by less than its dtype can resolve, or if float64
        cannot hold its variance.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            centre, scale, varies, eps = self._moments()
        wrong = np.flatnonzero(varies & ~((scale > SMALLEST_SCALE) & (scale < LARGEST_SCALE)))
        lost = np.flatnonzero(varies & (scale < COARSEST * eps * np.abs(centre)))
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"X has {len(wrong)} neuron(s) whose variance double precision cannot hold, first "
                f"neuron {i}: its standard deviation must be between {SMALLEST_SCALE:g} and "
                f"{LARGEST_SCALE:g}, and is {scale[i]:.3g}. Change its unit."
            )
        if len(lost):
            i = lost[0]
            raise ValueError(
                f"X has {len(lost)} neuron(s) that vary by less than their numbers can tell, first "
                f"neuron {i}: a standard deviation of {scale[i]:.3g} around {centre[i]:.6g}. "
                "Subtract the offset before it is stored with the signal, in a wider dtype."
            )
        return Units(centre, np.where(varies, scale, 1.0))

    def _moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Mean, standard deviation and "varies" ``(n_neurons,)``, and the coarsest dtype's eps."""
        centre = self.mean_counts()
        squares, n_observed = np.zeros(self.n_neurons), np.zeros(self.n_neurons)
        low, high = np.full(self.n_neurons, np.inf), np.full(self.n_neurons, -np.inf)
        # Integers become float64, which does not hold all of them.
        eps = float(np.finfo(np.float64).eps)
        for start in range(0, len(self), 256):
            counts, observed = self.stored(np.arange(start, min(start + 256, len(self))))
            seen = np.ones(counts.shape, dtype=bool) if observed is None else observed
            squares += ((counts - centre) ** 2).sum(axis=(0, 1), where=seen, dtype=np.float64)
            n_observed += seen.sum(axis=(0, 1))
            low = np.minimum(low, np.where(seen, counts, np.inf).min(axis=(0, 1)))
            high = np.maximum(high, np.where(seen, counts, -np.inf).max(axis=(0, 1)))
            if counts.dtype.kind == "f":
                eps = max(eps, float(np.finfo(counts.dtype).eps))
        return centre, np.sqrt(squares / np.maximum(n_observed, 1)), high > low, eps

    def checksum(self) -> str:
        """Hash counts and mask, independently of their dtype and container."""
        digest = hashlib.sha256()
        size = max(1, CHUNK // (self.n_bins * self.n_neurons))
        for start in range(0, len(self), size):
            counts, observed = self.stored(np.arange(start, min(start + size, len(self))))
            with np.errstate(over="ignore"):
                narrow = counts.astype(np.float32)
            # Signals far from zero may differ only in digits that float32 does not have.
            exact = np.array_equal(narrow, counts)
            digest.update((narrow if exact else counts.astype(np.float64)).tobytes())
            if observed is not None:
                digest.update(np.packbits(observed).tobytes())
        if self.inputs is not None:
            digest.update(self.inputs.tobytes())
        return digest.hexdigest()


class _Subset(Trials):
    def __init__(self, whole: Trials, rows: np.ndarray) -> None:
        self.whole, self.rows = whole, rows
        self.is_list, self.has_missing = whole.is_list, whole.has_missing
        self.n_neurons = whole.n_neurons
        self.n_bins = whole.n_bins
        self.inputs = None if whole.inputs is None else whole.inputs[rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def units(self) -> Units:  # type: ignore[override]
        """Those of the whole, whenever these are set."""
        return self.whole.units

    def read(
        self, rows: np.ndarray, n_bins: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        # In the units of the whole, whenever these are set.
        return self.whole.read(self.rows[rows], n_bins)

    def stored(
        self, rows: np.ndarray, n_bins: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        return self.whole.stored(self.rows[rows], n_bins)

    def view(self, row: int) -> np.ndarray:
        return self.whole.view(self.rows[row])


def _lengths(counts: np.ndarray, observed: np.ndarray | None) -> np.ndarray:
    if observed is None:
        return np.full(len(counts), counts.shape[1])
    seen = np.logical_or.reduce(observed, axis=2)
    return np.where(seen.any(axis=1), seen.shape[1] - seen[:, ::-1].argmax(axis=1), 1)


def _pad(trials: list[np.ndarray], n_bins: int) -> np.ndarray:
    lengths = {len(trial) for trial in trials}
    if min(lengths) >= n_bins:
        return np.stack([trial[:n_bins] for trial in trials])
    # Not float32 for all: signals far from zero would lose digits.
    dtype = np.result_type(np.float32, *(t.dtype for t in trials if t.dtype.kind == "f"))
    padded = np.full((len(trials), n_bins, trials[0].shape[1]), np.nan, dtype=dtype)
    for row, trial in zip(padded, trials, strict=True):
        row[: len(trial)] = trial[:n_bins]
    return padded


def _trials_last(array: np.ndarray, device: torch.device, dtype: type | np.dtype) -> Tensor:
    turned = array.transpose(1, 2, 0)
    if device.type == "cuda" and array.dtype in (np.uint8, bool):
        # A quarter of the bytes go over, and the rest is quicker there.
        there = torch.from_numpy(array).to(device).permute(1, 2, 0)
        return there.to(torch.bool if dtype is bool else torch.float32).contiguous()
    # Turned and converted in one pass.
    copy = np.empty(turned.shape, dtype)
    copy[...] = turned
    return torch.from_numpy(copy).to(device)

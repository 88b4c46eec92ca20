"""Validation: what users pass becomes checked ``Trials``, or an error that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import check_random_state
from torch import Tensor

from .masked import refuse_masked
from .trials import Trials

__all__ = [
    "check_count",
    "check_device",
    "check_latents",
    "check_seed",
    "check_seeds",
    "check_simulated_inputs",
    "check_trials",
    "if_known",
]

#: Entries looked at together, so that checking a memory map never loads it whole.
CHUNK = 8_000_000
#: Up to here a float32 holds every whole number.
LARGEST_COUNT = 2**24
#: Beyond this count a float32 log-likelihood has too few digits to tell good rates from better.
PRECISE_COUNT = 1e5
LARGEST_INPUT = 1e6


def check_trials(
    estimator: Any,
    X: Any,
    inputs: Any = None,
    *,
    reset: bool,
    of_counts: bool = True,
    n_ahead: int = 0,
) -> Trials:
    """Check spikes and known inputs, and wrap them as ``Trials``.

    With ``reset`` the estimator stores the numbers of neurons and inputs, else they must match.
    Values may be negative unless ``of_counts``. Inputs go on for ``n_ahead`` bins after the last of
    each trial.
    """
    X = _as_numpy(X, "X")
    name = type(estimator).__name__
    data = _check_list(X, name) if isinstance(X, list | tuple) else _check_cube(X, name)
    has_missing = _check_entries(data, name, reset, of_counts)
    n_neurons = data[0].shape[-1]
    # Before the inputs: if axes of X are swapped, theirs do not fit either.
    if not reset and n_neurons != estimator.n_features_in_:
        raise ValueError(
            f"X has {n_neurons} features, but {name} is expecting "
            f"{estimator.n_features_in_} features as input. Features are neurons, the last axis of "
            "X (n_trials, n_bins, n_neurons); mark a neuron that was not recorded with NaN instead "
            "of leaving it out."
        )
    known = None if inputs is None else _check_inputs(inputs, data, n_ahead)
    n_inputs = 0 if known is None else known.shape[2]
    if reset:
        estimator.n_features_in_, estimator.n_inputs_in_ = n_neurons, n_inputs
    elif n_inputs != estimator.n_inputs_in_:
        raise ValueError(
            f"This {name} was fitted with {estimator.n_inputs_in_} known input(s), and is "
            f"given {n_inputs or 'none'}. Pass inputs of shape (n_trials, n_bins, "
            f"{estimator.n_inputs_in_}), or fit again."
            if estimator.n_inputs_in_
            else f"This {name} was fitted without known inputs, and is given {n_inputs}. Leave "
            "them out, or fit again with inputs."
        )
    return Trials(data, has_missing=has_missing, inputs=known)


def _as_numpy(X: Any, what: str) -> Any:
    """Convert tensors to arrays; refuse 1D object arrays, which ``check_array`` would misread."""
    if hasattr(X, "detach"):
        return X.detach().cpu().numpy()
    if isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1:
        raise ValueError(
            f"{what} is a 1D array of Python objects. Pass trials of unequal length as a list of "
            "arrays (n_bins, n_neurons): list(X)."
        )
    return X


def _as_numbers(X: Any, what: str, estimator: str | None = None) -> np.ndarray:
    """Convert to an array of numbers, or raise an error that names the argument and the reason."""
    refuse_masked(what, X)
    try:
        array = check_array(
            X,
            dtype="numeric",
            ensure_2d=False,
            allow_nd=True,
            ensure_all_finite=False,
            ensure_min_samples=0,
            ensure_min_features=0,
            estimator=estimator,
            input_name=what,
        )
        if array.ndim and array.dtype.kind not in "buif":
            raise TypeError(f"its dtype is {array.dtype}")
    except (TypeError, ValueError) as error:
        # The message may hold every number of an array.
        message = f"{what} cannot be read as an array of numbers: {str(error):.300}"
        raise (TypeError if isinstance(error, TypeError) else ValueError)(message) from error
    return array


def _check_cube(X: Any, name: str) -> np.ndarray:
    array = _as_numbers(X, "X", name)
    if array.ndim != 3:
        hint = " For a single trial, pass X[np.newaxis]." if array.ndim == 2 else ""
        raise ValueError(
            "Expected 3D array (n_trials, n_bins, n_neurons), or a list of arrays (n_bins, "
            f"n_neurons), got {array.ndim}D array instead, of shape {array.shape}.{hint} Reshape "
            "your data."
        )
    if len(array) == 0:
        raise ValueError(
            f"X has 0 sample(s) (shape={array.shape}) while a minimum of 1 is required: it has no "
            "trials."
        )
    _check_shape(array.shape[1:], "X", array.shape)
    return array


def _check_list(X: Any, name: str) -> list[np.ndarray]:
    if len(X) == 0:
        raise ValueError(
            "X has 0 sample(s) while a minimum of 1 is required: the list has no trials."
        )
    trials = []
    for i, trial in enumerate(X):
        array = _as_numbers(_as_numpy(trial, f"X[{i}]"), f"X[{i}]", name)
        if array.ndim != 2:
            raise ValueError(
                f"X is a list, so each trial must be an array (n_bins, n_neurons); X[{i}] has "
                f"{array.ndim} dimension(s), shape {array.shape}."
            )
        _check_shape(array.shape, f"X[{i}]", array.shape)
        trials.append(array)
        if array.shape[1] != trials[0].shape[1]:
            raise ValueError(
                f"All trials must have the same neurons: X[0] has {trials[0].shape[1]}, X[{i}] has "
                f"{array.shape[1]}. Mark a neuron that was not recorded in a trial with NaN."
            )
    return trials


def _check_inputs(inputs: Any, data: np.ndarray | list[np.ndarray], n_ahead: int) -> np.ndarray:
    """Known inputs as one float32 array ``(n_trials, n_bins + n_ahead, n_inputs)``, zero-padded."""
    inputs = _as_numpy(inputs, "inputs")
    if not isinstance(inputs, list | tuple):
        inputs = _as_numbers(inputs, "inputs")
        if inputs.ndim != 3:
            hint = " For a single input, pass inputs[..., np.newaxis]." if inputs.ndim == 2 else ""
            raise ValueError(
                "inputs must be a 3D array (n_trials, n_bins, n_inputs), or a list of arrays "
                f"(n_bins, n_inputs); got an array of shape {inputs.shape}.{hint}"
            )
    arrays = [
        _as_numbers(_as_numpy(trial, f"inputs[{i}]"), f"inputs[{i}]")
        for i, trial in enumerate(inputs)
    ]
    if len(arrays) != len(data):
        raise ValueError(
            f"X has {len(data)} trials, but inputs are those of {len(arrays)}. Pass one array "
            "(n_bins, n_inputs) for each trial."
        )
    n_inputs = arrays[0].shape[-1] if arrays[0].ndim == 2 else 0
    n_bins = max(map(len, data)) + n_ahead
    known = np.zeros((len(data), n_bins, n_inputs), dtype=np.float32)
    for i, (array, trial) in enumerate(zip(arrays, data, strict=True)):
        shape = (len(trial) + n_ahead, n_inputs)
        if array.shape != shape or n_inputs == 0:
            hint = " For a single input, pass inputs[..., np.newaxis]." if array.ndim == 1 else ""
            further = f" and the {n_ahead} to predict" if n_ahead else ""
            raise ValueError(
                f"inputs[{i}] has shape {array.shape}, but must be (n_bins, n_inputs), with one "
                f"row for each of the {len(trial)} bins of X[{i}]{further}, and as many inputs as "
                f"inputs[0].{hint}"
            )
        if not (np.abs(array) < LARGEST_INPUT).all():
            raise ValueError(
                f"inputs[{i}] holds NaN, or values beyond {LARGEST_INPUT:g}. Known inputs are "
                "known in every bin: put in what acted, or 0; and scale them to about 1."
            )
        known[i, : len(array)] = array
    return known


def check_simulated_inputs(
    inputs: Any, shape: tuple[int, ...], n_bins: int, n_inputs: int
) -> Tensor | None:
    """Known inputs of a free run from states of ``shape``, as ``(n_bins, n_inputs, n_states)``."""
    if inputs is None and n_inputs == 0:
        return None
    if inputs is None or n_inputs == 0:
        raise ValueError(
            f"inputs must be of shape {(*shape, n_bins, n_inputs)}, as fit was with {n_inputs} "
            "known input(s); zeros let the dynamics run without them."
            if n_inputs
            else "inputs must be left out, as fit was without known inputs."
        )
    array = _as_numbers(inputs, "inputs")
    if array.shape != (*shape, n_bins, n_inputs) or not (np.abs(array) < LARGEST_INPUT).all():
        raise ValueError(
            f"inputs must be below {LARGEST_INPUT:g}, of shape {(*shape, n_bins, n_inputs)}; got "
            f"shape {array.shape}."
        )
    columns = array.reshape(-1, n_bins, n_inputs).transpose(1, 2, 0)
    return torch.from_numpy(columns.astype(np.float32))


def _check_shape(bins_and_neurons: tuple[int, ...], what: str, shape: tuple[int, ...]) -> None:
    n_bins, n_neurons = bins_and_neurons
    if n_neurons == 0:
        raise ValueError(
            f"{what} has 0 feature(s) (shape={shape}) while a minimum of 1 is required: it has no "
            "neurons."
        )
    if n_bins < 2:
        raise ValueError(
            f"{what} has {n_bins} bin(s) (shape={shape}) while a minimum of 2 is required: "
            "dynamics need at least two bins. Use smaller bins, or leave such trials out."
        )


def _check_entries(
    data: np.ndarray | list[np.ndarray], name: str, fitting: bool, of_counts: bool
) -> bool:
    """Refuse impossible values, and trials or neurons of NaN only; true if there is any NaN."""
    trials_seen: list[bool] = []
    neurons_seen = np.zeros(data[0].shape[-1], dtype=bool)
    missing = False
    for chunk in _chunks(data):
        _check_values(chunk, name, of_counts)
        if chunk.dtype.kind == "f":
            observed = ~np.isnan(chunk)
        else:
            observed = np.ones((len(chunk), 1, chunk.shape[2]), dtype=bool)
        missing = missing or not observed.all()
        trials_seen.extend(observed.any(axis=(1, 2)))
        neurons_seen |= observed.any(axis=(0, 1))
    unseen = np.flatnonzero(~np.array(trials_seen))
    if len(unseen):
        raise ValueError(
            f"Trial {unseen[0]} of X holds only NaN: nothing of it was observed. Leave such trials "
            f"out ({len(unseen)} in all)."
        )
    unseen = np.flatnonzero(~neurons_seen)
    if fitting and len(unseen):
        raise ValueError(
            f"Neuron {unseen[0]} of X holds only NaN: nothing can be learned about it. Leave such "
            f"neurons out ({len(unseen)} in all)."
        )
    return missing


def _check_values(chunk: np.ndarray, name: str, of_counts: bool) -> None:
    if chunk.dtype in (np.bool_, np.uint8, np.uint16):
        return
    smallest = np.fmin.reduce(chunk, axis=None)
    if of_counts and smallest < 0:
        raise ValueError(
            f"Negative values in data passed to {name}: X holds {smallest}, but spike counts are "
            ">= 0. Pass counts, not z-scored or baseline-subtracted activity; or set "
            'likelihood="gaussian" for signals that are not counts.'
        )
    largest = float(np.fmax.reduce(chunk, axis=None))
    if np.isinf([smallest, largest]).any():
        raise ValueError(
            f"Input X contains infinity. {name} takes finite values, and NaN for 'not observed'."
        )
    if of_counts and largest > LARGEST_COUNT:
        raise ValueError(
            f"X holds {largest}, more than single precision can count ({LARGEST_COUNT}). Pass "
            "spikes per bin, and NaN for 'not observed'."
        )
    if of_counts and largest > PRECISE_COUNT:
        neuron = np.unravel_index(int(np.nanargmax(chunk)), chunk.shape)[-1]
        warnings.warn(
            f"X holds {largest:g} spikes in a bin, of neuron {neuron}: in single precision, "
            f"likelihoods of more than {PRECISE_COUNT:g} have few digits left. Use smaller bins, "
            'leave the neuron out, or set likelihood="gaussian" if these are not counts.',
            UserWarning,
            stacklevel=7,
        )


def _chunks(data: np.ndarray | list[np.ndarray]) -> Iterator[np.ndarray]:
    if isinstance(data, list):
        for trial in data:
            yield trial[np.newaxis]
        return
    n_trials = max(1, CHUNK // max(1, data.shape[1] * data.shape[2]))
    for start in range(0, len(data), n_trials):
        yield data[start : start + n_trials]


def check_latents(z: Any, n_latents: int, name: str) -> np.ndarray:
    """Convert states to a float32 array ``(..., n_latents)``, or raise an error."""
    if hasattr(z, "detach"):
        z = z.detach().cpu().numpy()
    array = check_array(
        _as_numbers(z, name),
        dtype=np.float32,
        ensure_2d=False,
        allow_nd=True,
        ensure_min_samples=0,
        input_name=name,
    )
    if array.ndim == 0 or array.shape[-1] != n_latents:
        raise ValueError(
            f"{name} must have n_latents = {n_latents} as its last axis; got shape {array.shape}."
        )
    return array


def check_count(value: Any, name: str) -> int:
    """Return ``value`` as an int, or raise ValueError if it is not a positive whole number."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an int >= 1; got {value!r}.")
    return int(value)


def check_device(device: str | torch.device) -> torch.device:
    """Find a device: ``"auto"`` is the GPU if there is one; any other must exist."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is not a device: use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from error
    n_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (chosen.index or 0) >= n_devices.get(chosen.type, 0):
        raise ValueError(
            f"device={device!r} was asked for, but this installation of torch finds no such "
            "device. Use device='auto' to take a GPU only where there is one."
        )
    return chosen


def check_seeds(random_state: Any, n_seeds: int) -> list[int]:
    """Draw several seeds, the first of which is ``check_seed(random_state)``.

    With an int, they are the seeds of that int and of the ints that follow it.
    """
    if isinstance(random_state, Integral):
        return [check_seed((int(random_state) + i) % 2**32) for i in range(n_seeds)]
    return [check_seed(random_state) for _ in range(n_seeds)]


def check_seed(random_state: Any) -> int:
    """Draw a seed from an int, a RandomState or None."""
    if random_state is None:
        # Fresh entropy, where scikit-learn would draw from NumPy's global generator.
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def if_known(inputs: Any) -> dict[str, Any]:
    """Pass known inputs as a keyword only if there are any: a pipeline may not take it."""
    return {} if inputs is None else {"inputs": inputs}

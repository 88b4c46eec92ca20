"""Checkpoints, from which a fit that was killed goes on with the same result."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .._data.trials import Trials
from .._saving.files import checksum, names_folder, read, remove_leftovers, write
from .._saving.json import decode, encode_parameters
from .._version import __version__
from .early_stopping import EarlyStopping
from .loop import Member, Record
from .optimizers import Soap
from .states import as_part, part_of

__all__ = ["Checkpoint", "FitState", "Resumable", "identify"]

#: Parameters that may differ between a fit and the one that goes on with its checkpoint.
NOT_IDENTIFYING = ("checkpoint_path", "checkpoint_every", "device", "verbose")


class Resumable(Protocol):
    """What goes on from epoch to epoch."""

    def note(self, record: Record) -> bool:
        """Take note of an epoch; true if it should be the last."""

    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""


@dataclass
class FitState:
    """State of a fit by rollouts between two epochs.

    Lists have one element for each member; ``stoppers`` is empty without early stopping.
    """

    members: list[Member]
    optimizer: Soap
    stoppers: list[EarlyStopping]
    loss_curves: list[list[float]]

    def note(self, record: Record) -> bool:
        """Add an epoch's losses to the curves; true if all members have stopped."""
        for i, loss in enumerate(record.losses):
            # A member that has stopped waits for the others.
            if not (self.stoppers and self.stoppers[i].stopped):
                self.loss_curves[i].append(loss)
        stops = [stopper.should_stop(record) for stopper in self.stoppers]
        return bool(stops) and all(stops)

    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied."""
        state = as_part("optimizer", self.optimizer.state_dict())
        for i, (member, curve) in enumerate(zip(self.members, self.loss_curves, strict=True)):
            state[f"{i}.generator"] = member.generator.get_state()
            state[f"{i}.loss_curve"] = torch.tensor(curve, dtype=torch.float64, device="cpu")
            for part, holder in self._parts(i).items():
                state |= as_part(part, holder.state_dict())
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of a fit from its ``state_dict``."""
        self.optimizer.load_state_dict(part_of("optimizer", state))
        for i, (member, curve) in enumerate(zip(self.members, self.loss_curves, strict=True)):
            member.generator.set_state(state[f"{i}.generator"])
            curve[:] = state[f"{i}.loss_curve"].tolist()
            for part, holder in self._parts(i).items():
                holder.load_state_dict(part_of(part, state))

    def _parts(self, i: int) -> dict[str, Any]:
        parts: dict[str, Any] = {
            f"{i}.model": self.members[i].model,
            f"{i}.initial_conditions": self.members[i].initial_conditions,
        }
        return parts | {f"{i}.stopper": self.stoppers[i]} if self.stoppers else parts


class Checkpoint:
    """Checkpoint file of one fit; if ``path`` is a folder, every fit has a file of its own there.

    ``identity`` distinguishes it from files of other fits, which are neither used nor replaced. The
    attribute ``seeds`` holds the seeds in the file if there is one, else those given.
    """

    def __init__(self, path: str | os.PathLike[str], identity: dict, seeds: list[int]) -> None:
        self.path = Path(path).resolve()
        if self.path.is_dir():
            self.path /= f"{identity['class']}-{checksum(identity, {})[:16]}.safetensors"
        elif names_folder(path):
            raise FileNotFoundError(f"checkpoint_path: there is no folder {path}. Make it first.")
        self.identity = identity
        self.found = self._read()
        self.seeds: list[int] = seeds if self.found is None else self.found[0]["seeds"]

    def begin(self, state: Resumable) -> int:
        """Restore ``state`` from the file; returns the number of epochs done.

        If there is no file, write one, so that a path that cannot be written fails at once, and
        other fits see that it is taken.
        """
        if self.found is None:
            self._write(state, 0)
            return 0
        # The fit that left the file was most likely killed, perhaps in the midst of a write.
        remove_leftovers(self.path, older_than=0)
        content, arrays = self.found
        self.found = None
        try:
            state.load_state_dict(
                {
                    name: _as_it_lay(arrays[name], stride)
                    for name, stride in content["strides"].items()
                }
            )
        except Exception as error:
            raise self._refusal(f"holds another state than this fit has ({error!r})") from error
        return content["n_done"]

    def write(self, state: Resumable, n_done: int, depth: int) -> None:
        """Write ``state`` after ``n_done`` epochs; a write that fails does not end the fit.

        ``depth`` is the number of calls between ``fit`` and this one, for the warning.
        """
        try:
            self._write(state, n_done)
        except OSError as error:
            warnings.warn(
                f"checkpoint_path: {self.path} could not be written ({error}). The fit goes on and "
                "tries again when the next checkpoint is due; the last one that was written stays.",
                UserWarning,
                stacklevel=depth + 4,
            )

    def _write(self, state: Resumable, n_done: int) -> None:
        # Another fit that began in the same moment may have written since.
        self._read()
        tensors = state.state_dict()
        content = {
            "checkpoint": self.identity,
            "seeds": self.seeds,
            "n_done": n_done,
            # The memory layout of a tensor changes the last bits of results.
            "strides": {name: list(tensor.stride()) for name, tensor in tensors.items()},
        }
        write(self.path, content, {name: tensor.cpu().numpy() for name, tensor in tensors.items()})

    def remove(self) -> None:
        """Delete the file once the fit is done, unless it belongs to another fit by now."""
        try:
            self._read()
            self.path.unlink(missing_ok=True)
        except ValueError:
            return
        except OSError as error:
            warnings.warn(
                f"checkpoint_path: {self.path} could not be deleted ({error}), although the fit is "
                "done. Delete it, or the next fit with this path will find it.",
                UserWarning,
                stacklevel=5,
            )
        remove_leftovers(self.path, older_than=0)

    def _read(self) -> tuple[dict, dict[str, np.ndarray]] | None:
        """Read content and arrays of the file, None without one; ValueError if not this fit's."""
        try:
            content, arrays = read(self.path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"checkpoint_path: {error} It is no checkpoint that fit could go on from. Delete "
                "it to start afresh, or choose another path."
            ) from error
        if "checkpoint" not in content:
            raise self._refusal("holds an estimator that est.save wrote, and not a checkpoint")
        difference = _difference(content["checkpoint"], self.identity)
        if difference:
            raise self._refusal(f"is the checkpoint of another fit, {difference}")
        return content, arrays

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"checkpoint_path: {self.path} {what}. To go on from it, fit with what it was "
            "begun with; to start afresh, delete it or choose another path. Fits that share a "
            "path, as those of a search do, need a folder: each then has a file of its own."
        )


def _as_it_lay(array: np.ndarray, stride: list[int]) -> Tensor:
    source = torch.from_numpy(array)
    tensor = torch.empty_strided(source.shape, stride, dtype=source.dtype, device="cpu")
    return tensor.copy_(source)


def identify(estimator: Any, trials: Trials, continued: bool) -> dict:
    """Collect all that determines the result of a fit and so identifies it, for JSON."""
    name = type(estimator).__name__
    parameters = {
        parameter: value
        for parameter, value in estimator.get_params(deep=False).items()
        if parameter not in NOT_IDENTIFYING
    }
    return {
        "sklearn_sae": __version__,
        "class": name,
        "parameters": encode_parameters(parameters, name, "fit without checkpoint_path"),
        "shape": [len(trials), trials.n_bins, trials.n_neurons],
        "spikes": trials.checksum(),
        "start": _checksum_of_model(estimator) if continued else None,
    }


def _checksum_of_model(estimator: Any) -> str:
    """Hash of all that ``warm_start`` goes on from."""
    arrays = {name: weight.numpy() for name, weight in estimator.model_.state_dict().items()}
    arrays["null_rates_"] = estimator.null_rates_
    # None with an encoder.
    table = getattr(estimator, "training_initial_conditions_", None)
    return checksum(None, arrays if table is None else arrays | {"initial conditions": table})


def _difference(found: dict, wanted: dict) -> str | None:
    """Describe how one fit differs from another; None if it does not."""
    if found["sklearn_sae"] != wanted["sklearn_sae"]:
        return f"begun by sklearn_sae {found['sklearn_sae']}; this is {wanted['sklearn_sae']}"
    if found["class"] != wanted["class"]:
        return f"of {found['class']}; this is {wanted['class']}"
    for name in sorted(found["parameters"].keys() | wanted["parameters"].keys()):
        there, here = (fit["parameters"].get(name) for fit in (found, wanted))
        if there != here:
            return f"with {name}={decode(there)!r:.60}; this has {name}={decode(here)!r:.60}"
    if found["shape"] != wanted["shape"]:
        return f"to X of shape {(*found['shape'],)}; this X has {(*wanted['shape'],)}"
    if found["spikes"] != wanted["spikes"]:
        return "to other spikes or inputs of the same shape"
    if found["start"] != wanted["start"]:
        return "that began from other weights (warm_start)"
    return None

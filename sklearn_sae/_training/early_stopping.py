"""Early stopping: end training when the held-out score no longer rises, and keep the best epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .._data.batches import Batch
from .._data.trials import Trials
from .._inference.inference import Inference
from .._inference.memory import trials_at_once
from .._inference.scoring import SCORE_FRACTION, bits_gained, hidden_entries, without_silent
from .._model.autoencoder import SequentialAutoencoder
from .loop import Record

__all__ = ["EarlyStopping", "ValidationScore"]


class ValidationScore:
    """Held-out score of validation trials during training.

    ``make_inference`` makes the inference under the current model. Each inference starts from the
    latent variables of the one before.
    """

    def __init__(
        self, make_inference: Callable[[], Inference], trials: Trials, null_rates: Tensor
    ) -> None:
        self.make_inference, self.trials, self.null_rates = make_inference, trials, null_rates
        self.variables: Tensor | None = None
        self._only: tuple[Batch, Tensor] | None = None

    @torch.no_grad()
    def __call__(self) -> float:
        inference = self.make_inference()
        sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        inferred = []
        for batch, hidden in self._batches(inference.model):
            seen = batch.hide(hidden)
            start = None if self.variables is None else self.variables[:, seen.rows]
            posterior = inference.infer(seen, start)
            inferred.append(posterior.variables)
            likelihood, output = inference.model.likelihood, posterior.mean_output
            sums += bits_gained(likelihood, output, self.null_rates, batch, hidden)
        # All trials in one tensor: the size of batches depends on free memory, which changes.
        self.variables = torch.cat(inferred, dim=1)
        gain, n_units = sums
        return float(gain / n_units.clamp(min=1))

    def _batches(self, model: SequentialAutoencoder) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches of all trials, and their hidden entries; a single batch is made once."""
        if self._only is not None:
            yield self._only
            return
        size = trials_at_once(model, self.trials.n_bins)
        for trials in self.trials.chunks(size, self.null_rates.device):
            batch = without_silent(model.likelihood, self.null_rates, trials)
            found = batch, hidden_entries(batch, SCORE_FRACTION)
            if len(batch) == len(self.trials):
                self._only = found
            yield found


class EarlyStopping:
    """Early stopping by ``score()``, once the horizon is full; a copy of the best state is kept.

    Scores of shorter horizons would not compare. ``state`` maps names to tensors, which are copied,
    and written back in place by ``restore_best``.
    """

    def __init__(
        self, score: ValidationScore, state: dict[str, Tensor | None], patience: int, tol: float
    ) -> None:
        self.score = score
        self.state = {name: tensor for name, tensor in state.items() if tensor is not None}
        self.patience, self.tol = patience, tol
        self.scores: list[float] = []
        self.best_score = -float("inf")
        self.n_without_gain = 0
        self._best: dict[str, Tensor] = {}

    def should_stop(self, record: Record) -> bool:
        """Score the validation trials after an epoch; true if training should stop."""
        if self.stopped:
            return True
        if not record.complete:
            return False
        score = self.score()
        self.scores.append(score)
        self.n_without_gain = 0 if score > self.best_score + self.tol else self.n_without_gain + 1
        if score > self.best_score:
            self.best_score = score
            self._best = {name: tensor.clone() for name, tensor in self.state.items()}
        return self.stopped

    @property
    def stopped(self) -> bool:
        """Whether the score has not risen for ``patience`` epochs."""
        return self.n_without_gain >= self.patience

    def restore_best(self) -> None:
        """Restore the state of the best epoch."""
        for name, tensor in self.state.items():
            if name in self._best:
                tensor.copy_(self._best[name])

    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied, without the model."""
        numbers = {
            "scores": self.scores,
            "best_score": [self.best_score],
            "n_without_gain": [self.n_without_gain],
        }
        state = {
            name: torch.tensor(values, dtype=torch.float64, device="cpu")
            for name, values in numbers.items()
        }
        if self.score.variables is not None:
            state["variables"] = self.score.variables
        return state | {f"best.{name}": tensor for name, tensor in self._best.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""
        self.scores = state["scores"].tolist()
        self.best_score = state["best_score"].item()
        self.n_without_gain = int(state["n_without_gain"])
        if "variables" in state:
            self.score.variables = state["variables"].to(self.score.null_rates.device)
        self._best = {name: state[f"best.{name}"] for name in self.state if f"best.{name}" in state}

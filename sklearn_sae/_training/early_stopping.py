"""Stop when the held-out score of validation trials no longer rises; keep the best epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._data.batches import Batch
from .._data.trials import Trials
from .._inference.inference import Amortized, Inference, SemiAmortized
from .._inference.memory import trials_at_once
from .._inference.scoring import SCORE_FRACTION, bits_gained, hidden_entries, without_silent
from .._model.autoencoder import SequentialAutoencoder
from .loop import Record

__all__ = ["EarlyStopping", "ValidationScore"]


class ValidationScore:
    """Held-out score of validation trials, while the model is still in training.

    With a ``table`` of learned initial conditions, the trials' own are found once and then follow
    the model by two Gauss-Newton iterations a call; without one, the encoder gives them.
    """

    def __init__(
        self,
        model: SequentialAutoencoder,
        trials: Trials,
        null_rates: Tensor,
        table: Tensor | None,
    ) -> None:
        self.model, self.trials, self.null_rates, self.table = model, trials, null_rates, table
        self.causes: Tensor | None = None
        self._only: tuple[Batch, Tensor] | None = None

    @torch.no_grad()
    def __call__(self) -> float:
        sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        inferred = []
        inference = self._inference()
        for batch, hidden in self._batches():
            seen = batch.hide(hidden)
            start = None if self.causes is None else self.causes[:, seen.rows]
            posterior = inference.infer(seen, start)
            if self.table is not None:
                inferred.append(posterior.variables)
            output = posterior.mean_output
            sums += bits_gained(self.model.likelihood, output, self.null_rates, batch, hidden)
        if inferred:
            # Of all trials together: how many a batch holds depends on memory, which changes.
            self.causes = torch.cat(inferred, dim=1)
        gain, n_units = sums
        return float(gain / n_units.clamp(min=1))

    def _batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """All trials, and which entries are hidden; if one batch holds them it is made once."""
        if self._only is not None:
            yield self._only
            return
        size = trials_at_once(self.model, self.trials.n_bins)
        for trials in self.trials.chunks(size, self.null_rates.device):
            batch = without_silent(self.model.likelihood, self.null_rates, trials)
            found = batch, hidden_entries(batch, SCORE_FRACTION)
            if len(batch) == len(self.trials):
                self._only = found
            yield found

    def _inference(self) -> Inference:
        """As of the weights of today."""
        if self.table is None:
            return Amortized(self.model)
        # Inputs that are new, or of which the prior has changed, take more.
        return SemiAmortized(self.model, self.table, max_iter=5 if self.model.inferring else 2)


class EarlyStopping:
    """Watches ``score()`` once the loss sees whole trials, and keeps a copy of the best state.

    Before that the task still grows, and so does the loss. ``state`` maps names to tensors; they
    are copied, and written back in place by ``restore_best``.
    """

    def __init__(
        self, score: ValidationScore, state: dict[str, Tensor], patience: int, tol: float
    ) -> None:
        self.score, self.state = score, state
        self.patience, self.tol = patience, tol
        self.scores: list[float] = []
        self.best_score = -float("inf")
        self.n_without_gain = 0
        self._best: dict[str, Tensor] = {}

    def should_stop(self, record: Record) -> bool:
        """Score the validation trials after an epoch; true if it is time to stop, or was."""
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
        """Whether it was time to stop."""
        return self.n_without_gain >= self.patience

    def restore_best(self) -> None:
        """Write the best epoch's state back."""
        for name, tensor in self.state.items():
            if name in self._best:
                tensor.copy_(self._best[name])

    def state_dict(self) -> dict[str, Tensor]:
        """What the next epoch's decision depends on beside the model; not a copy."""
        numbers = {
            "scores": self.scores,
            "best_score": [self.best_score],
            "n_without_gain": [self.n_without_gain],
        }
        state = {
            name: torch.tensor(values, dtype=torch.float64, device="cpu")
            for name, values in numbers.items()
        }
        if self.score.causes is not None:
            state["causes"] = self.score.causes
        return state | {f"best.{name}": tensor for name, tensor in self._best.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on as the one whose ``state_dict`` this was."""
        self.scores = state["scores"].tolist()
        self.best_score = state["best_score"].item()
        self.n_without_gain = int(state["n_without_gain"])
        if "causes" in state:
            self.score.causes = state["causes"].to(self.score.null_rates.device)
        self._best = {name: state[f"best.{name}"] for name in self.state if f"best.{name}" in state}

"""Stop when the held-out score of validation trials no longer rises; keep the best epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._batches import Batch
from ._inference import best_start, refine
from ._likelihood import SCORE_FRACTION, bits_gained, hidden_entries
from ._model import SequentialAutoencoder
from ._prior import Prior
from ._training import Record
from ._uncertainty import mean_output

__all__ = ["EarlyStopping", "ValidationScore"]


class ValidationScore:
    """Held-out score of validation trials, while the model is still in training.

    With a ``table`` of learned initial conditions, the trials' own are found once and then follow
    the model by two Gauss-Newton iterations a call; without one, the encoder gives them.
    """

    def __init__(
        self, model: SequentialAutoencoder, batch: Batch, null_rates: Tensor, table: Tensor | None
    ) -> None:
        self.model, self.batch, self.null_rates, self.table = model, batch, null_rates, table
        self.hidden = hidden_entries(batch, SCORE_FRACTION)
        self.seen = batch.hide(self.hidden)
        self.causes: Tensor | None = None

    @torch.no_grad()
    def __call__(self) -> float:
        if self.table is not None:
            output = self._follow(self.table)
        else:
            assert self.model.encoder is not None
            output = self._output(self.model.encoder(self.seen))
        gain, n_units = bits_gained(
            self.model.likelihood, output, self.null_rates, self.batch, self.hidden
        )
        return float(gain / n_units.clamp(min=1))

    def _follow(self, table: Tensor) -> Tensor:
        prior = Prior.from_samples(table, self.model.inputs)
        if self.causes is None:
            self.causes = best_start(self.model, prior, self.seen, table.T)
        # Inputs that are new, or of which the prior has changed, take more.
        max_iter = 5 if self.model.inferring else 2
        self.causes = refine(self.model, prior, self.seen, self.causes, max_iter=max_iter)
        if self.model.inferring:
            return mean_output(self.model, prior, self.seen, self.causes)
        return self._output(self.causes)

    def _output(self, causes: Tensor) -> Tensor:
        return self.model.output(causes, len(self.batch.counts), self.batch.inputs)


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
        if self.n_without_gain >= self.patience:
            return True
        if not record.complete:
            return False
        score = self.score()
        self.scores.append(score)
        self.n_without_gain = 0 if score > self.best_score + self.tol else self.n_without_gain + 1
        if score > self.best_score:
            self.best_score = score
            self._best = {name: tensor.clone() for name, tensor in self.state.items()}
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
            self.score.causes = state["causes"].to(self.score.batch.counts.device)
        self._best = {name: state[f"best.{name}"] for name in self.state if f"best.{name}" in state}

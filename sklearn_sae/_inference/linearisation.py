"""Linearisation of a model around latent variables of trials, as arrays for the smoother."""

from __future__ import annotations

from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .data_term import score_and_information
from .prior import Prior
from .smoother import Linearisation

__all__ = ["linearise"]


def linearise(
    model: SequentialAutoencoder,
    prior: Prior,
    batch: Batch,
    variables: Tensor,
    latents: Tensor,
    output: Tensor,
) -> Linearisation:
    """Expand the log-posterior around ``variables`` ``(n_variables, n_trials)``.

    The caller has computed their ``latents`` ``(n_bins, n_latents, n_trials)`` and ``output``
    ``(n_bins, n_neurons, n_trials)``.
    """
    inferred = model.inferred_inputs(variables, len(latents))
    innovations = innovation_std = None
    n_states = latents.shape[1]
    if inferred is not None:
        assert model.inputs is not None
        n_states += inferred.shape[1]
        innovations = model.inputs.innovations(inferred).permute(0, 2, 1)
        innovation_std = model.inputs.innovation_std
    score, information = model.readout.pullback(
        latents, *score_and_information(model.likelihood, output, batch)
    )
    prior_gradient, prior_precision = prior.of_first_state(variables[:n_states])
    return Linearisation(
        _transitions(model, latents, n_states),
        score,
        information,
        prior_gradient,
        prior_precision,
        innovations,
        innovation_std,
    )


def _transitions(model: SequentialAutoencoder, latents: Tensor, n_states: int) -> list[Tensor]:
    """Transition matrices A_t ``(n_trials, n_states, n_states)`` of all bins but the last."""
    n_bins, n_latents, n_trials = latents.shape
    columns = latents[:-1].permute(1, 0, 2).flatten(1)
    jacobians = model.dynamics.step_jacobian(columns).unflatten(2, (n_bins - 1, n_trials))
    # Jacobians may overflow after a trial's end, where there are no spikes.
    jacobians = jacobians.permute(2, 3, 0, 1).contiguous().nan_to_num_(0.0, 0.0, 0.0)
    if n_states == n_latents:
        return list(jacobians)
    assert model.inputs is not None
    transitions = latents.new_zeros(n_bins - 1, n_trials, n_states, n_states)
    transitions[:, :, :n_latents, :n_latents] = jacobians
    transitions[:, :, :n_latents, n_latents:] = model.inputs.matrix()
    transitions[:, :, n_latents:, n_latents:] = model.inputs.correlation.diag()
    return list(transitions)

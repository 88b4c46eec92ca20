"""The two public estimators: parameters, documentation, and which dynamics they build."""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from ._base import BaseSAE
from ._inference.inference import INFERENCES
from ._model.activations import ACTIVATIONS
from ._model.autoencoder import SequentialAutoencoder
from ._model.dynamics import Dynamics, Flow, Map
from ._model.likelihoods import LIKELIHOODS
from ._model.solvers import MULTI_STEP_SOLVERS, SOLVERS
from ._model.state_maps import STATE_MAPS, StateMap
from ._saving.estimators import register
from ._training.optimizers import OPTIMIZERS
from ._training.schedule import LEARNING_RATES

__all__ = ["NODESAE", "RNNSAE"]

COUNT = Interval(Integral, 1, None, closed="left")
SHARE = Interval(Real, 0, 1, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")

COMMON_CONSTRAINTS: dict = {
    "n_latents": [COUNT],
    "hidden_sizes": ["array-like"],
    "activation": [StrOptions(set(ACTIVATIONS))],
    "likelihood": [StrOptions(set(LIKELIHOODS))],
    "n_inferred_inputs": [Interval(Integral, 0, None, closed="left")],
    "encoder_size": [COUNT],
    "inference": [StrOptions(set(INFERENCES))],
    "max_refine_iter": [Interval(Integral, 0, None, closed="left")],
    "dropout": [SHARE],
    "initial_condition_dropout": [SHARE],
    "coordinated_dropout": [SHARE],
    "optimizer": [StrOptions(set(OPTIMIZERS))],
    "learning_rate": [POSITIVE, StrOptions({"auto"})],
    "learning_rate_schedule": [StrOptions(set(LEARNING_RATES))],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "clip_norm": [POSITIVE, None],
    "batch_size": [COUNT, StrOptions({"auto"})],
    "max_epochs": [COUNT, StrOptions({"auto"})],
    "n_init": [COUNT],
    "horizon_start": [COUNT],
    "horizon_step": [COUNT],
    "horizon_growth": [Interval(Real, 0, 1, closed="both")],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [COUNT],
    "tol": [Interval(Real, 0, None, closed="left")],
    "warm_start": ["boolean"],
    "checkpoint_path": [str, os.PathLike, None],
    "checkpoint_every": [COUNT],
    "device": [str, torch.device],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}


def build_state_map(estimator: BaseSAE, name: str, generator: torch.Generator | None) -> StateMap:
    """Make the vector field or cell of this name with the estimator's parameters."""
    return STATE_MAPS[name].from_parameters(
        estimator.n_latents,
        estimator.hidden_sizes,
        estimator.activation,
        generator,
        linear=estimator._on_paths(),
    )


@register
class NODESAE(BaseSAE):
    """Sequential autoencoder with neural-ODE dynamics.

    A trial's spikes are explained by latents that follow a learned differential equation dz/dt =
    f(z) from an initial condition on, but for process noise if the data ask for it, and a linear
    readout to the log-rates of Poisson neurons [1]_ (or to another ``likelihood``).

    Parameters
    ----------
    n_latents : int, default=3
        Latent dimension: number of state variables of the dynamics.

    hidden_sizes : tuple of int, default=(64,)
        Units of the hidden layers of the vector field f, a linear map and a multilayer perceptron.
        Without any, (), dynamics are linear.

    activation : {"tanh", "relu", "softplus"}, default="tanh"
        Activation of the hidden layers.

    time_scale : float, default=10.0
        Bins over which latents are expected to change by about their own size: f is the
        perceptron's output divided by it. Raise it if bins are much shorter than the dynamics.

    solver : str, default="midpoint"
        Runge-Kutta method: with fixed steps "euler", "midpoint", "heun2", "heun3", "rk4"; adaptive
        "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun". All begin anew in every bin, and
        an adaptive one chooses the steps of every trial by that trial's error alone, so that a
        state always has the same successor.

    step_size : float, default=1.0
        Longest step of a fixed-step solver, in bins, at most 1. A bin is divided into equal steps.

    rtol, atol : float, default=1e-3
        Relative and absolute tolerance of an adaptive solver, for the error of a step.

    adjoint : bool, default=False
        Keep only the latents for the backward pass, and compute each bin's steps anew there: memory
        does not grow with the number of steps in a bin, at the cost of time.

    likelihood : {"poisson", "negative_binomial", "gaussian"}, default="poisson"
        How data scatter around the rates m. ``"poisson"``: counts of variance m.
        ``"negative_binomial"``: counts of variance m + alpha m^2, with a dispersion alpha for each
        neuron. ``"gaussian"``: values of any sign, such as calcium signals or field potentials,
        with a variance for each neuron; the readout then gives rates, the expected values, instead
        of log-rates. Dispersions and variances are learned from the residuals of every epoch.

    n_inferred_inputs : int, default=0
        Number of inputs to the dynamics that are inferred from the spikes of each trial, for data
        that no initial condition explains, such as a perturbation within the trial. The prior of
        each is an autoregressive process; its variance is learned by maximising the evidence
        (automatic relevance determination) and shrinks to zero for unneeded inputs. Only if
        ``inference="semi-amortized"``.

    encoder_size : int, default=64
        Units of the encoder's bidirectional GRU, per direction; only if ``inference="amortized"``.

    inference : {"semi-amortized", "amortized"}, default="semi-amortized"
        How a trial's latents are inferred. ``"semi-amortized"``: by Newton's method on the
        log-posterior of the whole path, in which latents leave the dynamics by process noise;
        with inferred inputs, by damped Gauss-Newton on that of the initial condition and the
        inputs. ``"amortized"``: an encoder gives the initial condition in one pass and is trained
        end to end through the dynamics, as in the paper; faster for very many new trials, and less
        accurate.

    max_refine_iter : int, default=10
        Most Newton iterations of the semi-amortized inference, once process noise has fallen to
        what was learned; 0 leaves the start as it is.

    dropout : float, default=0.0
        Dropout on the encoder's last state while training; only if ``inference="amortized"``.

    initial_condition_dropout : float, default=0.0
        Dropout on the initial condition while training; only with an encoder or inferred inputs.
        The paper uses 0.05 on both; with few latents it hurts, because a trial that loses a
        coordinate teaches nothing.

    coordinated_dropout : float, default=0.2
        Share of the entries hidden from the encoder at random while it is trained, so that it copes
        with unobserved ones; only if ``inference="amortized"``.

    optimizer : {"soap", "adam"}, default="soap"
        ``"soap"`` is Adam in the eigenbases of each weight's gradient statistics [2]_; it needs
        several times fewer steps.

    learning_rate : float or "auto", default="auto"
        Peak learning rate of the weights. "auto" is 0.03, and 0.05 with an encoder or inferred
        inputs.

    learning_rate_schedule : {"exponential", "onecycle", "constant"}, default="exponential"
        ``"exponential"`` rises for 10 % of the epochs and then falls to 1 % of its peak, fast at
        first. ``"onecycle"`` rises for 30 % and falls to nearly zero only towards the end: less
        accurate where spikes are many, but large steps keep the model from learning few spikes by
        heart (for 320 trials of a motor cortex, ``learning_rate=0.1`` with it did best).

    weight_decay : float, default=0.0
        With "soap", decoupled weight decay per unit of learning rate; with "adam", the gradient of
        an L2 penalty, as in torch's Adam and in the paper.

    clip_norm : float or None, default=1.0
        Largest norm of the gradient over all weights; None does not clip.

    batch_size : int or "auto", default="auto"
        Trials per step. "auto" is an eighth to a quarter of the trials, fewer where memory is
        short; with an encoder or inferred inputs a quarter, at most 320.

    max_epochs : int or "auto", default="auto"
        Passes over the training trials. "auto" is 60, and 225 with an encoder or inferred inputs.
        After them, as many as were best follow on all trials.

    n_init : int, default=1
        Models to fit, each from its own seed; the one that predicts held-out neurons best is kept.
        One that diverges leaves the others alone. A fit that goes on from another (``warm_start``)
        has one model only. With an encoder or inferred inputs they are trained together, which
        with a fixed-step solver and few trials takes much less than ``n_init`` times as long.

    horizon_start : int, default=10
        Bins of each trial that the loss sees at first, with an encoder or inferred inputs: long
        rollouts of untrained dynamics have useless gradients, so the horizon grows. Training on
        paths rolls nothing out, and does not use this or the next two.

    horizon_step : int, default=1
        Bins by which the horizon grows at a time.

    horizon_growth : float, default=0.5
        Share of the epochs after which the loss sees whole trials; 0 sees them from the start.

    early_stopping : bool, default=False
        Stop when the score of held-out trials no longer rises. Without it all epochs are run, and
        the best kept. With an encoder or inferred inputs trials are held out for this only, scored
        after each epoch with a full horizon, and the best epoch is kept.

    validation_fraction : float, default=0.2
        Share of the trials held out, at most 128. They tell the process noise, which epoch was
        best, and whether dynamics are linear. With an encoder or inferred inputs: held out if
        ``early_stopping``, or if ``n_init`` is 2 or more.

    n_iter_no_change : int, default=20
        Epochs without a higher score before stopping, if ``early_stopping``.

    tol : float, default=1e-4
        Gain in ``score`` that counts, if ``early_stopping`` with an encoder or inferred inputs.

    warm_start : bool, default=False
        Go on from the previous fit's weights instead of starting afresh, with the data's own null
        model. A change of what the weights mean is an error: ``n_latents``, ``hidden_sizes``,
        ``activation``, ``time_scale``, ``likelihood``, ``n_inferred_inputs``, ``inference`` or
        ``encoder_size``. The solver and its accuracy, and how training is done, may change.

    checkpoint_path : str, path-like or None, default=None
        File that ``fit`` writes its state to as it goes, and deletes when it is done. If it is
        there at the start, because a fit was killed or interrupted, ``fit`` goes on from it: on a
        CPU, with the same number of threads, to the same result to the last bit. Spikes and
        parameters, but for this one, ``checkpoint_every``, ``device`` and ``verbose``, must be
        those that it was begun with; the file of another fit raises ValueError, and is left alone.
        If the path is that of a folder, every fit has a file of its own there: a search needs that,
        because its fits share one path. A checkpoint that cannot be written, as on a full disk, is
        an error at the start; later it is a warning, and the fit goes on. None writes nothing.

    checkpoint_every : int, default=10
        Epochs from one write to the next, if there is a ``checkpoint_path``. Epochs after the last
        write are repeated.

    device : str or torch.device, default="auto"
        Where to compute: ``"auto"`` (a CUDA GPU if there is one, else the CPU), ``"cpu"``,
        ``"cuda"``, ``"cuda:1"``, ``"mps"``. The fitted model always ends on the CPU, and loads
        anywhere.

    random_state : int, RandomState instance or None, default=None
        Decides weights, batches and dropout. With an int, the models of ``n_init`` are those of
        ``random_state``, ``random_state + 1`` and so on: ints that are less than ``n_init`` apart
        share models. On a CPU, two fits with one int and the same number of threads agree to the
        last bit.

    verbose : bool, default=False
        Show a progress bar with loss and horizon.

    Attributes
    ----------
    model_ : torch.nn.Module
        The fitted network, on the CPU.
    null_rates_ : ndarray of shape (n_neurons,)
        Mean count per bin of every neuron in ``fit``: the null model of ``score``.
    dispersion_ : ndarray of shape (n_neurons,)
        Private dispersion of every neuron: variance of its counts in windows of about 20 bins, over
        what the likelihood gives, around rates that the other neurons tell. At 1 it does what it
        shares with others, and spikes; at 5 most of its variance is its own (bursts, drifts over
        trials). Its log-likelihood is divided by it in ``fit`` and inference, so that what is
        private does not move the latents. Always 1 with ``inference="amortized"``.
    overdispersion_, null_overdispersion_ : ndarray of shape (n_neurons,)
        Dispersion alpha of every neuron within a bin (variance m + alpha m^2 at a rate of m), and
        that of the null model; only if ``likelihood="negative_binomial"``. Near 0 a neuron is
        Poisson.
    noise_variance_, null_variance_ : ndarray of shape (n_neurons,)
        Variance of every neuron around its rate, and around its mean in the null model; only if
        ``likelihood="gaussian"``.
    signal_mean_, signal_scale_ : ndarray of shape (n_neurons,)
        Mean and standard deviation of every neuron in ``fit``, by which the network's data are
        standardised; only if ``likelihood="gaussian"``.
    training_initial_conditions_ : ndarray of shape (n_trials, n_latents)
        Learned initial conditions of the training trials; only if ``inference="semi-amortized"``.
        Trials of more than 200 bins are cut into pieces of at most 100, with a row for each.
    process_noise_ : ndarray of shape (n_latents,)
        Standard deviation by which the latents leave the dynamics in a bin, the same for all
        latents, which are of about unit size. It maximises the evidence of held-out trials; 0.001,
        the smallest, is as good as none: dynamics are deterministic then. Only without inferred
        inputs, with ``inference="semi-amortized"``.
    initial_covariance_ : ndarray of shape (n_latents, n_latents)
        Covariance of the prior of initial conditions, whose mean is that of
        ``training_initial_conditions_``; only if there is a ``process_noise_``.
    model_variance_ : float
        Variance of log-rates due to the model's own error, estimated from at most 2000 of the
        training trials; only if ``inference="semi-amortized"``. With ``likelihood="gaussian"``, the
        variance of rates divided by each neuron's standard deviation in ``fit``.
    loss_curve_ : list of float
        Mean negative log-likelihood per observed entry, per epoch, without the log(counts!) of
        counts: that expected under the posterior, of the training trials and, after these epochs,
        of all trials. With an encoder or inferred inputs, over the bins within the horizon.
    n_iter_ : int
        Epochs run by the last ``fit``.
    init_scores_ : ndarray of shape (n_init,)
        Held-out ``score`` of every model, NaN for one that diverged; only if ``n_init`` is 2 or
        more.
    validation_scores_ : list of float
        Bits per spike by which a quarter of the neurons of held-out trials are predicted from the
        others: by the linear system at the start, and then after every sixth of the epochs. With an
        encoder or inferred inputs: held-out ``score`` after each epoch with a full horizon, if
        ``early_stopping``.
    validation_epochs_ : list of int
        Number of epochs before each of ``validation_scores_``; not with an encoder or inferred
        inputs.
    best_validation_score_ : float
        That of ``validation_scores_`` which belongs to the model that was kept.
    n_inputs_in_ : int
        Number of known inputs in ``fit``.
    input_matrix_ : ndarray of shape (n_latents, n_inputs_in_)
        Change of the latents per unit of each known input; only if ``fit`` had any.
    inferred_input_matrix_ : ndarray of shape (n_latents, n_inferred_inputs)
        Unit vectors along which the inferred inputs move the latents; only if there are any.
    inferred_input_std_, inferred_input_correlation_ : ndarray of shape (n_inferred_inputs,)
        Prior standard deviation of each inferred input, near 0 if it is not needed, and its
        correlation from bin to bin; only if there are any.
    n_features_in_ : int
        Number of neurons.

    See Also
    --------
    RNNSAE : Recurrent dynamics, which need many more latents for the same rates.

    Notes
    -----
    Time is counted in bins, and ``vector_field`` in latents per bin. In the paper [1]_ a whole
    trial takes one unit of time, as here with ``time_scale=n_bins - 1``.

    A fit starts at a linear dynamical system, in which process noise explains what the dynamics do
    not. From there the field becomes nonlinear, along the gradient of the evidence, while the noise
    falls to what held-out trials ask for. The nonlinear system is kept if it predicts hidden
    neurons of held-out trials better than the linear one by two standard errors and one percent.

    References
    ----------
    .. [1] Sedler, Versteeg & Pandarinath, "Expressive architectures enhance interpretability of
           dynamics-based neural population models", Neurons, Behavior, Data analysis, and
           Theory, 2023. doi:10.51628/001c.73987
    .. [2] Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae import NODESAE
    >>> rng = np.random.default_rng(0)
    >>> phase = rng.uniform(0, 6, (40, 1, 1)) + 0.3 * np.arange(20)[:, np.newaxis]
    >>> spikes = rng.poisson(np.exp(np.sin(phase + np.arange(8))))  # 40 trials, 20 bins, 8 neurons
    >>> est = NODESAE(n_latents=2, max_epochs=40, random_state=0).fit(spikes)
    >>> est.transform(spikes).shape
    (40, 20, 2)
    >>> est.predict(spikes).shape
    (40, 20, 8)
    >>> bool(est.score(spikes) > 0.1)
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **COMMON_CONSTRAINTS,
        "time_scale": [POSITIVE],
        "solver": [StrOptions(set(SOLVERS))],
        "step_size": [Interval(Real, 0, 1, closed="right")],
        "rtol": [POSITIVE],
        "atol": [POSITIVE],
        "adjoint": ["boolean"],
    }

    def __init__(
        self,
        n_latents=3,
        *,
        hidden_sizes=(64,),
        activation="tanh",
        time_scale=10.0,
        solver="midpoint",
        step_size=1.0,
        rtol=1e-3,
        atol=1e-3,
        adjoint=False,
        likelihood="poisson",
        n_inferred_inputs=0,
        encoder_size=64,
        inference="semi-amortized",
        max_refine_iter=10,
        dropout=0.0,
        initial_condition_dropout=0.0,
        coordinated_dropout=0.2,
        optimizer="soap",
        learning_rate="auto",
        learning_rate_schedule="exponential",
        weight_decay=0.0,
        clip_norm=1.0,
        batch_size="auto",
        max_epochs="auto",
        n_init=1,
        horizon_start=10,
        horizon_step=1,
        horizon_growth=0.5,
        early_stopping=False,
        validation_fraction=0.2,
        n_iter_no_change=20,
        tol=1e-4,
        warm_start=False,
        checkpoint_path=None,
        checkpoint_every=10,
        device="auto",
        random_state=None,
        verbose=False,
    ):
        self.n_latents = n_latents
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.time_scale = time_scale
        self.solver = solver
        self.step_size = step_size
        self.rtol = rtol
        self.atol = atol
        self.adjoint = adjoint
        self.likelihood = likelihood
        self.n_inferred_inputs = n_inferred_inputs
        self.encoder_size = encoder_size
        self.inference = inference
        self.max_refine_iter = max_refine_iter
        self.dropout = dropout
        self.initial_condition_dropout = initial_condition_dropout
        self.coordinated_dropout = coordinated_dropout
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.n_init = n_init
        self.horizon_start = horizon_start
        self.horizon_step = horizon_step
        self.horizon_growth = horizon_growth
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _validate_params(self):
        if isinstance(self.solver, str) and self.solver in MULTI_STEP_SOLVERS:
            raise ValueError(
                f"solver={self.solver!r} is a multi-step method, which needs the states before the "
                "one it starts from: it gives no map from one bin to the next. Choose one of "
                f"{', '.join(SOLVERS)}."
            )
        super()._validate_params()

    def _build_dynamics(self, generator: torch.Generator | None) -> Dynamics:
        field = build_state_map(self, "mlp", generator)
        solver = SOLVERS[self.solver].from_parameters(
            self.solver, self.step_size, self.rtol, self.atol, self.adjoint
        )
        return Flow(field, solver, self.time_scale)

    def vector_field(self, z):
        """Rate of change dz/dt of the latents, with time in bins.

        Parameters
        ----------
        z : array of shape (..., n_latents)
            States.

        Returns
        -------
        dzdt : float32 array of shape (..., n_latents)
            Latents per bin.
        """
        return self._on_states(z, _vector_field)


def _vector_field(model: SequentialAutoencoder, z: Tensor) -> Tensor:
    assert isinstance(model.dynamics, Flow)
    return model.dynamics.vector_field(z).T


@register
class RNNSAE(BaseSAE):
    """Sequential autoencoder with recurrent dynamics.

    As ``NODESAE``, but the latents of the next bin are a learned map of those of this one: a
    recurrent cell [1]_.

    Parameters
    ----------
    n_latents : int, default=3
        Latent dimension: number of state variables of the dynamics.

    cell : {"gru", "rnn", "mlp"}, default="gru"
        The map: a gated recurrent unit, a tanh layer, or a multilayer perceptron.

    residual : float or None, default=None
        None: the cell gives the next latents. A number: it gives their change, z + residual *
        cell(z).

    hidden_sizes : tuple of int, default=(64,)
        Units of the hidden layers, if ``cell="mlp"``; without any, (), dynamics are linear.

    activation : {"tanh", "relu", "softplus"}, default="tanh"
        Activation of the hidden layers, if ``cell="mlp"``.

    likelihood : {"poisson", "negative_binomial", "gaussian"}, default="poisson"
        How data scatter around the rates m. ``"poisson"``: counts of variance m.
        ``"negative_binomial"``: counts of variance m + alpha m^2, with a dispersion alpha for each
        neuron. ``"gaussian"``: values of any sign, such as calcium signals or field potentials,
        with a variance for each neuron; the readout then gives rates, the expected values, instead
        of log-rates. Dispersions and variances are learned from the residuals of every epoch.

    n_inferred_inputs : int, default=0
        Number of inputs to the dynamics that are inferred from the spikes of each trial, for data
        that no initial condition explains, such as a perturbation within the trial. The prior of
        each is an autoregressive process; its variance is learned by maximising the evidence
        (automatic relevance determination) and shrinks to zero for unneeded inputs. Only if
        ``inference="semi-amortized"``.

    encoder_size : int, default=64
        Units of the encoder's bidirectional GRU, per direction; only if ``inference="amortized"``.

    inference : {"semi-amortized", "amortized"}, default="semi-amortized"
        How a trial's latents are inferred. ``"semi-amortized"``: by Newton's method on the
        log-posterior of the whole path, in which latents leave the dynamics by process noise;
        with inferred inputs, by damped Gauss-Newton on that of the initial condition and the
        inputs. ``"amortized"``: an encoder gives the initial condition in one pass and is trained
        end to end through the dynamics, as in the paper; faster for very many new trials, and less
        accurate.

    max_refine_iter : int, default=10
        Most Newton iterations of the semi-amortized inference, once process noise has fallen to
        what was learned; 0 leaves the start as it is.

    dropout : float, default=0.0
        Dropout on the encoder's last state while training; only if ``inference="amortized"``.

    initial_condition_dropout : float, default=0.0
        Dropout on the initial condition while training; only with an encoder or inferred inputs.
        The paper uses 0.05 on both; with few latents it hurts, because a trial that loses a
        coordinate teaches nothing.

    coordinated_dropout : float, default=0.2
        Share of the entries hidden from the encoder at random while it is trained, so that it copes
        with unobserved ones; only if ``inference="amortized"``.

    optimizer : {"soap", "adam"}, default="soap"
        ``"soap"`` is Adam in the eigenbases of each weight's gradient statistics [2]_; it needs
        several times fewer steps.

    learning_rate : float or "auto", default="auto"
        Peak learning rate of the weights. "auto" is 0.03, and 0.05 with an encoder or inferred
        inputs.

    learning_rate_schedule : {"exponential", "onecycle", "constant"}, default="exponential"
        ``"exponential"`` rises for 10 % of the epochs and then falls to 1 % of its peak, fast at
        first. ``"onecycle"`` rises for 30 % and falls to nearly zero only towards the end: less
        accurate where spikes are many, but large steps keep the model from learning few spikes by
        heart (for 320 trials of a motor cortex, ``learning_rate=0.1`` with it did best).

    weight_decay : float, default=0.0
        With "soap", decoupled weight decay per unit of learning rate; with "adam", the gradient of
        an L2 penalty, as in torch's Adam and in the paper.

    clip_norm : float or None, default=1.0
        Largest norm of the gradient over all weights; None does not clip.

    batch_size : int or "auto", default="auto"
        Trials per step. "auto" is an eighth to a quarter of the trials, fewer where memory is
        short; with an encoder or inferred inputs a quarter, at most 320.

    max_epochs : int or "auto", default="auto"
        Passes over the training trials. "auto" is 60, and 225 with an encoder or inferred inputs.
        After them, as many as were best follow on all trials.

    n_init : int, default=1
        Models to fit, each from its own seed; the one that predicts held-out neurons best is kept.
        One that diverges leaves the others alone. A fit that goes on from another (``warm_start``)
        has one model only. With an encoder or inferred inputs they are trained together: with
        ``cell="mlp"`` and a ``residual``, and few trials, that takes much less than ``n_init``
        times as long.

    horizon_start : int, default=10
        Bins of each trial that the loss sees at first, with an encoder or inferred inputs: long
        rollouts of untrained dynamics have useless gradients, so the horizon grows. Training on
        paths rolls nothing out, and does not use this or the next two.

    horizon_step : int, default=1
        Bins by which the horizon grows at a time.

    horizon_growth : float, default=0.5
        Share of the epochs after which the loss sees whole trials; 0 sees them from the start.

    early_stopping : bool, default=False
        Stop when the score of held-out trials no longer rises. Without it all epochs are run, and
        the best kept. With an encoder or inferred inputs trials are held out for this only, scored
        after each epoch with a full horizon, and the best epoch is kept.

    validation_fraction : float, default=0.2
        Share of the trials held out, at most 128. They tell the process noise, which epoch was
        best, and whether dynamics are linear. With an encoder or inferred inputs: held out if
        ``early_stopping``, or if ``n_init`` is 2 or more.

    n_iter_no_change : int, default=20
        Epochs without a higher score before stopping, if ``early_stopping``.

    tol : float, default=1e-4
        Gain in ``score`` that counts, if ``early_stopping`` with an encoder or inferred inputs.

    warm_start : bool, default=False
        Go on from the previous fit's weights instead of starting afresh, with the data's own null
        model. A change of what the weights mean is an error: ``n_latents``, ``cell``,
        ``residual``, ``hidden_sizes``, ``activation``, ``likelihood``, ``n_inferred_inputs``,
        ``inference`` or ``encoder_size``. How training is done may change.

    checkpoint_path : str, path-like or None, default=None
        File that ``fit`` writes its state to as it goes, and deletes when it is done. If it is
        there at the start, because a fit was killed or interrupted, ``fit`` goes on from it: on a
        CPU, with the same number of threads, to the same result to the last bit. Spikes and
        parameters, but for this one, ``checkpoint_every``, ``device`` and ``verbose``, must be
        those that it was begun with; the file of another fit raises ValueError, and is left alone.
        If the path is that of a folder, every fit has a file of its own there: a search needs that,
        because its fits share one path. A checkpoint that cannot be written, as on a full disk, is
        an error at the start; later it is a warning, and the fit goes on. None writes nothing.

    checkpoint_every : int, default=10
        Epochs from one write to the next, if there is a ``checkpoint_path``. Epochs after the last
        write are repeated.

    device : str or torch.device, default="auto"
        Where to compute: ``"auto"`` (a CUDA GPU if there is one, else the CPU), ``"cpu"``,
        ``"cuda"``, ``"cuda:1"``, ``"mps"``. The fitted model always ends on the CPU, and loads
        anywhere.

    random_state : int, RandomState instance or None, default=None
        Decides weights, batches and dropout. With an int, the models of ``n_init`` are those of
        ``random_state``, ``random_state + 1`` and so on: ints that are less than ``n_init`` apart
        share models. On a CPU, two fits with one int and the same number of threads agree to the
        last bit.

    verbose : bool, default=False
        Show a progress bar with loss and horizon.

    Attributes
    ----------
    model_ : torch.nn.Module
        The fitted network, on the CPU.
    null_rates_ : ndarray of shape (n_neurons,)
        Mean count per bin of every neuron in ``fit``: the null model of ``score``.
    dispersion_ : ndarray of shape (n_neurons,)
        Private dispersion of every neuron: variance of its counts in windows of about 20 bins, over
        what the likelihood gives, around rates that the other neurons tell. At 1 it does what it
        shares with others, and spikes; at 5 most of its variance is its own (bursts, drifts over
        trials). Its log-likelihood is divided by it in ``fit`` and inference, so that what is
        private does not move the latents. Always 1 with ``inference="amortized"``.
    overdispersion_, null_overdispersion_ : ndarray of shape (n_neurons,)
        Dispersion alpha of every neuron within a bin (variance m + alpha m^2 at a rate of m), and
        that of the null model; only if ``likelihood="negative_binomial"``. Near 0 a neuron is
        Poisson.
    noise_variance_, null_variance_ : ndarray of shape (n_neurons,)
        Variance of every neuron around its rate, and around its mean in the null model; only if
        ``likelihood="gaussian"``.
    signal_mean_, signal_scale_ : ndarray of shape (n_neurons,)
        Mean and standard deviation of every neuron in ``fit``, by which the network's data are
        standardised; only if ``likelihood="gaussian"``.
    training_initial_conditions_ : ndarray of shape (n_trials, n_latents)
        Learned initial conditions of the training trials; only if ``inference="semi-amortized"``.
        Trials of more than 200 bins are cut into pieces of at most 100, with a row for each.
    process_noise_ : ndarray of shape (n_latents,)
        Standard deviation by which the latents leave the dynamics in a bin, the same for all
        latents, which are of about unit size. It maximises the evidence of held-out trials; 0.001,
        the smallest, is as good as none: dynamics are deterministic then. Only without inferred
        inputs, with ``inference="semi-amortized"``.
    initial_covariance_ : ndarray of shape (n_latents, n_latents)
        Covariance of the prior of initial conditions, whose mean is that of
        ``training_initial_conditions_``; only if there is a ``process_noise_``.
    model_variance_ : float
        Variance of log-rates due to the model's own error, estimated from at most 2000 of the
        training trials; only if ``inference="semi-amortized"``. With ``likelihood="gaussian"``, the
        variance of rates divided by each neuron's standard deviation in ``fit``.
    loss_curve_ : list of float
        Mean negative log-likelihood per observed entry, per epoch, without the log(counts!) of
        counts: that expected under the posterior, of the training trials and, after these epochs,
        of all trials. With an encoder or inferred inputs, over the bins within the horizon.
    n_iter_ : int
        Epochs run by the last ``fit``.
    init_scores_ : ndarray of shape (n_init,)
        Held-out ``score`` of every model, NaN for one that diverged; only if ``n_init`` is 2 or
        more.
    validation_scores_ : list of float
        Bits per spike by which a quarter of the neurons of held-out trials are predicted from the
        others: by the linear system at the start, and then after every sixth of the epochs. With an
        encoder or inferred inputs: held-out ``score`` after each epoch with a full horizon, if
        ``early_stopping``.
    validation_epochs_ : list of int
        Number of epochs before each of ``validation_scores_``; not with an encoder or inferred
        inputs.
    best_validation_score_ : float
        That of ``validation_scores_`` which belongs to the model that was kept.
    n_inputs_in_ : int
        Number of known inputs in ``fit``.
    input_matrix_ : ndarray of shape (n_latents, n_inputs_in_)
        Change of the latents per unit of each known input; only if ``fit`` had any.
    inferred_input_matrix_ : ndarray of shape (n_latents, n_inferred_inputs)
        Unit vectors along which the inferred inputs move the latents; only if there are any.
    inferred_input_std_, inferred_input_correlation_ : ndarray of shape (n_inferred_inputs,)
        Prior standard deviation of each inferred input, near 0 if it is not needed, and its
        correlation from bin to bin; only if there are any.
    n_features_in_ : int
        Number of neurons.

    See Also
    --------
    NODESAE : Neural-ODE dynamics, which get rates and latents right at the true latent dimension.

    Notes
    -----
    The paper's discrete NODE is ``cell="mlp", residual=0.1``. Its ablations: ``cell="mlp"`` (no
    passthrough), ``cell="rnn", residual=0.1`` (no MLP), ``horizon_growth=0`` (no growing horizon),
    ``cell="rnn", horizon_growth=0`` (vanilla RNN); all with ``inference="amortized",
    optimizer="adam", learning_rate_schedule="constant"``.

    References
    ----------
    .. [1] Sedler, Versteeg & Pandarinath, "Expressive architectures enhance interpretability of
           dynamics-based neural population models", Neurons, Behavior, Data analysis, and
           Theory, 2023. doi:10.51628/001c.73987
    .. [2] Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae import RNNSAE
    >>> rng = np.random.default_rng(0)
    >>> phase = rng.uniform(0, 6, (40, 1, 1)) + 0.3 * np.arange(20)[:, np.newaxis]
    >>> spikes = rng.poisson(np.exp(np.sin(phase + np.arange(8))))  # 40 trials, 20 bins, 8 neurons
    >>> est = RNNSAE(n_latents=4, max_epochs=20, random_state=0).fit(spikes)
    >>> est.simulate(est.initial_conditions(spikes), n_bins=100).shape
    (40, 100, 4)
    """

    _parameter_constraints: ClassVar[dict] = {
        **COMMON_CONSTRAINTS,
        "cell": [StrOptions(set(STATE_MAPS))],
        "residual": [POSITIVE, None],
    }

    def __init__(
        self,
        n_latents=3,
        *,
        cell="gru",
        residual=None,
        hidden_sizes=(64,),
        activation="tanh",
        likelihood="poisson",
        n_inferred_inputs=0,
        encoder_size=64,
        inference="semi-amortized",
        max_refine_iter=10,
        dropout=0.0,
        initial_condition_dropout=0.0,
        coordinated_dropout=0.2,
        optimizer="soap",
        learning_rate="auto",
        learning_rate_schedule="exponential",
        weight_decay=0.0,
        clip_norm=1.0,
        batch_size="auto",
        max_epochs="auto",
        n_init=1,
        horizon_start=10,
        horizon_step=1,
        horizon_growth=0.5,
        early_stopping=False,
        validation_fraction=0.2,
        n_iter_no_change=20,
        tol=1e-4,
        warm_start=False,
        checkpoint_path=None,
        checkpoint_every=10,
        device="auto",
        random_state=None,
        verbose=False,
    ):
        self.n_latents = n_latents
        self.cell = cell
        self.residual = residual
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.likelihood = likelihood
        self.n_inferred_inputs = n_inferred_inputs
        self.encoder_size = encoder_size
        self.inference = inference
        self.max_refine_iter = max_refine_iter
        self.dropout = dropout
        self.initial_condition_dropout = initial_condition_dropout
        self.coordinated_dropout = coordinated_dropout
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.n_init = n_init
        self.horizon_start = horizon_start
        self.horizon_step = horizon_step
        self.horizon_growth = horizon_growth
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _build_dynamics(self, generator: torch.Generator | None) -> Dynamics:
        return Map(build_state_map(self, self.cell, generator), self.residual)

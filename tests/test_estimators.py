"""Every parameter does what its description says."""

import copy
import itertools

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_sae import NODESAE, RNNSAE, _rollout_fits
from sklearn_sae._inference.prior import Prior
from sklearn_sae._model.solvers import SOLVERS


@pytest.fixture
def records(monkeypatch):
    """What training reports after each epoch."""
    records = []

    def spy(*args, train=_rollout_fits.train, **kwargs):
        for record in train(*args, **kwargs):
            records.append(record)
            yield record

    monkeypatch.setattr(_rollout_fits, "train", spy)
    return records


def field_weights(estimator):
    return [weight.numpy() for weight in estimator.model_.dynamics.mlp.weights]


def learned(estimator):
    """What a fit can change: the course of the loss, and the initial conditions it infers."""
    return [*estimator.loss_curve_, *estimator.model_.readout.weight.numpy().ravel()]


# ------------------------------------------------------------------ each changes the fit

AMORTIZED = {"inference": "amortized"}
STOPPING = {"early_stopping": True, "horizon_growth": 0}
MLP_CELL = {"cell": "mlp"}
COMMON_EFFECTS = {
    "n_latents": ({}, 3),
    "likelihood": ({}, "negative_binomial"),
    "inference": ({}, "amortized"),
    "encoder_size": (AMORTIZED, 9),
    "dropout": (AMORTIZED, 0.5),
    "initial_condition_dropout": (AMORTIZED, 0.5),
    "coordinated_dropout": (AMORTIZED, 0.5),
    "optimizer": ({}, "adam"),
    "learning_rate": ({}, 0.02),
    "learning_rate_schedule": ({}, "constant"),
    "n_inferred_inputs": ({}, 2),
    "weight_decay": ({}, 1.0),
    "clip_norm": ({}, 0.01),
    "batch_size": ({}, 24),
    "max_epochs": ({}, 3),
    "n_init": (AMORTIZED, 2),
    "horizon_start": (AMORTIZED, 4),
    "horizon_step": (AMORTIZED | {"horizon_start": 4}, 6),
    "horizon_growth": (AMORTIZED | {"horizon_start": 4}, 0),
    "early_stopping": (AMORTIZED, True),
    "validation_fraction": (STOPPING, 0.5),
    "n_iter_no_change": ({**AMORTIZED, **STOPPING, "tol": 100.0}, 1),
    "tol": ({**AMORTIZED, **STOPPING, "n_iter_no_change": 1, "validation_fraction": 0.25}, 100.0),
    "random_state": ({}, 1),
}
NODE_EFFECTS = COMMON_EFFECTS | {
    "hidden_sizes": ({}, (16, 16)),
    "activation": ({}, "softplus"),
    "time_scale": ({}, 20.0),
    "solver": ({}, "euler"),
    "step_size": ({}, 0.5),
    "rtol": ({"solver": "adaptive_heun", "atol": 1e-5}, 1e-5),
    "atol": ({"solver": "adaptive_heun", "rtol": 1e-5}, 1e-5),
    "adjoint": (AMORTIZED, True),
}
RNN_EFFECTS = COMMON_EFFECTS | {
    "cell": ({}, "rnn"),
    "residual": ({}, 0.1),
    "hidden_sizes": (MLP_CELL, (16, 16)),
    "activation": (MLP_CELL, "softplus"),
}
#: These leave a fresh fit as it is, and have tests of their own.
NO_EFFECT_ON_A_FIT = {
    "max_refine_iter",
    "warm_start",
    "checkpoint_path",
    "checkpoint_every",
    "device",
    "verbose",
}


def test_no_parameter_is_forgotten():
    assert set(NODE_EFFECTS) | NO_EFFECT_ON_A_FIT == set(NODESAE().get_params())
    assert set(RNN_EFFECTS) | NO_EFFECT_ON_A_FIT == set(RNNSAE().get_params())


@pytest.mark.parametrize("name", NODE_EFFECTS)
def test_each_parameter_changes_the_fit_of_node(node, spikes, name):
    check_effect(node, spikes, name, *NODE_EFFECTS[name])


@pytest.mark.parametrize("name", RNN_EFFECTS)
def test_each_parameter_changes_the_fit_of_rnn(rnn, spikes, name):
    check_effect(rnn, spikes, name, *RNN_EFFECTS[name])


def check_effect(estimator, spikes, name, base, value):
    estimator.set_params(max_epochs=4, **base)
    assert estimator.get_params()[name] != value
    default = clone(estimator).fit(spikes)
    changed = clone(estimator).set_params(**{name: value}).fit(spikes)
    assert learned(default) == learned(clone(estimator).fit(spikes))
    assert learned(changed) != learned(default)


@pytest.mark.parametrize(
    "ignored", [{"encoder_size": 9}, {"dropout": 0.5}, {"coordinated_dropout": 0.5}], ids=str
)
def test_the_encoders_parameters_do_nothing_without_one(node, spikes, ignored):
    node.set_params(max_epochs=2)
    assert learned(clone(node).fit(spikes)) == learned(node.set_params(**ignored).fit(spikes))


@pytest.mark.parametrize("ignored", [{"hidden_sizes": (3, 3)}, {"activation": "relu"}], ids=str)
def test_the_mlps_parameters_do_nothing_without_one(rnn, spikes, ignored):
    rnn.set_params(max_epochs=2)
    assert learned(clone(rnn).fit(spikes)) == learned(rnn.set_params(**ignored).fit(spikes))


# ------------------------------------------------------------------ the model


@pytest.mark.parametrize("n_latents", [1, 2, 8])
def test_n_latents(estimator, spikes, n_latents):
    estimator.set_params(n_latents=n_latents, max_epochs=2).fit(spikes)
    assert estimator.transform(spikes).shape == (24, 12, n_latents)
    assert estimator.predict(spikes).shape == spikes.shape
    assert len(estimator.get_feature_names_out()) == n_latents


ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "softplus": lambda x: np.log1p(np.exp(x)),
}


def mlp(weights, activation, z):
    *hidden, last = weights
    for weight in hidden:
        z = ACTIVATIONS[activation](z @ weight[:, :-1].T + weight[:, -1])
    return z @ last[:, :-1].T + last[:, -1]


@pytest.mark.parametrize("hidden_sizes", [(5,), [4, 3], np.array([3, 4, 5])], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hidden_sizes_and_activation_of_the_vector_field(node, spikes, hidden_sizes, activation):
    node.set_params(hidden_sizes=hidden_sizes, activation=activation, max_epochs=3).fit(spikes)
    weights = field_weights(node)
    assert [len(weight) for weight in weights] == [*hidden_sizes, 2]
    z = np.random.default_rng(0).normal(size=(20, 2))
    expected = mlp(weights, activation, z) + z @ node.model_.dynamics.mlp.linear.numpy().T
    np.testing.assert_allclose(node.vector_field(z), 0.1 * expected, atol=1e-5)


@pytest.mark.parametrize("residual", [None, 0.1])
@pytest.mark.parametrize("cell", ["gru", "rnn", "mlp"])
def test_cell_and_residual(rnn, spikes, cell, residual):
    rnn.set_params(cell=cell, residual=residual, activation="relu", max_epochs=3).fit(spikes)
    z = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    module = rnn.model_.dynamics.cell
    if cell == "mlp":
        expected = mlp([weight.numpy() for weight in module.weights], "relu", z)
        expected = expected + z @ module.linear.numpy().T
    elif cell == "rnn":
        weight = module.weight.numpy()
        expected = np.tanh(z @ weight[:, :-1].T + weight[:, -1])
    else:
        expected = torch_gru(module)(torch.zeros(20, 1), torch.from_numpy(z)).detach().numpy()
    if residual is not None:
        expected = z + residual * expected
    np.testing.assert_allclose(rnn.step(z), expected, atol=1e-5)


def torch_gru(module):
    cell = torch.nn.GRUCell(1, 2)
    with torch.no_grad():
        cell.weight_hh.copy_(module.weight[:, :-1])
        cell.bias_hh.copy_(module.weight[:, -1])
        cell.bias_ih.zero_()
        cell.bias_ih[-2:] = module.new_bias[:, 0]
    return cell


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver(node, holes, solver):
    node.set_params(solver=solver, max_epochs=1).fit(holes)
    assert np.isfinite(node.predict(holes)).all()
    assert np.isfinite(node.score(holes))


@pytest.fixture(scope="module")
def turning(spikes):
    """A fitted field, and how to see it through other solvers."""
    first = (
        NODESAE(n_latents=2, hidden_sizes=(16,), max_epochs=40, device="cpu", warm_start=True)
        .set_params(random_state=0)
        .fit(spikes)
    )
    state = first.initial_conditions(spikes)

    def trace(**parameters):
        other = copy.deepcopy(first).set_params(**parameters)
        # A learning rate of nothing: only the solver changes.
        other.set_params(learning_rate=1e-12, max_epochs=1).fit(spikes)
        return other.simulate(state, 12)

    return trace


def test_step_size_refines_a_fixed_step_solver(turning):
    truth = turning(solver="rk4", step_size=0.1)
    errors = {
        (solver, step_size): np.abs(turning(solver=solver, step_size=step_size) - truth).max()
        for solver in ("euler", "midpoint")
        for step_size in (1.0, 0.5, 0.3)
    }
    for solver, order in (("euler", 1), ("midpoint", 2)):
        coarse, half, fine = (errors[solver, size] for size in (1.0, 0.5, 0.3))
        assert fine < half < coarse
        # Halving the step divides the error by two to the solver's order, about.
        assert coarse / half > 0.75 * 2**order
    # 0.3 bins do not fit into one; four equal steps do.
    same = turning(solver="euler", step_size=0.25)
    assert np.array_equal(turning(solver="euler", step_size=0.3), same)


def test_tolerances_refine_an_adaptive_solver(turning):
    truth = turning(solver="rk4", step_size=0.1)
    loose = turning(solver="bosh3", rtol=1.0, atol=1.0)
    tight = turning(solver="bosh3", rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tight, truth, atol=5e-3)
    assert np.abs(loose - truth).max() > 5 * np.abs(tight - truth).max()


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_adjoint_gradients_fit_the_same_model(node, spikes, solver, rollouts):
    # Both gradients are right up to the solver's error, so it has to be small; and SOAP's first
    # steps, unlike Adam's, amplify what little they differ by.
    node.set_params(solver=solver, rtol=1e-5, atol=1e-5, step_size=0.25)
    node.set_params(max_epochs=3, optimizer="adam")
    plain = clone(node).fit(spikes)
    adjoint = clone(node).set_params(adjoint=True).fit(spikes)
    np.testing.assert_allclose(adjoint.loss_curve_, plain.loss_curve_, atol=1e-3)
    np.testing.assert_allclose(adjoint.predict(spikes), plain.predict(spikes), atol=0.05)


# ------------------------------------------------------------------ inference


def test_inference_decides_what_is_learned(node, spikes):
    node.set_params(max_epochs=2)
    free = clone(node).fit(spikes)
    assert free.model_.encoder is None
    assert free.training_initial_conditions_.shape == (24, 2)
    amortized = clone(node).set_params(inference="amortized", encoder_size=9).fit(spikes)
    assert amortized.model_.encoder.gru.hidden_size == 9
    assert not hasattr(amortized, "training_initial_conditions_")


def test_max_refine_iter(node, spikes, rollouts):
    node.fit(spikes[:18])
    learned = node.training_initial_conditions_
    node.set_params(max_refine_iter=0).fit(spikes[:18])
    start = node.initial_conditions(spikes[18:])
    assert (start[:, np.newaxis] == learned).all(2).any(1).all()

    prior = Prior.from_samples(torch.from_numpy(learned))

    def log_posterior(max_refine_iter):
        node.set_params(max_refine_iter=max_refine_iter).fit(spikes[:18])
        rates = node.predict(spikes[18:])
        z0 = torch.from_numpy(node.initial_conditions(spikes[18:]))
        return (spikes[18:] * np.log(rates) - rates).sum() + float(prior.log_density(z0.T).sum())

    start, once, often = (log_posterior(n) for n in (0, 1, 10))
    assert often >= once > start


@pytest.mark.parametrize("name", ["dropout", "coordinated_dropout", "initial_condition_dropout"])
def test_dropout_is_for_training_only(node, spikes, name):
    node.set_params(inference="amortized", max_epochs=2, **{name: 0.5}).fit(spikes)
    assert np.array_equal(node.transform(spikes), node.transform(spikes))


# ------------------------------------------------------------------ training


def count_steps(estimator, X, monkeypatch):
    calls = itertools.count()
    backward = torch.Tensor.backward

    def counted(self, *args, **kwargs):
        next(calls)
        return backward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", counted)
        estimator.fit(X)
    return next(calls)


@pytest.mark.parametrize(
    ("batch_size", "n_batches"), [("auto", 4), (6, 4), (8, 3), (24, 1), (1000, 1), (1, 24)]
)
def test_batch_size(node, spikes, monkeypatch, batch_size, n_batches):
    node.set_params(batch_size=batch_size, max_epochs=2, inference="amortized")
    assert count_steps(node, spikes, monkeypatch) == 2 * n_batches


def test_learning_rate(node, spikes, rollouts):
    node.set_params(max_epochs=1)
    still, slow, fast = (
        clone(node).set_params(learning_rate=rate).fit(spikes) for rate in (1e-12, 1e-4, 1e-2)
    )

    def moved(estimator):
        pairs = zip(field_weights(estimator), field_weights(still), strict=True)
        return sum(np.abs(weight - start).sum() for weight, start in pairs)

    assert 20 < moved(fast) / moved(slow) < 500


def test_learning_rate_schedule(node, spikes, records, rollouts):
    node.set_params(max_epochs=30, learning_rate=0.005)
    node.set_params(learning_rate_schedule="constant").fit(spikes)
    assert {record.learning_rate for record in records} == {0.005}
    for shape, peaks, last in (("onecycle", range(7, 11), 0.0), ("exponential", range(2, 5), 0.01)):
        records.clear()
        node.set_params(learning_rate_schedule=shape).fit(spikes)
        rates = [record.learning_rate for record in records]
        assert max(rates) == pytest.approx(0.005, rel=0.05)
        assert np.argmax(rates) in peaks
        assert rates[0] < 0.4 * max(rates)
        assert rates[-1] / max(rates) == pytest.approx(last, abs=0.005)


def test_horizon(node, spikes, records, rollouts):
    node.set_params(max_epochs=20, horizon_start=3, horizon_step=3, horizon_growth=0.5).fit(spikes)
    horizons = [record.horizon for record in records]
    assert horizons[0] == 3 and horizons[10:] == [12] * 10
    assert horizons == sorted(horizons) and set(horizons) == {3, 6, 9, 12}
    records.clear()
    node.set_params(horizon_growth=0).fit(spikes)
    assert {record.horizon for record in records} == {12}
    records.clear()
    node.set_params(horizon_start=100, horizon_growth=0.5).fit(spikes)
    assert {record.horizon for record in records} == {12}


def test_weight_decay_shrinks_weights(node, spikes, rollouts):
    def size(weight_decay):
        fitted = clone(node).set_params(weight_decay=weight_decay).fit(spikes)
        return sum(np.square(weight).sum() for weight in field_weights(fitted))

    assert size(0.0) > 1.1 * size(0.5) > 1.5 * size(5.0)


def test_clip_norm(node, spikes):
    node.set_params(max_epochs=2)
    free, wide, tight = (
        learned(clone(node).set_params(clip_norm=norm).fit(spikes)) for norm in (None, 1e9, 1e-3)
    )
    assert free == wide != tight


@pytest.mark.parametrize("optimizer", ["soap", "adam"])
def test_both_optimizers_learn(node, spikes, optimizer):
    node.set_params(optimizer=optimizer, max_epochs=100).fit(spikes)
    assert node.score(spikes) > 0.1


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=repr)
def test_device(node, spikes, device):
    node.set_params(device=device, max_epochs=2).fit(spikes)
    assert node.predict(spikes).shape == spikes.shape


def test_auto_is_the_default_device(spikes):
    assert NODESAE().device == RNNSAE().device == "auto"
    NODESAE(max_epochs=1).fit(spikes).transform(spikes)


def test_the_papers_ablations_are_parameter_settings(spikes):
    paper = {"optimizer": "adam", "learning_rate_schedule": "constant", **AMORTIZED}
    for ablation in (
        {"cell": "mlp", "residual": 0.1},
        {"cell": "mlp"},
        {"cell": "rnn", "residual": 0.1},
        {"cell": "mlp", "residual": 0.1, "horizon_growth": 0},
        {"cell": "rnn", "horizon_growth": 0},
    ):
        RNNSAE(**paper, **ablation, max_epochs=1).fit(spikes).transform(spikes)

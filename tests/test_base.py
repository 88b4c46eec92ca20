"""How a fit goes: progress, going on, stopping, being interrupted, failing."""

import copy
import itertools
import pickle
import re
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    cross_validate,
    validation_curve,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_sae import NODESAE, RNNSAE, _rollout_fits
from sklearn_sae._data import trials as trials_module
from sklearn_sae._data import validation
from sklearn_sae._data.trials import Trials
from sklearn_sae._inference import candidates, fitted_model, inference, memory
from sklearn_sae._training import early_stopping, initialization
from sklearn_sae.metrics import co_smoothing_score
from sklearn_sae.plotting import RateDisplay


def raise_in_backward(monkeypatch, error, n_before):
    """Let gradients be computed ``n_before`` times, then raise, as deep in training as it gets."""
    backward, calls = torch.Tensor.backward, itertools.count(1)

    def interrupted(self, *args, **kwargs):
        if next(calls) > n_before:
            raise error
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", interrupted)


def same_weights(first, second):
    pairs = zip(first.model_.parameters(), second.model_.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


# ------------------------------------------------------------------ learning


def test_fit_learns_and_generalises(fitted, spikes):
    assert fitted.score(spikes) > 0.1
    assert len(fitted.loss_curve_) == fitted.n_iter_ >= fitted.max_epochs
    np.testing.assert_allclose(fitted.null_rates_, spikes.mean((0, 1)))


def test_semi_amortized_inference_finds_the_rotation(node, spikes):
    node.set_params(max_epochs=150).fit(spikes[:18])
    assert node.score(spikes[18:]) > 0.2


# ------------------------------------------------------------------ warm_start


def test_warm_start_goes_on(estimator, spikes, rollouts):
    estimator.set_params(warm_start=True, horizon_growth=0)
    estimator.fit(spikes)
    before = estimator.loss_curve_[:]
    estimator.fit(spikes)
    assert estimator.loss_curve_[:40] == before
    assert len(estimator.loss_curve_) == 80 and estimator.n_iter_ == 40
    assert estimator.loss_curve_[-1] < before[-1]
    # It stands where the last fit ended, not where one begins.
    assert estimator.loss_curve_[40] < 0.5 * (before[0] + before[-1])


@pytest.mark.parametrize("driven", [False, True])
def test_warm_start_begins_where_the_trials_stood(node, spikes, driven, monkeypatch, rollouts):
    inputs = np.random.default_rng(0).normal(size=(24, 12, 1)) if driven else None
    node.set_params(warm_start=True, max_epochs=100).fit(spikes, inputs=inputs)
    first, last = node.loss_curve_[0], node.loss_curve_[-1]
    # Candidates that are few beside the trials, as they are in a large recording; and a refinement
    # would hide where it begins.
    monkeypatch.setattr(inference, "MOST_CANDIDATES", 2)
    monkeypatch.setattr(candidates, "MOST_CANDIDATES_UNDER_INPUTS", 2)
    again = {"max_epochs": 1, "learning_rate": 1e-9, "horizon_growth": 0, "max_refine_iter": 0}
    node.set_params(**again).fit(spikes, inputs=inputs)
    assert node.loss_curve_[-1] < last + 0.02 * (first - last)


def test_without_warm_start_a_second_fit_starts_afresh(estimator, spikes):
    once = clone(estimator).set_params(max_epochs=3).fit(spikes)
    twice = clone(once).fit(spikes[:, :, ::-1]).fit(spikes)
    assert same_weights(once, twice)
    assert twice.loss_curve_ == once.loss_curve_


def test_warm_start_takes_new_trials_and_new_parameters(node, spikes):
    node.set_params(warm_start=True).fit(spikes[:20, :8])
    node.set_params(solver="rk4", max_epochs=1).fit(spikes)
    assert node.model_.dynamics.solver.method == "rk4"
    assert len(node.training_initial_conditions_) == len(spikes)


STRUCTURES = [
    (NODESAE(), {"n_latents": 4}),
    (NODESAE(), {"hidden_sizes": (8,)}),
    (NODESAE(), {"activation": "relu"}),
    (NODESAE(), {"time_scale": 20.0}),
    (NODESAE(), {"inference": "amortized"}),
    (NODESAE(), {"likelihood": "negative_binomial"}),
    (NODESAE(), {"n_inferred_inputs": 1}),
    (NODESAE(inference="amortized"), {"encoder_size": 9}),
    (RNNSAE(), {"n_latents": 4}),
    (RNNSAE(), {"cell": "rnn"}),
    (RNNSAE(), {"residual": 0.1}),
    (RNNSAE(residual=0.1), {"residual": None}),
    (RNNSAE(cell="mlp"), {"activation": "softplus"}),
    (RNNSAE(cell="mlp"), {"hidden_sizes": (8, 8)}),
]


@pytest.mark.parametrize(("est", "change"), STRUCTURES, ids=str)
def test_warm_start_refuses_what_changes_the_weights_meaning(est, change, spikes):
    est = clone(est).set_params(max_epochs=1, hidden_sizes=(16,), random_state=0).fit(spikes)
    latents = est.transform(spikes)
    ((name, value),) = change.items()
    said = rf"warm_start.* had {name}={getattr(est, name)!r}; now {name}={value!r}"
    est.set_params(warm_start=True, **change)
    with pytest.raises(ValueError, match=re.sub(r"([()])", r"\\\1", said)):
        est.fit(spikes)
    assert np.array_equal(est.transform(spikes), latents)


def test_warm_start_sees_a_list_that_was_changed_in_place(node, spikes):
    node.set_params(max_epochs=1, hidden_sizes=[16], warm_start=True).fit(spikes)
    node.hidden_sizes.append(8)
    with pytest.raises(ValueError, match=r"hidden_sizes=\[16\]; now hidden_sizes=\[16, 8\]"):
        node.fit(spikes)


def test_warm_start_takes_parameters_that_weights_do_not_depend_on(node, rnn, spikes, rollouts):
    free = {"encoder_size": 3, "learning_rate": 1e-3, "clip_norm": None, "dropout": 0.1}
    accuracy = {"step_size": 0.5, "rtol": 1e-4, "atol": 1e-4, "hidden_sizes": [16]}
    node.set_params(max_epochs=1, warm_start=True).fit(spikes).set_params(**free, **accuracy)
    # Those of a perceptron, and the cell has none.
    rnn.set_params(max_epochs=1, warm_start=True).fit(spikes)
    rnn.set_params(**free, hidden_sizes=(3,), activation="relu")
    for est in (node, rnn):
        assert len(est.fit(spikes).loss_curve_) == 2


def test_warm_start_checks_the_neurons(node, spikes):
    node.set_params(max_epochs=1, warm_start=True).fit(spikes)
    with pytest.raises(ValueError, match="X has 5 features, but NODESAE is expecting 6"):
        node.fit(spikes[:, :, :5])


# ------------------------------------------------------------------ progress


def test_verbose_shows_epochs_loss_and_horizon(node, spikes, capsys):
    node.set_params(max_epochs=4, horizon_start=5, verbose=True).fit(spikes)
    out, err = capsys.readouterr()
    last = err.split("\r")[-1]
    assert out == ""
    assert "4/4" in last and "epoch" in last
    assert f"loss={node.loss_curve_[-1]:.4f}" in last
    assert "horizon=12" in last
    assert {int(n) for n in re.findall(r"horizon=(\d+)", err)} <= set(range(5, 13))


def test_silent_by_default(node, spikes, capsys):
    node.set_params(max_epochs=1).fit(spikes)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------ interruption and failure


def test_ctrl_c_keeps_a_usable_model_and_warns(estimator, spikes, monkeypatch):
    # Four batches an epoch: the tenth is in the third.
    raise_in_backward(monkeypatch, KeyboardInterrupt(), n_before=9)
    with pytest.warns(ConvergenceWarning, match="interrupted in epoch 3 of 40") as caught:
        estimator.fit(spikes)
    assert caught[0].filename == __file__
    assert estimator.n_iter_ == len(estimator.loss_curve_) == 2
    assert np.isfinite(estimator.predict(spikes)).all()
    assert np.isfinite(estimator.score(spikes))
    monkeypatch.undo()
    estimator.set_params(warm_start=True).fit(spikes)
    assert len(estimator.loss_curve_) == 42


def test_ctrl_c_in_the_first_epoch_of_several_models(node, spikes, monkeypatch):
    node.set_params(n_init=2)
    raise_in_backward(monkeypatch, KeyboardInterrupt(), n_before=0)
    with pytest.warns(ConvergenceWarning, match="epoch 1 of"):
        node.fit(spikes)
    assert np.isfinite(node.init_scores_).all()
    assert np.isfinite(node.transform(spikes)).all()


def test_ctrl_c_restores_the_best_epoch_so_far(node, spikes, monkeypatch, rollouts):
    node.set_params(early_stopping=True, horizon_growth=0, max_epochs=4, n_iter_no_change=100)
    raise_in_backward(monkeypatch, KeyboardInterrupt(), n_before=15)
    with pytest.warns(ConvergenceWarning, match="epoch 4 of 4"):
        node.fit(spikes)
    assert len(node.validation_scores_) == 3
    assert node.best_validation_score_ == max(node.validation_scores_)


MANY = {
    "grid": lambda est, X: GridSearchCV(est, {"n_latents": [1, 2]}, cv=2).fit(X),
    "halving": lambda est, X: HalvingGridSearchCV(
        est, {"n_latents": [1, 2]}, cv=2, min_resources=12, random_state=0
    ).fit(X),
    "pipeline": lambda est, X: GridSearchCV(
        make_pipeline(FunctionTransformer(), est), {"nodesae__n_latents": [1, 2]}, cv=2
    ).fit(X),
    "cross_validate": lambda est, X: cross_validate(est, X, cv=4),
    "validation_curve": lambda est, X: validation_curve(
        est, X, None, param_name="n_latents", param_range=[1, 2], cv=2
    ),
    "joblib": lambda est, X: joblib.Parallel()(joblib.delayed(clone(est).fit)(X) for _ in "ab"),
}


@pytest.mark.parametrize("search", list(MANY))
def test_ctrl_c_ends_all_fits_of_a_search(node, spikes, monkeypatch, search, tmp_path):
    node.set_params(max_epochs=2, checkpoint_path=tmp_path, checkpoint_every=1)
    # Fits of 6 to 18 trials: in the second one.
    raise_in_backward(monkeypatch, KeyboardInterrupt(), n_before=13)
    with pytest.raises(KeyboardInterrupt):
        MANY[search](node, spikes)
    # What the one under way had done is there for the next search.
    assert len([*tmp_path.glob("*.safetensors")]) == 1


@pytest.mark.parametrize("place", [0, 1])
def test_ctrl_c_in_a_pipeline_keeps_the_model(node, spikes, monkeypatch, place):
    steps = [FunctionTransformer()]
    steps.insert(place, node.set_params(max_epochs=2))
    pipeline = make_pipeline(*steps)
    raise_in_backward(monkeypatch, KeyboardInterrupt(), n_before=4)
    with pytest.warns(ConvergenceWarning, match="interrupted in epoch 2"):
        pipeline.fit(spikes)
    assert np.isfinite(pipeline.transform(spikes)).all()


def test_ctrl_c_in_the_last_fit_of_a_search_keeps_its_results(node, spikes, monkeypatch):
    search = GridSearchCV(node.set_params(max_epochs=2), {"n_latents": [1, 2]}, cv=2)
    # Four fits take two epochs of four batches each before.
    raise_in_backward(monkeypatch, KeyboardInterrupt(), n_before=36)
    with pytest.warns(ConvergenceWarning, match="interrupted in epoch 2"):
        search.fit(spikes)
    assert search.best_estimator_.n_iter_ == 1
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_loss_that_is_not_finite_names_the_epoch_and_what_to_lower(estimator, spikes):
    estimator.set_params(
        learning_rate=1e6, clip_norm=None, learning_rate_schedule="constant", optimizer="adam"
    )
    with pytest.raises(FloatingPointError, match=r"(nan|inf) in epoch [1-4]\. Lower learning_rate"):
        estimator.fit(spikes)
    with pytest.raises(NotFittedError):
        estimator.transform(spikes)


def fail_in(part, monkeypatch):
    """Let a fit fail in one of its parts, once others have learned something."""
    if part == "training":
        raise_in_backward(monkeypatch, FloatingPointError("lost"), n_before=2)
    elif part == "start":
        monkeypatch.setattr(_rollout_fits, "pca_start", raiser(FloatingPointError("lost")))
        monkeypatch.setattr(
            _rollout_fits, "FreeInitialConditions", raiser(FloatingPointError("lost"))
        )
    elif part == "weights":
        monkeypatch.setattr(_rollout_fits.Member, "is_finite", lambda self: False)
    else:
        monkeypatch.setattr(fitted_model, "model_variance", raiser(FloatingPointError("lost")))


def raiser(error):
    def fail(*args, **kwargs):
        raise error

    return fail


PARTS = ["start", "training", "weights", "model_variance"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("n_init", [1, 2])
def test_a_first_fit_that_fails_leaves_nothing(node, spikes, monkeypatch, part, n_init, rollouts):
    node.set_params(max_epochs=2, n_init=n_init)
    fail_in(part, monkeypatch)
    with pytest.raises(FloatingPointError):
        node.fit(spikes)
    assert vars(node) == node.get_params()
    for method in (node.transform, node.score, node.get_feature_names_out):
        with pytest.raises(NotFittedError):
            method(spikes)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("warm_start", [False, True])
def test_a_later_fit_that_fails_leaves_all_as_it_was(
    node, spikes, monkeypatch, part, warm_start, rollouts
):
    stimuli = np.ones((24, 12, 1))
    node.set_params(max_epochs=2, early_stopping=True, horizon_growth=0, likelihood="gaussian")
    node.fit(spikes, inputs=stimuli).set_params(warm_start=warm_start)
    before = pickle.dumps(node)
    more = np.concatenate([spikes, 3 * spikes])
    # Afresh, others of everything: a neuron and the known inputs are missing.
    X, inputs = (more, np.ones((48, 12, 1))) if warm_start else (more[..., :5], None)
    fail_in(part, monkeypatch)
    with pytest.raises(FloatingPointError):
        node.fit(X, inputs=inputs)
    assert pickle.dumps(node) == before


@pytest.mark.parametrize("warm_start", [False, True])
def test_inputs_that_are_refused_leave_all_as_it_was(node, spikes, warm_start):
    node.set_params(max_epochs=1, warm_start=warm_start).fit(spikes)
    before = pickle.dumps(node)
    for wrong in (-spikes, spikes[0], spikes[:0]):
        with pytest.raises(ValueError):
            node.fit(wrong)
    with pytest.raises(ValueError):
        node.fit(spikes[..., :5], inputs=np.ones((3, 12, 1)))
    with pytest.raises(ValueError, match="X has 1 trial"):
        node.set_params(early_stopping=True).fit(spikes[:1])
    assert pickle.dumps(node.set_params(early_stopping=False)) == before


def test_bad_data_leave_the_old_model(fitted, spikes):
    latents = fitted.transform(spikes)
    with pytest.raises(ValueError):
        fitted.fit(-spikes)
    assert np.array_equal(fitted.transform(spikes), latents)


# ------------------------------------------------------------------ early stopping


@pytest.fixture
def stopping(estimator):
    """Epochs that never gain enough, so that the first one that counts is the best."""
    return estimator.set_params(
        early_stopping=True, horizon_growth=0.25, n_iter_no_change=3, tol=100.0
    )


def test_early_stopping_stops_when_nothing_is_gained(stopping, spikes, rollouts):
    stopping.fit(spikes)
    # A quarter of the forty epochs grows the horizon; one scores, and three do not gain on it.
    assert len(stopping.validation_scores_) == 4
    assert stopping.n_iter_ == len(stopping.loss_curve_) == 14
    assert stopping.best_validation_score_ == max(stopping.validation_scores_)


def test_early_stopping_does_not_stop_while_the_score_rises(node, spikes, rollouts):
    node.set_params(early_stopping=True, horizon_growth=0, n_iter_no_change=40, tol=0.0).fit(spikes)
    assert node.n_iter_ == len(node.validation_scores_) == 40


def test_early_stopping_restores_the_best_epoch(estimator, spikes, rollouts):
    # At this learning rate the model is soon worse than at its start.
    estimator.set_params(
        early_stopping=True,
        horizon_growth=0,
        learning_rate=0.5,
        learning_rate_schedule="constant",
        validation_fraction=0.25,
        n_iter_no_change=8,
    )
    estimator.fit(spikes)
    best = int(np.argmax(estimator.validation_scores_)) + 1
    assert best < estimator.n_iter_
    stopped = clone(estimator).set_params(max_epochs=best).fit(spikes)
    assert same_weights(estimator, stopped)
    assert np.array_equal(estimator.transform(spikes), stopped.transform(spikes))


def test_validation_trials_are_not_trained_on(node, spikes, rollouts):
    node.set_params(early_stopping=True, max_epochs=2).fit(spikes)
    assert len(node.training_initial_conditions_) == len(spikes) - 5
    node.set_params(validation_fraction=0.5).fit(spikes)
    assert len(node.training_initial_conditions_) == 12


def test_many_validation_trials_are_scored_in_batches(estimator, spikes, monkeypatch, rollouts):
    estimator.set_params(early_stopping=True, horizon_growth=0, max_epochs=4)
    estimator.set_params(validation_fraction=0.5).fit(spikes)
    scores, sizes = estimator.validation_scores_, []

    # On a GPU it depends on what memory is free, and so changes.
    at_once = itertools.chain([5, 4], itertools.repeat(6))
    monkeypatch.setattr(early_stopping, "trials_at_once", lambda model, n_bins: next(at_once))
    monkeypatch.setattr(
        early_stopping,
        "bits_gained",
        lambda *args, real=early_stopping.bits_gained: sizes.append(len(args[3])) or real(*args),
    )
    estimator.fit(spikes)
    np.testing.assert_allclose(estimator.validation_scores_, scores, atol=1e-5)
    assert sizes == [5, 5, 2, 4, 4, 4, 6, 6, 6, 6]


def test_attributes_of_an_earlier_fit_do_not_linger(node, spikes):
    node.set_params(early_stopping=True, max_epochs=2).fit(spikes)
    node.set_params(early_stopping=False, inference="amortized").fit(spikes)
    for name in ("validation_scores_", "best_validation_score_", "training_initial_conditions_"):
        assert not hasattr(node, name)


def test_early_stopping_needs_trials_to_spare(spikes):
    with pytest.raises(ValueError, match="early_stopping=True holds out trials"):
        NODESAE(early_stopping=True, max_epochs=1).fit(spikes[:1])


def test_nothing_warns_in_an_ordinary_fit(estimator, holes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch itself raises one on the first use of forward-mode differentiation.
        warnings.simplefilter("ignore", DeprecationWarning)
        estimator.set_params(max_epochs=2, early_stopping=True).fit(holes)
        estimator.predict(holes), estimator.score(holes)


# ------------------------------------------------------------------ large recordings


@pytest.mark.parametrize("inference", ["semi-amortized", "amortized"])
def test_a_memory_map_is_only_ever_read_in_parts(node, inference, tmp_path, monkeypatch):
    counts = np.random.default_rng(0).poisson(1.0, (600, 4, 3)).astype(np.uint8)
    np.save(tmp_path / "spikes.npy", counts)
    mapped = np.load(tmp_path / "spikes.npy", mmap_mode="r")
    monkeypatch.setattr(memory, "MOST_TRIALS", 150)
    for module, limit in (
        (trials_module, "CHUNK"),
        (initialization, "MOST_VALUES_FOR_PCA"),
        (validation, "CHUNK"),
    ):
        monkeypatch.setattr(module, limit, 150 * counts[0].size)
    n_read, stored, look = [], Trials.stored, validation._check_values

    def counted(self, rows, n_bins=None):
        assert np.shares_memory(self.data, mapped)
        n_read.append(len(rows))
        return stored(self, rows, n_bins)

    def looked(chunk, *others):
        assert np.shares_memory(chunk, mapped)
        n_read.append(len(chunk))
        return look(chunk, *others)

    monkeypatch.setattr(Trials, "stored", counted)
    monkeypatch.setattr(validation, "_check_values", looked)
    node.set_params(inference=inference, max_epochs=10, checkpoint_path=tmp_path / "checkpoint")
    node.fit(mapped)
    node.set_params(warm_start=True).fit(mapped)
    for use in (node.transform, node.predict, node.score, node.initial_conditions):
        use(mapped)
    node.forecast(mapped, 2)
    assert sum(n_read) > 20 * len(counts)
    # Mean counts are taken over 256 trials at a time, whatever their size.
    assert max(n_read) <= 256


def test_early_stopping_that_never_begins_is_told(node, spikes, rollouts):
    for growth in (1.0, 0.999):
        node.set_params(early_stopping=True, horizon_growth=growth, max_epochs=3)
        with pytest.warns(UserWarning, match="early_stopping=True has no effect") as caught:
            node.fit(spikes)
        assert caught[0].filename == __file__
        assert node.validation_scores_ == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        node.set_params(horizon_growth=0.9, max_epochs=3).fit(spikes)
    assert len(node.validation_scores_) == 1


# ------------------------------------------------------------------ parameters set after fit


@pytest.mark.parametrize("inference", ["semi-amortized", "amortized"])
@pytest.mark.parametrize("likelihood", ["poisson", "gaussian"])
def test_parameters_set_after_fit_change_no_answer(node, spikes, inference, likelihood):
    node.set_params(inference=inference, likelihood=likelihood, max_epochs=2).fit(spikes)
    other = copy.deepcopy(node).set_params(
        inference="amortized" if inference == "semi-amortized" else "semi-amortized",
        likelihood="gaussian" if likelihood == "poisson" else "poisson",
        max_refine_iter=0,
        n_latents=5,
        n_inferred_inputs=1,
    )
    for method in ("transform", "predict", "score", "initial_conditions"):
        answers = (getattr(each, method)(spikes) for each in (node, other))
        np.testing.assert_array_equal(*answers, err_msg=method)
    assert not hasattr(other, "infer_inputs")
    if likelihood == "poisson":
        assert co_smoothing_score(other, spikes) == co_smoothing_score(node, spikes)
    else:
        with pytest.raises(ValueError, match="Bits per spike need counts"):
            co_smoothing_score(other, spikes)
    display = RateDisplay.from_estimator(other, spikes)
    assert (display.std is None) == (inference == "amortized")
    assert display.of_counts == (likelihood == "poisson")

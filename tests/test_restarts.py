"""``n_init`` models are fitted together, each as if alone, and the best is kept."""

import numpy as np
import pytest
import torch
from conftest import SMALL
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

import sklearn_sae
from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae._data.validation import check_seed, check_seeds
from sklearn_sae._model.dynamics import Flow, Map
from sklearn_sae._model.runge_kutta import TABLEAUS
from sklearn_sae._model.solvers import SOLVERS
from sklearn_sae._model.state_maps import MLP
from sklearn_sae._training.ensemble import rollouts
from sklearn_sae._training.loop import train
from sklearn_sae._training.optimizers import OPTIMIZERS, Soap

pytestmark = pytest.mark.usefixtures("rollouts")

SHORT = SMALL | {"max_epochs": 8, "learning_rate": 0.03, "validation_fraction": 0.25}
AMORTIZED = {"inference": "amortized", "dropout": 0.2, "initial_condition_dropout": 0.1}
KINDS = {
    "node": NODESAE(**SHORT),
    "node, early stopping": NODESAE(**SHORT, early_stopping=True, horizon_growth=0.3),
    "node, adam": NODESAE(**SHORT, optimizer="adam", clip_norm=0.1, weight_decay=0.1),
    "node, rk4 in two layers": NODESAE(
        **SHORT | {"hidden_sizes": (12, 9)}, solver="rk4", step_size=0.5, activation="relu"
    ),
    "node, adaptive": NODESAE(**SHORT | {"max_epochs": 12}, solver="bosh3"),
    "node, amortized": NODESAE(**SHORT, **AMORTIZED),
    "node, inferred inputs": NODESAE(**SHORT | {"max_epochs": 14}, n_inferred_inputs=1),
    "node, negative binomial": NODESAE(**SHORT, likelihood="negative_binomial"),
    "node, gaussian": NODESAE(**SHORT, likelihood="gaussian"),
    "gru": RNNSAE(**SHORT),
    "mlp cell": RNNSAE(**SHORT, cell="mlp", residual=0.1),
}


def fresh(kind, **changes):
    est = KINDS[kind]
    return est.__class__(**est.get_params() | changes)


def split(spikes, random_state=0, share=0.25):
    rows = train_test_split(
        np.arange(len(spikes)), test_size=share, random_state=check_seed(random_state)
    )
    return [np.sort(part) for part in rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", ["spikes", "holes"])
def test_each_is_as_it_would_be_alone_and_the_best_is_kept(kind, data, request):
    data = request.getfixturevalue(data)
    train, held_out = split(data)
    together = fresh(kind, n_init=3).fit(data)
    if together.early_stopping:
        # Alone it would hold out trials too: the same ones, of the same array.
        alone = [fresh(kind, random_state=0).fit(data)]
        np.testing.assert_allclose(
            together.init_scores_[:1], [est.score(data[held_out]) for est in alone], atol=1e-4
        )
        assert together.score(data[held_out]) == pytest.approx(max(together.init_scores_), abs=1e-6)
        return
    alone = [fresh(kind, random_state=seed).fit(data[train]) for seed in range(3)]
    scores = [est.score(data[held_out]) for est in alone]
    np.testing.assert_allclose(together.init_scores_, scores, atol=1e-4)
    best = alone[int(np.argmax(scores))]
    np.testing.assert_allclose(together.loss_curve_, best.loss_curve_, atol=1e-4)
    np.testing.assert_allclose(together.predict(data), best.predict(data), rtol=1e-2)
    assert len(set(np.round(scores, 4))) == 3
    assert len(together.loss_curve_) == together.max_epochs
    if together.inference != "amortized":
        assert together.training_initial_conditions_.shape == (len(train), 2)
        assert together.model_variance_ == pytest.approx(best.model_variance_, rel=0.01)


def test_known_inputs_are_those_of_each_models_own_batch(spikes):
    inputs = np.random.default_rng(0).normal(size=(*spikes.shape[:2], 2))
    train, held_out = split(spikes)
    together = fresh("node", n_init=2).fit(spikes, inputs=inputs)
    alone = [
        fresh("node", random_state=seed).fit(spikes[train], inputs=inputs[train])
        for seed in range(2)
    ]
    scores = [est.score(spikes[held_out], inputs=inputs[held_out]) for est in alone]
    np.testing.assert_allclose(together.init_scores_, scores, atol=1e-4)


def test_the_best_is_not_merely_the_first(spikes):
    kept = []
    for seed in range(6):
        est = fresh("node", n_init=3, max_epochs=2, random_state=seed).fit(spikes)
        kept.append(int(np.argmax(est.init_scores_)))
        held_out = split(spikes, seed)[1]
        assert est.score(spikes[held_out]) == pytest.approx(max(est.init_scores_), abs=1e-6)
    assert len(set(kept)) > 1


def test_two_fits_agree_to_the_last_bit(spikes):
    first, second = (fresh("node", n_init=2).fit(spikes) for _ in range(2))
    assert np.array_equal(first.init_scores_, second.init_scores_)
    assert np.array_equal(first.transform(spikes), second.transform(spikes))


def test_one_model_holds_nothing_out(spikes):
    est = fresh("node", n_init=2, max_epochs=1).fit(spikes)
    est.set_params(n_init=1).fit(spikes)
    assert not hasattr(est, "init_scores_")
    assert len(est.training_initial_conditions_) == len(spikes)


def test_going_on_takes_one_model(spikes):
    est = fresh("node", n_init=2, max_epochs=2, warm_start=True).fit(spikes)
    est.fit(spikes)
    assert len(est.loss_curve_) == 4
    assert len(est.training_initial_conditions_) == len(spikes)
    assert not hasattr(est, "init_scores_")


def test_without_spikes_to_predict_the_smallest_loss_decides(spikes):
    silent = spikes.copy()
    silent[split(spikes)[1]] = 0
    with pytest.warns(UserWarning, match="init_scores_ are NaN"):
        est = fresh("node", n_init=3).fit(silent)
    assert np.isnan(est.init_scores_).all()
    train = split(spikes)[0]
    losses = [fresh("node", random_state=i).fit(silent[train]).loss_curve_[-1] for i in range(3)]
    assert est.loss_curve_[-1] == pytest.approx(min(losses), abs=1e-4)


def test_without_spikes_to_predict_no_model_that_diverged_is_kept(spikes, monkeypatch):
    silent = spikes.copy()
    silent[split(spikes)[1]] = 0
    break_members(monkeypatch, [0])
    with (
        pytest.warns(UserWarning, match="init_scores_ are NaN, because"),
        pytest.warns(ConvergenceWarning, match="1 of 2 models diverged"),
    ):
        est = fresh("node", n_init=2).fit(silent)
    assert np.isfinite(est.transform(spikes)).all()


@pytest.mark.parametrize(
    "kind",
    [
        "node",
        "node, early stopping",
        "node, adaptive",
        "node, amortized",
        "node, inferred inputs",
        "gru",
    ],
)
def test_one_that_diverges_leaves_the_others_alone(kind, spikes, monkeypatch):
    whole = fresh(kind, n_init=3).fit(spikes)
    break_members(monkeypatch, [1])
    with pytest.warns(ConvergenceWarning, match="1 of 3 models diverged"):
        est = fresh(kind, n_init=3).fit(spikes)
    assert np.isnan(est.init_scores_[1])
    assert np.array_equal(est.init_scores_[::2], whole.init_scores_[::2])
    assert np.isfinite(est.transform(spikes)).all()


def test_one_that_diverges_at_last_is_noticed(spikes, monkeypatch):
    break_members(monkeypatch, [0, 2], after=8)
    with pytest.warns(ConvergenceWarning, match="2 of 3 models diverged"):
        est = fresh("node", n_init=3).fit(spikes)
    assert np.isnan(est.init_scores_).tolist() == [True, False, True]
    assert np.isfinite(est.transform(spikes)).all()


@pytest.mark.parametrize("n_init", [1, 2])
@pytest.mark.parametrize("after", [0, 8])
def test_if_all_diverge_there_is_no_fit(n_init, after, spikes, monkeypatch):
    break_members(monkeypatch, range(n_init), after)
    message = (
        "The loss became nan in epoch 1" if after == 0 else "All weights became NaN in epoch 8"
    )
    with pytest.raises(FloatingPointError, match=message):
        fresh("node", n_init=n_init).fit(spikes)


def break_members(monkeypatch, numbers, after=0):
    """Make the weights of some members NaN after so many epochs."""

    def train_broken(members, *args, **kwargs):
        def break_now():
            for i in numbers:
                next(members[i].model.dynamics.parameters()).data.fill_(torch.nan)

        if after == 0:
            break_now()
        for record in train(members, *args, **kwargs):
            if record.epoch == after:
                break_now()
            yield record

    monkeypatch.setattr("sklearn_sae._rollout_fits.train", train_broken)


def test_each_stops_when_its_own_score_says_so(spikes):
    settings = {"max_epochs": 60, "n_iter_no_change": 3, "tol": 0.0, "horizon_growth": 0}
    est = fresh("node, early stopping", n_init=4, **settings).fit(spikes)
    assert len(est.loss_curve_) == len(est.validation_scores_) <= est.n_iter_
    assert np.argmax(est.validation_scores_) == len(est.validation_scores_) - 4


def test_scores_are_saved(spikes, tmp_path):
    est = fresh("node", n_init=2, max_epochs=1).fit(spikes)
    est.save(tmp_path / "est")
    loaded = sklearn_sae.load(tmp_path / "est")
    assert np.array_equal(loaded.init_scores_, est.init_scores_)
    assert np.array_equal(loaded.predict(spikes), est.predict(spikes))


def test_errors_name_the_parameter(spikes):
    with pytest.raises(ValueError, match="'n_init' parameter"):
        fresh("node", n_init=0).fit(spikes)
    with pytest.raises(ValueError, match="n_init=2 .* 1 trial"):
        fresh("node", n_init=2).fit(spikes[:1])
    with pytest.raises(ValueError, match="early_stopping=True .* 1 trial"):
        fresh("node", early_stopping=True).fit(spikes[:1])


def test_seeds_of_an_int_are_those_of_the_ints_that_follow():
    assert check_seeds(3, 2) == [check_seed(3), check_seed(4)]
    assert check_seeds(2**32 - 1, 2) == [check_seed(2**32 - 1), check_seed(0)]
    state = np.random.RandomState(3)
    assert check_seeds(np.random.RandomState(3), 2) == [check_seed(state), check_seed(state)]
    assert len(set(check_seeds(None, 3))) == 3


# ------------------------------------------------------------------ the parts


def dynamics(kind, seed):
    mlp = MLP(2, (5, 4), "tanh", torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        mlp.weights[-1].mul_(20)
    if kind == "mlp cell":
        return Map(mlp, residual=0.2)
    solver = SOLVERS[kind].from_parameters(kind, 0.5, 1e-3, 1e-3, False)
    return Flow(mlp, solver, 3.0)


@pytest.mark.parametrize("kind", [*sorted(TABLEAUS), "dopri5", "mlp cell"])
@pytest.mark.parametrize("moved", [False, True])
def test_rollouts_and_their_gradients_are_those_of_each(kind, moved):
    generator = torch.Generator().manual_seed(9)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    several = [dynamics(kind, seed) for seed in range(3)]
    z0 = [draw(2, 4) for _ in several]
    jumps = [draw(5, 2, 4) if moved else None for _ in several]
    latents = rollouts(several, z0, 6, jumps)
    assert latents.shape == (6, 3, 2, 4)
    weighing = draw(6, 3, 2, 4).detach()
    for i, (each, start, own) in enumerate(zip(several, z0, jumps, strict=True)):
        leaves = [start, *each.parameters(), *([own] if moved else [])]
        expected = each.rollout(start, 6, own)
        torch.testing.assert_close(latents[:, i], expected)
        ours, theirs = (
            torch.autograd.grad((weighing[:, i] * out).sum(), leaves, retain_graph=True)
            for out in (latents[:, i], expected)
        )
        for gradient, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_an_optimizer_of_several_models_is_one_of_each(optimizer, clip_norm):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((4, 3), (300, 2), (5,))
        return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]

    def weights():
        return [[torch.nn.Parameter(w) for w in draw(model)] for model in range(3)]

    together, alone = weights(), weights()
    settings = OPTIMIZERS[optimizer] | {"weight_decay": 0.1}
    one = Soap([w for model in together for w in model], n_models=3, **settings)
    each = [Soap(model, **settings) for model in alone]
    for step in range(45):
        for i, models in enumerate(zip(together, alone, strict=True)):
            for model in models:
                for weight, gradient in zip(model, draw(100 * step + i), strict=True):
                    weight.grad = gradient * 3**i
        one.step(0.01, clip_norm)
        for optimise in each:
            optimise.step(0.01, clip_norm)
    for ours, theirs in zip(together, alone, strict=True):
        for weight, expected in zip(ours, theirs, strict=True):
            assert weight.grad is None
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)

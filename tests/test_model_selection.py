"""The estimators inside scikit-learn's own tools, where users put them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import cpu_count
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    KFold,
    cross_val_predict,
    cross_val_score,
    train_test_split,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_sae import NODESAE
from sklearn_sae.model_selection import smallest_within_one_standard_error

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def flatten(latents):
    return latents.reshape(len(latents), -1)


def ragged_form(spikes):
    lengths = np.random.default_rng(3).integers(5, 13, len(spikes))
    return [trial[:n_bins] for trial, n_bins in zip(spikes, lengths, strict=True)]


@pytest.fixture(params=["array", "list"])
def recording(request, spikes):
    """24 trials, as one array or as a list of trials of unequal length."""
    return spikes if request.param == "array" else ragged_form(spikes)


@pytest.fixture
def labels(spikes):
    """Which half of the neurons fires first: the phase at which a trial starts."""
    return (spikes[:, :3, :3].sum((1, 2)) > spikes[:, :3, 3:].sum((1, 2))).astype(int)


# ------------------------------------------------------------------ pipelines


def test_pipeline_into_a_decoder(estimator, spikes, labels):
    decoder = Pipeline(
        [
            ("latents", estimator.set_params(max_epochs=80)),
            ("flat", FunctionTransformer(flatten)),
            ("scale", StandardScaler()),
            ("classify", LogisticRegression()),
        ]
    )
    decoder.fit(spikes, labels)
    assert decoder.predict(spikes).shape == labels.shape
    assert decoder.score(spikes, labels) > 0.8
    assert decoder[:-2].transform(spikes).shape == (24, 24)


def test_pipeline_searched_as_a_whole(node, spikes, labels):
    decoder = make_pipeline(
        node.set_params(max_epochs=20),
        FunctionTransformer(flatten),
        StandardScaler(),
        LogisticRegression(),
    )
    grid = {"nodesae__n_latents": [1, 2], "logisticregression__C": [0.1, 1.0]}
    search = GridSearchCV(decoder, grid, cv=2, error_score="raise").fit(spikes, labels)
    assert search.predict(spikes).shape == labels.shape
    # One score per setting, and a parameter of either end matters.
    assert len(search.cv_results_["mean_test_score"]) == 4


def test_pipeline_ending_in_the_estimator_scores_it(node, recording):
    pipeline = make_pipeline(FunctionTransformer(), node.set_params(max_epochs=5))
    pipeline.fit(recording)
    assert pipeline.score(recording) == node.score(recording)


# ------------------------------------------------------------------ search


def test_grid_search_over_n_latents(node, spikes):
    # A rotation needs two latents.
    node.set_params(max_epochs=100)
    search = GridSearchCV(node, {"n_latents": [1, 2]}, cv=2, error_score="raise").fit(spikes)
    one, two = search.cv_results_["mean_test_score"]
    assert two > one + 0.05
    assert search.best_params_ == {"n_latents": 2}
    assert search.score(spikes) == search.best_estimator_.score(spikes)


def results(n_latents, scores, **others):
    """What a search reports of the scores (n_candidates, n_splits)."""
    scores = np.array(scores)
    return {
        "param_sae__n_latents": np.ma.array(n_latents),
        "mean_test_score": scores.mean(axis=1),
        "std_test_score": scores.std(axis=1),
        **{f"split{i}_test_score": column for i, column in enumerate(scores.T)},
        **others,
    }


def test_one_standard_error_by_hand():
    scores = np.array([[0.40, 0.42, 0.41], [0.50, 0.52, 0.54], [0.51, 0.53, 0.58], [0.4, 0.5, 0.6]])
    of_best = scores[2].std(ddof=1) / np.sqrt(3)
    assert scores[0].mean() < scores[2].mean() - of_best < scores[1].mean()
    assert smallest_within_one_standard_error(results([2, 3, 8, 5], scores)) == 1
    # Where the best is certain of itself, the next best is not good enough.
    scores[2] = scores[2].mean()
    assert smallest_within_one_standard_error(results([2, 3, 8, 5], scores)) == 2


def test_one_standard_error_takes_the_best_of_one_size_and_no_nan():
    scores = [[np.nan, 0.9], [0.50, 0.52], [0.51, 0.53], [0.50, 0.54]]
    assert smallest_within_one_standard_error(results([1, 3, 3, 8], scores)) == 2


def test_one_standard_error_counts_the_splits_of_the_test_scores_alone():
    # With two splits the standard error is 0.02; taken for four, it would not reach 0.495.
    scores = [[0.494, 0.496], [0.49, 0.53]]
    train = {f"split{i}_train_score": np.ones(2) for i in range(2)}
    assert smallest_within_one_standard_error(results([2, 3], scores, **train)) == 0


def test_one_standard_error_of_a_single_split_is_none():
    assert smallest_within_one_standard_error(results([2, 3], [[0.5], [0.51]])) == 1


def test_one_standard_error_refits_its_choice(node, spikes):
    search = GridSearchCV(
        make_pipeline(FunctionTransformer(), node.set_params(max_epochs=3)),
        {"nodesae__n_latents": [2, 1]},
        cv=3,
        refit=smallest_within_one_standard_error,
        return_train_score=True,
    ).fit(spikes)
    chosen = smallest_within_one_standard_error(search.cv_results_)
    assert search.best_index_ == chosen
    assert search.best_estimator_[-1].n_latents == [2, 1][chosen]


@pytest.mark.parametrize(
    ("cv_results", "match"),
    [
        ({"param_alpha": [1], "mean_test_score": [1.0]}, r"parameters \['alpha'\]"),
        ({"param_n_latents": [1], "mean_test_rate": [1.0]}, "no mean_test_score"),
        (results([1, 2], [[np.nan], [np.nan]]), "every mean_test_score is NaN"),
    ],
)
def test_one_standard_error_names_what_is_wrong(cv_results, match):
    with pytest.raises(ValueError, match=match):
        smallest_within_one_standard_error(cv_results)


def test_grid_search_in_two_processes(node, recording):
    node.set_params(max_epochs=5)
    grid = {"n_latents": [1, 2, 3]}
    here, there = (
        GridSearchCV(node, grid, cv=2, n_jobs=n_jobs, error_score="raise", refit=False)
        .fit(recording)
        .cv_results_["mean_test_score"]
        for n_jobs in (1, 2)
    )
    assert np.isfinite(there).all()
    np.testing.assert_allclose(here, there, atol=1e-4)


def test_processes_share_the_cores(node, spikes, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    threads = cross_val_score(
        node.set_params(max_epochs=1),
        spikes,
        scoring=lambda estimator, X, y=None: torch.get_num_threads(),
        cv=2,
        n_jobs=2,
    )
    assert 1 <= threads.max() <= max(1, cpu_count() // 2)


def test_halving_over_epochs(node, recording):
    search = HalvingGridSearchCV(
        node,
        {"n_latents": [1, 2, 3], "learning_rate": [1e-2, 1e-6]},
        resource="max_epochs",
        min_resources=4,
        max_resources=36,
        factor=3,
        cv=2,
        random_state=0,
        error_score="raise",
    ).fit(recording)
    assert search.n_resources_ == [4, 12]
    assert search.best_estimator_.max_epochs == 12
    assert np.isfinite(search.best_score_)


def test_cross_val_score(estimator, recording):
    estimator.set_params(max_epochs=4)
    scores = cross_val_score(estimator, recording, cv=3, error_score="raise")
    train, test = next(KFold(3).split(recording))
    if isinstance(recording, list):
        train, test = ([recording[i] for i in rows] for rows in (train, test))
    else:
        train, test = recording[train], recording[test]
    assert scores.shape == (3,)
    assert scores[0] == pytest.approx(estimator.fit(train).score(test), abs=1e-6)


def test_cross_validation_by_groups_with_holes(node, holes):
    groups = np.arange(24) // 6
    scores = cross_val_score(
        node.set_params(max_epochs=5), holes, groups=groups, cv=GroupKFold(4), error_score="raise"
    )
    assert np.isfinite(scores).all()


def test_cross_val_predict_gives_rates_of_unseen_trials(node, spikes):
    rates = cross_val_predict(node.set_params(max_epochs=5), spikes, cv=3)
    assert rates.shape == spikes.shape


# ------------------------------------------------------------------ a real recording


@pytest.fixture(scope="module")
def macaque():
    path = DATA / "macaque_m1_bci_20181004.npz"
    if not path.exists():
        pytest.skip(f"needs the recording {path}, which is not part of the repository")
    with np.load(path) as file:
        return dict(file)


def test_targets_are_decoded_from_a_real_recording(macaque):
    train, test, seen, unseen = train_test_split(
        macaque["spikes"], macaque["target"], test_size=0.25, random_state=0
    )
    estimator = NODESAE(n_latents=12, max_epochs=40, device="cpu", random_state=0)
    decoder = make_pipeline(
        estimator,
        FunctionTransformer(flatten),
        StandardScaler(),
        LogisticRegression(C=0.01, max_iter=200),
    )
    decoder.fit(train, seen)
    # Eight targets; the full fit of examples/real_recording.py does better.
    assert decoder.score(test, unseen) > 0.8
    assert estimator.score(test) > 0


def test_real_ragged_trials_equal_their_padded_form(macaque):
    cuts = np.cumsum(macaque["ragged_lengths"])[:-1]
    trials = np.split(macaque["ragged_spikes"], cuts)[:60]
    padded = np.full((60, max(map(len, trials)), trials[0].shape[1]), np.nan)
    for row, trial in zip(padded, trials, strict=True):
        row[: len(trial)] = trial
    estimator = NODESAE(n_latents=3, max_epochs=4, device="cpu", random_state=0)
    from_list = NODESAE(**estimator.get_params()).fit(trials)
    from_padded = NODESAE(**estimator.get_params()).fit(padded)
    latents = from_padded.transform(padded)
    for trial, whole in zip(from_list.transform(trials), latents, strict=True):
        np.testing.assert_allclose(trial, whole[: len(trial)], atol=1e-4)
    assert from_list.score(trials) == pytest.approx(from_padded.score(padded), abs=1e-4)

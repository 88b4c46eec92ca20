"""A search on a dask cluster finds what a search in one process finds, also if a worker dies."""

import os
import signal

import dask
import numpy as np
import pytest
import torch
from common import number, succeed
from dask.distributed import Client, LocalCluster
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_sae import NODESAE

GRID = {"n_latents": [1, 2, 3]}


@pytest.fixture(scope="module")
def cluster():
    # A loaded machine may take its time; no test is about how long.
    patience = {f"distributed.comm.timeouts.{name}": "300s" for name in ("connect", "tcp")}
    with (
        dask.config.set(patience),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


@pytest.fixture
def trials():
    """So many that even indices of a fold, as an array, are left on workers: 1 kB is enough."""
    return np.random.default_rng(0).poisson(1.0, (280, 5, 4))


def scores(results):
    return np.array([results[f"split{i}_test_score"] for i in range(2)])


def test_search_equals_one_in_this_process(client, node, trials):
    def score_and_place(estimator, X, y=None):
        score, n_threads = estimator.score(X), torch.get_num_threads()
        return {"score": score, "process": os.getpid(), "threads": n_threads}

    search = GridSearchCV(
        node.set_params(max_epochs=3),
        GRID,
        scoring=score_and_place,
        cv=2,
        refit=False,
        error_score="raise",
    )
    here = search.fit(trials).cv_results_
    with parallel_config(backend="dask"):
        there = search.fit(trials).cv_results_

    places = {there[f"split{i}_test_process"][j] for i in range(2) for j in range(3)}
    assert places <= set(client.run(os.getpid).values())
    assert os.getpid() not in places
    # As many as conftest.py gives this process: scores are equal to the last bit only then.
    np.testing.assert_array_equal(there["mean_test_threads"], 1)
    np.testing.assert_array_equal(scores(there), scores(here))


def test_search_outlives_a_worker(client, node, trials, tmp_path):
    death = tmp_path / "death"

    # Local, so that it is pickled by value: workers need not find this file.
    class DiesOnce(NODESAE):
        def fit(self, X, y=None):
            try:
                with death.open("x") as file:
                    file.write(str(os.getpid()))
            except FileExistsError:
                return super().fit(X)
            os.kill(os.getpid(), signal.SIGKILL)

    folds = [(fit.tolist(), score.tolist()) for fit, score in KFold(2).split(trials)]
    options = {"cv": folds, "refit": False, "error_score": "raise"}
    here = GridSearchCV(node.set_params(max_epochs=3), GRID, **options).fit(trials)
    with parallel_config(backend="dask"):
        there = GridSearchCV(DiesOnce(**node.get_params()), GRID, **options).fit(list(trials))

    dead = int(death.read_text())
    assert dead != os.getpid()
    client.wait_for_workers(2)
    assert dead not in client.run(os.getpid).values()
    np.testing.assert_array_equal(scores(there.cv_results_), scores(here.cv_results_))


def test_example_uses_a_running_cluster(client, tmp_path):
    out = succeed(
        "distributed_grid_search.py",
        *("--scheduler", client.scheduler.address),
        cwd=tmp_path,
    )
    assert client.scheduler.address in out
    assert np.isfinite(number("unseen trials", out))

"""Choose n_latents by a search whose fits run on a dask cluster.

python examples/distributed_grid_search.py [--quick] [--scheduler tcp://10.0.0.1:8786]

Without --scheduler the cluster is a few processes on this machine. Needs
pip install "sklearn_sae[distributed]".
"""

import argparse
import time

import numpy as np
from dask.distributed import Client
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_sae import NODESAE
from sklearn_sae.datasets import make_chaotic_spikes


def main(quick, scheduler, n_workers):
    n_trials, options = (30, {"max_epochs": 3}) if quick else (500, {})
    data = make_chaotic_spikes("Arneodo", n_trials=n_trials, random_state=0)
    train, unseen = data.spikes[data.train], data.spikes[data.test]

    # joblib leaves large arrays on the workers, and the last copy of one may die with its worker.
    # Lists are sent along with every fit, so that a fit whose worker died runs anew elsewhere.
    folds = [(fit.tolist(), score.tolist()) for fit, score in KFold(3).split(train)]
    search = GridSearchCV(
        NODESAE(random_state=0, **options), {"n_latents": [2, 3, 5]}, cv=folds, error_score="raise"
    )
    with connect(scheduler, n_workers) as client:
        print(f"{len(client.ncores())} workers at {client.scheduler.address}", flush=True)
        start = time.perf_counter()
        with parallel_config(backend="dask"):
            search.fit(list(train))
        seconds = time.perf_counter() - start

    print_search(search.cv_results_)
    work = 3 * search.cv_results_["mean_fit_time"].sum() + search.refit_time_
    print(f"Search and final fit took {seconds:.0f} s; the fits alone add up to {work:.0f} s")
    print(f"Best, with {search.best_params_['n_latents']} latents, refitted in this process:")
    print(f"score on {len(unseen)} unseen trials  {search.score(unseen):.4f} bits per spike")


def connect(scheduler, n_workers):
    if scheduler is None:
        return Client(n_workers=n_workers, threads_per_worker=1, dashboard_address=None)
    client = Client(scheduler)
    # joblib counts the workers when the search begins, and never uses more.
    client.wait_for_workers(n_workers)
    return client


def print_search(results):
    print("n_latents   bits per spike   standard error   seconds a fit")
    # The deviation that searches report divides by n, a standard error by n - 1.
    error = results["std_test_score"] / np.sqrt(3 - 1)
    for row in zip(
        results["param_n_latents"],
        results["mean_test_score"],
        error,
        results["mean_fit_time"],
        strict=True,
    ):
        print("{:9d}   {:14.4f}   {:14.4f}   {:13.1f}".format(*row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny fits, to check that it runs")
    parser.add_argument("--scheduler", help="address of a running cluster's scheduler")
    parser.add_argument(
        "--n-workers",
        type=int,
        default=2,
        help="workers to start, or to wait for with --scheduler (default: %(default)s)",
    )
    main(**vars(parser.parse_args()))

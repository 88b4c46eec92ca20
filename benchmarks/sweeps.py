"""How long does a search take with two fits at a time, and how many threads does each fit have?

python benchmarks/sweeps.py [--quick] [--out benchmarks/results/sweeps.csv]

A grid of six cells, each one fit: NODESAE with 2, 3 and 5 latents and two seeds, on the training
trials of make_chaotic_spikes("Arneodo", random_state=0), scored on the validation trials. It is
searched with n_jobs=1 and all threads that torch takes, with n_jobs=1 and one thread, and with
n_jobs=2, where joblib shares the cores out among its processes. One row each; "speedup" is against
the first. Run it on a quiet machine: threads that share a core with other programs wait for them.
"""

import argparse
import time

import joblib
import numpy as np
import torch
from _results import add_arguments, path_of, write
from sklearn.model_selection import GridSearchCV

from sklearn_sae import NODESAE, __version__
from sklearn_sae.datasets import make_chaotic_spikes

GRID = {"n_latents": [2, 3, 5], "random_state": [0, 1]}


def main(quick, out):
    n_trials, options = (40, {"max_epochs": 2}) if quick else (2000, {})
    data = make_chaotic_spikes("Arneodo", n_trials=n_trials, random_state=0)
    rows, scores = [], []
    for n_jobs, n_threads in ((1, torch.get_num_threads()), (1, 1), (2, 1)):
        # Of this process; others have as many as joblib gives them.
        torch.set_num_threads(n_threads)
        start = time.perf_counter()
        found = search(data, n_jobs, options)
        seconds = time.perf_counter() - start
        scores.append(found["mean_test_score"])
        rows.append(
            {
                "n_jobs": n_jobs,
                "threads_per_fit": int(found["mean_test_threads"].max()),
                "seconds": round(seconds, 1),
                "speedup": round((rows[0]["seconds"] if rows else seconds) / seconds, 2),
                "fit_seconds": round(found["mean_fit_time"].mean(), 2),
                "n_cells": len(scores[-1]),
                "n_trials": len(data.train),
                "cores": joblib.cpu_count(),
                "device": "cuda" if torch.cuda.is_available() else "cpu",
                "version": __version__,
            }
        )
        print(
            "n_jobs={n_jobs}, threads of a fit {threads_per_fit}: {seconds:.1f} s for {n_cells} "
            "cells, {fit_seconds:.1f} s a fit, {speedup:.2f} times as fast".format(**rows[-1]),
            flush=True,
        )
    print(f"The last two have equal scores: {np.array_equal(scores[1], scores[2])}")

    write(out, rows)


def search(data, n_jobs, options):
    return (
        GridSearchCV(
            NODESAE(**options),
            GRID,
            scoring=score_and_threads,
            n_jobs=n_jobs,
            cv=[(data.train, data.validation)],
            refit=False,
            error_score="raise",
        )
        .fit(data.spikes)
        .cv_results_
    )


def score_and_threads(estimator, spikes, y=None):
    return {"score": estimator.score(spikes), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    main(arguments.quick, path_of("sweeps", arguments))

"""How well do models of two recordings predict spikes, and how well is behaviour read from them?

python benchmarks/recordings.py --macaque FILE.npz --rat FILE.npz [--out RESULTS.csv]
python benchmarks/recordings.py --quick    simulated stand-ins of both, to check that it runs

macaque  `spikes` (n_trials, n_bins, n_neurons), movement from `onset_bin`, and `target` of each
         trial. For two splits into 80 % training and 20 % test trials, n_latents (autonomous
         dynamics), or n_latents and n_inferred_inputs, are chosen by cross-validated co-smoothing
         within the training trials. On test trials: co-smoothing with each quarter of the neurons
         held out once, against each neuron's mean there; and the target, decoded from the latents
         and from counts after movement onset. At last, for one split, co-smoothing as the number of
         inferred inputs grows.
rat      `spikes` (n_bins, n_neurons) of one continuous session and `pos_xy` (n_bins, 2). The model
         learns from windows of the first three quarters; all windows are merged back. Is a step
         between bins larger at a seam than elsewhere? What do latents say about the position in
         the last quarter, by ridge regression, beside smoothed counts?

The recordings are not part of the package; whichever is not given is skipped, and its rows in the
CSV are left.
"""

import argparse
import csv
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _results import add_arguments, path_of, write
from scipy.ndimage import gaussian_filter1d
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_sae import NODESAE, __version__
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.io import chop, merge
from sklearn_sae.metrics import bits_per_spike, co_smoothing_rates

# Of models with inferred inputs, for 320 trials of a second: large steps, and for long, keep them
# from learning these by heart. Found by co-smoothing of two folds within the macaque's training
# trials of the first split. Models without inferred inputs have the defaults.
FEW_SPIKES = {
    "learning_rate": 0.1,
    "learning_rate_schedule": "onecycle",
    "horizon_growth": 0.3,
    "weight_decay": 0.3,
}
MODELS = {
    "NODESAE": {"n_latents": [16, 24, 32]},
    "NODESAE, inferred inputs": {"n_latents": [16, 24, 32], "n_inferred_inputs": [8, 16]},
}
GROWTH = {"n_latents": 24}
N_INFERRED = (1, 2, 4, 8, 16)
RAT = {"n_latents": 16}
WINDOW, OVERLAP = 50, 25
WIDTHS = (0, 5, 12, 25, 50, 100, 200)  # bins
QUICK = {
    "macaque": {
        "models": {"NODESAE": {"n_latents": [2, 3]}, "driven": {"n_inferred_inputs": [1]}},
        "n_inferred": (1,),
        "max_epochs": 2,
    },
    "rat": {"max_epochs": 2},
}


def main(macaque, rat, quick, out):
    rows = []

    def report(recording, measure, method, value, seed=0, n_latents=""):
        rows.append(
            {
                "recording": recording,
                "seed": seed,
                "measure": measure,
                "method": method,
                "value": f"{value:.4g}",
                "n_latents": n_latents,
                "threads": torch.get_num_threads(),
                "version": __version__,
            }
        )
        print(f"{recording:<8} seed {seed}  {measure:<32} {method:<34} {value:8.4g}", flush=True)

    for name, run, path in (("macaque", trials, macaque), ("rat", session, rat)):
        if quick:
            run(*stand_in(name), report, **QUICK[name])
        elif path is None:
            print(f"{name}: skipped, as no file was given; use --{name} FILE.npz")
        else:
            run(*load(name, path), report)
    if rows:
        done = {row["recording"] for row in rows}
        if out.exists():
            with out.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["recording"] not in done] + rows
        write(out, rows)


def load(name, path):
    with np.load(path) as file:
        keys = {"macaque": ("spikes", "target", "onset_bin"), "rat": ("spikes", "pos_xy")}[name]
        return [file[key] for key in keys]


def stand_in(name):
    """A small simulated recording with what `load` gives."""
    data = make_chaotic_spikes("Lorenz", n_trials=60, n_bins=20, n_neurons=12, random_state=0)
    if name == "macaque":
        return data.spikes, np.arange(60) % 3, 5
    return data.spikes.reshape(-1, 12), data.latents.reshape(-1, 3)[:, :2]


# ---------------------------------------------------------------------------------- macaque


def trials(spikes, target, onset, report, models=MODELS, n_inferred=N_INFERRED, **options):
    for seed in (0, 1):
        train, test = train_test_split(
            np.arange(len(spikes)), test_size=0.2, stratify=target, random_state=seed
        )
        parts = np.array_split(np.random.default_rng(seed).permutation(spikes.shape[2]), 4)
        bits = partial(report, "macaque", "co-smoothing (bits per spike)", seed=seed)
        share = partial(report, "macaque", "target decoded (share)", seed=seed)

        def co_smoothed(sae, test=test, parts=parts):
            return bits_per_spike(co_smoothing_rates(sae, spikes[test], parts=parts), spikes[test])

        def decoded(features, train=train, test=test):
            decoder = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            return decoder.fit(features[train], target[train]).score(features[test], target[test])

        conditions, means = np.unique(target), []
        for condition in conditions:
            means.append(spikes[train][target[train] == condition].mean(axis=0))
        mean = np.broadcast_to(spikes[train].mean(axis=0), spikes[test].shape)
        of_target = np.array(means)[np.searchsorted(conditions, target[test])]
        bits("mean over training trials", bits_per_spike(mean, spikes[test]))
        bits("mean over those of its target", bits_per_spike(of_target, spikes[test]))
        share("counts after movement onset", decoded(spikes[:, onset:].mean(axis=1)))
        for name, grid in models.items():
            start = time.perf_counter()
            settings = FEW_SPIKES if "n_inferred_inputs" in grid else {}
            search = GridSearchCV(
                NODESAE(random_state=0, **settings | options),
                grid,
                scoring=co_smoothing,
                cv=StratifiedKFold(3, shuffle=True, random_state=0),
                error_score="raise",
                n_jobs=2,
            ).fit(spikes[train], target[train])
            print(f"{search.best_params_} in {time.perf_counter() - start:.0f} s")
            sae = search.best_estimator_
            bits(name, co_smoothed(sae), n_latents=sae.n_latents)
            latents = windows(sae.transform(spikes))
            share(f"{name}: latents", decoded(latents), n_latents=sae.n_latents)
        for n in n_inferred if seed == 0 else ():
            sae = NODESAE(random_state=0, n_inferred_inputs=n, **FEW_SPIKES | GROWTH | options)
            sae.fit(spikes[train])
            bits(f"NODESAE, {n} inferred input(s)", co_smoothed(sae), n_latents=sae.n_latents)


def co_smoothing(estimator, spikes, y=None):
    return bits_per_spike(co_smoothing_rates(estimator, spikes, parts=4), spikes)


def windows(latents, n_windows=4):
    """Average latents in a few windows of time and lay these side by side, one row a trial."""
    parts = np.array_split(latents, n_windows, axis=1)
    return np.hstack([part.mean(axis=1) for part in parts])


# ---------------------------------------------------------------------------------- rat


def session(spikes, position, report, **options):
    n_train = 3 * len(spikes) // 4
    start = time.perf_counter()
    training, _ = chop(spikes[:n_train], WINDOW, OVERLAP)
    sae = NODESAE(random_state=0, **RAT | options).fit(training)
    chopped, layout = chop(spikes, WINDOW, OVERLAP)
    latents = sae.transform(chopped)
    rates = sae.predict(chopped)
    whole = merge(rates, layout)
    seconds = time.perf_counter() - start
    shared = {"n_latents": sae.n_latents}
    report("rat", "session to rates (s)", "NODESAE", seconds, **shared)
    unseen, _ = chop(spikes[n_train:], WINDOW, OVERLAP)
    report("rat", "score (bits per spike)", "NODESAE", sae.score(unseen), **shared)

    # Every second window, as they overlap by half.
    for method, whole_rates, step in (
        ("merged", whole, WINDOW - OVERLAP),
        ("windows end to end", np.concatenate(rates[::2]), WINDOW),
    ):
        whole_rates = whole_rates[: len(spikes)]
        ratio = jump_at_seams(whole_rates, step)
        report("rat", "step of rates at seams / elsewhere", method, ratio, **shared)
        ratio = jump_at_seams(np.log(whole_rates), step)
        report("rat", "step of log-rates, the same", method, ratio, **shared)

    merged = merge(latents, layout)
    known = np.isfinite(position).all(axis=1)
    for method, features, widths in (
        ("smoothed counts", spikes.astype(np.float32), WIDTHS),
        ("NODESAE latents", merged, (0,)),
        ("smoothed NODESAE latents", merged, WIDTHS),
    ):
        width, r2 = decode_position(features, position, known, n_train, widths)
        print(f"         {method}: smoothed by {width} bins")
        report("rat", "position decoded (R2)", method, r2, **shared)


def jump_at_seams(signals, step):
    """Mean change from bin to bin where windows begin or end, over that elsewhere.

    Each neuron's in units of its mean change.
    """
    change = np.abs(np.diff(signals, axis=0))
    change = (change / change.mean(axis=0)).mean(axis=1)
    seams = np.arange(step, len(signals), step) - 1
    return change[seams].mean() / np.delete(change, seams).mean()


def decode_position(features, position, known, n_train, widths):
    """Width that is best in the last third of the training part, and R2 on what follows it."""

    def score(width, fit_until, score_until):
        smooth = gaussian_filter1d(features, width, axis=0) if width else features
        fit, test = known.copy(), known.copy()
        fit[fit_until:] = test[:fit_until] = test[score_until:] = False
        decoder = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7)))
        decoder.fit(smooth[fit], position[fit])
        return r2_score(position[test], decoder.predict(smooth[test]))

    width = max(widths, key=lambda width: score(width, 2 * n_train // 3, n_train))
    return width, score(width, n_train, len(features))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--macaque", type=Path, help="an .npz file (default: skip it)")
    parser.add_argument("--rat", type=Path, help="an .npz file (default: skip it)")
    add_arguments(parser, quick="tiny fits of simulated stand-ins")
    arguments = parser.parse_args()
    main(arguments.macaque, arguments.rat, arguments.quick, path_of("recordings", arguments))

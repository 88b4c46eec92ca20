"""From recorded spike counts to latents: choose n_latents, compare, decode labels, draw.

    python examples/real_recording.py recording.npz [--labels target]

The file holds `spikes`, counts of shape (n_trials, n_bins, n_neurons) with NaN where nothing was
observed, and optionally one label for each trial.
"""

import argparse
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_sae import NODESAE
from sklearn_sae.metrics import baselines, bits_per_spike, co_smoothing_rates
from sklearn_sae.model_selection import smallest_within_one_standard_error

# Okabe and Ito's palette; its yellow is darkened to show on white.
COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#B8A800", "#0072B2", "#D55E00", "#CC79A7"]


def main(path, labels, candidates, n_jobs, quick, out):
    spikes, labels = load(path, labels)
    train, test = train_test_split(
        np.arange(len(spikes)), test_size=0.2, stratify=labels, random_state=0
    )
    print("{} trials of {} bins and {} neurons; ".format(*spikes.shape), end="")
    print(f"{len(test)} trials are kept for testing", flush=True)

    start = time.perf_counter()
    search = GridSearchCV(
        NODESAE(random_state=0, **({"max_epochs": 3} if quick else {})),
        {"n_latents": candidates},
        cv=3,
        n_jobs=n_jobs,
        refit=smallest_within_one_standard_error,
    ).fit(spikes[train])
    sae = search.best_estimator_
    print_search(search)
    print(f"Search and final fit took {time.perf_counter() - start:.0f} s")

    print(f"Score on test trials: {sae.score(spikes[test]):.4f} bits per spike (0: constant rates)")
    conditions = None if labels is None else (labels[train], labels[test])
    print_comparison(sae, spikes[train], spikes[test], conditions)
    latents = sae.transform(spikes)
    if labels is not None:
        decoder = make_pipeline(
            FunctionTransformer(windows), StandardScaler(), LogisticRegression(max_iter=2000)
        ).fit(latents[train], labels[train])
        accuracy = decoder.score(latents[test], labels[test])
        chance = np.bincount(np.unique(labels, return_inverse=True)[1]).max() / len(labels)
        print(f"Labels decoded from test trials' latents: {accuracy:.3f} (chance {chance:.3f})")

    test_labels = None if labels is None else labels[test]
    draw(latents[test], test_labels, spikes[test], sae.predict(spikes[test])).savefig(out, dpi=150)
    print(f"Saved {out}")


def load(path, key):
    with np.load(path) as file:
        if "spikes" not in file:
            raise SystemExit(f"{path} has no array `spikes`; it holds {sorted(file)}.")
        if key is not None and key not in file:
            raise SystemExit(f"{path} has no array `{key}`; choose --labels from {sorted(file)}.")
        key = key or "labels"
        return file["spikes"], file[key] if key in file else None


def print_search(search):
    print("n_latents   bits per spike   standard error")
    mean = search.cv_results_["mean_test_score"]
    error = search.cv_results_["std_test_score"] / np.sqrt(search.n_splits_ - 1)
    for index, n_latents in enumerate(search.cv_results_["param_n_latents"]):
        chosen = "   <- chosen" if index == search.best_index_ else ""
        print(f"{n_latents:9d}   {mean[index]:14.4f}   {error[index]:14.4f}{chosen}")


def print_comparison(sae, train, test, conditions):
    """Print what each method gains on neurons hidden from it: dynamics should beat the others."""
    scored = np.where(sae.null_rates_ > 0, test, np.nan)  # of neurons that fired in training
    own = bits_per_spike(co_smoothing_rates(sae, test), scored, sae.null_rates_)
    print("co-smoothing      bits per spike")
    for name, value in (baselines(train, test, conditions=conditions) | {"NODESAE": own}).items():
        print(f"{name:<16}   {value:13.4f}")


def windows(latents, n_windows=4):
    """Average latents in a few windows of time and lay these side by side, one row a trial."""
    parts = np.array_split(latents, min(n_windows, latents.shape[1]), axis=1)
    return np.hstack([part.mean(axis=1) for part in parts])


def draw(latents, labels, spikes, rates):
    plt.rcParams.update({"font.size": 13})
    figure = plt.figure(figsize=(14, 9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
    draw_latents(left.subplots(), latents, labels)
    draw_neurons(right, labels, spikes, rates)
    return figure


def draw_latents(axis, latents, labels):
    """Draw trajectories in a plane; thick lines are the means over the trials of one label."""
    n_trials, n_bins, n_latents = latents.shape
    groups = [latents] if labels is None else [latents[labels == x] for x in np.unique(labels)]
    # The plane in which labels differ most; without labels, the one in which trials do.
    spread = latents if labels is None else np.stack([group.mean(axis=0) for group in groups])
    plane = PCA(min(2, n_latents)).fit(spread.reshape(-1, n_latents))

    for index, group in enumerate(groups):
        points = plane.transform(group.reshape(-1, n_latents)).reshape(len(group), n_bins, -1)
        if n_latents == 1:
            time = np.broadcast_to(np.arange(n_bins)[:, np.newaxis], points.shape)
            points = np.concatenate([time, points], axis=2)
        colour = COLOURS[index % len(COLOURS)]
        axis.plot(*points.transpose(2, 1, 0), color=colour, lw=0.8, alpha=0.35)
        if labels is not None:
            mean = points.mean(axis=0)
            name = np.unique(labels)[index]
            style = ["-", "--", ":"][index // len(COLOURS) % 3]
            axis.plot(*mean.T, color=colour, lw=4, ls=style, marker="o", markevery=[0], label=name)
    if labels is not None:
        axis.legend(
            title="label (the dot is the first bin)",
            ncols=4,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.1),
            frameon=False,
        )

    axis.set_title("Latents of test trials" + ("" if labels is None else ", by label"))
    if n_latents == 1:
        axis.set(xlabel="time (bins)", ylabel="latent (a.u.)")
    else:
        axis.set(xlabel="first principal axis (a.u.)", ylabel="second principal axis (a.u.)")
    axis.spines[["top", "right"]].set_visible(False)


def draw_neurons(figure, labels, spikes, rates, n_neurons=3):
    """Draw spikes and rates of the neurons whose rates change most, one row of pixels a trial."""
    change = rates.var(axis=(0, 1)) / rates.mean(axis=(0, 1))
    neurons = np.sort(np.argsort(change)[-n_neurons:])
    axes = figure.subplots(len(neurons), 2, sharex=True, sharey=True, squeeze=False)
    order = np.arange(len(spikes))
    if labels is not None:
        order = np.argsort(labels, kind="stable")
        names, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
        axes[0, 0].set_yticks(first + counts / 2 - 0.5, names)

    for (left, right), neuron in zip(axes, neurons, strict=True):
        top = np.nanpercentile(spikes[..., neuron], 99)
        for axis, values in ((left, spikes), (right, rates)):
            image = axis.imshow(
                values[order, :, neuron],
                aspect="auto",
                interpolation="nearest",
                vmin=0,
                vmax=max(top, 1),
            )
        left.set_title(f"neuron {neuron}: spikes")
        right.set_title(f"neuron {neuron}: rates")
        left.set_ylabel("test trials" if labels is None else "test trials, by label")
        figure.colorbar(image, ax=right, label="spikes per bin", extend="max")
    for axis in axes[-1]:
        axis.set_xlabel("time (bins)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="an .npz file that holds `spikes`")
    parser.add_argument("--labels", help="array with a label for each trial (default: `labels`)")
    parser.add_argument(
        "--candidates",
        type=int,
        nargs="+",
        default=[2, 4, 8, 12, 16, 24],
        help="values of n_latents",
    )
    parser.add_argument("--n-jobs", type=int, default=2, help="fits at a time")
    parser.add_argument("--quick", action="store_true", help="tiny fits, to check that it runs")
    parser.add_argument("--out", default="real_recording.png", help="the figure")
    main(**vars(parser.parse_args()))

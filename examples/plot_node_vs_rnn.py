"""A neural ODE finds a chaotic attractor with as many latents as it has dimensions; a GRU does not.

python examples/plot_node_vs_rnn.py [--quick] [--n-jobs 2] [--out node_vs_rnn.png]

The message of Sedler, Versteeg & Pandarinath (NBDT 2023) in one picture, from simulated spikes of
neurons that are driven by the Arneodo system.
"""

import argparse
import time

import matplotlib.pyplot as plt
import numpy as np
from joblib import Parallel, delayed
from matplotlib.ticker import MaxNLocator
from sklearn.linear_model import LinearRegression

from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.metrics import rate_r2, state_r2

MODELS = {"NODE": NODESAE, "GRU": RNNSAE}
COLOURS = {"true": "black", "NODE": "#D55E00", "GRU": "#0072B2"}
DASHES = {"true": "-", "NODE": (0, (4, 1.5)), "GRU": (0, (1, 1))}
DIMENSION = 3


def main(quick, n_jobs, out):
    n_trials, sizes, options = (
        (40, (2, 3), {"max_epochs": 2}) if quick else (600, (2, 3, 5, 10), {})
    )
    data = make_chaotic_spikes("Arneodo", n_trials=n_trials, random_state=0)
    train, unseen = data.spikes[data.train], data.spikes[data.test]

    start = time.perf_counter()
    fits = {
        (name, n_latents): model(n_latents, random_state=0, **options)
        for n_latents in sizes
        for name, model in MODELS.items()
    }
    print(f"Fitting {len(fits)} models to {len(train)} trials ...", flush=True)
    fitted = Parallel(n_jobs)(delayed(sae.fit)(train) for sae in fits.values())
    fits = dict(zip(fits, fitted, strict=True))
    print(f"fits          {time.perf_counter() - start:.0f} s")

    scores = {name: [fits[name, size].score(unseen) for size in sizes] for name in MODELS}
    latents, rates = {"true": data.latents[data.test]}, {"true": data.rates[data.test]}
    labels = {"true": "true system"}
    for name in MODELS:
        sae = fits[name, DIMENSION]
        inferred = sae.transform(unseen)
        latents[name] = align(inferred, latents["true"])
        rates[name] = sae.predict(unseen)
        found = rate_r2(rates["true"], rates[name]), state_r2(latents["true"], inferred)
        labels[name] = f"{name}, state $R^2$ {found[1]:.2f}"
        print(f"{name:4} with {DIMENSION} latents: rate R2 {found[0]:.3f}, state R2 {found[1]:.3f}")
    for name in MODELS:
        bits = ", ".join(f"{score:.3f}" for score in scores[name])
        print(f"{name:4} bits per spike with {sizes} latents: {bits}")

    draw(latents, labels, unseen, rates, sizes, scores).savefig(out, dpi=150)
    print(f"Saved {out}")


def align(latents, true_latents):
    """Express latents in the true system's axes; they are found only up to an affine map."""
    flat, flat_true = (z.reshape(-1, z.shape[-1]) for z in (latents, true_latents))
    return LinearRegression().fit(flat, flat_true).predict(flat).reshape(true_latents.shape)


def draw(latents, labels, spikes, rates, sizes, scores, trial=0):
    plt.rcParams.update({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(12, 8.5), layout="constrained")
    above, below = figure.subfigures(2, 1)

    planes = above.subplots(1, 3, sharex=True, sharey=True)
    for axis, name in zip(planes, latents, strict=True):
        # NaN between trials lifts the pen.
        lines = np.pad(latents[name][:40], ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)
        axis.plot(lines[..., 0].ravel(), lines[..., 1].ravel(), color=COLOURS[name], lw=0.9)
        axis.set_title(labels[name], color=COLOURS[name])
        axis.set_xlabel("x (system units)")
    planes[0].set_ylabel("y (system units)")
    planes[0].xaxis.set_major_locator(MaxNLocator(5, prune="both"))
    # By the truth, so that latents that shrink or fly off are seen to.
    for axis, limits in ((0, planes[0].set_xlim), (1, planes[0].set_ylim)):
        low, high = latents["true"][..., axis].min(), latents["true"][..., axis].max()
        limits(low - 0.1 * (high - low), high + 0.1 * (high - low))

    left, right = below.subfigures(1, 2, width_ratios=(2, 1))
    contrast = np.ptp(rates["true"][trial], axis=0)
    neurons = np.sort(np.argsort(contrast)[-2:])
    bins = np.arange(spikes.shape[1])
    for axis, neuron in zip(left.subplots(1, len(neurons)), neurons, strict=True):
        axis.bar(bins, spikes[trial, :, neuron], width=1, color="#C9D1D6", label="spikes")
        for name in rates:
            axis.plot(
                bins, rates[name][trial, :, neuron], color=COLOURS[name], ls=DASHES[name], lw=2.5,
                label=name,
            )  # fmt: skip
        axis.set(xlabel="time (bins)", title=f"Neuron {neuron}, unseen trial")
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.figure.axes[0].set_ylabel("rate (spikes per bin)")
    axis.figure.axes[0].legend(frameon=False, fontsize=12)

    axis = right.subplots()
    for name, marker in zip(MODELS, "os", strict=True):
        axis.plot(sizes, scores[name], color=COLOURS[name], marker=marker, ms=8, lw=2.5, label=name)
    axis.axvline(DIMENSION, color="0.6", lw=1.5, ls="--", label="true dimension")
    axis.set(
        xscale="log", xlabel="latent dimension", ylabel="score (bits per spike)",
        title="Held-out spikes",
    )  # fmt: skip
    axis.set_xticks(sizes, sizes)
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=12, loc="lower right")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny fits, to check that it runs")
    parser.add_argument(
        "--n-jobs", type=int, default=2, help="fits at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--out", default="node_vs_rnn.png", help="the figure (default: %(default)s)"
    )
    main(**vars(parser.parse_args()))

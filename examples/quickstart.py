"""Simulate spikes from a Lorenz system, fit NODESAE, and compare what it finds with the truth.

python examples/quickstart.py [--quick] [--out quickstart.png]
"""

import argparse
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LinearRegression

from sklearn_sae import NODESAE
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.metrics import rate_r2, state_r2

TRUE, INFERRED, SPIKES = "black", "#D55E00", "#B8C4CC"


def main(quick, out):
    n_trials, options = (30, {"max_epochs": 3}) if quick else (500, {})
    data = make_chaotic_spikes("Lorenz", n_trials=n_trials, random_state=0)
    train, unseen = data.spikes[data.train], data.spikes[data.test]
    print(
        f"Fitting {len(train)} trials of {train.shape[1]} bins and {train.shape[2]} neurons ...",
        flush=True,
    )

    start = time.perf_counter()
    sae = NODESAE(n_latents=3, random_state=0, **options).fit(train)
    print(f"fit           {time.perf_counter() - start:.1f} s")

    latents = sae.transform(unseen)
    rates = sae.predict(unseen)
    true_latents, true_rates = data.latents[data.test], data.rates[data.test]

    print(f"On {len(unseen)} unseen trials:")
    print(f"  rate R2     {rate_r2(true_rates, rates):.3f}    (1 is perfect)")
    print(f"  state R2    {state_r2(true_latents, latents):.3f}    (1 is perfect)")
    print(f"  score       {sae.score(unseen):.3f}    (bits per spike; 0 is a constant rate)")

    aligned = align(latents, true_latents)
    draw(true_latents, aligned, unseen, true_rates, rates).savefig(out, dpi=150)
    print(f"Saved {out}")


def align(latents, true_latents):
    """Express latents in the true system's axes; they are found only up to an affine map."""
    flat, flat_true = latents.reshape(-1, 3), true_latents.reshape(-1, 3)
    return LinearRegression().fit(flat, flat_true).predict(flat).reshape(true_latents.shape)


def draw(true_latents, latents, spikes, true_rates, rates, trial=0):
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(2, 6)
    bins = np.arange(spikes.shape[1])

    plane = figure.add_subplot(grid[0, :3])
    for states, colour, width in ((true_latents, TRUE, 3), (latents, INFERRED, 1.2)):
        # NaN between trials lifts the pen.
        lines = np.pad(states[:25], ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)
        plane.plot(lines[..., 0].ravel(), lines[..., 2].ravel(), color=colour, lw=width)
    plane.set(
        xlabel="x (Lorenz units)", ylabel="z (Lorenz units)", title="Latents of unseen trials"
    )

    courses = grid[0, 3:].subgridspec(3, 1).subplots(sharex=True)
    for axis, name, true, inferred in zip(
        courses, "xyz", true_latents[trial].T, latents[trial].T, strict=True
    ):
        axis.plot(bins, true, color=TRUE, lw=2)
        axis.plot(bins, inferred, color=INFERRED, lw=2, ls="--")
        axis.set_ylabel(name)
    courses[0].set_title("Latents of one trial")
    courses[-1].set_xlabel("time (bins)")

    contrast = np.ptp(true_rates[trial], axis=0)
    for column, neuron in enumerate(np.sort(np.argsort(contrast)[-3:])):
        axis = figure.add_subplot(grid[1, 2 * column : 2 * column + 2])
        axis.bar(bins, spikes[trial, :, neuron], width=1, color=SPIKES, label="spikes")
        axis.plot(bins, true_rates[trial, :, neuron], color=TRUE, lw=2, label="true")
        axis.plot(bins, rates[trial, :, neuron], color=INFERRED, lw=2, ls="--", label="inferred")
        axis.set(xlabel="time (bins)", title=f"Neuron {neuron}")
        if column == 0:
            axis.set_ylabel("spikes per bin")
            figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny fit, to check that it runs")
    parser.add_argument("--out", default="quickstart.png", help="the figure (default: %(default)s)")
    main(**vars(parser.parse_args()))

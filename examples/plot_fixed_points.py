"""Fit spikes from a Lorenz system and look inside: fixed points, eigenvalues, Lyapunov exponents.

python examples/plot_fixed_points.py [--quick] [--out plot_fixed_points.png]
"""

import argparse

import matplotlib.pyplot as plt

from sklearn_sae import NODESAE
from sklearn_sae.analysis import find_fixed_points, lyapunov_spectrum, match_fixed_points
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.plotting import EigenvalueDisplay, FixedPointDisplay


def main(quick, out):
    n_trials, options = (30, {"max_epochs": 3}) if quick else (2000, {})
    n_runs, n_bins = (8, 50) if quick else (64, 1000)
    data = make_chaotic_spikes("Lorenz", n_trials=n_trials, random_state=0)
    spikes, states = data.spikes[data.train], data.latents[data.train]
    print(f"Fitting {len(spikes)} trials ...", flush=True)
    sae = NODESAE(n_latents=3, random_state=0, **options).fit(spikes)
    latents = sae.transform(spikes)

    learned = find_fixed_points(sae, latents, random_state=0)
    true = find_fixed_points(data.system, states, bin_width=data.bin_width, random_state=0)
    print(f"\nLearned: {learned}\n\nTrue: {true}\n")
    print(match_fixed_points(learned, true, alignment=(latents, states)))

    print("\nLyapunov exponents per unit of Lorenz time, and Kaplan-Yorke dimension")
    for name, system, starts in (("learned", sae, latents), ("true", data.system, states)):
        spectrum = lyapunov_spectrum(system, starts[:n_runs, 0], n_bins, bin_width=data.bin_width)
        exponents = "  ".join(f"{exponent:7.3f}" for exponent in spectrum.per_time)
        print(f"  {name:<9}{exponents}    {spectrum.kaplan_yorke_dimension:.3f}")

    figure = plt.figure(figsize=(16, 5), layout="constrained")
    # The layout does not know how far the labels of 3-D axes reach.
    figure.get_layout_engine().set(wspace=0.12, h_pad=0.15)
    for column, (title, found, paths) in enumerate(
        (("True system", true, states), ("Learned from spikes", learned, latents)), start=1
    ):
        ax = figure.add_subplot(1, 3, column, projection="3d")
        FixedPointDisplay(found, paths).plot(ax=ax)
        ax.set_title(title, fontsize=14)
    figure.axes[0].set(xlabel="x", ylabel="y", zlabel="z")
    ax = figure.add_subplot(1, 3, 3)
    EigenvalueDisplay(learned, true).plot(ax=ax)
    ax.set_title("Eigenvalues of the one-bin map", fontsize=14)
    figure.savefig(out, dpi=150)
    print(f"\nSaved {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny fit, to check that it runs")
    parser.add_argument(
        "--out", default="plot_fixed_points.png", help="the figure (default: %(default)s)"
    )
    main(**vars(parser.parse_args()))

"""From a session in an NWB file to the figures of a lab meeting.

    python examples/plot_real_recording.py
    python examples/plot_real_recording.py session.nwb --align-to go_cue_time --label target

Without a file it simulates a session, writes it to one, and reads that. Trials around an event are
cut from the session, a quarter of them is kept for testing, and of these the figure shows latents,
PSTHs beside predicted rates, how well each neuron is predicted from others (co-smoothing), and a
label of the trial decoded from the latents. Counts that are binned already go to real_recording.py,
which also chooses n_latents.
"""

import argparse
import datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from pynwb import NWBHDF5IO, NWBFile
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_sae import NODESAE
from sklearn_sae.datasets import Lorenz
from sklearn_sae.io import trials_from_nwb
from sklearn_sae.metrics import bits_per_spike, co_smoothing_rates, psth_r2
from sklearn_sae.plotting import LatentTrajectoryDisplay

MIN_RATE = 0.5  # spikes/s; little can be learned about units that fire less


def main(path, align_to, window, bin_size, label, n_latents, quick, out):
    if path is None:
        path = Path(out).with_suffix(".nwb")
        write_session(path, n_trials=40 if quick else 320)
        print(f"Wrote a simulated session to {path}")

    data = trials_from_nwb(path, bin_size=bin_size, align_to=align_to, window=window)
    if label not in data.trials:
        raise SystemExit(
            f"The trials have no column {label!r}; choose --label from {', '.join(data.trials)}."
        )
    labels = data.trials[label].to_numpy().astype(str)
    fires = np.nanmean(data.spikes, axis=(0, 1)) >= MIN_RATE * bin_size
    spikes = data.spikes[:, :, fires]
    print("{} trials of {} bins, {} neurons".format(*spikes.shape), end="")
    print(f" ({np.sum(~fires)} that hardly fire are left out)")

    train, test = train_test_split(
        np.arange(len(spikes)), test_size=0.25, stratify=labels, random_state=0
    )
    print(f"Fitting {len(train)} trials; {len(test)} are kept for testing ...", flush=True)
    sae = NODESAE(n_latents, random_state=0, **({"max_epochs": 3} if quick else {}))
    sae.fit(spikes[train])
    rates = sae.predict(spikes[test])
    print(f"Score on test trials: {sae.score(spikes[test]):.3f} bits per spike")
    print(f"PSTH R2 on test trials: {psth_r2(rates, spikes[test], labels[test]):.3f}")

    by_label = label_means(spikes[train], labels[train], labels[test])
    scores = co_smoothing(sae, spikes[test], by_label)
    decoded = decode(sae, spikes, labels, train, test)

    plt.rcParams.update({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(16, 10), layout="constrained")
    # The layout does not know how far the labels of 3-D axes reach.
    figure.get_layout_engine().set(wspace=0.1)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    lines = draw_latents(top.add_subplot(1, 3, 1, projection="3d"), sae, spikes[test], labels[test])
    draw_co_smoothing(top.add_subplot(1, 3, 2), scores, label)
    draw_confusion(top.add_subplot(1, 3, 3), labels[test], decoded, label)
    times = window[0] + bin_size * (0.5 + np.arange(spikes.shape[1]))
    bottom.supxlabel(f"time from {align_to} (s)")
    draw_psths(bottom, times, spikes[test] / bin_size, rates / bin_size, labels[test], lines)
    figure.savefig(out, dpi=150)
    print(f"Saved {out}")


def write_session(path, n_trials, n_neurons=40, before=0.2, after=0.8):
    """Simulate neurons that read out a Lorenz system which starts where the target says."""
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.arange(n_trials) % 4)
    system = Lorenz()
    attractor = system.trajectory(4000, bin_width=0.01)
    starts = attractor[[0, 30, 60, 90]][targets] + rng.normal(0, 3.0, (n_trials, 3))
    n_steps = round((before + after) / 0.001)
    states = system.simulate(starts, n_steps, bin_width=0.0012)
    states = (states - attractor.mean(axis=0)) / attractor.std(axis=0)
    rates = 10 * np.exp(states @ rng.normal(0, 0.3, (3, n_neurons)))  # spikes/s
    counts = rng.poisson(0.001 * rates)

    cues = 10 + 2.0 * np.arange(n_trials) + rng.uniform(0, 0.5, n_trials)
    nwb = NWBFile("a simulated session", "simulated", datetime.datetime.now(datetime.UTC))
    for neuron in range(n_neurons):
        trial, step = np.nonzero(counts[..., neuron])
        times = cues[trial] - before + 0.001 * (step + rng.random(len(step)))
        nwb.add_unit(spike_times=np.sort(times))
    nwb.add_trial_column("go_cue_time", "when the cue to move came, in seconds")
    nwb.add_trial_column("target", "where to move")
    for cue, target in zip(cues, targets, strict=True):
        nwb.add_trial(
            start_time=cue - before,
            stop_time=cue + after,
            go_cue_time=cue,
            target=["right", "up", "left", "down"][target],
        )
    with NWBHDF5IO(path, "w") as file:
        file.write(nwb)


def label_means(spikes, labels, wanted):
    """Mean over the trials of each label, as if each had one more, at the neuron's mean count."""
    overall = np.nanmean(spikes, axis=(0, 1))
    means = {}
    for name in np.unique(labels):
        trials = spikes[labels == name]
        n_seen = (~np.isnan(trials)).sum(axis=0)
        means[name] = (np.nansum(trials, axis=0) + overall) / (n_seen + 1)
    return np.stack([means[name] for name in wanted])


def co_smoothing(sae, spikes, by_label):
    """Bits per spike of each neuron: by the mean of its label, and from the other neurons."""
    print("Co-smoothing on test trials, bits per spike (0: constant rates)")
    print(f"  {'':36}all neurons   median neuron")
    scores = []
    for name, rates in (
        ("mean of the label's training trials", by_label),
        ("NODESAE, from three in four neurons", co_smoothing_rates(sae, spikes, parts=4)),
    ):
        of_neurons = [
            bits_per_spike(rates[..., i], spikes[..., i]) if np.nansum(spikes[..., i]) else np.nan
            for i in range(spikes.shape[2])
        ]
        print(f"  {name:36}{bits_per_spike(rates, spikes):11.3f}", end="")
        print(f"   {np.nanmedian(of_neurons):13.3f}")
        scores.append(of_neurons)
    return scores


def decode(sae, spikes, labels, train, test):
    """Labels of test trials, by logistic regression on latents averaged in four windows."""
    decoder = make_pipeline(
        FunctionTransformer(windows), StandardScaler(), LogisticRegression(max_iter=2000)
    ).fit(sae.transform(spikes[train]), labels[train])
    decoded = decoder.predict(sae.transform(spikes[test]))
    chance = np.unique(labels, return_counts=True)[1].max() / len(labels)
    accuracy = np.mean(decoded == labels[test])
    print(f"Labels decoded from test trials' latents: {accuracy:.3f} (chance {chance:.3f})")
    return decoded


def windows(latents, n_windows=4):
    """Average latents in a few windows of time and lay these side by side, one row a trial."""
    parts = np.array_split(latents, min(n_windows, latents.shape[1]), axis=1)
    return np.hstack([part.mean(axis=1) for part in parts])


def draw_latents(ax, sae, spikes, labels):
    """Draw a few trials of each label; returns a line of each, in the order of labels."""
    few = np.concatenate([np.flatnonzero(labels == name)[:8] for name in np.unique(labels)])
    display = LatentTrajectoryDisplay.from_estimator(
        sae, spikes[few], labels=labels[few], n_trials=len(few), ax=ax
    )
    ax.set_title("Latents of single trials")
    return display.lines_


def draw_co_smoothing(ax, scores, label):
    ax.axline((0, 0), slope=1, color="#9AA5AD", lw=1.5, zorder=0)
    ax.scatter(*scores, s=40, color="#0072B2", edgecolor="white")
    ax.set(
        title="Co-smoothing of each neuron",
        xlabel=f"from the mean of its {label} (bits per spike)",
        ylabel="from other neurons (bits per spike)",
    )


def draw_confusion(ax, labels, decoded, label):
    names = np.unique(labels)
    ConfusionMatrixDisplay.from_predictions(
        labels, decoded, labels=names, normalize="true", values_format=".2f", ax=ax,
        cmap="Blues", colorbar=False,
    )  # fmt: skip
    ax.spines[:].set_visible(False)
    ax.set(
        title=f"Decoded from latents: {np.mean(labels == decoded):.0%}",
        xlabel=f"decoded {label}",
        ylabel=f"true {label}",
    )


def draw_psths(figure, times, spikes, rates, labels, lines, n_neurons=4):
    """Draw means over the trials of each label, of the neurons in which these differ most."""
    names = np.unique(labels)
    counted = np.stack([np.nanmean(spikes[labels == name], axis=0) for name in names])
    predicted = np.stack([rates[labels == name].mean(axis=0) for name in names])
    change = predicted.var(axis=(0, 1)) / predicted.mean(axis=(0, 1))
    neurons = np.sort(np.argsort(change)[-n_neurons:])
    axes = figure.subplots(1, len(neurons), sharex=True, squeeze=False)[0]
    for ax, neuron in zip(axes, neurons, strict=True):
        for line, one, other in zip(lines, counted, predicted, strict=True):
            style = {"color": line.get_color(), "ls": line.get_linestyle()}
            ax.plot(times, one[:, neuron], lw=1, alpha=0.7, **style)
            ax.plot(times, other[:, neuron], lw=3.5, label=line.get_label(), **style)
        ax.axvline(0, color="#9AA5AD", lw=1.5, ls=":")
        ax.set_title(f"neuron {neuron}")
    axes[0].set_ylabel("spikes/s (thin: PSTH,\nthick: predicted)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", help="an NWB file (default: simulate a session)")
    parser.add_argument(
        "--align-to", default="go_cue_time", help="column of times in the trials table"
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        default=[-0.2, 0.8],
        metavar=("START", "STOP"),
        help="seconds from there (default: -0.2 0.8)",
    )
    parser.add_argument("--bin-size", type=float, default=0.02, help="seconds (default: 0.02)")
    parser.add_argument("--label", default="target", help="column of the trials table to decode")
    parser.add_argument("--n-latents", type=int, default=6, help="latent dimension (default: 6)")
    parser.add_argument("--quick", action="store_true", help="a tiny fit, to check that it runs")
    parser.add_argument(
        "--out", default="plot_real_recording.png", help="the figure (default: %(default)s)"
    )
    main(**vars(parser.parse_args()))

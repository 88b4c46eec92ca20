"""The figures of paper.py: what was measured, and the paper's numbers in the same axes."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

COLOURS = {"NODE": "#D55E00", "discrete NODE": "#D55E00", "GRU": "#0072B2"}
MEASURES = {"rate_r2": "rate $R^2$", "state_r2": "state $R^2$"}
#: Line style and marker; the paper's own numbers are thin, what was run here is bold.
RECIPES = {"ours": ("-", "o", "defaults"), "paper": ("-.", "^", "the paper's training, run here")}
ABLATION = ["discrete NODE", "no growing horizon", "no passthrough", "no MLP", "vanilla RNN"]

plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})


def draw_sweep(results, published, systems):
    """R2 on validation trials against the number of latents: figures 1c, 2a and 2c."""
    figure, axes = plt.subplots(
        2, len(systems), figsize=(3.3 * len(systems), 7.2), sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    main = published[published.experiment == "main"]
    for column, system in enumerate(systems):
        axes[0, column].set_title(f"{system}, {systems[system]} neurons")
        axes[1, column].set_xlabel("latent dimension")
        here = results[results.system == system]
        for axis, measure in zip(axes[:, column], MEASURES, strict=True):
            for model, rows in main[main.system == system].groupby("model"):
                axis.errorbar(
                    rows.n_latents, rows[measure], rows[f"{measure}_sd"], color=COLOURS[model],
                    ls=":", lw=1.5, marker="x", ms=5, capsize=2, alpha=0.8,
                )  # fmt: skip
            for recipe, (style, marker, _) in RECIPES.items():
                chosen = here[here.recipe == recipe]
                for model, rows in chosen.groupby("model"):
                    _draw_seeds(axis, rows, f"validation_{measure}", COLOURS[model], style, marker)
            for ceiling in here.loc[here.recipe == "oracle", f"validation_{measure}"]:
                axis.axhline(ceiling, color="0.4", lw=1, ls="--")
            axis.set(xscale="log", ylim=(0, 1.03))
            axis.set_xticks([2, 3, 5, 10, 25, 50, 100], [2, 3, 5, 10, 25, 50, 100])
            axis.minorticks_off()
    for axis, label in zip(axes[:, 0], MEASURES.values(), strict=True):
        axis.set_ylabel(label)
    figure.legend(handles=_sweep_legend(), loc="outside upper center", ncols=6, frameon=False)
    return figure


def _draw_seeds(axis, rows, column, colour, style, marker):
    """Every seed as a point, and a line through the means."""
    means = rows.groupby("n_latents")[column].mean()
    axis.plot(means.index, means, color=colour, ls=style, lw=2.5)
    axis.plot(rows.n_latents, rows[column], color=colour, ls="", marker=marker, ms=7, mec="white")


def _sweep_legend():
    lines = [Line2D([], [], color=COLOURS[m], lw=4, label=m) for m in ("NODE", "GRU")]
    for style, marker, label in RECIPES.values():
        lines.append(Line2D([], [], color="k", ls=style, lw=2.5, marker=marker, ms=7, label=label))
    lines.append(Line2D([], [], color="k", ls=":", marker="x", ms=5, label="published"))
    lines.append(Line2D([], [], color="0.4", ls="--", lw=1, label="oracle"))
    return lines


def draw_ablation(results, published):
    """R2 of the discrete models, published and run here."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    ours = results[results.recipe == "ablation"]
    facts = published[published.experiment == "ablation"].set_index("model").loc[ABLATION]
    places = np.arange(len(ABLATION))
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        axis.barh(
            places, facts[measure], xerr=facts[f"{measure}_sd"], height=0.7, color="0.8",
            ecolor="0.4", label="published, mean and s.d. of seeds",
        )  # fmt: skip
        axis.plot(
            ours[f"validation_{measure}"], [ABLATION.index(m) for m in ours.model], color="#D55E00",
            ls="", marker="o", ms=9, mec="white", label="run here, each seed",
        )  # fmt: skip
        axis.set(
            xlabel=f"{label}, Arneodo, 3 latents",
            xlim=(0, 1.03),
            yticks=places,
            yticklabels=ABLATION,
        )
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure

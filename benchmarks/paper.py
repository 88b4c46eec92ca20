"""Reproduce Sedler, Versteeg & Pandarinath (NBDT 2023): figures 1c, 2a, 2c and the ablation.

python benchmarks/paper.py --quick                          every kind of cell, tiny, in a minute
python benchmarks/paper.py --recipe ours --n-latents 3      what matches all filters that are given
python benchmarks/paper.py --full --n-jobs 8                everything: days on a few cores

A cell is one fit. When it is done its row is appended to benchmarks/results/paper.csv, and a cell
found there is not run again: to resume, give the same command; to run a cell again, delete its row.
Figures are drawn beside the CSV. Needs pip install "sklearn_sae[test]".

Recipes: "ours" is this package's defaults; "paper" is the paper's own training, with dopri5, bin by
bin, in place of tsit5 and this package's start of the weights; "ablation" is the paper's table of
discrete models, trained as "paper" but from weights drawn as torch's layers draw them, because this
package's start makes up for much of what is taken away; "oracle" is the true system and readout
with each trial's most likely initial condition: the best that the noise of the spikes allows. As in
the paper, R2 on validation trials of "paper" and "ablation" is the median over the last 500 and 100
epochs (every tenth of them), because a constant learning rate never settles; everything else is of
the final model.
"""

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Memory, Parallel, delayed

from sklearn_sae import NODESAE, RNNSAE, __version__
from sklearn_sae._data.trials import Trials
from sklearn_sae._model.layers import uniform_weight
from sklearn_sae.datasets import make_chaotic_spikes, oracle_rates
from sklearn_sae.metrics import rate_r2, state_r2

RESULTS = Path(__file__).parent / "results"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sklearn_sae"

N_NEURONS = {"Arneodo": 10, "Lorenz": 10, "Rossler": 10, "MackeyGlass": 100, "MacArthur": 100}
DIMENSION = {"Arneodo": 3, "Lorenz": 3, "Rossler": 3, "MackeyGlass": 10, "MacArthur": 10}
N_LATENTS = (2, 3, 5, 10, 25, 50, 100)
SEEDS = tuple(range(5))

PAPER = {
    "inference": "amortized",
    "hidden_sizes": (128,),
    "encoder_size": 64,
    "dropout": 0.05,
    "initial_condition_dropout": 0.05,
    "coordinated_dropout": 0.0,
    "optimizer": "adam",
    "learning_rate_schedule": "constant",
    "clip_norm": None,
    "batch_size": 640,
    "max_epochs": 3000,
}
FIVE_BINS_EVERY_150_EPOCHS = {"horizon_start": 5, "horizon_step": 5, "horizon_growth": 1950 / 3000}
TWENTY_EVERY_500 = {"horizon_start": 20, "horizon_step": 20, "horizon_growth": 1500 / 3000}
ALL_BINS = {"horizon_growth": 0.0}

# A whole trial of 70 bins takes one unit of time.
NODE = {"learning_rate": 5e-3, "weight_decay": 1e-5, "time_scale": 69.0}
NODE |= {"solver": "dopri5", "rtol": 1e-3, "atol": 1e-3}
GRU = {"learning_rate": 1e-3, "weight_decay": 1e-4}
DISCRETE = {"cell": "mlp", "activation": "relu", "residual": 0.1}


class PlainRNNSAE(RNNSAE):
    """Dynamics and readout start as layers of torch do, and not from data."""

    def _start(self, training, mean_counts, seed, generator):
        model, z0 = super()._start(training, mean_counts, seed, generator)
        with torch.no_grad():
            for weight in model.generative_parameters():
                n_out, n_in = weight.shape
                weight.copy_(uniform_weight(n_out, n_in - 1, generator))
        return model, z0


MODELS = {
    "ours": {
        "NODE": (NODESAE, {}),
        "GRU": (RNNSAE, {}),
    },
    "paper": {
        "NODE": (NODESAE, {**PAPER, **NODE, **FIVE_BINS_EVERY_150_EPOCHS}),
        "GRU": (RNNSAE, {**PAPER, **GRU, **ALL_BINS}),
        # In place of NODE for MacArthur, as in the paper.
        "discrete NODE": (RNNSAE, {**PAPER, **DISCRETE, **TWENTY_EVERY_500, "learning_rate": 5e-4}),
    },
    "ablation": {
        "discrete NODE": (
            PlainRNNSAE,
            {**PAPER, **DISCRETE, **TWENTY_EVERY_500, "learning_rate": 5e-4},
        ),
        "no growing horizon": (
            PlainRNNSAE,
            {**PAPER, **DISCRETE, **ALL_BINS, "learning_rate": 1e-2},
        ),
        "no passthrough": (
            PlainRNNSAE,
            {**PAPER, **DISCRETE, "residual": None, **TWENTY_EVERY_500, "learning_rate": 1e-3},
        ),
        "no MLP": (
            PlainRNNSAE,
            {**PAPER, "cell": "rnn", "residual": 0.1, **TWENTY_EVERY_500, "learning_rate": 1e-2},
        ),
        "vanilla RNN": (PlainRNNSAE, {**PAPER, "cell": "rnn", **ALL_BINS, "learning_rate": 1e-2}),
    },
}

#: Epochs over which the paper takes the median of its figures.
LAST_EPOCHS = {"paper": 500, "ablation": 100}

METRICS = ("rate_r2", "state_r2", "score")
COLUMNS = (
    *("recipe", "system", "model", "n_latents", "seed", "n_neurons", "n_trials"),
    *(f"{part}_{metric}" for part in ("validation", "test") for metric in METRICS),
    *("fit_seconds", "n_epochs", "device", "threads", "version"),
)


class Cell(NamedTuple):
    """What is fitted to what: the key of a row of results."""

    recipe: str
    system: str
    model: str
    n_latents: int
    seed: int

    def __str__(self):
        return f"{self.recipe}: {self.model} D={self.n_latents} {self.system} seed {self.seed}"


def main():
    args = parse()
    cells = [cell for cell in all_cells() if matches(cell, args)]
    if not cells:
        raise SystemExit("No cell matches all of these filters. Leave one out.")
    path = args.out / "paper.csv"
    done = finished(path)
    todo = [cell for cell in cells if cell not in done]
    print(f"{len(cells)} cells: {len(cells) - len(todo)} done, {len(todo)} to run.", flush=True)

    if not args.dry_run:
        memory = Memory(args.cache, verbose=0)
        work = (delayed(run)(cell, memory, args.n_trials, args.max_epochs) for cell in todo)
        rows = Parallel(n_jobs=args.n_jobs, return_as="generator_unordered")(work)
        for i, row in enumerate(rows, start=1):
            append(path, row)
            print(
                f"[{i}/{len(todo)}] {Cell(*(row[field] for field in Cell._fields))}: "
                f"rate R2 {row['validation_rate_r2']:.4f}, state R2 "
                f"{row['validation_state_r2']:.4f}, {row['fit_seconds']:.0f} s",
                flush=True,
            )

    if path.exists():
        results, published = pd.read_csv(path), pd.read_csv(RESULTS / "published.csv")
        if not args.dry_run:
            # The import is slow, and parallel workers load this file too.
            from _paper_figures import draw_ablation, draw_sweep

            draw_sweep(results, published, N_NEURONS).savefig(args.out / "paper.png", dpi=150)
            draw_ablation(results, published).savefig(args.out / "ablation.png", dpi=150)
        print(f"\n{table(results, published)}\n\nAll results and figures are in {args.out}")


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a few trials and epochs, written elsewhere")
    add("--full", action="store_true", help="all cells")
    add("--dry-run", action="store_true", help="run nothing; summarise what is there")
    add("--recipe", nargs="+", choices=(*MODELS, "oracle"), metavar="R", help="filter")
    add("--systems", nargs="+", choices=N_NEURONS, metavar="S", help="filter")
    add("--models", nargs="+", choices=sorted({c.model for c in all_cells()}), metavar="M",
        help="filter")  # fmt: skip
    add("--n-latents", nargs="+", type=int, choices=N_LATENTS, metavar="D", help="filter")
    add("--seeds", nargs="+", type=int, choices=SEEDS, metavar="N", help="filter")
    add("--n-jobs", type=int, default=1, help="fits at a time (default: %(default)s)")
    add("--out", type=Path, help="folder of the CSV and figures (default: benchmarks/results)")
    add("--cache", type=Path, default=CACHE / __version__, metavar="FOLDER",
        help="simulated spikes; empty it if sklearn_sae.datasets changed (default: %(default)s)",
        )  # fmt: skip
    args = parser.parse_args()
    args.n_trials, args.max_epochs = 2000, None

    filters = (args.recipe, args.systems, args.models, args.n_latents, args.seeds)
    if not (args.quick or args.full or args.dry_run or any(filters)):
        parser.error(f"give --quick, --full (all {len(all_cells())} cells) or a filter; see --help")
    if args.quick:
        if args.out is not None and args.out.resolve() == RESULTS.resolve():
            parser.error(f"--quick must not mix with the full results: --out is {args.out}")
        args.n_trials, args.max_epochs, args.cache = 40, 2, None
        args.systems = args.systems or ["Arneodo", "MackeyGlass"]
        args.n_latents = args.n_latents or [2, 3]
        args.seeds = args.seeds or [0]
        args.out = args.out or Path(tempfile.mkdtemp(prefix="paper-quick-"))
    args.out = args.out or RESULTS
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def all_cells():
    """Cells in the order they are run: one seed of everything before the next seed."""
    cells = [
        # A delay system has no initial condition, and so no oracle.
        Cell("oracle", system, "oracle", DIMENSION[system], 0)
        for system in N_NEURONS
        if system != "MackeyGlass"
    ]
    for recipe in ("ours", "paper"):
        for seed in SEEDS:
            for n_latents in N_LATENTS:
                for model in ("NODE", "GRU"):
                    for system in N_NEURONS:
                        discrete = (recipe, model, system) == ("paper", "NODE", "MacArthur")
                        name = "discrete NODE" if discrete else model
                        cells.append(Cell(recipe, system, name, n_latents, seed))
    cells += [Cell("ablation", "Arneodo", m, 3, seed) for seed in SEEDS for m in MODELS["ablation"]]
    return cells


def matches(cell, args):
    wanted = (args.recipe, args.systems, args.models, args.n_latents, args.seeds)
    return all(
        values is None or value in values for value, values in zip(cell, wanted, strict=True)
    )


def finished(path):
    if not path.exists():
        return set()
    return set(pd.read_csv(path)[list(Cell._fields)].itertuples(index=False, name=None))


def append(path, row):
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def run(cell, memory, n_trials, max_epochs):
    """One row of results."""
    n_neurons = N_NEURONS[cell.system]
    simulate = memory.cache(make_chaotic_spikes)
    data = simulate(cell.system, n_trials=n_trials, n_neurons=n_neurons, random_state=0)
    evaluate = evaluate_oracle if cell.recipe == "oracle" else evaluate_model
    return {
        **cell._asdict(),
        "n_neurons": n_neurons,
        "n_trials": n_trials,
        **evaluate(cell, data, max_epochs),
        "threads": torch.get_num_threads(),
        "version": __version__,
    }


def evaluate_oracle(cell, data, max_epochs):
    row, start = {"n_epochs": 0, "device": "cpu"}, time.perf_counter()
    for part in ("validation", "test"):
        rates, latents = oracle_rates(data, data[part], return_latents=True)
        row |= compare(part, data, rates, latents)
    return {**row, "fit_seconds": time.perf_counter() - start}


def evaluate_model(cell, data, max_epochs):
    estimator, parameters = MODELS[cell.recipe][cell.model]
    sae = estimator(n_latents=cell.n_latents, random_state=cell.seed, **parameters)
    if max_epochs is not None:
        sae.set_params(max_epochs=max_epochs)
    row = {"device": "cuda" if torch.cuda.is_available() else "cpu"}
    watch = None
    if cell.recipe in LAST_EPOCHS:
        watch = Watch(data, sae.max_epochs - LAST_EPOCHS[cell.recipe])
        sae._early_stopping = watch.bind

    start = time.perf_counter()
    try:
        sae.fit(data.spikes[data.train])
    except FloatingPointError as error:
        # A fit that diverged is a result, and must not stop the others.
        print(f"{cell}: {error}", flush=True)
        missing = {f"{p}_{m}": np.nan for p in ("validation", "test") for m in METRICS}
        return {**row, **missing, "n_epochs": np.nan, "fit_seconds": np.nan}
    row["fit_seconds"] = time.perf_counter() - start
    row["n_epochs"] = sae.n_iter_

    for part in ("validation", "test"):
        spikes = data.spikes[data[part]]
        row |= compare(part, data, sae.predict(spikes), sae.transform(spikes))
        row[f"{part}_score"] = sae.score(spikes)
    return row if watch is None else row | watch.medians()


class Watch:
    """In the place of early stopping: accuracy on validation trials while a model trains."""

    scores, best_score, stopped = (), np.nan, False

    def __init__(self, data, first_epoch):
        self.data, self.first_epoch = data, first_epoch
        self.spikes = data.spikes[data.validation]
        self.rows = []

    def bind(self, member, validation, mean_counts, device):
        self.model, self.device = member.model, device
        return self

    def should_stop(self, record):
        if record.epoch >= self.first_epoch and record.epoch % 10 == 0:
            with torch.no_grad():
                trials = Trials(self.spikes, has_missing=False)
                batch = trials.batch(np.arange(len(trials)), self.device)
                latents = self.model.dynamics.rollout(self.model.encoder(batch), trials.n_bins)
                rates = self.model.readout(latents).exp()
            values = (x.permute(2, 0, 1).cpu().numpy() for x in (rates, latents))
            self.rows.append(compare("validation", self.data, *values))
        return False

    def restore_best(self):
        """The model stays as training leaves it."""

    def medians(self):
        return pd.DataFrame(self.rows).median().to_dict()


def compare(part, data, rates, latents):
    trials = data[part]
    return {
        f"{part}_rate_r2": rate_r2(data.rates[trials], rates),
        f"{part}_state_r2": state_r2(data.latents[trials], latents),
    }


def table(results, published):
    """Mean over seeds beside the paper and the oracle, on validation trials, in Markdown."""
    lines = [
        "| recipe | system | model | latents | seeds | rate R2 / state R2 | paper | oracle "
        "| score (bits/spike) | fit (s) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = results[results.recipe != "oracle"]
    for key, cells in rows.groupby(["recipe", "system", "model", "n_latents"], sort=False):
        recipe, system, model, n_latents = key
        valid = cells.dropna(subset="validation_rate_r2")
        seeds = f"{len(valid)}" if len(valid) == len(cells) else f"{len(valid)} of {len(cells)}"
        oracle = results[(results.recipe == "oracle") & (results.system == system)]
        lines.append(
            f"| {recipe} | {system} | {model} | {n_latents} | {seeds} "
            f"| {pair(valid, 'validation_')} | {pair(reported(published, *key))} "
            f"| {pair(oracle, 'validation_')} | {valid.validation_score.mean():.3f} "
            f"| {valid.fit_seconds.mean():.0f} |"
        )
    return "\n".join(lines)


def reported(published, recipe, system, model, n_latents):
    """The paper's rows for what was fitted; its NODE for MacArthur is the discrete one."""
    if (system, model) == ("MacArthur", "NODE"):
        model = "discrete NODE"
    return published[
        (published.experiment == ("ablation" if recipe == "ablation" else "main"))
        & (published.system == system)
        & (published.model == model)
        & (published.n_latents == n_latents)
    ]


def pair(rows, prefix=""):
    if rows.empty:
        return "-"
    return f"{rows[f'{prefix}rate_r2'].mean():.3f} / {rows[f'{prefix}state_r2'].mean():.3f}"


if __name__ == "__main__":
    main()

"""How fast are training and inference, and how far from what the machine can do?

python benchmarks/speed.py [--quick] [--out benchmarks/results/speed.csv]

Every figure is a ratio of times measured in this one run, most of them medians of repeats. With one
thread (OMP_NUM_THREADS=1 MKL_NUM_THREADS=1) the clock is the processor's, which stands still while
another program has the core. With more it is the wall's: run it on a quiet machine then, as threads
that share a core with other programs wait for them.

accuracy   seconds until the rate R2 on validation trials of Arneodo passes 0.912, the paper's final
           figure, and 0.97, with all defaults and three latents; against 2400 steps of the paper's
           recipe (reference.py)
step       one training step of 320 trials of 70 bins, and its parts; the floor is its
           floating-point operations at the rate of a large matrix product, and its activations at
           that of a sigmoid in the cache
inference  transform of 320 trials, against 80 steps of Adam on the same log-posterior
restarts   n_init=8 on 56 trials, 20 bins, 53 neurons, against eight fits one after the other; with
           a thread for each core and by the wall's clock, whatever the others have
growth     fit and transform while trials, bins, neurons or latents double, three times each
import     a Python that imports sklearn_sae, against one that imports torch and sklearn.base
"""

import argparse
import resource
import subprocess
import sys
import time
from functools import partial

import joblib
import numpy as np
import reference
import torch
from _results import add_arguments, path_of, write
from torchdiffeq import odeint

from sklearn_sae import NODESAE, __version__
from sklearn_sae._data.trials import Trials
from sklearn_sae._data.validation import check_trials
from sklearn_sae._inference.candidates import best_start
from sklearn_sae._inference.data_term import log_likelihood, mean_loss
from sklearn_sae._inference.inference import SemiAmortized
from sklearn_sae._model.solvers import SOLVERS
from sklearn_sae._training.optimizers import OPTIMIZERS, Soap
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.metrics import rate_r2

CPU = torch.device("cpu")
N_TRIALS, N_BINS = 320, 70
TARGETS = (0.912, 0.97)


def main(quick, out):
    rows = []

    def report(part, what, seconds, against=None, other=None, clock=clock):
        ratio = "" if other is None else round(other / seconds, 3)
        rows.append(
            {
                "part": part,
                "what": what,
                "seconds": f"{seconds:.4g}",
                "against": against or "",
                "ratio": ratio,
                "threads": torch.get_num_threads(),
                "clock": "wall" if clock is time.perf_counter else "processor",
                "version": __version__,
            }
        )
        print(f"{part:<10} {what:<44} {seconds:10.4g} s  {against or '':<34} {ratio}", flush=True)

    data = make_chaotic_spikes("Arneodo", n_trials=100 if quick else 2000, random_state=0)
    options = {"max_epochs": 4} if quick else {}
    model = measure_accuracy(data, options, report)
    measure_step(data, model, report, n_repeats=2 if quick else 9)
    measure_inference(data, model, report)
    measure_restarts(options, report, n_repeats=1 if quick else 3)
    measure_growth(report, n_doublings=1 if quick else 3)
    measure_import(report, n_repeats=1 if quick else 5)

    write(out, rows)


def processor_seconds():
    """Time that processors spent on this process, and on those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


clock = processor_seconds if torch.get_num_threads() == 1 else time.perf_counter


def median_seconds(work, n_repeats):
    return medians_by_turns(n_repeats, work)[0]


def medians_by_turns(n_repeats, *works, clock=clock):
    """Of works that are to be compared: what slows the machine for a while then slows them all."""
    seconds = []
    # The first turn warms up: files are read, code is compiled.
    for _ in range(n_repeats + 1):
        turn = []
        for work in works:
            start = clock()
            work()
            turn.append(clock() - start)
        seconds.append(turn)
    return np.median(seconds[1:], axis=0).tolist()


# ----------------------------------------------------------------------------- time to accuracy


class Watch:
    """In the place of early stopping: rate R2 on validation trials, off the clock."""

    scores, best_score, stopped = (), np.nan, False

    def __init__(self, data, every):
        self.data, self.every = data, every
        self.batch = Trials(data.spikes[data.validation], has_missing=False).batch(
            np.arange(len(data.validation)), CPU
        )
        self.curve = []

    def bind(self, member, validation, mean_counts, device):
        self.model, self.table = member.model, member.initial_conditions.table
        self.start, self.off = clock(), 0.0
        return self

    @torch.no_grad()
    def should_stop(self, record):
        if record.epoch % self.every == 0:
            begin = clock()
            inference = SemiAmortized(self.model, self.table, max_iter=10)
            rates = inference.infer(self.batch).rates.permute(2, 0, 1)
            r2 = rate_r2(self.data.rates[self.data.validation], rates.numpy())
            self.curve.append((begin - self.start - self.off, r2))
            self.off += clock() - begin
        return False

    def restore_best(self):
        """The model stays as training leaves it."""


def measure_accuracy(data, options, report):
    spikes = data.spikes[data.train]
    step = reference.seconds_per_step(spikes, clock=clock)
    paper = reference.STEPS_TO_CONVERGE * step
    report("accuracy", "the paper's recipe, one step", step)
    report("accuracy", f"the paper's recipe, {reference.STEPS_TO_CONVERGE} steps", paper)

    est = NODESAE(n_latents=3, random_state=0, **options)
    watch = Watch(data, every=5)
    est._early_stopping = watch.bind
    est.fit(spikes)
    for target in TARGETS:
        reached = [seconds for seconds, r2 in watch.curve if r2 > target]
        if reached:
            report("accuracy", f"rate R2 passes {target}", reached[0], "the paper's recipe", paper)
    del est._early_stopping
    est = NODESAE(n_latents=3, random_state=0, **options)
    start = clock()
    est.fit(spikes)
    seconds = clock() - start
    r2 = rate_r2(data.rates[data.validation], est.predict(data.spikes[data.validation]))
    report("accuracy", f"whole fit, rate R2 {r2:.4f}", seconds, "the paper's recipe", paper)
    return est


# ----------------------------------------------------------------------------- one step


def measure_step(data, est, report, n_repeats):
    model = est.model_.requires_grad_(True)
    trials = check_trials(est, data.spikes[data.train], reset=False)
    rows = np.resize(np.arange(len(trials)), N_TRIALS)
    z0 = torch.from_numpy(est.training_initial_conditions_[rows].T.copy()).requires_grad_()
    optimise = Soap(model.generative_parameters(), **OPTIMIZERS["soap"])
    batch = trials.batch(rows, CPU)

    def step():
        whole = trials.batch(rows, CPU)
        mean_loss(model.likelihood, model.output(z0, N_BINS), whole).backward()
        optimise.step(0.0, 1.0)

    def backward(rollout):
        rollout().square().sum().backward()
        for parameter in model.parameters():
            parameter.grad = None

    latents = model.dynamics.rollout(z0, N_BINS).detach()
    hidden = model.dynamics.field.width
    n_evaluations = 2 * (N_BINS - 1)
    floor = arithmetic_floor(3, hidden, batch.counts.shape[1], n_evaluations, n_repeats)
    whole = median_seconds(step, n_repeats)
    report("step", "whole", whole)
    report("step", "arithmetic floor", floor, "whole step", whole)
    measured = partial(median_seconds, n_repeats=n_repeats)
    report("step", "batch", measured(lambda: trials.batch(rows, CPU)))
    report(
        "step",
        "readout and likelihood, both ways",
        measured(
            lambda: mean_loss(
                model.likelihood, model.readout(latents.requires_grad_()), batch
            ).backward()
        ),
    )
    gradients = [torch.randn_like(weight) for weight in model.generative_parameters()]

    def optimizer():
        for weight, gradient in zip(model.generative_parameters(), gradients, strict=True):
            weight.grad = gradient.clone()
        optimise.step(0.0, 1.0)

    report("step", "optimizer", measured(optimizer))
    dynamics = model.dynamics
    default = dynamics.solver
    for solver in ("midpoint", "rk4", "dopri5"):
        dynamics.solver = SOLVERS[solver].from_parameters(solver, 1.0, 1e-3, 1e-3, False)
        options = None if solver == "dopri5" else {"step_size": 1.0}
        theirs = partial(
            odeint,
            lambda t, z: dynamics.vector_field(z),
            z0,
            torch.arange(float(N_BINS)),
            rtol=1e-3,
            atol=1e-3,
            method=solver,
            options=options,
        )
        of_torchdiffeq = measured(partial(backward, theirs))
        ours = measured(lambda: backward(lambda: dynamics.rollout(z0, N_BINS)))
        # torchdiffeq's dopri5 steps over the ends of bins, and is no map from one to the next.
        tolerance = " at 1e-3" if solver == "dopri5" else ""
        report("step", f"{solver}{tolerance}, both ways", ours, "torchdiffeq", of_torchdiffeq)
    dynamics.solver = default
    model.requires_grad_(False)


def arithmetic_floor(n_latents, n_hidden, n_neurons, n_evaluations, n_repeats):
    """Seconds of a step if only its products and activations took time, at full speed."""
    n = 1024
    a, out = torch.randn(n, n), torch.empty(n, n)
    product = median_seconds(lambda: torch.mm(a, a, out=out), n_repeats) / (2 * n**3)
    # One evaluation's hidden units, which stay in the cache as they do in a rollout.
    small = torch.randn(n_hidden, N_TRIALS)
    activation = median_seconds(lambda: torch.sigmoid(small, out=small), 20 * n_repeats)
    per_evaluation = 2 * N_TRIALS * n_hidden * (2 * n_latents + 1)
    per_bin = 2 * N_TRIALS * n_neurons * (n_latents + 1)
    # A backward pass multiplies twice for each product of the forward pass.
    n_operations = 3 * (n_evaluations * per_evaluation + N_BINS * per_bin)
    return n_operations * product + n_evaluations * activation


# ----------------------------------------------------------------------------- inference


def measure_inference(data, est, report):
    spikes = data.spikes[data.validation][:N_TRIALS]
    inference = est._fitted_model.inference(CPU)
    model, prior = inference.model, inference.prior
    batch = Trials(spikes, has_missing=False).batch(np.arange(len(spikes)), CPU)
    with torch.no_grad():
        start = best_start(model, prior, batch, inference.candidates)

    def log_posterior(z0):
        output = model.output(z0, len(batch.counts))
        fit = log_likelihood(model.likelihood, output, batch.counts, batch.mask)
        return fit + prior.log_density(z0)

    def adam():
        z0 = start.clone().requires_grad_()
        optimise = torch.optim.Adam([z0], lr=0.05)
        for _ in range(80):
            optimise.zero_grad()
            (-log_posterior(z0).sum()).backward()
            optimise.step()
        return z0.detach()

    z0 = torch.from_numpy(est.initial_conditions(spikes).T.copy())
    climbed = adam()
    with torch.no_grad():
        higher = (log_posterior(z0) - log_posterior(climbed)).mean()
    what = f"transform; log-posterior {higher:+.3f} nats a trial"
    ours, theirs = medians_by_turns(5, lambda: est.transform(spikes), adam)
    report("inference", what, ours, "80 steps of Adam", theirs)


# ----------------------------------------------------------------------------- restarts


def measure_restarts(options, report, n_repeats):
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (56, 1, 1)) + 0.3 * np.arange(20)[:, None]
    spikes = rng.poisson(np.exp(np.sin(phase + 0.3 * np.arange(53)) - 0.5))
    est = NODESAE(n_init=8, random_state=0, **options)
    # Of the same number of trials as are left to each of the eight.
    fewer = spikes[: len(est.fit(spikes).training_initial_conditions_)]

    def one_by_one():
        for seed in range(8):
            NODESAE(random_state=seed, **options).fit(fewer)

    n_threads, wall = torch.get_num_threads(), time.perf_counter
    torch.set_num_threads(joblib.cpu_count())
    together, alone = medians_by_turns(n_repeats, lambda: est.fit(spikes), one_by_one, clock=wall)
    report("restarts", "n_init=8", together, "eight fits", alone, wall)
    torch.set_num_threads(n_threads)


# ----------------------------------------------------------------------------- growth


def measure_growth(report, n_doublings):
    base = {"trials": 160, "bins": 40, "neurons": 20, "latents": 4}
    for what in base:
        before = None
        for doubling in range(n_doublings + 1):
            size = {**base, what: base[what] * 2**doubling}
            rng = np.random.default_rng(0)
            phase = (
                rng.uniform(0, 6, (size["trials"], 1, 1)) + 0.2 * np.arange(size["bins"])[:, None]
            )
            spikes = rng.poisson(np.exp(np.sin(phase + np.arange(size["neurons"])) - 1))
            est = NODESAE(n_latents=size["latents"], max_epochs=10, random_state=0)
            fit = median_seconds(lambda est=est, spikes=spikes: est.fit(spikes), 3)
            transform = median_seconds(lambda est=est, spikes=spikes: est.transform(spikes), 3)
            for name, seconds in (("fit", fit), ("transform", transform)):
                other = before and before[name]
                report("growth", f"{name}, {size[what]} {what}", seconds, before and "half", other)
            before = {"fit": fit, "transform": transform}


# ----------------------------------------------------------------------------- import


def measure_import(report, n_repeats):
    def imported(name):
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True)

    names = ("torch, sklearn.base", "sklearn_sae")
    works = [partial(imported, name) for name in names]
    theirs, ours = medians_by_turns(n_repeats, *works)
    report("import", names[0], theirs)
    report("import", names[1], ours, names[0], theirs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    main(arguments.quick, path_of("speed", arguments))

"""How fast are training and inference, and how far from what the machine can do?

python benchmarks/speed.py [--quick] [--out benchmarks/results/speed.csv]

Every figure is a ratio of times measured in this one run, most of them medians of repeats. With one
thread (OMP_NUM_THREADS=1 MKL_NUM_THREADS=1) the clock is the processor's, which stands still while
another program has the core. With more it is the wall's: run it on a quiet machine then, as threads
that share a core with other programs wait for them.

accuracy   a whole fit of Arneodo with all defaults and three latents, and its rate R2 on validation
           trials (the paper's is 0.912), against 2400 steps of the paper's recipe (reference.py)
step       one training step of 320 trials of 70 bins, and its parts; and rollouts of as many trials
           with their gradients, against torchdiffeq
inference  transform of 320 trials, against 80 steps of Adam on the same log-posterior of the paths
restarts   n_init=8 on 56 trials, 20 bins, 53 neurons, against eight fits one after the other
growth     fit and transform while trials, bins, neurons or latents double, three times each; how
           many epochs follow on all trials, and whether any do, is up to each fit
import     a Python that imports sklearn_sae, against one that imports torch and sklearn.base
"""

import argparse
import resource
import subprocess
import sys
import time
from functools import partial

import numpy as np
import reference
import torch
from _results import add_arguments, path_of, write
from torchdiffeq import odeint

from sklearn_sae import NODESAE, __version__
from sklearn_sae._data.trials import Trials
from sklearn_sae._data.validation import check_trials
from sklearn_sae._inference.paths import Paths
from sklearn_sae._model.dynamics import Flow
from sklearn_sae._model.solvers import SOLVERS
from sklearn_sae._model.state_maps.mlp import MLP
from sklearn_sae._training.optimizers import OPTIMIZERS, Soap
from sklearn_sae._training.path_training import Model, PathTraining, evidence
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.metrics import rate_r2

CPU = torch.device("cpu")
N_TRIALS, N_BINS = 320, 70
#: With which 80 steps climb highest, of a few that were tried.
ADAM_LEARNING_RATE = 0.2


def main(quick, out):
    rows = []

    def report(part, what, seconds, against=None, other=None):
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


def medians_by_turns(n_repeats, *works):
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


def measure_accuracy(data, options, report):
    spikes = data.spikes[data.train]
    step = reference.seconds_per_step(spikes, clock=clock)
    paper = reference.STEPS_TO_CONVERGE * step
    report("accuracy", "the paper's recipe, one step", step)
    report("accuracy", f"the paper's recipe, {reference.STEPS_TO_CONVERGE} steps", paper)

    est = NODESAE(n_latents=3, random_state=0, **options)
    start = clock()
    est.fit(spikes)
    seconds = clock() - start
    r2 = rate_r2(data.rates[data.validation], est.predict(data.spikes[data.validation]))
    report("accuracy", f"whole fit, rate R2 {r2:.4f}", seconds, "the paper's recipe", paper)
    return est


# ----------------------------------------------------------------------------- one step


def measure_step(data, est, report, n_repeats):
    trials = check_trials(est, data.spikes[data.train], reset=False)
    rows = np.resize(np.arange(len(trials)), N_TRIALS)
    training = training_of(est, trials)
    batch = training._batch(rows)
    # Newton steps are to raise the log-posterior, as they do while weights change.
    generator = torch.Generator().manual_seed(0)
    states = training.table.clone()
    away = states + 0.1 * torch.randn(states.shape, generator=generator)
    weights = training.model.network.generative_parameters()
    measured = partial(median_seconds, n_repeats=n_repeats)

    def step():
        training.table.copy_(away)
        training._step(training._batch(rows), 0.0, 1.0)

    def newton():
        training.table.copy_(away)
        return training._newton(batch)

    paths, path, found = newton()

    def evidence_and_gradient():
        gain, dynamics, _ = evidence(paths, path, found)
        (-gain - dynamics).backward()
        for weight in weights:
            weight.grad = None

    gradients = [torch.randn(weight.shape, generator=generator) for weight in weights]

    def optimizer():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        training.optimizer.step(0.0, 1.0)

    report("step", "whole", measured(step))
    report("step", "batch", measured(lambda: training._batch(rows)))
    report("step", "Newton step", measured(newton))
    report("step", "evidence, both ways", measured(evidence_and_gradient))
    report("step", "optimizer", measured(optimizer))
    est.model_.requires_grad_(False)
    measure_rollouts(states[rows, 0].T.contiguous(), est.time_scale, report, measured)


def training_of(est, trials):
    """Training that goes on from a fitted estimator."""
    network = est.model_.requires_grad_(True)
    inference = est._fitted_model.inference(CPU)
    model = Model(network, inference.prior, float(inference.process_noise.mean()))
    optimizer = Soap(network.generative_parameters(), **OPTIMIZERS["soap"])
    generator = torch.Generator().manual_seed(0)
    return PathTraining(model, model.states_of(trials, 10), trials, optimizer, generator)


def measure_rollouts(z0, time_scale, report, measured):
    """Rollouts with gradients, as fits with an encoder or inferred inputs have them."""
    field = MLP(len(z0), (64,), "tanh", torch.Generator().manual_seed(0))
    with torch.no_grad():
        field.weights[-1].mul_(20)  # fields start close to zero, where nothing is to integrate
    z0.requires_grad_()

    def both_ways(rollout):
        rollout().square().sum().backward()
        for tensor in (z0, *field.parameters()):
            tensor.grad = None

    for method in ("midpoint", "rk4", "dopri5"):
        solver = SOLVERS[method].from_parameters(method, 1.0, 1e-3, 1e-3, False)
        flow = Flow(field, solver, time_scale)
        options = None if method == "dopri5" else {"step_size": 1.0}
        theirs = partial(
            odeint,
            lambda t, z, flow=flow: flow.vector_field(z),
            z0,
            torch.arange(float(N_BINS)),
            rtol=1e-3,
            atol=1e-3,
            method=method,
            options=options,
        )
        of_torchdiffeq = measured(partial(both_ways, theirs))
        ours = measured(partial(both_ways, partial(flow.rollout, z0, N_BINS)))
        # torchdiffeq's dopri5 steps over the ends of bins, and is no map from one to the next.
        tolerance = " at 1e-3" if method == "dopri5" else ""
        what = f"rollout by {method}{tolerance}, both ways"
        report("step", what, ours, "torchdiffeq", of_torchdiffeq)


# ----------------------------------------------------------------------------- inference


def measure_inference(data, est, report):
    spikes = data.spikes[data.validation][:N_TRIALS]
    inference = est._fitted_model.inference(CPU)
    batch = Trials(spikes, has_missing=False).batch(np.arange(len(spikes)), CPU)
    paths = Paths(inference.model, inference.prior, batch)
    noise = paths.noise(inference.process_noise)

    def adam():
        # By innovations, as steps on states would have to be as small as the process noise.
        z0 = inference.prior.mean[:, None].repeat(1, len(spikes)).requires_grad_()
        innovations = torch.zeros(len(batch.counts) - 1, *z0.shape, requires_grad=True)
        optimise = torch.optim.Adam([z0, innovations], lr=ADAM_LEARNING_RATE)

        def path():
            jumps = innovations * noise.sqrt()[:, None]
            return paths.at(inference.model.dynamics.rollout(z0, len(batch.counts), jumps))

        for _ in range(80):
            optimise.zero_grad()
            (-paths.log_posterior(path(), noise).sum()).backward()
            optimise.step()
        with torch.no_grad():
            return path()

    climbed = adam()
    with torch.no_grad():
        mode = inference.infer(batch).path
        higher = paths.log_posterior(mode, noise) - paths.log_posterior(climbed, noise)
    what = f"transform; log-posterior {float(higher.mean()):+.3g} nats a trial"
    ours, theirs = medians_by_turns(5, lambda: est.transform(spikes), adam)
    report("inference", what, ours, "80 steps of Adam", theirs)


# ----------------------------------------------------------------------------- restarts


def measure_restarts(options, report, n_repeats):
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (56, 1, 1)) + 0.3 * np.arange(20)[:, None]
    spikes = rng.poisson(np.exp(np.sin(phase + 0.3 * np.arange(53)) - 0.5))
    est = NODESAE(n_init=8, random_state=0, **options)

    def one_by_one():
        for seed in range(8):
            NODESAE(random_state=seed, **options).fit(spikes)

    together, alone = medians_by_turns(n_repeats, lambda: est.fit(spikes), one_by_one)
    report("restarts", "n_init=8", together, "eight fits", alone)


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

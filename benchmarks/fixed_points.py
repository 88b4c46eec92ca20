"""How right are the fixed points of fitted models, and how fast are they found?

python benchmarks/fixed_points.py [--quick] [--out benchmarks/results/fixed_points.csv]

Fits default models with seed 0 to the training trials of make_chaotic_spikes(system,
random_state=0), compares their fixed points and Lyapunov exponents with those of the true system,
and times find_fixed_points against the paper's procedure (1024 starts, Adam on q = |f|^2 / 2 with
learning rate 1e-2, up to 5000 iterations, q < 1e-10) from the same starts. One row for each true
fixed point; `data_distance` is how far it lies from the nearest state of a trial, `outside` how far
beyond the convex hull of all states (at least; 0 inside), both in radii of the attractor.

Lyapunov exponents are measured along 200 free runs of 500 bins (5 to 14 periods) that start at
trials, and again along 64 of 2000 bins: a learned system that is all but right may hold a stable
orbit that the true one does not have, where long runs end in the course of time.
"""

import argparse
import time

import numpy as np
import torch
from _results import add_arguments, path_of, write
from scipy.spatial import ConvexHull

from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae.analysis import find_fixed_points, lyapunov_spectrum, match_fixed_points
from sklearn_sae.datasets import make_chaotic_spikes

MODELS = [
    ("Arneodo", NODESAE, 3),
    ("Lorenz", NODESAE, 3),
    ("Rossler", NODESAE, 3),
    ("Lorenz", RNNSAE, 3),
    ("Lorenz", RNNSAE, 10),
]
N_STARTS = 1024


def main(quick, out):
    rows = []
    for name, model, n_latents in MODELS[1:4] if quick else MODELS:
        rows += measure(name, model, n_latents, quick)
    write(out, rows)


def measure(name, model, n_latents, quick):
    n_trials, options = (30, {"max_epochs": 3}) if quick else (2000, {})
    data = make_chaotic_spikes(name, n_trials=n_trials, random_state=0)
    start = time.perf_counter()
    est = model(n_latents=n_latents, random_state=0, **options).fit(data.spikes[data.train])
    fit_seconds = time.perf_counter() - start
    latents, states = est.transform(data.spikes[data.train]), data.latents[data.train]

    starts = draw_starts(latents)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        found = find_fixed_points(est, starts, n_starts=N_STARTS, noise=0, random_state=0)
        seconds.append(time.perf_counter() - start)
    seconds = float(np.median(seconds))  # a search takes so little that other programs disturb it
    start = time.perf_counter()
    by_adam = paper_procedure(est, starts, n_iterations=100 if quick else 5000)
    adam_seconds = time.perf_counter() - start
    missed = sum(
        np.linalg.norm(found.points - point, axis=1).min(initial=np.inf) > 1e-2 * found.radius
        for point in by_adam
    )

    match = match_fixed_points(found, data.system, (latents, states), bin_width=data.bin_width)
    runs = {"": (4, 20)} if quick else {"": (200, 500), "long_": (64, 2000)}
    exponents = {
        f"{true}{length}lyapunov": largest_exponent(system, z[:n_runs, 0], n_bins, data.bin_width)
        for length, (n_runs, n_bins) in runs.items()
        for true, system, z in (("", est, latents), ("true_", data.system, states))
    }
    print(f"\n{name}, {model.__name__}, n_latents={n_latents}: fitted in {fit_seconds:.0f} s")
    print(found)
    print(match)
    print("  largest exponents:", ", ".join(f"{k} {v:.3f}" for k, v in exponents.items()))
    print(
        f"  {len(found)} points in {seconds:.2f} s; the paper's procedure {len(by_adam)} in "
        f"{adam_seconds:.1f} s ({adam_seconds / seconds:.0f} times as long), {missed} of them new",
        flush=True,
    )
    shared = {
        "fit_seconds": round(fit_seconds, 1),
        "score": round(est.score(data.spikes[data.test]), 4),
        **{name: round(exponent, 4) for name, exponent in exponents.items()},
        "n_found": int((~found.slow).sum()),
        "n_slow": int(found.slow.sum()),
        "seconds": round(seconds, 3),
        "adam_n_found": len(by_adam),
        "adam_seconds": round(adam_seconds, 2),
        "speedup": round(adam_seconds / seconds, 1),
        "adam_points_missed": missed,
    }
    away, outside = true_distances(match.true.points, data.latents)
    return [
        {
            "system": name,
            "model": model.__name__,
            "n_latents": n_latents,
            "true_point": " ".join(f"{x:.3f}" for x in match.true.points[i]),
            "true_kind": match.true.kinds[i],
            "data_distance": round(float(away[i]), 3),
            "outside": round(float(outside[i]), 3),
            "found_kind": match.found.kinds[j] if j >= 0 else "none",
            "distance": round(float(match.distances[i]), 4),
            "leading_error": round(float(match.leading_errors[i]), 4),
            **shared,
        }
        for i, j in enumerate(match.partner)
    ]


def draw_starts(latents):
    rng = np.random.default_rng(0)
    flat = latents.reshape(-1, latents.shape[-1])
    chosen = flat[rng.choice(len(flat), N_STARTS)]
    radius = np.sqrt(((flat - flat.mean(axis=0)) ** 2).sum(axis=1).mean())
    return chosen + 0.1 * radius * rng.standard_normal(chosen.shape)


def true_distances(points, states):
    """Distances of points to the trajectories and to their convex hull, in attractor radii."""
    flat = states.reshape(-1, states.shape[-1])
    radius = np.sqrt(((flat - flat.mean(axis=0)) ** 2).sum(axis=1).mean())
    away = np.array([np.linalg.norm(flat - point, axis=1).min() for point in points])
    normals, offsets = np.split(ConvexHull(flat).equations, [-1], axis=1)
    outside = (points @ normals.T + offsets.T).max(axis=1).clip(min=0)
    return away / radius, outside / radius


def largest_exponent(system, states, n_bins, bin_width):
    try:
        spectrum = lyapunov_spectrum(
            system, states, n_bins, n_burn_in=n_bins // 5, bin_width=bin_width
        )
        return float(spectrum.per_time[0])
    except FloatingPointError:
        return np.nan


def paper_procedure(est, starts, n_iterations):
    dynamics = est.model_.dynamics
    is_flow = isinstance(est, NODESAE)
    z = torch.from_numpy(starts.T.copy()).float().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=1e-2)
    for _ in range(n_iterations):
        velocity = dynamics.vector_field(z) if is_flow else dynamics.step(z) - z
        q = 0.5 * (velocity**2).sum(0)
        if bool((q < 1e-10).all()):
            break
        optimizer.zero_grad()
        q.sum().backward()
        optimizer.step()
    ends = z.detach().numpy().T[(q < 1e-10).numpy()]
    radius = np.sqrt(((starts - starts.mean(axis=0)) ** 2).sum(axis=1).mean())
    points = []
    for end in ends:
        if all(np.linalg.norm(end - point) > 1e-2 * radius for point in points):
            points.append(end)
    return points


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    main(arguments.quick, path_of("fixed_points", arguments))

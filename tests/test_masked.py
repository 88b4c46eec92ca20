"""Masked arrays are refused wherever data come in, by name and with the way out."""

from datetime import UTC, datetime

import matplotlib
import numpy as np
import pytest

from sklearn_sae import NODESAE, analysis, datasets, io, metrics, plotting
from sklearn_sae._data.masked import refuse_masked
from sklearn_sae.model_selection import smallest_within_one_standard_error

matplotlib.use("Agg")

PLAIN = np.arange(1.0, 61).reshape(2, 5, 6)
MASKED = np.ma.masked_less(PLAIN, 4)
STATES, STATE = MASKED[0, :, :3], MASKED[0, 0, :3]
TIMES = np.ma.masked_greater(np.array([0.1, 0.4, 9e9]), 1.0)
INTERVALS = np.ma.masked_greater(np.array([[0.0, 1.0], [2.0, 9e9]]), 10.0)
LABELS = np.ma.array([0, 1], mask=[False, True])
LORENZ = datasets.Lorenz()


def from_times(**changed):
    arguments = {"spike_times": [[0.1]], "align_to": [[0.0, 1.0]], "obs_intervals": None} | changed
    return io.trials_from_spike_times(bin_size=0.1, **arguments)


def merge(pieces):
    return io.merge(pieces, io.ChopLayout(5, 5, 0))


def search(key):
    results = {f"{part}_test_score": np.array([0.2, 0.5]) for part in ("mean", "std", "split0")}
    results["param_n_latents"] = [1, 2]
    return smallest_within_one_standard_error(results | {key: np.ma.masked_less(results[key], 0.3)})


ENTRIES = {
    "spike_times": lambda est: from_times(spike_times=[TIMES]),
    "spike_times, in lists": lambda est: from_times(spike_times=[[0.1, *TIMES]]),
    "spike_times, of one array": lambda est: from_times(spike_times=INTERVALS),
    "align_to": lambda est: from_times(align_to=INTERVALS),
    "align_to, events": lambda est: from_times(align_to=TIMES, window=(0, 1)),
    "window": lambda est: from_times(align_to=[0.0], window=np.ma.array([0.0, 1.0])),
    "obs_intervals": lambda est: from_times(obs_intervals=[INTERVALS]),
    "recording": lambda est: io.chop(MASKED[0], 4, 0),
    "pieces": lambda est: merge([MASKED[0]]),
    "pieces, of one array": lambda est: merge(MASKED[:1]),
    "true": lambda est: metrics.rate_r2(MASKED, PLAIN),
    "pred": lambda est: metrics.rate_r2(PLAIN, MASKED),
    "pred, of a list": lambda est: metrics.rate_r2(list(PLAIN), list(MASKED)),
    "pred, of nested lists": lambda est: metrics.rate_r2(PLAIN, [[*trial] for trial in MASKED]),
    "inferred": lambda est: metrics.state_r2(PLAIN, MASKED),
    "train": lambda est: metrics.state_r2(PLAIN, PLAIN, train=LABELS),
    "rates": lambda est: metrics.bits_per_spike(MASKED, PLAIN),
    "spikes": lambda est: metrics.bits_per_spike(PLAIN, MASKED),
    "null_rates": lambda est: metrics.bits_per_spike(PLAIN, PLAIN, MASKED[0, 0]),
    "rates, of a psth": lambda est: metrics.psth_r2(MASKED, PLAIN),
    "spikes, of a psth": lambda est: metrics.psth_r2(PLAIN, MASKED),
    "conditions": lambda est: metrics.psth_r2(PLAIN, PLAIN, LABELS),
    "generated": lambda est: metrics.state_space_divergence(PLAIN, MASKED),
    "true, of a spectrum": lambda est: metrics.power_spectrum_distance(MASKED, PLAIN),
    "X, co-smoothing": lambda est: metrics.co_smoothing_score(est, MASKED),
    "X, co-smoothing rates": lambda est: metrics.co_smoothing_rates(est, MASKED),
    "parts": lambda est: metrics.co_smoothing_rates(est, PLAIN, parts=[LABELS, [2, 3, 4, 5]]),
    "X, forward": lambda est: metrics.forward_prediction_score(est, MASKED, n_bins=1),
    "X, cycle": lambda est: metrics.cycle_consistency(est, MASKED),
    "X_train": lambda est: metrics.baselines(MASKED, PLAIN),
    "X_test": lambda est: metrics.baselines(PLAIN, MASKED),
    "conditions, of baselines": lambda est: metrics.baselines(
        PLAIN, PLAIN, conditions=(LABELS, [0, 1])
    ),
    "states": lambda est: analysis.find_fixed_points(LORENZ, STATES),
    "state": lambda est: analysis.lyapunov_spectrum(LORENZ, STATE, 1),
    "latents": lambda est: analysis.match_fixed_points(
        analysis.find_fixed_points(LORENZ, PLAIN[0, :, :3], n_starts=1),
        LORENZ,
        (STATES, PLAIN[0, :, :3]),
    ),
    "X": lambda est: est.fit(MASKED),
    "X[0]": lambda est: est.fit(list(MASKED)),
    "X, predict": lambda est: est.predict(MASKED),
    "X[1], transform": lambda est: est.transform([PLAIN[0], MASKED[1]]),
    "X, score": lambda est: est.score(MASKED),
    "inputs": lambda est: est.fit(PLAIN, inputs=MASKED),
    "inputs[0]": lambda est: est.fit(PLAIN, inputs=list(MASKED)),
    "latents, step": lambda est: est.step(STATE),
    "latents, velocity": lambda est: est.vector_field(STATE),
    "latents, simulate": lambda est: est.simulate(STATE, 3),
    "latents, rates": lambda est: est.inverse_transform(MASKED[..., :3]),
    "z": lambda est: LORENZ.vector_field(STATES),
    "z, jacobian": lambda est: LORENZ.jacobian(STATES),
    "z0": lambda est: LORENZ.simulate(STATE, 3),
    "times": lambda est: LORENZ.sample(TIMES),
    "times, with a delay": lambda est: datasets.MackeyGlass().sample(TIMES),
    "start": lambda est: datasets.CustomSystem(lambda z: -z, TIMES, period=1.0),
    "latents, drawn": lambda est: plotting.LatentTrajectoryDisplay(MASKED).plot(),
    "labels": lambda est: plotting.LatentTrajectoryDisplay(PLAIN, LABELS).plot(),
    "rates, drawn": lambda est: plotting.RateDisplay(MASKED[0]).plot(),
    "std": lambda est: plotting.RateDisplay(PLAIN[0], std=MASKED[0]).plot(),
    "spikes, drawn": lambda est: plotting.RateDisplay(PLAIN[0], spikes=MASKED[0]).plot(),
    "true_rates": lambda est: plotting.RateDisplay(PLAIN[0], true_rates=MASKED[0]).plot(),
    "X, drawn": lambda est: plotting.RateDisplay.from_estimator(est, MASKED),
    "true_rates, all": lambda est: plotting.RateDisplay.from_estimator(
        est, PLAIN, true_rates=MASKED
    ),
    "inferred, drawn": lambda est: plotting.InferredInputsDisplay(MASKED).plot(),
    "event": lambda est: plotting.InferredInputsDisplay(PLAIN, event=LABELS).plot(),
    "states, drawn": lambda est: plotting.VectorFieldDisplay(LORENZ, STATES).plot(),
    "plane": lambda est: plotting.VectorFieldDisplay(LORENZ, PLAIN[0, :, :3]).plot(plane=STATES),
    "loss": lambda est: plotting.LearningCurveDisplay(STATE).plot(),
    "mean_test_score": lambda est: search("mean_test_score"),
    "std_test_score": lambda est: search("std_test_score"),
}


@pytest.fixture(scope="module")
def est():
    spikes = np.random.default_rng(0).poisson(1.0, (4, 5, 6))
    return NODESAE(n_latents=3, max_epochs=1, random_state=0, device="cpu").fit(spikes)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_masked_array_is_refused(est, entry):
    name = entry.split(", ")[0].replace("[", r"\[")
    with pytest.raises(ValueError, match=rf"^{name}.* masked array.*filled\(np\.nan\)"):
        ENTRIES[entry](est)


def test_an_oracle_of_masked_trials_is_refused():
    data = datasets.make_chaotic_spikes("Lorenz", n_trials=3, n_bins=2, random_state=0)
    with pytest.raises(ValueError, match="^trials is a masked array"):
        datasets.oracle_rates(data, LABELS)


def test_columns_of_an_nwb_table_may_not_be_masked():
    pynwb = pytest.importorskip("pynwb")
    file = pynwb.NWBFile("a test", "masked", datetime(2024, 1, 1, tzinfo=UTC))
    file.add_unit(spike_times=[0.1, 0.2])
    file.add_trial(start_time=0.0, stop_time=1.0)
    file.add_trial(start_time=1.0, stop_time=2.0)
    file.add_trial_column("cue", "of the cue", data=TIMES[1:])
    with pytest.raises(ValueError, match="^Column cue is a masked array"):
        io.trials_from_nwb(file, bin_size=0.1, align_to="cue", window=(0.0, 0.2))


def test_a_grid_without_n_latents_is_named():
    results = {f"{part}_test_score": np.array([0.2, 0.5]) for part in ("mean", "std", "split0")}
    results["param_n_latents"] = np.ma.array([3, 0], mask=[False, True])
    with pytest.raises(ValueError, match="what n_latents was in candidate 1, .* every grid"):
        smallest_within_one_standard_error(results)
    results["param_n_latents"] = np.ma.array([3, 2], mask=[False, False])
    assert smallest_within_one_standard_error(results) in (0, 1)


def test_plain_data_of_any_form_pass():
    for values in (PLAIN, PLAIN.tolist(), [*PLAIN], (1, "a"), None, 3.0):
        refuse_masked("values", values)

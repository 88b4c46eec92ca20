"""The examples run at their small size and save their figures; the README's code runs."""

import datetime
import re

import numpy as np
import pytest
from common import ROOT, number, run_example, succeed

PNG = b"\x89PNG"


def test_quickstart(tmp_path):
    out = succeed("quickstart.py", cwd=tmp_path)
    assert number("rate R2", out) <= 1
    assert number("state R2", out) <= 1
    assert np.isfinite(number("score", out))
    assert (tmp_path / "quickstart.png").read_bytes().startswith(PNG)


def test_plot_fixed_points(tmp_path):
    out = succeed("plot_fixed_points.py", cwd=tmp_path)
    # The true Lorenz system's largest exponent is about 0.9, even from runs as short as these.
    assert 0.5 < number("true", out.split("Lyapunov exponents")[1]) < 1.5
    assert (tmp_path / "plot_fixed_points.png").read_bytes().startswith(PNG)


def test_plot_node_vs_rnn(tmp_path):
    out = succeed("plot_node_vs_rnn.py", "--n-jobs", "1", cwd=tmp_path)
    for name in ("NODE", "GRU "):
        assert number(f"{name} with 3 latents: rate R2", out) <= 1
        assert np.isfinite(number(f"{name} bits per spike with .2, 3. latents", out))
    assert (tmp_path / "node_vs_rnn.png").read_bytes().startswith(PNG)


def test_distributed_grid_search(tmp_path):
    out = succeed("distributed_grid_search.py", "--n-workers", "1", cwd=tmp_path)
    assert "1 workers at tcp://" in out
    assert np.isfinite(number("unseen trials", out))


@pytest.mark.parametrize("key", ["labels", "target", None])
def test_real_recording(tmp_path, key):
    rng = np.random.default_rng(0)
    arrays = {"spikes": rng.poisson(1.0, (30, 12, 6)).astype(np.uint8)}
    if key is not None:
        arrays[key] = np.arange(30) % 3
    np.savez(tmp_path / "recording.npz", **arrays)

    options = ["--candidates", "1", "2", "--n-jobs", "1", "--out", "figure.png"]
    if key == "target":
        options += ["--labels", "target"]
    out = succeed("real_recording.py", "recording.npz", *options, cwd=tmp_path)

    assert out.count("<- chosen") == 1
    assert np.isfinite(number("Score on test trials", out))
    assert number("mean", out) == 0
    for name in ("psth", "regression", "factor_analysis", "NODESAE"):
        assert np.isfinite(number(name, out))
    if key is None:
        assert "decoded" not in out
    else:
        assert 0 <= number("test trials' latents", out) <= 1
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"counts": np.ones((4, 3, 2))}, [], "no array `spikes`"),
        ({"spikes": np.ones((4, 3, 2))}, ["--labels", "target"], "no array `target`"),
    ],
)
def test_real_recording_names_what_is_missing(tmp_path, arrays, options, message):
    np.savez(tmp_path / "recording.npz", **arrays)
    result = run_example("real_recording.py", "recording.npz", *options, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_plot_real_recording(tmp_path):
    out = succeed("plot_real_recording.py", "--out", "simulated.png", cwd=tmp_path)
    assert "40 trials of 50 bins, 40 neurons" in out
    for name in ("Score on test trials", "PSTH R2 on test trials", "NODESAE, [a-z ]+"):
        assert np.isfinite(number(name, out))
    assert 0 <= number("test trials' latents", out) <= 1
    assert (tmp_path / "simulated.png").read_bytes().startswith(PNG)

    session = ["simulated.nwb", "--align-to", "start_time", "--window", "0.1", "0.7"]
    options = [*session, "--bin-size", "0.05", "--n-latents", "2", "--out", "given.png"]
    out = succeed("plot_real_recording.py", *options, cwd=tmp_path)
    assert "40 trials of 12 bins" in out
    assert (tmp_path / "given.png").read_bytes().startswith(PNG)

    result = run_example("plot_real_recording.py", *session, "--label", "side", cwd=tmp_path)
    assert result.returncode != 0
    assert "no column 'side'" in result.stderr
    assert "target" in result.stderr
    assert "Traceback" not in result.stderr


def test_code_in_readme(tmp_path, monkeypatch):
    write_session(tmp_path / "session.nwb")
    monkeypatch.chdir(tmp_path)  # it saves a file
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    code = "\n".join(blocks)
    # The same calls with tiny fits in one process, for time.
    code = re.sub(r"(SAE\([^)]*random_state=0)", r"\1, max_epochs=2", code)
    code = code.replace("n_jobs=2", "n_jobs=1")
    rng = np.random.default_rng(0)
    names = {
        "spikes": rng.poisson(1.0, (60, 12, 9)),
        "new_spikes": rng.poisson(1.0, (5, 12, 9)),
        "stimulus": rng.normal(size=(60, 12, 2)),
        "new_stimulus": rng.normal(size=(5, 12, 2)),
        "go_bins": rng.integers(3, 9, 60),
        "signals": rng.normal(size=(60, 12, 9)),
        "labels": np.arange(60) % 3,
        "train": np.arange(40),
        "test": np.arange(40, 60),
        "spike_times": [np.sort(rng.uniform(0, 10, 200)) for _ in range(3)],
        "events": np.arange(1.0, 9.0),
        "recording": rng.poisson(1.0, (250, 9)),
    }
    exec(code, names)
    assert names["latents"].shape == (60, 12, 3)
    assert names["rates"].shape == (60, 12, 9)
    assert names["driven"].input_matrix_.shape == (3, 2)
    assert names["inferred"].shape == names["std"].shape == (60, 12, 8)
    assert names["counts"].shape == (8, 70, 3)
    assert names["good_units"].shape == (4, 70, 2)
    assert list(names["targets"]) == ["left", "right"] * 2
    assert names["whole_rates"].shape == (250, 9)


def write_session(path):
    """An NWB file of three units and four trials."""
    pynwb = pytest.importorskip("pynwb")
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    nwb = pynwb.NWBFile("a session", "id", start)
    nwb.add_unit_column("quality", "by the sorter")
    for quality in ("good", "noise", "good"):
        nwb.add_unit(spike_times=np.arange(0.0, 10.0, 0.03), quality=quality)
    nwb.add_trial_column("go_cue_time", "when the monkey was told")
    nwb.add_trial_column("target", "where to")
    for i, target in enumerate(["left", "right"] * 2):
        nwb.add_trial(start_time=i + 1.0, stop_time=i + 2.0, go_cue_time=i + 1.2, target=target)
    with pynwb.NWBHDF5IO(path, "w") as file:
        file.write(nwb)

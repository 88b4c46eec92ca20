"""Trials from NWB files, written by pynwb and read back from disk."""

import datetime
import re
import subprocess
import sys

import numpy as np
import pytest

from sklearn_sae import NODESAE
from sklearn_sae.io import trials_from_nwb, trials_from_spike_times

pynwb = pytest.importorskip("pynwb")

RNG = np.random.default_rng(0)
SPIKE_TIMES = [np.sort(RNG.uniform(0, 12, n)).round(4) for n in (300, 500, 0, 400)]
STARTS = np.arange(1, 11.0)
STOPS = STARTS + np.linspace(0.5, 0.9, 10).round(2)
GO = np.where(np.arange(10) == 3, np.nan, STARTS + 0.2)
TARGETS = ["left", "right"] * 5


def new_file():
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return pynwb.NWBFile("a session", "id", start)


@pytest.fixture
def nwb():
    """Four units and ten trials, with the columns that real files have."""
    nwb = new_file()
    device = nwb.create_device(name="probe")
    group = nwb.create_electrode_group("shank", "a shank", "M1", device)
    for _ in range(2):
        nwb.add_electrode(group=group, location="M1")
    position = pynwb.TimeSeries(name="hand", data=np.arange(120.0), unit="m", rate=10.0)
    nwb.add_acquisition(position)
    nwb.add_unit_column("quality", "by the sorter")
    nwb.add_unit_column("largest_on", "the electrode", table=nwb.electrodes)
    for i, times in enumerate(SPIKE_TIMES):
        nwb.add_unit(
            id=70 + i,
            spike_times=times,
            electrodes=[i % 2],
            largest_on=i % 2,
            electrode_group=group,
            waveform_mean=np.zeros((5, 2)),
            quality="good" if i != 1 else "noise",
        )
    nwb.add_trial_column("go_cue_time", "when the monkey was told")
    nwb.add_trial_column("target", "where to")
    nwb.add_trial_column("target_position", "in cm")
    for i in range(10):
        nwb.add_trial(
            start_time=STARTS[i],
            stop_time=STOPS[i],
            go_cue_time=GO[i],
            target=TARGETS[i],
            target_position=[1.0, i],
            timeseries=[position],
            id=500 + i,
        )
    return nwb


def written(nwb, tmp_path):
    path = tmp_path / "session.nwb"
    with pynwb.NWBHDF5IO(path, "w") as file:
        file.write(nwb)
    return path


def test_windows_around_a_column(nwb, tmp_path):
    data = trials_from_nwb(
        written(nwb, tmp_path), bin_size=0.02, align_to="go_cue_time", window=(-0.1, 0.3)
    )
    there = np.isfinite(GO)
    expected = trials_from_spike_times(
        SPIKE_TIMES, bin_size=0.02, align_to=GO[there], window=(-0.1, 0.3)
    )
    np.testing.assert_array_equal(data.spikes, expected)
    assert data.spikes.dtype == np.uint8
    assert data.bin_size == 0.02
    # Labels belong to the trials that are there.
    assert list(data.trials.index) == [500 + i for i in range(10) if i != 3]
    assert list(data.trials["target"]) == [TARGETS[i] for i in range(10) if i != 3]
    np.testing.assert_array_equal(np.stack(data.trials["target_position"])[:, 1], np.r_[:3, 4:10])
    # Its references would point into a closed file.
    assert "timeseries" not in data.trials
    assert list(data.units.index) == [70, 71, 72, 73]
    assert set(data.units.columns) == {"quality", "electrode_group"}


def test_whole_trials(nwb, tmp_path):
    data = trials_from_nwb(written(nwb, tmp_path), bin_size=0.02)
    expected = trials_from_spike_times(
        SPIKE_TIMES, bin_size=0.02, align_to=np.stack([STARTS, STOPS], axis=1)
    )
    assert isinstance(data.spikes, list)
    for trial, other in zip(data.spikes, expected, strict=True):
        np.testing.assert_array_equal(trial, other)
    assert len(data.trials) == 10


def test_an_open_file_and_one_in_memory(nwb, tmp_path):
    settings = {"bin_size": 0.02, "align_to": "go_cue_time", "window": (0, 0.2)}
    in_memory = trials_from_nwb(nwb, **settings)
    path = written(nwb, tmp_path)
    with pynwb.NWBHDF5IO(path, "r") as file:
        of_open = trials_from_nwb(file.read(), **settings)
    of_path = trials_from_nwb(str(path), **settings)
    for data in (in_memory, of_open):
        np.testing.assert_array_equal(data.spikes, of_path.spikes)
        assert list(data.trials["target"]) == list(of_path.trials["target"])
        assert list(data.units.columns) == list(of_path.units.columns)


def test_units_are_chosen_by_their_columns(nwb, tmp_path):
    data = trials_from_nwb(
        written(nwb, tmp_path), bin_size=0.02, align_to="go_cue_time", window=(-0.1, 0.3)
    )
    spikes = data.spikes[:, :, data.units["quality"] == "good"]
    np.testing.assert_array_equal(spikes, data.spikes[:, :, [0, 2, 3]])
    sae = NODESAE(n_latents=1, max_epochs=2, device="cpu", random_state=0).fit(spikes)
    assert sae.transform(spikes).shape == (9, 20, 1)


def test_unobserved_is_nan_and_trials_without_anything_are_left_out(tmp_path):
    nwb = new_file()
    nwb.add_unit(spike_times=[1.1, 2.1, 2.3], obs_intervals=[[0.0, 2.2]])
    nwb.add_unit(spike_times=[1.1, 2.3], obs_intervals=[[0.0, 1.5], [2.0, 3.0]])
    nwb.add_unit(spike_times=[], obs_intervals=[[0.0, 2.2]])
    for start in (1.0, 2.0, 5.0):
        nwb.add_trial(start_time=start, stop_time=start + 0.4)
    path = written(nwb, tmp_path)
    nan = np.nan
    for window in (None, (0, 0.4)):
        data = trials_from_nwb(path, bin_size=0.1, window=window)
        assert list(data.trials["start_time"]) == [1.0, 2.0]
        first, second = data.spikes
        np.testing.assert_array_equal(first, [[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
        np.testing.assert_array_equal(second, [[0, 0, 0], [1, 0, 0], [nan, 0, nan], [nan, 1, nan]])
    assert data.units.shape == (3, 0)


def test_invalid_times_are_nan_for_all_units(nwb, tmp_path):
    nwb.add_invalid_time_interval(start_time=2.1, stop_time=2.13)
    # NaN stands for an end that is not known.
    nwb.add_invalid_time_interval(start_time=9.0, stop_time=np.nan)
    nwb.add_invalid_time_interval(start_time=np.nan, stop_time=1.15)
    data = trials_from_nwb(written(nwb, tmp_path), bin_size=0.1, window=(0, 0.4))
    assert list(data.trials.index) == list(range(500, 508))
    missing = np.isnan(data.spikes)
    assert missing[1, 1].all()
    assert missing[0, :2].all()
    assert missing.sum() == 3 * 4


def test_invalid_times_cut_observed_ones(tmp_path):
    nwb = new_file()
    nwb.add_unit(spike_times=[1.1], obs_intervals=[[0.0, 1.3], [1.5, 2.0]])
    nwb.add_invalid_time_interval(start_time=1.0, stop_time=1.1)
    nwb.add_invalid_time_interval(start_time=1.6, stop_time=1.7)
    nwb.add_trial(start_time=0.9, stop_time=2.0)
    (trial,) = trials_from_nwb(written(nwb, tmp_path), bin_size=0.1).spikes
    np.testing.assert_array_equal(np.isnan(trial[:, 0]), [0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"align_to": "go"}, "align_to='go' is not a column of times.*go_cue_time, target"),
        ({"align_to": "target"}, "align_to='target' is not a column of times"),
        ({"align_to": "target_position"}, "align_to='target_position' is not a column of times"),
        ({"align_to": "go_cue_time", "window": None}, "align_to='go_cue_time' needs a window"),
        ({"window": (0, 0.25)}, "holds 2.5 bins"),
    ],
)
def test_errors(nwb, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        trials_from_nwb(
            written(nwb, tmp_path), **{"bin_size": 0.1, "window": (0, 0.2), **arguments}
        )


def test_errors_about_tables():
    nwb = new_file()
    with pytest.raises(ValueError, match="no table of units"):
        trials_from_nwb(nwb, bin_size=0.1)
    nwb.add_unit(spike_times=[0.1])
    nwb.create_time_intervals(name="gratings", description="stimuli")
    with pytest.raises(ValueError, match=r"no table of trials.*\['gratings'\]"):
        trials_from_nwb(nwb, bin_size=0.1)


def test_units_without_spike_times():
    nwb = new_file()
    nwb.add_unit_column("quality", "by the sorter")
    nwb.add_unit(quality="good")
    nwb.add_trial(start_time=0.0, stop_time=1.0)
    with pytest.raises(ValueError, match="units of the file have no spike_times.*quality"):
        trials_from_nwb(nwb, bin_size=0.1)


def test_errors_about_trials():
    nwb = new_file()
    nwb.add_unit(spike_times=[0.1], obs_intervals=[[0.0, 1.0]])
    nwb.add_trial(start_time=5.0, stop_time=np.nan)
    with pytest.raises(ValueError, match="none of 1 has start_time and stop_time"):
        trials_from_nwb(nwb, bin_size=0.1)
    with (
        pytest.warns(UserWarning, match="No spike is in any trial"),
        pytest.raises(ValueError, match="in none of them was any unit observed"),
    ):
        trials_from_nwb(nwb, bin_size=0.1, window=(0, 1))


def test_not_a_file(tmp_path):
    with pytest.raises(TypeError, match="must be a path or a pynwb.NWBFile, got list"):
        trials_from_nwb([1, 2], bin_size=0.1)
    with pytest.raises(FileNotFoundError):
        trials_from_nwb(tmp_path / "missing.nwb", bin_size=0.1)


def test_without_pynwb(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(ImportError, match=re.escape('pip install "sklearn_sae[nwb]"')):
        trials_from_nwb(tmp_path / "session.nwb", bin_size=0.1)


def test_importing_needs_no_optional_library():
    # scikit-learn itself tries to import pandas, so it is not enough to look at what is there.
    code = (
        "import sys; "
        "sys.modules.update(dict.fromkeys(['h5py', 'hdmf', 'pandas', 'pynapple', 'pynwb'])); "
        "import sklearn_sae.io"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

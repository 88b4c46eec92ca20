import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_sae._data import trials as trials_module
from sklearn_sae._data.batches import Batch
from sklearn_sae._data.trials import Trials

CPU = torch.device("cpu")
DTYPES = [
    "u1",
    "i1",
    "u2",
    "i2",
    "u4",
    "i4",
    "u8",
    "i8",
    "?",
    "f2",
    "f4",
    "f8",
    ">i4",
    ">f4",
    ">f8",
]


def counts(n_trials=6, n_bins=5, n_neurons=3, seed=0):
    return np.random.default_rng(seed).integers(0, 9, (n_trials, n_bins, n_neurons))


def with_holes(array, share=0.3, seed=1):
    holes = np.random.default_rng(seed).random(array.shape) < share
    return np.where(holes, np.nan, array.astype(float))


def trials_of(data):
    has_missing = any(
        np.isnan(trial).any() for trial in data if np.issubdtype(trial.dtype, np.floating)
    )
    return Trials(data, has_missing=has_missing)


def assert_holds(batch, expected):
    """That ``batch`` holds ``expected`` ``(n_trials, n_bins, n_neurons)``, NaN = not observed."""
    expected = np.asarray(expected, dtype=np.float64)
    assert batch.counts.dtype == torch.float32
    assert batch.counts.is_contiguous()
    observed = ~np.isnan(expected)
    np.testing.assert_array_equal(
        batch.counts.permute(2, 0, 1), np.nan_to_num(expected).astype(np.float32)
    )
    np.testing.assert_array_equal(batch.observed().permute(2, 0, 1), observed)
    assert (batch.mask is None) == observed.all()
    ends = [1 + max([0, *np.flatnonzero(trial.any(1))]) for trial in observed]
    np.testing.assert_array_equal(batch.lengths, ends)


ALL = np.arange(6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_list", [False, True])
def test_every_dtype(dtype, as_list):
    array = counts().astype(dtype)
    batch = trials_of(list(array) if as_list else array).batch(ALL, CPU)
    assert_holds(batch, array)


def test_long_doubles():
    array = counts().astype(np.longdouble)
    assert_holds(trials_of(array).batch(ALL, CPU), array)


@pytest.mark.parametrize("rows", [[0], [5, 0, 3], [2, 2], []])
@pytest.mark.parametrize("missing", [False, True])
def test_rows_come_as_asked(rows, missing):
    array = with_holes(counts()) if missing else counts()
    rows = np.array(rows, dtype=int)
    batch = trials_of(array).batch(rows, CPU)
    assert len(batch) == len(rows)
    np.testing.assert_array_equal(batch.rows, rows)
    if len(rows):
        assert_holds(batch, array[rows])


@pytest.mark.parametrize("n_bins", [1, 3, 5])
@pytest.mark.parametrize("form", ["array", "holes", "list"])
def test_only_the_bins_asked_for(n_bins, form):
    array = with_holes(counts()) if form == "holes" else counts()
    data = list(array) if form == "list" else array
    assert_holds(trials_of(data).batch(ALL, CPU, n_bins), array[:, :n_bins])


def test_lengths_end_at_the_last_observed_bin():
    array = counts().astype(float)
    array[0, 3:] = np.nan
    array[1, 2] = np.nan
    array[2, 4, :2] = np.nan
    array[3, :4] = np.nan
    trials = trials_of(array)
    assert trials.batch(ALL, CPU).lengths.tolist() == [3, 5, 5, 5, 5, 5]
    # Up to bin 3 nothing of trial 3 was observed; a length of zero would trip the encoder.
    assert trials.batch(ALL, CPU, 3).lengths.tolist() == [3, 2, 3, 1, 3, 3]


# --- ragged trials -------------------------------------------------------------------------------

ragged_lengths = st.lists(st.integers(1, 8), min_size=1, max_size=6)


@given(ragged_lengths, st.sampled_from(["u1", "i8", "f4", "f8"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_list_is_its_padded_array(lengths, dtype, missing):
    array = counts(len(lengths), max(lengths)).astype(dtype)
    ragged = [trial[:n] for trial, n in zip(array, lengths, strict=True)]
    if missing and dtype.startswith("f"):
        ragged = [with_holes(trial, seed=n) for trial, n in zip(ragged, lengths, strict=True)]
        ragged = [trial.astype(dtype) for trial in ragged]
    padded = np.full(array.shape, np.nan)
    for row, trial in zip(padded, ragged, strict=True):
        row[: len(trial)] = trial
    trials = trials_of(ragged)
    assert trials.n_bins == max(lengths)
    assert len(trials) == len(lengths)
    assert_holds(trials.batch(np.arange(len(lengths)), CPU), padded)
    horizon = (max(lengths) + 1) // 2
    assert_holds(trials.batch(np.arange(len(lengths)), CPU, horizon), padded[:, :horizon])
    np.testing.assert_allclose(trials.mean_counts(), trials_of(padded).mean_counts())


def test_a_list_may_mix_dtypes():
    mixed = [counts()[0].astype("u1"), with_holes(counts()[1]), counts()[2].astype("i8")]
    assert_holds(trials_of(mixed).batch(np.arange(3), CPU), np.stack(mixed))
    mixed[2] = mixed[2][:2]
    expected = np.full((3, 5, 3), np.nan)
    for row, trial in zip(expected, mixed, strict=True):
        row[: len(trial)] = trial
    assert_holds(trials_of(mixed).batch(np.arange(3), CPU), expected)


# --- what is not copied, and what must be --------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
@pytest.mark.filterwarnings("error")
def test_read_only_input_is_read_and_left_alone(order, dtype):
    array = np.asarray(counts().astype(dtype), order=order)
    before = array.copy()
    array.flags.writeable = False
    batch = trials_of(array).batch(ALL, CPU)
    assert_holds(batch, array)
    batch.counts.zero_()
    np.testing.assert_array_equal(array, before)
    batch = trials_of(list(array)).batch(ALL, CPU)
    batch.counts.zero_()
    np.testing.assert_array_equal(array, before)


def test_one_trial_of_one_neuron_is_not_shared_with_the_input():
    # A transpose of it is contiguous: no copy would be made on the way.
    array = counts(1, 4, 1).astype(np.float32)
    before = array.copy()
    trials_of(array).batch(np.array([0]), CPU).counts.zero_()
    np.testing.assert_array_equal(array, before)


@pytest.mark.filterwarnings("error")
def test_a_memory_map_is_read_batch_by_batch(tmp_path):
    array = counts(50).astype(np.uint8)
    np.save(tmp_path / "spikes.npy", array)
    mapped = np.load(tmp_path / "spikes.npy", mmap_mode="r")
    trials = trials_of(mapped)
    assert isinstance(trials.data, np.memmap)
    subset = trials.subset(np.arange(10, 40))
    rows = np.array([3, 20])
    assert_holds(trials.batch(rows, CPU), array[rows])
    assert_holds(subset.batch(rows, CPU), array[[13, 30]])
    np.testing.assert_allclose(trials.mean_counts(), array.mean((0, 1)))


def test_batches_of_a_large_recording_stay_small():
    # Larger than memory if it were converted: only the rows asked for may be touched.
    array = np.broadcast_to(np.uint8(1), (10**6, 1000, 1000))
    trials = Trials(array, has_missing=False)
    batch = trials.subset(np.arange(0, 10**6, 1000)).batch(np.array([5, 7]), CPU, 3)
    assert_holds(batch, np.ones((2, 3, 1000)))


# --- subsets, chunks -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "holes", "list"])
def test_subset(form):
    array = with_holes(counts()) if form == "holes" else counts()
    data = [trial[: 2 + i % 4] for i, trial in enumerate(array)] if form == "list" else array
    rows = np.array([4, 1, 5, 0])
    whole, subset = trials_of(data), trials_of(data).subset(rows)
    assert len(subset) == 4
    assert (subset.n_bins, subset.n_neurons) == (whole.n_bins, whole.n_neurons)
    ours, expected = subset.batch(np.array([2, 0]), CPU), whole.batch(np.array([5, 4]), CPU)
    assert torch.equal(ours.counts, expected.counts)
    assert torch.equal(ours.observed(), expected.observed())
    np.testing.assert_array_equal(ours.lengths, expected.lengths)
    # Where the trials stand in the subset: tables of the training trials go by that.
    np.testing.assert_array_equal(ours.rows, [2, 0])
    again = subset.subset(np.array([1, 3])).batch(np.array([1]), CPU)
    assert torch.equal(again.counts, whole.batch(np.array([0]), CPU).counts)
    chosen = [data[row] for row in rows]
    same = trials_of(chosen if form == "list" else np.stack(chosen))
    np.testing.assert_allclose(subset.mean_counts(), same.mean_counts())


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_chunks_hold_every_trial_once_in_order(size):
    trials = trials_of(counts())
    batches = list(trials.chunks(size, CPU))
    assert [len(batch) for batch in batches] == [
        min(size, 6 - start) for start in range(0, 6, size)
    ]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), ALL)
    together = torch.cat([batch.counts for batch in batches], dim=2)
    assert torch.equal(together, trials.batch(ALL, CPU).counts)


# --- masks, means --------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True])
def test_hide(missing):
    array = with_holes(counts()) if missing else counts()
    batch = trials_of(array).batch(ALL, CPU)
    hidden = torch.from_numpy(np.random.default_rng(2).random((5, 3, 6)) < 0.5)
    seen = batch.hide(hidden)
    assert isinstance(seen, Batch)
    assert torch.equal(seen.mask, batch.observed() & ~hidden)
    assert torch.equal(seen.counts, torch.where(seen.mask, batch.counts, 0))
    np.testing.assert_array_equal(seen.lengths, batch.lengths)
    # The batch itself is as before.
    assert_holds(batch, array)


@pytest.mark.parametrize("n_trials", [1, 6, 600])
def test_mean_counts_are_over_observed_entries(n_trials):
    array = with_holes(counts(n_trials, n_bins=8))
    np.testing.assert_allclose(trials_of(array).mean_counts(), np.nanmean(array, (0, 1)))
    whole = counts(n_trials)
    np.testing.assert_allclose(trials_of(whole).mean_counts(), whole.mean((0, 1)))


def test_mean_counts_of_small_integers_do_not_overflow():
    array = np.full((300, 40, 2), 255, dtype=np.uint8)
    np.testing.assert_array_equal(trials_of(array).mean_counts(), [255, 255])


def test_mean_counts_of_an_unseen_neuron_are_zero():
    array = with_holes(counts())
    array[:, :, 1] = np.nan
    assert trials_of(array).mean_counts()[1] == 0


# ------------------------------------------------------------------ checksum


def checksum(data):
    missing = any(np.isnan(trial).any() for trial in data)
    return Trials(data, has_missing=missing).checksum()


def test_the_checksum_is_that_of_counts_and_mask_in_any_container(tmp_path, monkeypatch):
    monkeypatch.setattr(trials_module, "CHUNK", 100)  # several reads
    counts = np.random.default_rng(0).poisson(2.0, (9, 5, 7))
    np.save(tmp_path / "counts.npy", counts.astype("int8"))
    stored = np.load(tmp_path / "counts.npy", mmap_mode="r")
    same = [counts, counts.astype(">f8"), np.asfortranarray(counts), stored, list(counts)]
    assert len({checksum(data) for data in same}) == 1
    holes = counts.astype(float)
    holes[3, 2:] = np.nan
    assert checksum([*holes[:3], holes[3, :2], *holes[4:]]) == checksum(holes)


def test_the_checksum_tells_data_apart():
    counts = np.random.default_rng(0).poisson(2.0, (9, 5, 7)).astype(float)
    others = [counts]
    for entry in np.ndindex(counts.shape):
        for value in (counts[entry] + 1, np.nan):
            others.append(counts.copy())
            others[-1][entry] = value
    others += [counts[::-1], counts[:, :, ::-1]]
    assert len({checksum(data) for data in others}) == len(others)


@pytest.mark.parametrize("unit, offset", [(1e-60, 0.0), (1.0, 1e11), (1e60, 0.0)])
def test_the_checksum_sees_digits_that_float32_does_not_have(unit, offset):
    signals = np.random.default_rng(0).normal(size=(4, 5, 3))
    others = [unit * x + offset for x in (signals, 2 * signals)]
    assert checksum(others[0]) != checksum(others[1])
    assert checksum(list(others[0])) == checksum(others[0])

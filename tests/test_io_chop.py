"""Windows and back: nothing is lost, nothing is copied, and seams do not show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sklearn_sae import NODESAE
from sklearn_sae.io import ChopLayout, chop, merge

windows_and_overlaps = st.integers(2, 12).flatmap(
    lambda window: st.tuples(st.just(window), st.integers(0, window - 1))
)


@settings(deadline=None)
@given(
    sizes=windows_and_overlaps,
    recording=hnp.arrays(
        st.sampled_from([np.uint8, np.int64, np.float32, np.float64]),
        st.tuples(st.integers(1, 60), st.integers(1, 3)),
    ),
)
def test_merge_undoes_chop_to_the_last_bit(sizes, recording):
    window, overlap = sizes
    if recording.dtype.kind == "f":
        recording = np.where(np.isinf(recording), np.nan, recording)
    elif recording.dtype == np.int64:
        recording %= 2**40
    pieces, layout = chop(recording, window=window, overlap=overlap)
    np.testing.assert_array_equal(merge(pieces, layout), recording)
    if recording.dtype != np.int64:
        assert np.result_type(recording, np.float32) == merge(pieces, layout).dtype


@settings(deadline=None)
@given(sizes=windows_and_overlaps, n_bins=st.integers(1, 60))
def test_windows_are_where_the_layout_says(sizes, n_bins):
    window, overlap = sizes
    recording = np.arange(2 * n_bins).reshape(n_bins, 2)
    pieces, layout = chop(recording, window=window, overlap=overlap)
    assert (layout.n_bins, layout.window, layout.overlap) == (n_bins, window, overlap)
    assert len(pieces) == len(layout.starts)
    assert set(np.diff(layout.starts)) <= {window - overlap}
    # All bins are in some window, and no window could be left out.
    assert layout.starts[-1] + window >= n_bins
    assert len(pieces) == 1 or layout.starts[-2] + window < n_bins
    for start, piece in zip(layout.starts, pieces, strict=True):
        assert piece.shape == (window, 2)
        inside = recording[start : start + window]
        np.testing.assert_array_equal(piece[: len(inside)], inside)
        assert np.isnan(piece[len(inside) :]).all()


@settings(deadline=None)
@given(
    sizes=windows_and_overlaps,
    n_bins=st.integers(1, 40),
    trailing=st.sampled_from([(), (1,), (3,), (2, 2)]),
)
def test_merge_is_the_weighted_mean(sizes, n_bins, trailing):
    window, overlap = sizes
    layout = ChopLayout(n_bins, window, overlap)
    pieces = np.random.default_rng(0).normal(size=(len(layout.starts), window, *trailing))
    merged = merge(pieces, layout)
    for t in range(n_bins):
        # The closer a bin is to either end of its window, the less the window counts.
        at = [(t - start, piece) for start, piece in zip(layout.starts, pieces, strict=True)]
        at = [(k, piece[k]) for k, piece in at if 0 <= k < window]
        weights = [min(k + 1, window - k, overlap + 1) ** 4 for k, _ in at]
        expected = sum(w * x for w, (_, x) in zip(weights, at, strict=True)) / sum(weights)
        np.testing.assert_allclose(merged[t], expected, rtol=1e-12, atol=1e-12)


def test_a_ramp_from_one_window_to_the_next():
    layout = ChopLayout(n_bins=16, window=10, overlap=4)
    merged = merge([np.zeros(10), np.full(10, 5.0)], layout)
    fade = [5 * k**4 / (k**4 + (5 - k) ** 4) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(merged, [0] * 6 + fade + [5] * 6, atol=1e-12)


def test_what_lies_in_the_padding_does_not_matter():
    _, layout = chop(np.zeros((7, 1)), window=4, overlap=1)
    pieces = np.ones((2, 4, 3))
    np.testing.assert_array_equal(merge(pieces, layout), np.ones((7, 3)))
    _, layout = chop(np.zeros((6, 1)), window=4, overlap=1)
    for padding in (np.nan, 1e9):
        pieces[1, 3:] = padding
        np.testing.assert_array_equal(merge(pieces, layout), np.ones((6, 3)))
    pieces[1, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(merge(pieces, layout))[:, 0], [0, 0, 0, 0, 1, 0])


def test_a_memory_map_is_not_copied(tmp_path):
    recording = np.memmap(tmp_path / "spikes", dtype=np.uint8, mode="w+", shape=(1003, 4))
    pieces, _ = chop(recording, window=50, overlap=10)
    assert all(np.shares_memory(piece, recording) for piece in pieces[:-1])
    assert {piece.dtype for piece in pieces[:-1]} == {np.dtype(np.uint8)}
    assert pieces[-1].dtype == np.float32
    even, _ = chop(recording, window=3, overlap=2)
    assert all(np.shares_memory(piece, recording) for piece in even)


def test_an_estimator_in_between():
    rng = np.random.default_rng(0)
    phase = 0.3 * np.arange(225)[:, np.newaxis] + np.arange(6)
    recording = rng.poisson(np.exp(np.sin(phase))).astype(np.uint8)
    pieces, layout = chop(recording, window=30, overlap=10)
    assert np.isnan(pieces[-1]).any()
    sae = NODESAE(n_latents=2, max_epochs=60, device="cpu", random_state=0).fit(pieces)
    rates = merge(sae.predict(pieces), layout)
    assert rates.shape == recording.shape
    assert rates.dtype == np.float32
    assert np.corrcoef(rates.ravel(), np.exp(np.sin(phase)).ravel())[0, 1] > 0.8
    assert merge(sae.transform(pieces), layout).shape == (225, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recording": np.zeros((3, 4, 5))}, r"got \(3, 4, 5\). These are trials already"),
        ({"recording": np.zeros(3)}, r"must have shape \(n_bins, n_neurons\), got \(3,\)"),
        ({"recording": np.zeros((0, 3))}, r"got \(0, 3\)"),
        ({"window": 0.5}, r"window must be a number of bins.*got 0.5.*round\(window / bin_size\)"),
        ({"window": 1, "overlap": 0}, "window must be a number of bins, an int >= 2"),
        ({"overlap": -1}, "overlap must be a number of bins, an int >= 0, got -1"),
        ({"overlap": 4}, "overlap must be less than window, got overlap=4 and window=4"),
    ],
)
def test_errors_of_chop(change, message):
    given = {"recording": np.zeros((20, 2)), "window": 4, "overlap": 1}
    with pytest.raises(ValueError, match=message):
        chop(**{**given, **change})


@pytest.mark.parametrize(
    ("pieces", "layout", "message"),
    [
        (np.zeros((3, 4, 1)), 10, "layout must be the ChopLayout that chop returned, got int"),
        (np.zeros((4, 4, 1)), ChopLayout(10, 4, 1), r"must be 3 windows of 4 bins.*got 4, of"),
        (np.zeros((3, 5, 1)), ChopLayout(10, 4, 1), r"got 3, of shapes \[\(5, 1\)\]"),
        ([np.zeros((4, n)) for n in (1, 2, 1)], ChopLayout(10, 4, 1), "All pieces must have one"),
    ],
)
def test_errors_of_merge(pieces, layout, message):
    with pytest.raises(ValueError, match=message):
        merge(pieces, layout)

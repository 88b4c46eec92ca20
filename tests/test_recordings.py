"""Real recordings, where they are at hand; nothing of them is part of the package."""

from pathlib import Path

import numpy as np
import pytest

from sklearn_sae import NODESAE

RECORDING = Path(__file__).parents[2] / "shared" / "data" / "macaque_m1_bci_20181004.npz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RECORDING.exists(), reason="the macaque recording is not at hand"),
]


def test_whole_trials_of_unequal_length_equal_their_padded_form():
    file = np.load(RECORDING)
    lengths = file["ragged_lengths"]
    ragged = np.split(file["ragged_spikes"], np.cumsum(lengths)[:-1])
    padded = np.full((len(ragged), lengths.max(), ragged[0].shape[1]), np.nan)
    for row, trial in zip(padded, ragged, strict=True):
        row[: len(trial)] = trial

    settings = {"n_latents": 8, "max_epochs": 60, "random_state": 0}
    of_list = NODESAE(**settings).fit(ragged)
    of_padded = NODESAE(**settings).fit(padded)

    latents = of_padded.transform(padded)
    for one, other, length in zip(of_list.transform(ragged), latents, lengths, strict=True):
        np.testing.assert_allclose(one, other[:length], atol=1e-4)
    assert of_list.score(ragged) == pytest.approx(of_padded.score(padded), abs=1e-4)
    assert of_list.score(ragged) > 0.05
    assert np.isfinite(of_list.forecast(ragged, 5)).all()

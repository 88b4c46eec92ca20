"""From recorded spike times to trials that go straight into an estimator.

NWB files need ``pip install "sklearn_sae[nwb]"``.
"""

from ._nwb import trials_from_nwb
from ._spike_times import trials_from_spike_times

__all__ = ["trials_from_nwb", "trials_from_spike_times"]

"""From recorded spike times to trials that go straight into an estimator.

NWB files need ``pip install "sklearn_sae[nwb]"``; pynapple objects bring pynapple with them.
"""

from ._nwb import trials_from_nwb
from ._pynapple import trials_from_pynapple
from ._spike_times import trials_from_spike_times

__all__ = ["trials_from_nwb", "trials_from_pynapple", "trials_from_spike_times"]

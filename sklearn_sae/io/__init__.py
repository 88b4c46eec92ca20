"""From recorded spike times to trials, and from continuous recordings to windows and back.

The ``trials_from_*`` functions count spikes and mark what was not observed with NaN, so that their
result goes straight into an estimator. NWB files need ``pip install "sklearn_sae[nwb]"``; pynapple
objects bring pynapple with them.
"""

from ._chop import ChopLayout, chop, merge
from ._nwb import trials_from_nwb
from ._pynapple import trials_from_pynapple
from ._spike_times import trials_from_spike_times

__all__ = [
    "ChopLayout",
    "chop",
    "merge",
    "trials_from_nwb",
    "trials_from_pynapple",
    "trials_from_spike_times",
]

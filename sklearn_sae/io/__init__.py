"""From recorded spike times to trials that go straight into an estimator."""

from ._spike_times import trials_from_spike_times

__all__ = ["trials_from_spike_times"]

"""Spike counts with known truth: chaotic systems, simulated neurons, and the best one can do."""

from ._attractors import Arneodo, Lorenz, MacArthur, Rossler
from ._mackey_glass import MackeyGlass
from ._oracle import oracle_rates
from ._spikes import make_chaotic_spikes
from ._systems import CustomSystem, System

__all__ = [
    "Arneodo",
    "CustomSystem",
    "Lorenz",
    "MacArthur",
    "MackeyGlass",
    "Rossler",
    "System",
    "make_chaotic_spikes",
    "oracle_rates",
]

"""Learned maps of states: the vector field of a flow, or the cell of a map.

A new kind is a subclass of `StateMap` in a file of its own, and a line in `STATE_MAPS`.
"""

from .base import StateMap
from .cells import GRUCell, TanhCell
from .mlp import MLP

__all__ = ["STATE_MAPS", "GRUCell", "MLP", "StateMap", "TanhCell"]

STATE_MAPS: dict[str, type[StateMap]] = {"gru": GRUCell, "rnn": TanhCell, "mlp": MLP}

"""Units of Gaussian signals, which are standardised for the network and not for the user."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Units"]


class Units(NamedTuple):
    """Centre and scale of each neuron's signal, ``(n_neurons,)`` in float64, in units of the data.

    Both are None for counts, which the network takes as they are.
    """

    centre: np.ndarray | None = None
    scale: np.ndarray | None = None

    def to_network(self, values: np.ndarray) -> np.ndarray:
        """Convert values ``(..., n_neurons)`` from units of the data to those of the network."""
        if self.centre is None or self.scale is None:
            return values
        return (values - self.centre) / self.scale

    def to_data(self, values: np.ndarray) -> np.ndarray:
        """Convert values ``(..., n_neurons)`` from units of the network to those of the data."""
        if self.centre is None or self.scale is None:
            return values
        return values * self.scale + self.centre

    def std_to_data(self, std: np.ndarray) -> np.ndarray:
        """Convert standard deviations ``(..., n_neurons)`` to units of the data."""
        return std if self.scale is None else std * self.scale

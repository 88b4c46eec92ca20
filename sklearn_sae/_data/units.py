"""Units of Gaussian signals: what a network sees is centred and scaled, what users see is not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Units"]


class Units(NamedTuple):
    """Centre and scale of each neuron's signal, ``(n_neurons,)`` in float64, in units of the data.

    Without them, as for counts, the units of the data are those of the network.
    """

    centre: np.ndarray | None = None
    scale: np.ndarray | None = None

    def to_network(self, values: np.ndarray) -> np.ndarray:
        """Values ``(..., n_neurons)`` of the data in units of the network."""
        if self.centre is None or self.scale is None:
            return values
        return (values - self.centre) / self.scale

    def to_data(self, values: np.ndarray) -> np.ndarray:
        """Values ``(..., n_neurons)`` of the network in units of the data."""
        if self.centre is None or self.scale is None:
            return values
        return values * self.scale + self.centre

    def std_to_data(self, std: np.ndarray) -> np.ndarray:
        """Standard deviations ``(..., n_neurons)`` of the network in units of the data."""
        return std if self.scale is None else std * self.scale

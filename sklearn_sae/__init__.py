"""Sequential autoencoders on neural spike counts, as scikit-learn estimators."""

from ._estimators import NODESAE, RNNSAE

__version__ = "0.1.0.dev0"

__all__ = ["NODESAE", "RNNSAE", "__version__"]

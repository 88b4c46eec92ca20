"""Sequential autoencoders on neural spike counts, as scikit-learn estimators."""

from ._estimators import NODESAE, RNNSAE
from ._load import load
from ._version import __version__

__all__ = ["NODESAE", "RNNSAE", "__version__", "load"]

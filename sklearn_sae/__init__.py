"""Sequential autoencoders on neural spike counts, as scikit-learn estimators."""

__version__ = "0.1.0.dev0"  # first, because files of saved estimators name it

from ._estimators import NODESAE, RNNSAE
from ._persistence import load

__all__ = ["NODESAE", "RNNSAE", "__version__", "load"]

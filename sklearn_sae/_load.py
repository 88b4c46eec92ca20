"""Loading of estimators from files."""

from __future__ import annotations

import os

from . import _estimators  # noqa: F401  registers the classes that a file can name
from ._base import BaseSAE
from ._saving.estimators import unpack
from ._saving.files import Damaged, Foreign, read
from ._version import __version__

__all__ = ["load"]


def load(path: str | os.PathLike[str]) -> BaseSAE:
    """Load an estimator that its method ``save`` wrote.

    The file holds numbers and the names of parameters, and no code is run: a file from somebody
    else is safe to load, unlike a pickle.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    estimator : NODESAE or RNNSAE
        The estimator as it was saved, with its parameters and learned attributes; predictions agree
        to the last bit. If ``device`` names one that this machine does not have, set it to "auto".

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file was not written by ``save``, is damaged, or needs another version of
        sklearn_sae.

    See Also
    --------
    NODESAE.save : Writes the file.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import sklearn_sae
    >>> spikes = np.random.default_rng(0).poisson(1.0, (10, 5, 4))
    >>> est = sklearn_sae.NODESAE(n_latents=2, max_epochs=2, random_state=0).fit(spikes)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "session.safetensors")
    ...     est.save(path)
    ...     same = sklearn_sae.load(path)
    >>> bool((same.predict(spikes) == est.predict(spikes)).all())
    True
    """
    try:
        content, arrays = read(path)
    except Foreign as error:
        raise ValueError(
            f"{error} Load a pickle with the library that wrote it, and only if you trust its "
            "source."
        ) from error
    except Damaged as error:
        raise ValueError(
            f"{error} Copy it again from where it came, or save the estimator again."
        ) from error
    if "checkpoint" in content:
        raise ValueError(
            f"{path} is the checkpoint of a fit that did not end, and not an estimator. To go on "
            "with it, fit again with this checkpoint_path and the same parameters and spikes."
        )
    try:
        return unpack(content, arrays)
    except Exception as error:  # a file may be wrong in any way, and all of them are its fault
        raise ValueError(
            f"{path} cannot be loaded: {str(error).rstrip('.')}. It was written with "
            f"{str(content.get('versions')):.200}, and this is sklearn_sae {__version__}; use the "
            "version that wrote it, or save the estimator again."
        ) from error

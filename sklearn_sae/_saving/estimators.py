"""Fitted estimators as files: packing, unpacking and checks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted

from .._data.units import Units
from .._inference.fitted_model import FittedModel
from .._inference.inference import INFERENCES
from .._model.autoencoder import SequentialAutoencoder
from .._model.likelihoods import LIKELIHOODS
from .._torch_state import own_torch_state
from .._version import __version__
from .files import write
from .json import decode, encode, encode_parameters

Estimator = TypeVar("Estimator")

__all__ = ["register", "save", "unpack"]

#: Classes of estimators that a file can name; see ``register``.
CLASSES: dict[str, type[Any]] = {}

#: Learned attributes other than ``model_``: types of numbers, dtypes and axes of arrays.
NUMBERS = {
    "n_features_in_": int,
    "n_inputs_in_": int,
    "n_iter_": int,
    "model_variance_": float,
    "best_validation_score_": float,
}
ARRAYS = {
    "null_rates_": ("float64", 1),
    "signal_mean_": ("float64", 1),
    "signal_scale_": ("float64", 1),
    "training_initial_conditions_": ("float32", 2),
    "process_noise_": ("float64", 1),
    "initial_covariance_": ("float64", 2),
    "loss_curve_": ("float64", 1),
    "init_scores_": ("float64", 1),
    "validation_scores_": ("float64", 1),
    "validation_epochs_": ("int64", 1),
    **{name: ("float64", 1) for likelihood in LIKELIHOODS.values() for name in likelihood.names},
}
#: Learned attributes that describe the fit; all others are those of the fitted model.
OF_THE_FIT = {
    "n_features_in_",
    "n_inputs_in_",
    "n_iter_",
    "loss_curve_",
    "init_scores_",
    "validation_scores_",
    "validation_epochs_",
    "best_validation_score_",
}
#: Arrays in a file, but lists in an estimator.
LISTS = ("loss_curve_", "validation_scores_", "validation_epochs_")
ALWAYS = {"n_features_in_", "n_inputs_in_", "n_iter_", "null_rates_", "loss_curve_"}

#: Prefix of the names of the network's weights in a file.
MODEL = "model_."


def register(cls: type[Estimator]) -> type[Estimator]:
    """Decorate a class of estimators that files can name."""
    CLASSES[cls.__name__] = cls
    return cls


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to a file; see ``NODESAE.save``."""
    check_is_fitted(estimator)
    name = type(estimator).__name__
    if CLASSES.get(name) is not type(estimator):
        raise TypeError(
            f"save writes {' and '.join(CLASSES)}, and not other classes such as {name}, because a "
            "file holds no code. Use joblib.dump."
        )
    content, arrays = pack(estimator)
    try:
        # An error now is better than one after the estimator is gone.
        unpack(content, arrays)
    except Exception as error:
        raise ValueError(
            f"This {name} is not as fit left it, and could not be loaded again: "
            f"{str(error).rstrip('.')}. Undo what was changed, or fit it again."
        ) from error
    write(path, content, arrays)


def pack(estimator: Any) -> tuple[dict, dict[str, np.ndarray]]:
    """Convert a fitted estimator to content for JSON and arrays."""
    name = type(estimator).__name__
    parameters = estimator.get_params(deep=False)
    fitted: FittedModel = estimator._fitted_model
    own = {k: v for k, v in vars(estimator).items() if k not in (*parameters, "_fitted_model")}
    by_hand = sorted(own.keys() - OF_THE_FIT)
    if by_hand:
        raise ValueError(
            f"This {name} has {by_hand[0]}, which is neither a parameter nor as fit left it: it "
            f"was set by hand, and would be lost. Delete it (del est.{by_hand[0]}), or use "
            "joblib.dump."
        )
    learned = own | fitted.learned()
    del learned["model_"]
    content = {
        "class": name,
        "parameters": encode_parameters(parameters, name, "use joblib.dump"),
        # Parameters at the time of the fit, which describe the network: set_params changes others.
        "fitted_with": encode_parameters(fitted.settings, name, "use joblib.dump"),
        "learned": {
            attribute: encode(learned[attribute]) for attribute in NUMBERS if attribute in learned
        },
        "versions": {
            "sklearn_sae": __version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "torch": torch.__version__,
        },
    }
    arrays = {MODEL + key: value.numpy() for key, value in fitted.network.state_dict().items()}
    for attribute in learned.keys() & ARRAYS.keys():
        arrays[attribute] = np.array(learned[attribute])
    for attribute in learned.keys() & set(LISTS):
        arrays[attribute] = np.array(learned[attribute], dtype=ARRAYS[attribute][0])
    return content, arrays


def unpack(content: dict, arrays: dict[str, np.ndarray]) -> Any:
    """Convert content and arrays of ``pack`` to an estimator; ValueError if they are invalid."""
    _check_names(content, ("class", "parameters", "fitted_with", "learned", "versions"), ())
    if content["class"] not in [*CLASSES]:
        raise ValueError(f"it holds a {content['class']!r}, and not one of {', '.join(CLASSES)}")
    cls = CLASSES[content["class"]]
    fitted_with = _construct(cls, content["fitted_with"])
    fitted_with._validate_params()
    arrays = _of_today(arrays, fitted_with)
    weights = {name: arrays[name] for name in arrays if name.startswith(MODEL)}
    learned = _decode_all(content["learned"])
    learned |= {name: arrays[name] for name in arrays if name not in weights}
    _check_learned(learned, fitted_with)
    network = _build_network(fitted_with, learned, weights)
    settings = fitted_with.get_params(deep=False)
    del settings["random_state"]
    fitted = FittedModel(
        network,
        settings,
        learned["null_rates_"],
        Units(learned.get("signal_mean_"), learned.get("signal_scale_")),
        learned.get("training_initial_conditions_"),
        learned.get("model_variance_"),
        learned.get("process_noise_"),
        learned.get("initial_covariance_"),
    )
    estimator = _construct(cls, content["parameters"])
    for name in learned.keys() - fitted.learned().keys():
        setattr(estimator, name, learned[name].tolist() if name in LISTS else learned[name])
    estimator._fitted_model = fitted
    return estimator


def _of_today(arrays: dict[str, np.ndarray], fitted_with: Any) -> dict[str, np.ndarray]:
    """Arrays of a file, also of one from before neurons had private dispersions.

    Before that there was no linear part beside perceptrons, either.
    """
    arrays = _with_linear_part(arrays, fitted_with)
    likelihood = fitted_with.likelihood
    name = MODEL + "likelihood.private_dispersion"
    if name in arrays or "null_rates_" not in arrays:
        return arrays
    n_neurons = len(arrays["null_rates_"])
    if likelihood == "negative_binomial":
        # Their names were those of the only dispersions there were.
        renamed = {f"{null}dispersion_": f"{null}overdispersion_" for null in ("", "null_")}
        arrays = {renamed.get(key, key): value for key, value in arrays.items()}
    ones = np.ones(n_neurons)
    return arrays | {name: ones[:, np.newaxis].astype(np.float32), "dispersion_": ones}


def _with_linear_part(arrays: dict[str, np.ndarray], fitted_with: Any) -> dict[str, np.ndarray]:
    """Add a linear part of zero to a perceptron from before there was one."""
    if "initial_covariance_" in arrays or not fitted_with._on_paths():
        return arrays
    n_latents = fitted_with.n_latents
    for name in ("dynamics.mlp", "dynamics.cell"):
        first, linear = f"{MODEL}{name}.weights.1", f"{MODEL}{name}.linear"
        if first in arrays and linear not in arrays:
            arrays = arrays | {linear: np.zeros((n_latents, n_latents), np.float32)}
    return arrays


def _construct(cls: type[Any], parameters: Any) -> Any:
    values = _decode_all(parameters)
    _check_names(values, (), cls._get_param_names())
    return cls(**values)


def _decode_all(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError("a part of it is not a JSON object")
    decoded = {}
    for name, value in values.items():
        try:
            decoded[name] = decode(value)
        except Exception as error:
            raise ValueError(f"its value of {name} cannot be read") from error
    return decoded


def _check_names(found: Iterable[str], needed: Iterable[str], possible: Iterable[str]) -> None:
    """Refuse names that are missing, or neither ``needed`` nor ``possible``."""
    found, needed = set(found), set(needed)
    if needed - found:
        raise ValueError(f"it lacks {min(needed - found)}")
    unknown = found - needed - set(possible)
    if unknown:
        raise ValueError(f"it holds {min(unknown)!r}, which this version does not know")


def _check_learned(learned: dict[str, Any], fitted_with: Any) -> None:
    """Refuse learned attributes whose types or shapes are wrong or do not fit each other."""
    of_neurons = ("null_rates_", *LIKELIHOODS[fitted_with.likelihood].names)
    needed = ALWAYS | set(of_neurons) | set(INFERENCES[fitted_with.inference].learned)
    _check_names(learned, needed, {*NUMBERS, *ARRAYS})
    for name in learned.keys() & NUMBERS.keys():
        if type(learned[name]) is not NUMBERS[name]:
            raise ValueError(f"its {name} is {learned[name]!r}, and not {NUMBERS[name].__name__}")
    for name in learned.keys() & ARRAYS.keys():
        dtype, n_axes = ARRAYS[name]
        if (learned[name].dtype, learned[name].ndim) != (dtype, n_axes):
            raise ValueError(f"its {name} is not a {dtype} array of {n_axes} axes")
    n_neurons = learned["n_features_in_"]
    # Files of versions that had one unit for data and network lack these.
    units = {"signal_mean_", "signal_scale_"} & learned.keys()
    for name in (*of_neurons, *units):
        if n_neurons < 1 or len(learned[name]) != n_neurons:
            raise ValueError(f"its {name} are not those of n_features_in_={n_neurons} neurons")
    z0 = learned.get("training_initial_conditions_")
    if z0 is not None and (len(z0) == 0 or z0.shape[1] != fitted_with.n_latents):
        raise ValueError(
            f"its training_initial_conditions_ have shape {z0.shape}, and not (n_trials, "
            f"n_latents = {fitted_with.n_latents})"
        )


@own_torch_state()
def _build_network(
    fitted_with: Any, learned: dict[str, Any], weights: dict[str, np.ndarray]
) -> SequentialAutoencoder:
    """Build the network that ``fitted_with`` describes, with these weights."""
    if learned["n_inputs_in_"] < 0:
        raise ValueError(f"its n_inputs_in_ is {learned['n_inputs_in_']}")
    try:
        # Shapes only, so that false sizes in a file take no memory before weights are checked.
        network = fitted_with._build_network(learned["null_rates_"], learned["n_inputs_in_"], None)
    except (OverflowError, RuntimeError, TypeError) as error:
        raise ValueError("no network can have the sizes it gives") from error
    asked = {
        name: (tuple(weight.shape), "float32") for name, weight in network.state_dict().items()
    }
    found = {
        name.removeprefix(MODEL): (weight.shape, weight.dtype.name)
        for name, weight in weights.items()
    }
    for name in sorted(asked.keys() | found.keys()):
        if asked.get(name) != found.get(name):
            raise ValueError(
                f"its weights {name} are {found.get(name, 'absent')}, and its parameters ask for "
                f"{asked.get(name, 'none')}"
            )
    state = {name.removeprefix(MODEL): torch.from_numpy(w) for name, w in weights.items()}
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)

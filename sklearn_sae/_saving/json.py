"""Parameter values as JSON, and back with their types.

JSON has no tuples, arrays or infinity. Such a value becomes an object with one key, its kind:
``(16, 16)`` is ``{"tuple": [16, 16]}``, ``np.int64(3)`` is ``{"int64": 3}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["decode", "encode", "encode_parameters"]

#: Kinds of NumPy numbers and arrays of them that are stored.
NUMPY_KINDS = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64"),
)
TWISTER_WORDS = 624


def encode(value: Any) -> Any:
    """Convert ``value`` to types of JSON; TypeError if a file cannot hold it."""
    # Before Python's own numbers: np.float64 is a float.
    if isinstance(value, np.ndarray | np.generic) and value.dtype.name in NUMPY_KINDS:
        return {value.dtype.name: encode(value.tolist())}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, Path):
        return {"Path": str(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, np.random.RandomState):
        return {"RandomState": _encode_random_state(value)}
    raise TypeError(
        f"{value!r} is a {type(value).__name__}; a file holds None, numbers, strings, lists, "
        "tuples, arrays of numbers, paths, torch devices and RandomState instances"
    )


def encode_parameters(parameters: dict[str, Any], name: str, way_out: str) -> dict[str, Any]:
    """Encode parameters of an estimator of class ``name``; TypeError if a file cannot hold one."""
    encoded = {}
    for parameter, value in parameters.items():
        try:
            encoded[parameter] = encode(value)
        except TypeError as error:
            raise TypeError(
                f"The parameter {parameter} of this {name} cannot be saved: {error}. Set it to "
                f"one of those, or {way_out}."
            ) from error
    return encoded


def _encode_random_state(random_state: np.random.RandomState) -> dict[str, Any]:
    state: dict[str, Any] = random_state.get_state(legacy=False)  # type: ignore[assignment]
    if state["bit_generator"] != "MT19937":
        raise TypeError(
            f"it is a RandomState of {state['bit_generator']}, and a file holds those of MT19937, "
            "NumPy's default"
        )
    return {
        "key": state["state"]["key"].tolist(),
        "pos": state["state"]["pos"],
        "has_gauss": state["has_gauss"],
        "gauss": state["gauss"],
    }


def decode(value: Any) -> Any:
    """Convert the result of ``encode`` back; other JSON may raise any error."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind not in DECODERS:
        raise ValueError(f"it holds a value of the unknown kind {kind!r}")
    return DECODERS[kind](content)


def _decode_numpy(kind: str, content: Any) -> Any:
    # The index () makes a number of an array without dimensions, and leaves others as they are.
    return np.array(decode(content), dtype=kind)[()]


def _decode_random_state(content: dict[str, Any]) -> np.random.RandomState:
    key, pos = np.array(content["key"], dtype=np.uint32), content["pos"]
    # NumPy does not check: it would read memory beyond the words.
    if key.shape != (TWISTER_WORDS,) or not 0 <= pos <= TWISTER_WORDS:
        raise ValueError("it holds a RandomState that no Mersenne Twister can have")
    random_state = np.random.RandomState(0)
    random_state.set_state(("MT19937", key, pos, content["has_gauss"], content["gauss"]))
    return random_state


DECODERS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda content: tuple(decode(content)),
    "float": float,
    "Path": Path,
    "device": torch.device,
    "RandomState": _decode_random_state,
    **{kind: partial(_decode_numpy, kind) for kind in NUMPY_KINDS},
}

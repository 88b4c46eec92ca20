"""One file: named arrays as safetensors, and a JSON document in their header.

Nothing in it is code. A checksum tells damage from data, and a file is replaced as a whole or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

__all__ = ["Damaged", "Foreign", "checksum", "read", "write"]

#: Raise it when files change so that earlier versions of the package would misread them.
FORMAT_VERSION = 1
#: The entry of the safetensors header that holds ours.
ENTRY = "sklearn_sae"
#: A header is a few kilobytes; one that claims to be huge is not worth the memory of reading it.
LARGEST_HEADER = 2**18
DTYPES = ("F32", "F64", "U8")


class Foreign(ValueError):
    """A file that ``write`` did not write."""


class Damaged(ValueError):
    """A file that is no longer as ``write`` wrote it."""


def write(path: str | os.PathLike[str], content: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write ``content``, which JSON can hold, and ``arrays``; what stood there goes last.

    Raises FileNotFoundError if there is no such folder, and any other OSError as it comes.
    """
    # safetensors copies memory as it lies.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    entry = {
        "format_version": FORMAT_VERSION,
        "sha256": checksum(content, arrays),
        "content": content,
    }
    data = save(arrays, {ENTRY: _dump(entry)})
    if _header_size(data) > LARGEST_HEADER:
        raise ValueError(f"The header of {path} would be larger than {LARGEST_HEADER} bytes.")
    # A link keeps pointing at the file.
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {target.parent}.")
    _replace(target, data)


def _replace(target: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``target`` once it lies on the disk, safe and whole."""
    temporary = target.with_name(f".sklearn_sae-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> tuple[dict, dict[str, np.ndarray]]:
    """Content and arrays of a file that ``write`` wrote.

    Raises FileNotFoundError if there is none, Foreign, Damaged, ValueError if it is newer, and any
    other OSError as it comes. What can be done about it depends on the file, and the caller says.
    """
    with open(path, "rb") as file:
        header_size = _header_size(file.read(8))
        size = os.fstat(file.fileno()).st_size
    if header_size > LARGEST_HEADER:
        raise _foreign(path)
    if size < 8 + header_size or not header_size:
        raise _damaged(path, "it ends within its header")
    arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            entry = _entry(path, file.metadata())
            for name in file.keys():
                if file.get_slice(name).get_dtype() not in DTYPES:
                    raise _damaged(path, f"{name} is of a dtype that is never written")
                arrays[name] = _aligned(file.get_tensor(name))
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    try:
        found = checksum(entry["content"], arrays)
    except (RecursionError, ValueError) as error:
        raise _damaged(path, "its header is not as it was written") from error
    if entry.get("sha256") != found:
        raise _damaged(path, "its checksum is wrong")
    return entry["content"], arrays


def _entry(path: str | os.PathLike[str], metadata: dict[str, str] | None) -> dict:
    """Our part of the header, of a format that can be read."""
    if not metadata or ENTRY not in metadata:
        raise _foreign(path)
    try:
        entry = json.loads(metadata[ENTRY])
    except (RecursionError, ValueError) as error:
        raise _damaged(path, "its header is not JSON") from error
    version = entry.get("format_version") if isinstance(entry, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has file format {version}, and this version of sklearn_sae reads format "
            f"{FORMAT_VERSION}. Upgrade sklearn_sae to load it."
        )
    if version != FORMAT_VERSION or not isinstance(entry.get("content"), dict):
        raise _damaged(path, "its header is not as it was written")
    return entry


def _header_size(data: bytes) -> int:
    """What the first 8 bytes of a safetensors file say."""
    return int.from_bytes(data[:8], "little")


def _aligned(array: np.ndarray) -> np.ndarray:
    # Sums over memory that starts elsewhere in a cache line may differ in their last bit.
    return torch.from_numpy(array).clone().numpy()


def _dump(content: Any) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def checksum(content: Any, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of what JSON can hold, and arrays."""
    digest = hashlib.sha256(_dump(content).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _foreign(path: str | os.PathLike[str]) -> Foreign:
    return Foreign(f"{path} was not written by sklearn_sae.")


def _damaged(path: str | os.PathLike[str], what: str) -> Damaged:
    return Damaged(f"{path} is damaged or cut short: {what}.")

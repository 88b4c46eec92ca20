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
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

__all__ = [
    "Damaged",
    "Foreign",
    "checksum",
    "names_folder",
    "read",
    "remove_leftovers",
    "write",
]

#: Raise it when files change so that earlier versions of the package would misread them.
FORMAT_VERSION = 1
#: The entry of the safetensors header that holds ours.
ENTRY = "sklearn_sae"
#: A header is a few kilobytes; one that claims to be huge is not worth the memory of reading it.
LARGEST_HEADER = 2**18
DTYPES = ("F32", "F64", "U8")
#: In seconds. No write takes as long, so a file of one that is this old is of one that was killed.
LEFT_OVER = 3600.0


class Foreign(ValueError):
    """A file that ``write`` did not write."""


class Damaged(ValueError):
    """A file that is no longer as ``write`` wrote it."""


def write(path: str | os.PathLike[str], content: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write ``content``, which JSON can hold, and ``arrays``; what stood there goes last.

    Raises IsADirectoryError if ``path`` names a folder, FileNotFoundError if it is in none, and any
    other OSError as it comes.
    """
    # A link keeps pointing at the file.
    target = Path(path).resolve()
    if names_folder(path) or target.is_dir():
        raise IsADirectoryError(
            f"{path} cannot be written: it names a folder. Give the name of a file, such as "
            f"{Path(path) / 'model.safetensors'}."
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {target.parent}.")
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
    _replace(target, data)


def names_folder(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` can only be that of a folder, be there one or not: ``Path`` forgets it."""
    return os.path.basename(os.fspath(path)) in ("", os.curdir, os.pardir)


def remove_leftovers(target: Path, older_than: float = LEFT_OVER) -> None:
    """Delete what writes to ``target`` that were killed have left beside it.

    Others may be writing there right now, so only what is ``older_than`` so many seconds.
    """
    with suppress(OSError):
        for left in target.parent.glob(_temporary_name(target, "*")):
            if time.time() - left.stat().st_mtime >= older_than:
                left.unlink(missing_ok=True)


def _temporary_name(target: Path, token: str) -> str:
    # Not the name itself: with more before and after, it might be too long for a file.
    owner = hashlib.sha256(target.name.encode(errors="surrogateescape")).hexdigest()[:16]
    return f".sklearn_sae-{owner}-{token}.tmp"


def _replace(target: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``target`` once it lies on the disk, safe and whole."""
    remove_leftovers(target)
    temporary = target.with_name(_temporary_name(target, secrets.token_hex(8)))
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

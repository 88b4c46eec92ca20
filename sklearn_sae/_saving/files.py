"""Files of named arrays in the safetensors format, with a JSON document in the header.

They hold no code. A checksum detects damage, and a file is replaced as a whole or not at all.
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

#: To be raised when files change so that earlier versions of the package would misread them.
FORMAT_VERSION = 1
#: Name of the entry in the safetensors header.
ENTRY = "sklearn_sae"
#: Headers have a few kilobytes; larger ones are not read, to save memory.
LARGEST_HEADER = 2**18
DTYPES = ("F32", "F64", "I64", "U8")
#: Seconds after which a temporary file is that of a write that was killed.
LEFT_OVER = 3600.0


class Foreign(ValueError):
    """A file that ``write`` did not write."""


class Damaged(ValueError):
    """A file that is no longer as ``write`` wrote it."""


def write(path: str | os.PathLike[str], content: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write ``content`` for JSON and ``arrays``; an existing file is replaced only at the end.

    Raises IsADirectoryError if ``path`` names a folder, FileNotFoundError if its folder does not
    exist, or any other OSError.
    """
    # The target of a link is replaced, not the link.
    target = Path(path).resolve()
    if names_folder(path) or target.is_dir():
        raise IsADirectoryError(
            f"{path} cannot be written: it names a folder. Give the name of a file, such as "
            f"{Path(path) / 'model.safetensors'}."
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {target.parent}.")
    # safetensors copies memory, whatever its strides.
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
    """Whether ``path`` can only name a folder, by an ending such as "/" that ``Path`` drops."""
    return os.path.basename(os.fspath(path)) in ("", os.curdir, os.pardir)


def remove_leftovers(target: Path, older_than: float = LEFT_OVER) -> None:
    """Delete temporary files that killed writes to ``target`` have left beside it.

    Only files ``older_than`` this many seconds are deleted: another write may be going on.
    """
    with suppress(OSError):
        for left in target.parent.glob(_temporary_name(target, "*")):
            if time.time() - left.stat().st_mtime >= older_than:
                left.unlink(missing_ok=True)


def _temporary_name(target: Path, token: str) -> str:
    # A hash, because the name with a prefix and a suffix might be too long for a file.
    owner = hashlib.sha256(target.name.encode(errors="surrogateescape")).hexdigest()[:16]
    return f".sklearn_sae-{owner}-{token}.tmp"


def _replace(target: Path, data: bytes) -> None:
    """Replace ``target`` by ``data`` once these are completely on the disk."""
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
    """Read content and arrays of a file that ``write`` wrote.

    Raises FileNotFoundError if there is none, Foreign, Damaged, ValueError if it is of a newer
    format, or any other OSError. The caller says what can be done about it.
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
    """Decode and check the entry of the header."""
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
    """Size of the header, from the first 8 bytes of a safetensors file."""
    return int.from_bytes(data[:8], "little")


def _aligned(array: np.ndarray) -> np.ndarray:
    # The alignment of memory may change the last bit of sums.
    return torch.from_numpy(array).clone().numpy()


def _dump(content: Any) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def checksum(content: Any, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 hash of content for JSON, and of arrays."""
    digest = hashlib.sha256(_dump(content).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _foreign(path: str | os.PathLike[str]) -> Foreign:
    return Foreign(f"{path} was not written by sklearn_sae.")


def _damaged(path: str | os.PathLike[str], what: str) -> Damaged:
    return Damaged(f"{path} is damaged or cut short: {what}.")

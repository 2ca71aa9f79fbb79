"""`.pt`, `.pth` and `.safetensors`: tensors in the fields of one of the other layouts, as plain containers of arrays.

torch reads with `weights_only=True`, which admits tensors and plain containers; what it returns is checked again,
since a tensor may state a larger shape than the file holds.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmc_msa.data.dataset import DataError
from ebmc_msa.data.formats.unpickle import weigh
from ebmc_msa.data.split_names import split_of

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # how torch.save began before it wrote zip archives
_MOST_HEADER = 2**24


def is_torch_archive(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_torch(file: Path) -> Any:
    """The content of a `.pt`, its tensors as arrays.

    Raises:
        DataError: it holds anything but tensors and plain containers, or is corrupt.
    """
    size = file.stat().st_size
    try:
        archive = zipfile.is_zipfile(file)
        if archive:
            with zipfile.ZipFile(file) as members:
                if sum(info.file_size for info in members.infolist()) > size:
                    raise ValueError("its members are larger than the file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
        content = _plain(content, size, {})
        weight, _ = weigh(content, {})
        if weight > 16 * size + 2**26:
            raise ValueError(f"it unfolds to {weight:,} bytes from a file of {size:,}")
        return content
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{file}: holds objects other than tensors, expected tensors in plain dicts and lists; save them with "
            "torch.save, without objects of your own."
        ) from error
    except Exception as error:  # a corrupt file can fail in any way
        raise DataError(
            f"{file}: cannot be read with torch.load(weights_only=True) ({_first_line(error)}), expected tensors in "
            "plain dicts and lists; save them with torch.save, without objects of your own."
        ) from error


def _plain(value: Any, size: int, known: dict[int, Any], depth: int = 0) -> Any:
    """`value` with arrays for tensors; what is shared stays shared."""
    if id(value) in known:
        return known[id(value)]
    if depth > 16:
        raise ValueError("it nests deeper than 16")
    if isinstance(value, torch.Tensor):
        found: Any = _array(value)
    elif type(value) in (list, tuple):
        found = [_plain(child, size, known, depth + 1) for child in value]
        found = tuple(found) if type(value) is tuple else found
    elif isinstance(value, dict):
        found = {key: _plain(child, size, known, depth + 1) for key, child in value.items()}
    elif value is None or type(value) in (str, bytes, int, float, bool):
        return value
    else:
        raise ValueError(f"it holds a {type(value).__name__}")
    known[id(value)] = found
    return found


def _array(x: torch.Tensor) -> np.ndarray[Any, Any]:
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or x.layout != torch.strided or x.device.type != "cpu":
        raise ValueError(f"a tensor is {x.layout} on {x.device}")
    if x.is_quantized or x.is_complex() or x.numel() * x.element_size() > x.untyped_storage().nbytes():
        raise ValueError(
            f"a tensor of shape {tuple(x.shape)} and {x.dtype} is larger than its storage, or no numbers"
        )
    if not x.numel() and sum(x.shape) > 10_000:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} holds nothing")
    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x.resolve_neg()).numpy()


def is_safetensors(file: Path) -> bool:
    """Eight bytes of the header's length, and JSON."""
    with file.open("rb") as opened:
        head = opened.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size


def read_safetensors(file: Path) -> dict[str, Any]:
    """Arrays by field; names like `train.text` are nested. Strings come from the metadata, as JSON or plain.

    Raises:
        DataError: the file is corrupt, or `safetensors` is not installed.
    """
    try:
        from safetensors import safe_open
    except ImportError as problem:
        raise DataError(
            f"{file}: is a safetensors file, and safetensors is not installed; pip install 'modbalance[formats]'."
        ) from problem
    try:
        with file.open("rb") as opened:
            if int.from_bytes(opened.read(8), "little") > _MOST_HEADER:
                raise ValueError("its header is larger than 16 MB")
        with safe_open(file, framework="pt") as opened:
            fields: dict[str, Any] = {name: _array(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
        fields |= {name: _metadata(value) for name, value in metadata.items() if name != "format"}
    except Exception as error:
        raise DataError(
            f"{file}: cannot be read ({_first_line(error)}), expected a whole .safetensors; save it again."
        ) from error
    return nested(fields)


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """`train.text` or `train/text` as `{train: {text: …}}`."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        for separator in "./":
            head, _, rest = name.partition(separator)
            if rest and split_of(head):
                found.setdefault(head, {})[rest] = value
                break
        else:
            found[name] = value
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _metadata(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (list, str)) else text

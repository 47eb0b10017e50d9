"""A checkpoint: named arrays, and a few words about them, in one .npz file that is written whole or not at all.

The zip format has a checksum of every array, so that a damaged one is never read. Nothing in a file that a stranger
made can run code, and what its headers claim is compared with its size before anything is allocated.
"""

import io
import json
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from memax_rl.runs.files import written_beside

_ABOUT = "about"
# What the names begin with of arrays that are kept beside the state; no field of a state has a slash in its name.
BEST = "best/"
# More than a configuration ever is.
_LARGEST_ABOUT = 10_000_000


# What reading a damaged file may raise.
_DAMAGES = (
    *(OSError, EOFError, zipfile.BadZipFile, struct.error, RuntimeError),
    *(LookupError, TypeError, ValueError, AttributeError, OverflowError),
)


class CheckpointError(ValueError):
    """A file is no checkpoint, or a damaged one."""


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write arrays of any shape and `about`, which must fit into JSON, under a temporary name, and rename it.

    Raises:
        OSError: If it cannot be written; nothing is left of it then.
    """
    dtypes = {name: np.dtype(array.dtype).name for name, array in arrays.items()}
    text = json.dumps({"dtypes": dtypes, "about": about}, sort_keys=True).encode()
    with written_beside(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_ABOUT, text)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _as_bits(array), allow_pickle=False)


def read_checkpoint(
    path: Path, expected: Mapping[str, tuple[tuple[int, ...], np.dtype]], whole: bool = True
) -> tuple[dict[str, np.ndarray], Any]:
    """Return arrays by name, of any shape, and what was written about them.

    Args:
        expected: Shape and dtype of each array. No other is read.
        whole: Whether the file must hold no other, but what is kept beside the state.

    Raises:
        CheckpointError: If it is damaged, or holds other arrays than expected.
    """
    with _opened(path) as (archive, members, head):
        dtypes, about = head["dtypes"], head["about"]
        _check_names(dtypes.keys(), expected, whole)
        arrays = {
            name: _read(archive, members[f"{name}.npy"], dtypes[name], name, *expected[name]) for name in expected
        }
    return arrays, about


def read_about(path: Path) -> Any:
    """Return what was written about the arrays of a checkpoint, and read none. Raises `CheckpointError`."""
    with _opened(path) as (_, _, head):
        return head["about"]


def read_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and dtype of each array of a checkpoint by name, and read none. Raises `CheckpointError`."""
    with _opened(path) as (archive, members, head):
        dtypes = {str(name): np.dtype(dtype) for name, dtype in head["dtypes"].items()}
        return {name: (_shape(archive, members[f"{name}.npy"])[0], dtype) for name, dtype in dtypes.items()}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo], Any]]:
    """Open a checkpoint: the archive, its members by name, and its head. All faults are a `CheckpointError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            size = path.stat().st_size
            if any(i.compress_type != zipfile.ZIP_STORED or i.file_size > size for i in members.values()):
                raise CheckpointError("its parts are not as they are written")
            if members[_ABOUT].file_size > _LARGEST_ABOUT:
                raise CheckpointError("what it says about itself is too long")
            yield archive, members, json.loads(archive.read(_ABOUT))
    except CheckpointError:
        raise
    except _DAMAGES as error:
        raise CheckpointError(f"it may be cut short or damaged: {error}") from None


def _check_names(got: Iterable[str], expected: Mapping[str, Any], whole: bool) -> None:
    got = {name for name in got if name in expected or not name.startswith(BEST)}
    for name in sorted(expected.keys() - got | (got - expected.keys() if whole else set())):
        raise CheckpointError(
            f"it is from another configuration: {name} is only in "
            f"{'the checkpoint' if name in got else 'the configuration'}"
        )


def _read(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, saved: str, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    bits = _bits(dtype)
    got_shape, fortran, got, start = _shape(archive, info)
    if saved != dtype.name or got != bits or got_shape != shape:
        raise CheckpointError(
            f"it is from another configuration: {name} has shape {list(got_shape)} and dtype {saved}, expected "
            f"{list(shape)} and {dtype}"
        )
    if fortran or info.file_size != start + bits.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise CheckpointError(f"{name} has another size than its shape")
    # Read whole, so that the checksum is compared.
    content = archive.read(info)
    return np.frombuffer(content, bits, offset=start).reshape(shape).view(dtype).copy()


def _shape(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return what the header of an array says: shape, order and dtype, and where it ends."""
    with archive.open(info) as member:
        header = io.BytesIO(member.read(1024))
    np.lib.format.read_magic(header)
    return *np.lib.format.read_array_header_1_0(header), header.tell()


def _bits(dtype: np.dtype) -> np.dtype:
    """Return the dtype under which one is written: numpy's own as they are, others, such as bfloat16, as integers."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


def _as_bits(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    return array.view(_bits(array.dtype))

"""Files of rows of numbers in a run folder, metrics.csv and evaluations.csv: appended to, read, and cut back.

Nothing in them is believed: a damaged file is told in words.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from memax_rl.runs.files import append, write_atomically


class RunError(ValueError):
    """A run folder cannot be used as asked. The message says what to do."""


def append_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Append rows to a file. The first call writes the header.

    Raises:
        RunError: If the file has other columns or cannot be written.
    """
    if not rows:
        return
    try:
        _append_rows(path, rows)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None


def _append_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    buffer = io.StringIO()
    new = not path.exists()
    columns = list(rows[0])
    if not new and set(header := _header(path)) == set(columns):
        columns = header
    elif not new:
        differ = ", ".join(sorted(set(header) ^ set(columns)))
        raise RunError(f"{path} has other columns than this run writes: {cut(differ)}")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    if new:
        writer.writeheader()
    writer.writerows([{k: _cell(v) for k, v in row.items()} for row in rows])
    if new:
        write_atomically(path, buffer.getvalue())
    else:
        append(path, buffer.getvalue())


def _header(path: Path) -> list[str]:
    """Return the header alone: reading all rows at every append would take ever longer."""
    with path.open(errors="replace") as file:
        return file.readline(1_000_000).rstrip("\n").split(",")


def write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write a file of rows anew. Raises `RunError` if they have not all the same columns, or it cannot be written."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else ["update"], lineterminator="\n")
    writer.writeheader()
    try:
        writer.writerows([{k: _cell(v) for k, v in row.items()} for row in rows])
        write_atomically(path, buffer.getvalue())
    except ValueError:
        raise RunError(f"{path} has other columns than this run writes; move it away") from None
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None


def last_cells(path: Path, column: str) -> list[float]:
    """Return a column of the last rows of a file: those in its last 100,000 bytes."""
    index = _header(path).index(column)
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100_000))
        # Without the header, or a line cut short, in front, and a line that is not written to its end.
        lines = file.read().decode(errors="replace").split("\n")[1:-1]
    return [float(line.split(",")[index]) for line in lines]


def drop_rows_after(path: Path, update: int) -> None:
    """Forget the rows of updates later than `update`. Raises `RunError` if the file is damaged or ends before it."""
    if not path.exists():
        return
    header, lines = _read_lines(path)
    # A line cut short by a kill has no end, whatever cells it has; it is the last one, and goes too.
    whole = lines if path.read_bytes().endswith(b"\n") else lines[:-1]
    if any(len(line) != len(header) or not all(map(_is_cell, line)) for line in whole):
        read_rows(path)
    column = header.index("update")
    if not all(line[column] for line in whole):
        raise RunError(f"{path} is damaged: a row does not say of which update it is")
    kept = [line for line in whole if float(line[column]) <= update]
    last = max((int(float(line[column])) for line in kept), default=0)
    if last < update:
        raise RunError(
            f"{path} ends with update {last}, and the checkpoint is of update {update}: rows were "
            "lost. Restore the file, or delete it to go on without the rows before"
        )
    _check_no_row_lost(path, [dict(zip(header, line, strict=True)) for line in kept], update)
    write_atomically(path, "\n".join(",".join(line) for line in [header, *kept]) + "\n")


def _read_lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header of a file of rows, and the cells of all lines."""
    try:
        header, *lines = [line.split(",") for line in path.read_text().splitlines()] or [[]]
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if "update" not in header:
        raise RunError(f"{path} has no header with a column 'update'; restore the file, or delete it")
    return header, lines


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of a file, none if there is no file; an empty cell is nan. Raises `RunError` if it is damaged."""
    if not path.exists():
        return []
    header, lines = _read_lines(path)
    try:
        return [dict(zip(header, (float(v) if v else math.nan for v in line), strict=True)) for line in lines]
    except ValueError:
        bad = next(i for i, line in enumerate(lines) if len(line) != len(header) or not all(map(_is_cell, line)))
        raise RunError(f"{path} is damaged in line {bad + 2}: {cut(','.join(lines[bad]))!r}") from None


def _check_no_row_lost(path: Path, rows: Sequence[Mapping[str, str]], update: int) -> None:
    """Raise `RunError` unless each seed has a row for every update up to `update`, or up to that of its divergence.

    A run that went on without its rows begins with a later update than the first.
    """
    by_seed: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        by_seed.setdefault(row.get("seed", ""), []).append(row)
    first = min((int(float(row["update"])) for row in rows), default=1)
    for seed, own in by_seed.items():
        found = [int(float(row["update"])) for row in own]
        last = found[-1] if own[-1].get("finite") and float(own[-1]["finite"]) == 0 else update
        if found != list(range(first, last + 1)):
            raise RunError(
                f"{path} does not hold one row an update of seed {seed} from update {first} to {last}: rows were lost "
                "or doubled. Restore the file, or delete it to go on without the rows before"
            )


def cut(text: str) -> str:
    """Return a text of at most 200 characters, for a message."""
    return text if len(text) <= 200 else text[:200] + "..."


def _is_cell(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))

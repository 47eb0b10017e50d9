"""The folder of a report: HTML, Markdown, LaTeX, CSV and figures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from memax_rl.runs.files import check_folder, folder_beside, write_atomically
from memax_rl.runs.run import RunError
from memax_rl.signals import done_to_the_end
from memax_rl.studies import plots, tables
from memax_rl.studies.adaptation import Adaptation
from memax_rl.studies.analysis import Comparison, Frame
from memax_rl.studies.html import page
from memax_rl.studies.sections import Section, heading, sections


def write(
    out: Path, comparison: Comparison, adaptations: Sequence[Adaptation], frames: Mapping[str, Frame],
    *, figures: bool = True, overwrite: bool = False,
) -> list[Path]:  # fmt: skip
    """Write report.html, tables.md, tables.tex, the frames as CSV files and figures/ into a folder.

    All of it is made before the folder is touched.

    Args:
        frames: What goes into NAME.csv, by name.
        figures: Whether to draw figures/*.pdf and *.png, which takes most of the time.
        overwrite: Whether `out` may hold files already; those of the same names are replaced.

    Raises:
        RunError: If it may not, or cannot be written.
    """
    check_out(out, overwrite)
    with folder_beside(out) as made:
        found = sections(comparison, adaptations)
        title, about = heading(comparison)
        for name, frame in frames.items():
            _write(made / f"{name}.csv", frame.to_csv(index=False))
        _write(made / "report.html", page(title, about, found))
        shown = [table for section in found for table in section.tables]
        _write(made / "tables.tex", "\n".join(map(tables.to_latex, shown)))
        # The heat map alone has neither text nor table.
        told = [section for section in found if section.paragraphs or section.tables]
        _write(made / "tables.md", "\n".join([f"# {title}", "", about, "", *map(_markdown, told)]))
        if figures:
            (made / "figures").mkdir()
            for thing in (plot for section in found for plot in section.plots):
                plots.save(plots.draw(thing), made / "figures", thing.name)
        # Else a report that is replaced could be half the old one.
        with done_to_the_end():
            return _move(made, out)


def _write(path: Path, text: str) -> None:
    """Write a text as UTF-8. What of a path is none, such as the name of a folder, stands there as an escape."""
    write_atomically(path, text.encode(errors="backslashreplace"))


def check_out(out: Path, overwrite: bool) -> None:
    """Raise `RunError` unless a report may be written into a folder, `ValueError` unless it can be."""
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is no folder; choose another")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise RunError(f"--out {out} holds files; choose another folder, or add --overwrite to replace a report there")
    check_folder(out)


def _move(made: Path, out: Path) -> list[Path]:
    """Move the files of one folder into another, each at once, and return their paths."""
    moved = []
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        target = out / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        moved.append(target)
    return moved


def _markdown(section: Section) -> str:
    said = "\n\n".join(map(tables.markdown_text, section.paragraphs))
    shown = "\n".join(map(tables.to_markdown, section.tables))
    return f"## {tables.markdown_text(section.title)}\n\n{said}\n\n{shown}"

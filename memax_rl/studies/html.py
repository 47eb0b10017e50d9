"""The report as one HTML file: it loads nothing, so that it can be mailed and opened without a network."""

import math
from collections.abc import Sequence
from html import escape
from importlib import resources

from memax_rl._version import __version__
from memax_rl.studies.charts import chart, interval_chart, swatch
from memax_rl.studies.heat import Heat, heat_chart
from memax_rl.studies.plots import Intervals, Plot
from memax_rl.studies.sections import Section
from memax_rl.studies.tables import Cell, Table

# More columns are set closer.
_MANY_COLUMNS = 10
# The browser is told to load nothing, whatever is in the page.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """Return the HTML page."""
    files = resources.files("memax_rl.studies")
    links = "".join(f'<a href="#part{i}">{escape(s.title)}</a>' for i, s in enumerate(sections))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{files.joinpath('report.css').read_text()}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>\n<nav>{links}</nav>\n<main>\n"
        + "\n".join(_section(i, section) for i, section in enumerate(sections))
        + f"\n</main><footer>memax_rl {escape(__version__)}</footer>\n"
        f"<script>\n{files.joinpath('report.js').read_text()}</script></body></html>\n"
    )


def _section(place: int, section: Section) -> str:
    said = "".join(f"<p>{escape(text)}</p>" for text in section.paragraphs)
    drawn = "".join(map(_figure, section.plots))
    shown = "".join(map(_table, section.tables))
    charts = f'<div class="charts">{drawn}</div>' if drawn else ""
    return f'<section id="part{place}"><h2>{escape(section.title)}</h2>{said}{charts}{shown}</section>'


def _figure(plot: Plot | Intervals | Heat) -> str:
    legend = ""
    if isinstance(plot, Heat):
        return (
            f'<figure class="wide heat"><h3>{escape(plot.title)}</h3><div class="scroll">{heat_chart(plot)}</div>'
            f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        )
    if isinstance(plot, Intervals):
        panels = "".join(
            f'<div class="panel"><h4>{escape(name)}</h4>{interval_chart(plot, name)}</div>' for name in plot.panels
        )
        return (
            f'<figure class="wide"><h3>{escape(plot.title)}</h3><div class="panels">{panels}</div>'
            f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        )
    if plot.lines:
        items = "".join(
            f'<button type="button" data-place="{line.place}" aria-pressed="true">{swatch(line.place)}'
            f"<span>{escape(line.label)}</span></button>"
            for line in plot.lines
        )
        legend = f'<div class="legend">{items}</div>'
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>"
    return f"<figure><h3>{escape(plot.title)}</h3>{chart(plot)}{legend}{caption}</figure>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, table.columns, row))}</tr>" for row in table.rows)
    many = ' class="many"' if len(table.columns) > _MANY_COLUMNS else ""
    return (
        f'<div class="table"><h3>{escape(table.title)}</h3><div class="scroll"><table{many}>'
        f"<thead><tr>{head}</tr></thead>"
        f'<tbody>{rows}</tbody></table></div><p class="caption">{escape(table.caption)}</p></div>'
    )


def _cell(column: str, cell: Cell) -> str:
    key = cell.key
    # What is not known is sorted last, whichever way.
    value = "" if isinstance(key, float) and math.isnan(key) else escape(str(key), quote=True)
    kind = "s" if isinstance(key, str) else "n"
    mark = ' class="strong"' if cell.strong else ""
    name = escape(column, quote=True)
    return f'<td{mark} data-column="{name}" data-{kind}="{value}"><span>{escape(cell.text)}</span></td>'

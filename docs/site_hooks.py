"""What the site has beside the pages of this folder: README, examples, memories, commands, notebooks, formulas.

Formulas become MathML while the site is built, so that no script is loaded for them.
"""

import functools
import html
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import latex2mathml.converter
import nbconvert
from mkdocs.structure.files import File

from memax_rl import memory

ROOT = Path(__file__).parent.parent
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the home page and those of examples, commands, memories, and notebooks with their figures."""
    pages: dict[str, str | bytes] = {"index.md": as_page((ROOT / "README.md").read_text())}
    pages |= {
        "contributing.md": as_page((ROOT / "CONTRIBUTING.md").read_text()),
        "examples.md": examples(ROOT / "examples"),
    }
    pages |= {"reference/cli.md": command_line(), "memories/index.md": memories()}
    pages |= {f"memories/{name}.md": memory_page(name) for name in memory.names()}
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        pages |= notebook(path)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def notebook(path: Path) -> dict[str, str | bytes]:
    """Return a notebook as a page, and the files of its figures."""
    # Tables as text: their HTML has a style of its own.
    order = ["image/png", "text/markdown", "text/plain"]
    exporter = nbconvert.MarkdownExporter(config={"NbConvertBase": {"display_data_priority": order}})
    page, resources = exporter.from_filename(str(path))
    figures: dict[str, bytes] = {f"{path.stem}_{name}": data for name, data in resources["outputs"].items()}
    for name in resources["outputs"]:
        page = page.replace(f"![png]({name})", f"![Figure]({path.stem}_{name})")
    page = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", page)
    link = f"[This page as a notebook]({path.name})."
    page = re.sub(r"\A(\s*# .*\n)", rf"\1\n{link}\n", page)
    return {f"notebooks/{path.stem}.md": page} | {f"notebooks/{name}": data for name, data in figures.items()}


def command_line() -> str:
    """Return the help of every command."""
    lines = ["# Command line", ""]
    for name in re.findall(r"^  (\w+)  ", _help("--help").partition("Commands:")[2], re.MULTILINE):
        text = _help(name, "--help-all" if name == "train" else "--help")
        lines += [f"## {name}", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


def _help(*arguments: str) -> str:
    command = [sys.executable, "-m", "memax_rl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links to notebooks go to their pages."""
    return re.sub(r"\]\(notebooks/(\w+)\.ipynb\)", r"](notebooks/\1.md)", markdown)


def on_page_content(page_html: str, **_: Any) -> str:
    """Return the page with its formulas as MathML."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(match[2]), display=display)

    return _FORMULA.sub(formula, page_html)


def as_page(text: str) -> str:
    """Return a file of the repository with its links as they are from inside this folder."""
    text = re.sub(r"\[docs/(\w+)\.md\]", lambda m: f"[{m[1].replace('_', ' ')}]", text)
    text = text.replace("](examples/README.md)", "](examples.md)").replace("](CONTRIBUTING.md)", "](contributing.md)")
    return text.replace("](docs/", "](")


def examples(folder: Path) -> str:
    """Return the page of the examples: their list, and each of them."""
    lines = [re.sub(r"\]\((\w+)\.py\)", r"](#\1)", (folder / "README.md").read_text())]
    for path in sorted(folder.glob("*.py")):
        lines += [f"## {path.stem}", "", "```python", path.read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def memories() -> str:
    """Return the page that lists all memories."""
    lines = [
        "# Memories",
        "",
        "`--memory NAME`, options by `--memory-options.NAME VALUE`. State: numbers carried from step to step. Cost:",
        "kFLOP of a step of learning. Both at width 128 with the default options.",
        "",
        "| name | class | state | cost | |",
        "|---|---|---|---|---|",
    ]
    for name in memory.names():
        spec = memory.spec(name)
        lines.append(
            f"| [{name}]({name}.md) | {spec.family} | {_sizes(name)[0]:,} | {_sizes(name)[1] / 1e3:,.0f} "
            f"| {_title(name)} |"
        )
    return "\n".join(lines) + "\n"


def memory_page(name: str) -> str:
    """Return the page of a memory, from its module, its class and its entry in the registry."""
    spec = memory.spec(name)
    _, _, rest = _module(name).partition("\n")
    about = (spec.build.__doc__ or "").partition("\n\n    Args:")[0]
    rows = []
    for option, text in spec.options.items():
        meaning, _, default = text.rpartition(" (")
        rows.append(f"| `{option}` | {default.removesuffix(')')} | {meaning} |")
    options = ["| option | default | meaning |", "|---|---|---|", *rows] if rows else ["It has no options."]
    return "\n".join(
        [
            f"# {name}: {_title(name)}",
            "",
            "\n".join(line.strip() for line in about.splitlines()),
            "",
            f"`--memory {name}` &middot; class: {spec.family} &middot; "
            f"{f'[paper]({spec.paper})' if spec.paper.startswith('http') else spec.paper} &middot; "
            f"at width 128: state of {_sizes(name)[0]:,} numbers, {_sizes(name)[1] / 1e3:,.0f} kFLOP a step to learn",
            "",
            "## Recurrence",
            "",
            _as_markdown(rest.strip()),
            "",
            "## Options",
            "",
            *options,
            "",
            "## Compared with",
            "",
            f"{spec.verified[:1].upper()}{spec.verified[1:]}.",
            "",
        ]
    )


@functools.cache
def _sizes(name: str) -> tuple[int, float]:
    """Return size of the state and operations of a step of learning at width 128."""
    make = functools.partial(memory.make, name, in_size=128, out_size=128)
    model = eqx.filter_eval_shape(lambda key: make(key=key), jax.random.key(0))
    return memory.state_size(model), memory.training_flops(model)


def _module(name: str) -> str:
    return sys.modules[memory.spec(name).build.__module__].__doc__ or ""


def _title(name: str) -> str:
    return _module(name).split("\n")[0].removesuffix(".")


def _as_markdown(text: str) -> str:
    """Return a docstring with its formulas, which are indented, as blocks of code."""
    return re.sub(r"\bhttps?://\S+[^\s.,;)]", lambda m: f"<{m[0]}>", text)

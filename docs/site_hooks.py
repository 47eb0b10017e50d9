"""What the site has beside the pages of this folder: the README as home, pages of memories and commands, formulas.

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
from mkdocs.structure.files import File

from memax_rl import memory

ROOT = Path(__file__).parent.parent
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the home page and the pages of the memories."""
    pages = {"index.md": home((ROOT / "README.md").read_text()), "reference/cli.md": command_line()}
    pages |= {"memories/index.md": memories()}
    pages |= {f"memories/{name}.md": memory_page(name) for name in memory.names()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


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


def on_page_content(page_html: str, **_: Any) -> str:
    """Return the page with its formulas as MathML."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(match[2]), display=display)

    return _FORMULA.sub(formula, page_html)


def home(readme: str) -> str:
    """Return the README with its links as they are from inside this folder."""
    text = re.sub(r"\]\(docs/", "](", readme)
    return re.sub(r"\bdocs/(\w+)\.md\b", lambda m: f"[{m[1].replace('_', ' ')}]({m[1]}.md)", text)


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
            f"at width 128 {_sizes(name)[0]:,} numbers carried, {_sizes(name)[1] / 1e3:,.0f} kFLOP a step of learning",
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

"""Print every installed distribution that memax_rl needs, its size on disk, and what needs it.

python benchmarks/dependencies.py
"""

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def needed(distribution: str, extras: set[str]) -> list[Requirement]:
    requirements = map(Requirement, metadata.requires(distribution) or [])
    return [r for r in requirements if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras | {""})]


def megabytes(distribution: str) -> float:
    paths = {Path(str(file.locate())) for file in metadata.files(distribution) or []}
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    open_ = [(Requirement(text), "memax_rl") for text in PROJECT["dependencies"]]
    open_ = [(r, by) for r, by in open_ if r.marker is None or r.marker.evaluate()]
    seen: set[tuple[str, frozenset[str]]] = set()
    by: dict[str, list[str]] = {}
    while open_:
        requirement, source = open_.pop(0)
        name = canonicalize_name(requirement.name)
        by[name] = sorted({*by.get(name, []), source})
        if (key := (name, frozenset(requirement.extras))) not in seen:
            seen.add(key)
            try:
                open_ += [(r, name) for r in needed(name, requirement.extras)]
            except metadata.PackageNotFoundError:
                print(f"{name} is not installed")
    sizes = {}
    for name in by:
        try:
            sizes[name] = megabytes(name)
        except metadata.PackageNotFoundError:
            continue
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        print(f"{name:24} {sizes[name]:7.1f} MB  {', '.join(by[name])}")
    print(f"{'total':24} {sum(sizes.values()):7.1f} MB  {len(sizes)} distributions")


if __name__ == "__main__":
    main()

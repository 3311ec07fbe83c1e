"""Counts the imports between parts of the package: `python book/draw_imports.py [package folder] [its pyproject.toml]`.

Imports are read from the source, including those inside functions. A part is a top-level file or folder of the package;
its level is one more than the highest level it imports. Upward is an import against the layers in pyproject.toml.
"""

import ast
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules(package: Path) -> dict[str, Path]:
    """{dotted name: file} of every file of the package."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(files: dict[str, Path]) -> set[tuple[str, str]]:
    """(importing, imported) for every pair of files of the package."""
    arrows = set()
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = name.split(".")[: -node.level + (file.stem == "__init__") or None] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                inner = [f"{base}.{alias.name}" for alias in node.names]
                targets = [target if target in files else base for target in inner]
            else:
                continue
            arrows |= {(name, target) for target in targets if target in files and target != name}
    return arrows


def between_rooms(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The same imports from part to part; imports inside a folder are left out."""
    rooms = {tuple(name.split(".")[1] if "." in name else "" for name in arrow) for arrow in arrows}
    return {(a, b) for a, b in rooms if a and b and a != b}


def circles(arrows: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of two or more that import each other, directly or indirectly."""
    reached = {a: {a} for arrow in arrows for a in arrow}
    while True:
        more = [(a, reached[b] - reached[a]) for a, b in arrows if reached[b] - reached[a]]
        if not more:
            break
        for a, new in more:
            reached[a] |= new
    groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in reached}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def floors(arrows: set[tuple[str, str]]) -> int:
    """Number of levels; a circle counts as one part."""
    group = {name: members[0] for members in circles(arrows) for name in members}
    below = defaultdict(set)
    for a, b in arrows:
        a, b = group.get(a, a), group.get(b, b)
        if a != b:
            below[a].add(b)

    def floor(name: str) -> int:
        return 1 + max(map(floor, below[name]), default=0) if name in below else 1

    return max(map(floor, list(below)), default=1)


def upward(arrows: set[tuple[str, str]], pyproject: Path) -> list[tuple[str, str]]:
    """Imports against the first contract of layers that pyproject.toml has for import-linter."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    contract = next(contract for contract in contracts if contract["type"] == "layers")
    above = [f"{container}." for container in contract.get("containers", [])] or [""]
    layers = [layer.replace("|", ":").split(":") for layer in contract["layers"]]
    level = {base + name.strip(): i for base in above for i, layer in enumerate(layers) for name in layer}

    def place(name: str) -> int | None:
        return next((level[layer] for layer in level if f"{name}.".startswith(f"{layer}.")), None)

    return sorted((a, b) for a, b in arrows if place(a) is not None and place(b) is not None and place(b) < place(a))


def main(package: Path = ROOT / "defectdiffu", pyproject: Path = ROOT / "pyproject.toml") -> None:
    files = modules(package)
    arrows = imports(files)
    rooms = between_rooms(arrows)
    wrong, turning = upward(arrows, pyproject), circles(arrows) + circles(rooms)
    table = {
        "files": len(files),
        "lines": sum(len(file.read_text().splitlines()) for file in files.values()),
        "parts": len({name.split(".")[1] for name in files if "." in name}),
        "levels": floors(rooms),
        "imports between parts": len(rooms),
        "imports between files": len(arrows),
        "upward": len(wrong),
        "circles": len(turning),
    }
    for name, number in table.items():
        print(f"{name:22}{number:6}")
    for a, b in wrong:
        print(f"upward: {a} -> {b}")
    for members in turning:
        print(f"circle: {', '.join(members)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""Counts what imports what in the package: `python book/draw_imports.py [folder of a package] [its pyproject.toml]`.

Imports are read from the source, those inside functions too. A room is a file of the package or one of its folders; a
floor is one more than the highest floor that a room imports. Upward is an arrow against the layers in pyproject.toml.
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
    """The same arrows from room to room; those inside a folder are left out."""
    rooms = {tuple(name.split(".")[1] if "." in name else "" for name in arrow) for arrow in arrows}
    return {(a, b) for a, b in rooms if a and b and a != b}


def circles(arrows: set[tuple[str, str]]) -> list[list[str]]:
    """The groups that can reach each other, of two or more."""
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
    """How many there are; a circle counts as one room."""
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
    """Arrows against the first contract of layers that pyproject.toml has for import-linter."""
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
        "rooms": len({name.split(".")[1] for name in files if "." in name}),
        "floors": floors(rooms),
        "arrows between rooms": len(rooms),
        "arrows between files": len(arrows),
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

"""One exception for every error that a user can fix, with "did you mean" suggestions."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input: one line that names the input and says what would be valid.

    The command line prints it without a traceback and exits with code 2.
    """


def check_choice(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return `name` if it is one of `choices`, else raise `InputError` naming the nearest ones."""
    choices = list(choices)
    if name in choices:
        return name
    raise InputError(f"unknown {kind} '{name}': {hint(name, choices)}")


def hint(name: str, choices: Iterable[str]) -> str:
    """Those of `choices` that `name` may stand for; all of them where none is near."""
    choices = list(choices)
    near = get_close_matches(name, choices, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(choices)}"


def check_folder_name(kind: str, name: str) -> str:
    """Return `name` if it is a valid name of one folder, else raise `InputError`: it must not point to another path."""
    if name.startswith(".") or name != name.strip() or any(c in "/\\:" or not c.isprintable() for c in name or "/"):
        raise InputError(
            f"{kind} {name!r} cannot be a folder's name: no '/', '\\', ':', unprintable character, "
            "leading '.' or space at an end"
        )
    return name


def check_number(what: str, value: float, low: float, high: float) -> float:
    """Return `value` if it is a number from `low` to `high`, else raise `InputError`."""
    if not low <= value <= high:  # NaN fails this comparison, too
        raise InputError(f"{what} is {value}: it must be from {low:g} to {high:g}")
    return value


def printable(text: object) -> str:
    """A text with line breaks, escape codes and bytes that are not UTF-8 written out: names of files may have them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))

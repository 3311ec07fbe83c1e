"""One exception for everything a user can put right, and the "did you mean" that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input: one line that names the thing and says what would be right.

    The command line prints it without a traceback and exits with code 2.
    """


def check_choice(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return `name` if it is one of `choices`, else raise `InputError` naming the nearest ones."""
    choices = list(choices)
    if name in choices:
        return name
    near = get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(choices)}"
    raise InputError(f"unknown {kind} '{name}': {hint}")

"""Command lines from dataclasses, and the end of a script: exit codes, messages, text safe to print."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import field, fields, replace
from typing import get_args

CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
CONTROL_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class UserError(ValueError):
    """A mistake of the user. The message says what was found, what was expected and what to do."""


def visible(text: str) -> str:
    """The text with control characters as signs (ESC as ␛), so that no escape sequence reaches a terminal."""
    return text.translate(CONTROL_PICTURES)


def flag(default, help: str, **more):
    """A dataclass field that becomes the command-line flag `--<its name>`.

    more: `choices`, and the bounds that `Flags` checks: `above`, `least`, `most`.
    """
    return field(default=default, metadata={"help": help, **more})


class Flags:
    """A base of dataclasses of flags. Raises UserError for a value outside the bounds of its flag."""

    def __post_init__(self):
        for f in fields(self):
            value, bounds = getattr(self, f.name), f.metadata
            if "above" in bounds and not bounds["above"] < value < math.inf:
                raise UserError(f"--{f.name} ({value}) must be greater than {bounds['above']}")
            if "least" in bounds and not bounds["least"] <= value < math.inf:
                raise UserError(f"--{f.name} ({value}) must be at least {bounds['least']}")
            if "most" in bounds and not value <= bounds["most"]:
                raise UserError(f"--{f.name} ({value}) must be at most {bounds['most']}")


def parse_args(recipe, description: str, argv: list[str] | None = None):
    """The dataclass `recipe` with the changes of the command line, one flag per field made by `flag`.

    Exits with code 2 on an unknown flag. Raises UserError for a value that the dataclass refuses.
    """
    parser = make_parser(description)
    for f in fields(recipe):
        if "help" in f.metadata:
            add_flag(parser, f, getattr(recipe, f.name))
    return replace(recipe, **vars(parser.parse_args(argv)))


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose help is a script's docstring as it stands."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_flag(parser: argparse.ArgumentParser, f, default) -> None:
    help = f.metadata["help"]
    if default not in ("", None) and "default" not in help:
        help += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
    if f.type is bool:
        parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, default=default, help=help)
    else:
        choices = f.metadata.get("choices")
        metavar = None if choices else f.name.split("_")[-1].upper()  # choices are shown in its place
        of_many = get_args(f.type)[:1]  # tuple[int, ...] takes several numbers
        values = {"type": of_many[0], "nargs": "+"} if of_many else {"type": f.type}
        parser.add_argument(
            f"--{f.name}", default=default, help=help, choices=choices, metavar=metavar, **values
        )


def run_script(main: Callable[[], object]) -> None:
    """Run a script's `main` and exit. A UserError, OSError or a card's full memory ends it with a message and
    code 2, a reader that has gone, such as `head`, without a word.

    Any other exception is a bug of ours, and keeps its traceback.
    """
    streams = [sys.stdout, sys.stderr, *([] if sys.stdin and sys.stdin.isatty() else [sys.stdin])]
    for stream in filter(None, streams):  # one may be closed; Windows consoles would refuse Chinese text
        stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        main()
        print(end="", flush=True)
        code = 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's exit would complain
        code = 141  # a shell's number for it
    except (UserError, OSError) as error:
        print(visible(str(error)), file=sys.stderr)
        code = 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which not every script imports
            raise
        print(error, "Or train with a smaller --batch_size and more --accumulation_steps.", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)

"""The parser of each command. An invalid command line gets a one-line error with the nearest option or command.

Strategy: argparse finds unknown words; difflib compares each with the options of the command and, if it has no dashes,
with the names of all commands. Python's own suggestions (3.14) are only for choices.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from ktlsd.config.console import print_output
from ktlsd.config.refusal import Refusal

COMMANDS: Final = {
    "check": "check a configuration file and warn of likely mistakes",
    "compress": "compress the files of a folder ahead of time (name.zst, name.br, name.gz)",
    "doctor": "diagnose kTLS on this machine",
    "hash-password": "print a line for a file of users",
    "sign-url": "print a signed link, which expires",
    "health": "ask a running server whether it can answer",
}
"""The commands, which come first on the command line, and their descriptions."""

_ANY_WIDTH: Final = 80


class CommandParser(argparse.ArgumentParser):
    """Raises Refusal where argparse would exit."""

    def __init__(self, *, formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter, **rest: Any) -> None:
        # argparse makes a formatter for each option that is added. Without a width each of them asks the terminal for
        # it, by a module that brings all compressions along.
        super().__init__(formatter_class=functools.partial(formatter_class, width=_ANY_WIDTH), **rest)
        self._helpful = formatter_class

    def format_help(self) -> str:
        """The help in the width of the terminal."""
        self.formatter_class = self._helpful
        return super().format_help()

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """The options in `args`. Raises Refusal."""
        self._words = args
        return super().parse_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        """Print the help on stdout. Raises OutputError, and SystemExit if the reader has closed the pipe."""
        print_output(self.format_help().removesuffix("\n"))

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message} ({self._meant()}{self.prog} --help shows the usage)")

    def _meant(self) -> str:
        """A suggestion for the first word that is not an option of this command."""
        import difflib

        options = self._option_string_actions
        # Dashes would make all options alike.
        bare = {option.lstrip("-"): option for option in options}
        for number, word in enumerate(self._words):
            name = word.partition("=")[0]
            if name.startswith("-"):
                if name not in options and (near := difflib.get_close_matches(name.lstrip("-"), bare, 1)):
                    return f"did you mean {bare[near[0]]}? "
            elif number and self._words[number - 1] in options:
                # The value of an option.
                continue
            elif " " in self.prog:
                # A command's own parser: there are no commands below it.
                continue
            elif word in COMMANDS:
                return f"a command comes first: {self.prog} {word} ...; "
            elif near := difflib.get_close_matches(word, COMMANDS, 1):
                return f"did you mean {self.prog} {near[0]}? "
            elif word in bare:
                return f"did you mean {bare[word]}? "
            elif os.path.isdir(word):
                return f"did you mean --root {word}? "
        return ""


def described(commands: dict[str, str]) -> str:
    """A line for each command, for the help of the program."""
    width = max(map(len, commands))
    return "\n".join(f"  ktlsd {name:{width}}  {what}" for name, what in commands.items())

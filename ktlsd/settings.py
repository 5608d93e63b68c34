"""What the operator asked for: the command line over a TOML file over the defaults, as one frozen Settings.

Strategy: every key is a row of a table that says how to read its value; the file and the command line are read by the
same rows, so that a bad value gets the same one-line answer from both, naming where it stands.
"""

from __future__ import annotations

import os
import re
import reprlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ktlsd.ktls import Mode

MOST_WORKERS: Final = 256
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """A setting that cannot be used; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to accept connections: a host name or address (empty: every address of this machine) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked for their own sense but not yet against the machine."""

    root: Path
    listen: tuple[Listen, ...] = (Listen("localhost", 8443),)
    cert: Path | None = None
    key: Path | None = None
    workers: int = 1
    ktls: Mode = Mode.AUTO
    dotfiles: bool = False
    libssl: str | None = None
    log_level: str = "info"


def parse_listen(text: str) -> Listen:
    """Read ADDR:PORT, [IPV6]:PORT or :PORT. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("not ADDR:PORT; an IPv6 address stands in brackets, such as [::1]:8443")
    number = _decimal(port)
    if not colon or number is None or number > 65535:
        raise ValueError("not ADDR:PORT with a port from 0 to 65535")
    return Listen(host, number)


def _decimal(text: str) -> int | None:
    """A number of at most nine digits."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"not one of {', '.join(allowed)}")
        return str(value)

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("not a text")
    return value


def _path(value: Any) -> Path:
    return Path(_text(value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _workers(value: Any) -> int:
    if isinstance(value, str):
        value = _decimal(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_WORKERS:
        raise ValueError(f"not a number from 1 to {MOST_WORKERS}")
    return value


def _listens(value: Any) -> tuple[Listen, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ValueError("not ADDR:PORT or a list of such")
    return tuple(parse_listen(_text(text)) for text in texts)


def _mode(value: Any) -> Mode:
    return Mode(_one_of(*(mode.value for mode in Mode))(value))


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "root": _path,
    "listen": _listens,
    "cert": _path,
    "key": _path,
    "workers": _workers,
    "ktls": _mode,
    "dotfiles": _flag,
    "libssl": _text,
    "log_level": _one_of(*LOG_LEVELS),
}
_PATHS: Final = ("root", "cert", "key")


def combine(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from command-line options (None: not given), the file that `config` among them names, and KTLSD_LIBSSL.

    Raises SettingsError.
    """
    config = options.get("config")
    values = {} if config is None else _read_file(Path(config))
    if libssl := environment.get("KTLSD_LIBSSL"):
        values["libssl"] = libssl
    given = {name: value for name, value in options.items() if name in _READERS and value is not None}
    values |= _read(given, lambda name: "--" + name.replace("_", "-"))
    if "root" not in values:
        raise SettingsError("no folder to serve: name one with --root DIR")
    settings = Settings(**values)
    if (settings.cert is None) != (settings.key is None):
        lacking, present = ("--key", "--cert") if settings.key is None else ("--cert", "--key")
        raise SettingsError(f"{present} without {lacking}: give both, or neither for a self-signed certificate")
    return settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text: {error}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from error
    for name in values:
        if name not in _READERS:
            raise SettingsError(f"{path}: {reprlib.repr(name)}: no such key; there are {', '.join(_READERS)}")
    read = _read(values, lambda name: f"{path}: {name}")
    # A path in a file is relative to the file, so that it means the same wherever ktlsd is started.
    paths: dict[str, Any] = {name: path.parent / read[name] for name in _PATHS if name in read}
    # A bare library name is for the dynamic linker to search.
    if "/" in read.get("libssl", ""):
        paths["libssl"] = os.fspath(path.parent / read["libssl"])
    return read | paths


def _read(values: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in values.items():
        try:
            read[name] = _READERS[name](value)
        except ValueError as error:
            raise SettingsError(f"{where(name)}: {reprlib.repr(value)} is {error}") from error
    return read

"""The settings: the command line over a TOML file over the defaults, as one frozen Settings.

Strategy: both are read into the types of options.py; an invalid or contradictory setting gets one line that
names the option, or file, line and key. What a [[site]] does not give is taken from the top level.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import itertools
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ktlsd.config import errors
from ktlsd.config.environment import CONFIG, name_of, read_environment, with_environment
from ktlsd.config.errors import Read, Steps
from ktlsd.config.options import (
    ONE_OR_MORE,
    AccessOptions,
    AcmeOptions,
    NamedSiteOptions,
    Settings,
    SiteOptions,
    by_acme,
)
from ktlsd.config.refusal import PlacedError, SettingsError, install
from ktlsd.config.values import (
    BackendListen,
    Listen,
    LogPlace,
    Mode,
    Network,
    parse_backend_listen,
    parse_listen,
    parse_log_place,
    read_network,
)

_PAIR: Final = frozenset({"cert", "key"})
_INHERITED: Final = SiteOptions.__struct_fields__
_SHOWN_DEPTH: Final = 3
_SHOWN_ITEMS: Final = 4
_OF_SITE: Final = 2
"""Steps to a [[site]], before its key."""
_ACME_OPTIONS: Final = {"acme": "names", "acme_email": "email", "acme_directory": "directory"}
"""Keys of the table [acme], by the options of the command line."""
_TOML_POSITION: Final = re.compile(r"(.+) \(at line ([0-9]+), column ([0-9]+)\)")
_EXTRAS: Final = {"readme": ("markdown_it", "markdown-it-py"), "thumbnails": ("PIL", "pillow")}
"""Modules and packages that keys of a site need."""
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class Document(NamedTuple):
    """A configuration file; an empty one where there is none."""

    path: Path = Path()
    text: str = ""
    table: Mapping[str, Any] = {}
    variables: Mapping[Steps, str] = {}
    """The environment variables that win over it, by key."""

    @property
    def written(self) -> bool:
        """Whether it has lines: the table that a program gives has none."""
        return self.path != Path()

    def locate(self, place: Steps) -> tuple[int, Steps]:
        """The line, from 1 on, of the value at `place`, or of the nearest that is written around it; and the place of
        that one: a single text that stands for a list has no positions, and a default is not written."""
        from ktlsd.config.toml_lines import line_of

        while True:
            try:
                return line_of(self.text, place), place
            except KeyError:
                place = place[:-1]

    def variable(self, place: Steps) -> str | None:
        """The environment variable that gives the value at `place`."""
        beginnings = (place[:length] for length in range(1, len(place) + 1))
        return next((self.variables[steps] for steps in beginnings if steps in self.variables), None)

    def error(self, place: Steps, complaint: str, key: str | None = None) -> SettingsError:
        """FILE:LINE: PLACE: the error there, or of `key` of the table there; VARIABLE: for a value from the
        environment."""
        if variable := self.variable(place if key is None else (*place, key)):
            return SettingsError(f"{variable}: {complaint}")
        if not self.written:
            label = label_of(place)
            return SettingsError(f"{label}{': ' if label else ''}{complaint}")
        line, nearest = self.locate(place if key is None else (*place, key))
        label = label_of(place[: len(nearest)])
        return SettingsError(f"{self.path}:{line}: {label}{': ' if label else ''}{complaint}")


class Loaded(NamedTuple):
    """Settings, the file that they come from, and the keys that the command line gave."""

    settings: Settings
    document: Document = Document()
    given: frozenset[str] = frozenset()

    def where(self, place: Steps) -> str:
        """The place of a key, to begin a message: "--cert: ", "FILE:LINE: site[1].cert[0]: "; "" if it has none.

        `place` is the key of a site, which may inherit it, or of the top level.
        """
        place = self._written(place)
        own = place[:1] == ("site",)
        if not own and place and place[0] in self.given:
            return f"--{str(place[0]).replace('_', '-')}: "
        if not own and (variable := self.document.variable(place)):
            return f"{variable}: "
        if not own and (not place or place[0] not in self.document.table):
            return ""
        if not self.document.written:
            return f"{label_of(place)}: "
        line, written = self.document.locate(place)
        return f"{self.document.path}:{line}: {label_of(written)}: "

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Give a PlacedError the place where its key is written."""
        try:
            yield
        except PlacedError as error:
            place = self._written((*error.place, error.key))
            first, text, document = str(place[0]), str(error), self.document
            if first in self.given or not (document.table or document.variables):
                raise SettingsError(f"--{first.replace('_', '-')}{text.removeprefix(first)}") from error
            if first in document.table or document.variable(place):
                raise document.error(place[:-1], text, error.key) from error
            # A default.
            raise SettingsError(text) from error

    def _written(self, place: Steps) -> Steps:
        """The place of a key of a site; that of the top level if the site inherits it."""
        inherited = place[:1] == ("site",) and place[_OF_SITE] not in self.document.table["site"][place[1]]
        return place[_OF_SITE:] if inherited else place


def combine(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from command-line options (None: not given), environment variables, and the file that either names.

    The command line wins over the environment, which wins over the file. Every key that a [[site]] does not give has
    the value of the top level, command line included; a table is taken as a whole, not merged, and `cert` and `key` go
    together. Names of sites come out in lower case. Raises SettingsError.
    """
    return load(options, environment).settings


def load(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Loaded:
    """The result of combine(), with the file. Raises SettingsError."""
    config = options.get("config") or environment.get(CONFIG) or None
    document = Document() if config is None else _read_file(Path(config))
    settings = _from_file(document)
    variables = read_environment(environment, _reader(Path()))
    if variables:
        settings = with_environment(settings, variables)
        document = document._replace(variables={steps: name_of(steps) for steps in variables})
        _check_site((), settings, document)
    given = {name: value for name, value in options.items() if name in Settings.__struct_fields__ and value is not None}
    given.pop("acme", None)
    settings = msgspec.structs.replace(settings, **_from_command_line(given))
    named = {name: value for name in _ACME_OPTIONS if (value := options.get(name)) is not None}
    if named:
        settings = _with_acme_options(settings, named)
        given |= named
    if settings.acme is not None or by_acme(settings):
        settings = _for_acme(settings, document, given)
    return _completed(settings, document, given)


def from_table(table: Mapping[str, Any]) -> Loaded:
    """Settings from a table with the keys of a file, whose paths are relative to the current folder; no environment.

    Raises SettingsError.
    """
    document = Document(table=table)
    return _completed(_from_file(document), document, {})


def _completed(settings: Settings, document: Document, given: Mapping[str, Any]) -> Loaded:
    """Settings with sites that have the keys of the top level, checked as a whole."""
    tables = document.table.get("site", ())
    sites = tuple(_inherit(site, set(table), settings) for site, table in zip(settings.site, tables, strict=True))
    settings = msgspec.structs.replace(settings, site=sites)
    if by_acme(settings):
        from ktlsd.acme.settings import with_site_certificates

        settings = with_site_certificates(settings)
    _check_certificates(settings, document, given)
    _check_clients(settings, document)
    _check_roots(settings, document)
    if settings.zerocopy_sendfile and settings.ktls is Mode.OFF:
        raise document.error(
            (), "zerocopy_sendfile needs kTLS: leave it out, or leave out ktls = 'off'", "zerocopy_sendfile"
        )
    return Loaded(settings, document, frozenset(given))


def _read_file(path: Path) -> Document:
    import tomllib

    try:
        # Not read_text(): in TOML a lone carriage return is no line end.
        text = path.read_bytes().decode("utf-8")
        return Document(path, text, tomllib.loads(text))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text: {error}") from error
    except (ValueError, RecursionError) as error:
        raise _toml_error(path, str(error)) from error


def _toml_error(path: Path, problem: str) -> SettingsError:
    # Only Python 3.14 gives the position by itself.
    found = _TOML_POSITION.fullmatch(problem)
    if found is None:
        return SettingsError(f"{path}: is not TOML: {problem}")
    text, line, column = found.groups()
    hint = " (texts stand in quotes; true and false are lower case)" if text == "Invalid value" else ""
    return SettingsError(f"{path}:{line}: column {column}: is not TOML: {text[0].lower()}{text[1:]}{hint}")


def _from_file(document: Document) -> Settings:
    table = _listed(document.table)
    if isinstance(acme := table.get("acme"), dict):
        table["acme"] = _listed(acme)
    if isinstance(sites := table.get("site"), list):
        table["site"] = [_listed(site) if isinstance(site, dict) else site for site in sites]
    # A path in a file is relative to the file, so that it means the same wherever ktlsd is started.
    read = _reader(document.path.parent)
    try:
        settings: Settings = errors.convert(table, Settings, read)
    except msgspec.ValidationError:
        found = errors.option_error(table, Settings, read)
        key = found.subject if found.of_key else None
        raise document.error(found.place, _shown(found.subject) + found.complaint, key) from None
    _check_names(settings, document)
    for place, site in _places(settings):
        _check_site(place, site, document)
    # A bare library name is for the dynamic linker to search.
    if settings.libssl is not None and "/" in settings.libssl:
        return msgspec.structs.replace(settings, libssl=os.fspath(document.path.parent / settings.libssl))
    return settings


def _from_command_line(given: Mapping[str, Any]) -> dict[str, Any]:
    table = _listed(given)
    # More than nine digits could be more than int() takes.
    if re.fullmatch("[0-9]{1,9}", str(table.get("workers"))):
        table["workers"] = int(table["workers"])
    read = _reader(Path())
    try:
        settings = errors.convert(table, Settings, read)
    except msgspec.ValidationError:
        found = errors.option_error(table, Settings, read)
        name = str(found.place[0])
        option = "--" + name.replace("_", "-")
        # Of an option that may be repeated, the one value that does not fit.
        value = found.subject if isinstance(given[name], (list, tuple)) else given[name]
        raise SettingsError(f"{option}: {reprlib.repr(value)}{found.complaint}") from None
    return {name: getattr(settings, name) for name in given}


def _with_acme_options(settings: Settings, given: Mapping[str, Any]) -> Settings:
    table = {_ACME_OPTIONS[name]: value for name, value in given.items()}
    if "names" in table:
        table["names"] = [name.strip() for text in table["names"] for name in text.split(",")]
    read = _reader(Path())
    try:
        options = errors.convert(table, AcmeOptions, read)
    except msgspec.ValidationError:
        found = errors.option_error(table, AcmeOptions, read)
        option = next(name for name, key in _ACME_OPTIONS.items() if key == found.place[0]).replace("_", "-")
        raise SettingsError(f"--{option}: {reprlib.repr(found.subject)}{found.complaint}") from None
    known = settings.acme or AcmeOptions()
    changed = {name: getattr(options, name) for name in table}
    return msgspec.structs.replace(settings, acme=msgspec.structs.replace(known, **changed))


def _for_acme(settings: Settings, document: Document, given: Mapping[str, Any]) -> Settings:
    """Settings with the addresses and the certificate of the top level that ACME needs."""
    from ktlsd.acme import settings as acme

    of_options = bool(settings.acme is not None and settings.acme.names)
    sites: list[tuple[Steps, SiteOptions, bool]] = [(("acme", "names"), settings, of_options)]
    sites += ((("site", number, "acme"), site, site.acme) for number, site in enumerate(settings.site))
    complaints = list(acme.complaints(settings))
    complaints[:0] = [(place, "there is a cert, too: give either") for place, site, own in sites if own and site.cert]
    if complaints:
        place, complaint = complaints[0]
        # A name of the table may come from the command line.
        if place[0] == "acme" and (place[1:] == ("names",) or len(place) == 1) and _ACME_OPTIONS.keys() & given.keys():
            raise SettingsError(f"--acme: {complaint}")
        raise document.error(place, complaint)
    in_environment = frozenset(str(steps[0]) for steps in document.variables)
    settings = acme.with_addresses(settings, frozenset(document.table) | in_environment | frozenset(given))
    try:
        return acme.with_top_certificate(settings)
    except RuntimeError as error:
        reason = "no place to keep certificates: this user has no home"
        raise SettingsError(f"{reason}: set STATE_DIRECTORY or XDG_STATE_HOME") from error


def _listed(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: [value] if name in ONE_OR_MORE and isinstance(value, str) else value for name, value in table.items()}


def _reader(folder: Path) -> Read:
    def read(kind: type, value: Any) -> Any:
        if kind in errors.WORDS and not isinstance(value, str):
            raise ValueError(f"not {errors.WORDS[kind]}")
        if kind is Listen:
            return parse_listen(value)
        if kind is BackendListen:
            return parse_backend_listen(value, folder)
        if kind is Network:
            return read_network(value)
        if not value or "\0" in value:
            raise ValueError(f"not {errors.WORDS[kind]}")
        if kind is LogPlace:
            return parse_log_place(value, folder)
        return folder / value

    return read


def _inherit(site: NamedSiteOptions, given: set[str], top: Settings) -> NamedSiteOptions:
    if given & _PAIR:
        given |= _PAIR
    taken = {name: getattr(top, name) for name in _INHERITED if name not in given}
    return msgspec.structs.replace(site, **taken, names=tuple(name.lower() for name in site.names))


def _check_site(place: Steps, site: SiteOptions, document: Document) -> None:
    for below, check in _checks(site):
        try:
            check()
        except ValueError as error:
            raise document.error(place + below, str(error)) from error


def _places(settings: Settings) -> list[tuple[Steps, SiteOptions]]:
    return [((), settings), *((("site", number), site) for number, site in enumerate(settings.site))]


def _checks(site: SiteOptions) -> Iterator[tuple[Steps, Callable[[], object]]]:
    """The checks of a site's rules, by key."""
    for key, (module, package) in _EXTRAS.items():
        if getattr(site, key):
            yield (key,), partial(_check_extra, module, package)
    if site.try_files:
        yield ("try_files",), partial(_check_try_files, site.try_files)
    for key in ("redirect", "header", "cache"):
        expressions = {number: rule.regex for number, rule in enumerate(getattr(site, key)) if rule.regex is not None}
        if expressions:
            from ktlsd.http import regexes

            yield (key,), partial(regexes.check_count, len(expressions))
            for number, expression in expressions.items():
                yield (key, number, "regex"), partial(regexes.Regex, expression)
    if site.redirect:
        from ktlsd.http import redirects

        for number, redirect in enumerate(site.redirect):
            yield ("redirect", number), partial(redirects.check, redirect)
    if site.header or site.cache:
        from ktlsd.http import header_rules

        for number, header in enumerate(site.header):
            yield ("header", number), partial(header_rules.check, SiteOptions(header=(header,)))
        for number, cache in enumerate(site.cache):
            yield ("cache", number), partial(header_rules.check, SiteOptions(cache=(cache,)))
    for number, access in enumerate(site.access):
        yield ("access", number), partial(_check_access, access)
    if site.rate:
        from ktlsd.http import rate_check

        for number, rate in enumerate(site.rate):
            yield ("rate", number), partial(rate_check.check, rate)
    if site.cors is not None:
        from ktlsd.http import cors

        yield ("cors",), partial(cors.check, site.cors)


def _check_access(rule: AccessOptions) -> None:
    if not (rule.allow or rule.deny or rule.certificate or rule.certificate_names):
        raise ValueError("every client has access: give allow, deny, certificate or certificate_names")


def _check_extra(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"the package {package} is missing: {install(package, 'pages')}")


def _check_try_files(entries: Sequence[str]) -> None:
    for entry in entries[:-1]:
        if entry.startswith("="):
            raise ValueError(f"nothing after {entry} is tried: put it at the end")


def _check_names(settings: Settings, document: Document) -> None:
    seen: dict[str, int] = {}
    for number, site in enumerate(settings.site):
        for name_number, name in enumerate(site.names):
            if (lowered := name.lower()) in seen:
                complaint = f"{name!r} is a name of site[{seen[lowered]}] already"
                raise document.error(("site", number, "names", name_number), complaint)
            seen[lowered] = number


def _check_certificates(settings: Settings, document: Document, given: Mapping[str, Any]) -> None:
    for place, site in _places(settings):
        fewer, more = sorted((len(site.cert), len(site.key)))
        if fewer == more:
            continue
        keys = ("cert", "key") if len(site.cert) == more else ("key", "cert")
        given_apart = not place and bool(_PAIR & given.keys() or any((key,) in document.variables for key in _PAIR))
        present, lacking = (_source(key, document, given) for key in keys) if given_apart else keys
        complaint = f"{present} without {lacking}: give both, or neither for a self-signed certificate"
        if fewer:
            complaint = (
                f"there are {more} of {present}, but {fewer} of {lacking}:"
                " give every certificate its key, in the same order"
            )
        raise SettingsError(complaint) if given_apart else document.error(place, complaint, keys[0])


def _source(key: str, document: Document, given: Mapping[str, Any]) -> str:
    """An option of the command line or the environment, where the pair of certificate and key is given there."""
    return f"--{key}" if _PAIR & given.keys() else document.variables.get((key,), name_of((key,)))


def _check_clients(settings: Settings, document: Document) -> None:
    for place, site in _places(settings):
        if site.client_ca is not None:
            continue
        for key in ("client_names", "client_crl", "client_certificates", "client_verify_depth"):
            if getattr(site, key) not in ((), None, "required"):
                raise document.error(
                    place, f"{key} without client_ca: name the authorities of client certificates", key
                )
        for number, rule in enumerate(site.access):
            if rule.certificate or rule.certificate_names:
                complaint = "a client certificate without client_ca: name its authorities"
                raise document.error((*place, "access", number), complaint)


def _check_roots(settings: Settings, document: Document) -> None:
    if settings.root is None and not settings.site:
        if document.written:
            raise SettingsError(f'{document.path}: root is missing: add root = "DIR"')
        option = "root" if document.table else "KTLSD_ROOT" if document.variables else "--root DIR"
        raise SettingsError(f"no folder to serve: name one with {option}")
    if settings.unknown_names == "refuse" and not settings.site and not (settings.acme and settings.acme.names):
        complaint = 'unknown_names = "refuse" without a name that is known: add a [[site]] with names'
        raise document.error((), complaint, "unknown_names")
    for number, site in enumerate(settings.site):
        if site.root is None:
            raise document.error(("site", number), "'root' is missing, here and at the top level")


def label_of(place: Steps) -> str:
    """A place as messages name it: site[1].names[0]."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{_key(step)}" for step in place)
    return "".join(parts).removeprefix(".")


def _shown(value: Any, depth: int = 0) -> str:
    """A value as TOML writes it, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if not isinstance(value, (list, Mapping)):
        return reprlib.repr(value)
    if depth == _SHOWN_DEPTH:
        return "..."
    if isinstance(value, list):
        items = [_shown(item, depth + 1) for item in value[:_SHOWN_ITEMS]]
    else:
        pairs = itertools.islice(value.items(), _SHOWN_ITEMS)
        items = [f"{_key(name)} = {_shown(item, depth + 1)}" for name, item in pairs]
    text = ", ".join(items + ["..."] * (len(value) > _SHOWN_ITEMS))
    return f"[{text}]" if isinstance(value, list) else f"{{{text}}}"


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else reprlib.repr(name)

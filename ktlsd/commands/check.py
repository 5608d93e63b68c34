"""`ktlsd check`: the errors that refuse a start, and warnings about settings that probably do not do what is intended.

Strategy: the settings are read and the service is built as a start does it, so an error is the same line; then each of
CHECKS looks at the settings, and every finding is a line with the file, the line of the key, and the remedy.
"""

from __future__ import annotations

import contextlib
from typing import Final

import msgspec

from ktlsd.commands import certificate_findings, credentials, redirect_findings, server_findings, site_findings
from ktlsd.config.console import print_error, print_output
from ktlsd.config.findings import Check, Place
from ktlsd.config.options import by_acme
from ktlsd.config.printable import one_line
from ktlsd.config.refusal import SettingsError
from ktlsd.settings import Document, Loaded, label_of, load
from ktlsd.ssl_ffi import Library

EXIT_WARNINGS: Final = 1
_OF_SITE: Final = 2
"""Steps to a [[site]], before its key."""

CHECKS: Final[tuple[Check, ...]] = (
    server_findings.findings,
    site_findings.findings,
    redirect_findings.findings,
    certificate_findings.findings,
    credentials.findings,
)
"""All that `ktlsd check` looks at beyond what a start refuses."""


def run(config: str, *, strict: bool) -> int:
    """Check a configuration file: 0, or 1 for warnings when `strict`. Raises Refusal, LibraryError and ContextError."""
    loaded = load({"config": config})
    count = _build(loaded)
    warnings = warnings_of(loaded)
    for warning in warnings:
        print_error(warning)
    summary = f"{config}: ok, {_counted(count, 'site')}"
    print_output(f"{summary}, {_counted(len(warnings), 'warning')}" if warnings else summary)
    return EXIT_WARNINGS if strict and warnings else 0


def warnings_of(loaded: Loaded) -> list[str]:
    """A line for each finding, in the order of the file; one for settings that several sites inherit."""
    found: dict[str, int] = {}
    for check in CHECKS:
        for finding in check(loaded.settings):
            place = _written(loaded.document, finding.place)
            variable = loaded.document.variable(place)
            line, label = (0, "") if variable else _where(loaded.document, place)
            text = f"{label}: {finding}" if label else str(finding)
            # Texts of site owners must not control the operator's terminal.
            found[one_line(f"{variable or f'{loaded.document.path}:{line}'}: warning: {text}")] = line
    return sorted(found, key=found.__getitem__)


def _written(document: Document, place: Place) -> Place:
    """The place of a key; for one that a site inherits, that of the top level."""
    inherited = place[:1] == ("site",) and document.locate(place)[1] == place[:_OF_SITE]
    at_top = place[_OF_SITE:]
    given = at_top and (at_top[0] in document.table or document.variable(at_top))
    return at_top if inherited and given else place


def _where(document: Document, place: Place) -> tuple[int, str]:
    """The line and the name of a key."""
    key = _OF_SITE if place[:1] == ("site",) else 0
    line, written = document.locate(place)
    # A default is written nowhere, but has a name.
    return line, label_of(place[: max(len(written), key + 1)])


def _build(loaded: Loaded) -> int:
    """Build what a start builds; how many sites there are."""
    settings = loaded.settings
    if by_acme(settings):
        from ktlsd.acme.settings import machine_complaints, without_certificates

        for place, complaint in machine_complaints(settings):
            raise SettingsError(f"{loaded.where(place)}{complaint}")
        # They are in the state folder of the service, which another user runs.
        settings = without_certificates(settings)
    settings = credentials.without_absent(settings)
    library = Library(settings.libssl)
    from ktlsd.process.configuration import validate_service
    from ktlsd.process.new_service import refuse_lists
    from ktlsd.service import Service
    from ktlsd.tls import ktls_state

    refuse_lists(library, loaded)
    strictly = msgspec.structs.replace(settings, strict=True)
    with loaded.placed():
        built = Service(library, strictly, ktls_state.support(library, settings.ktls))
    with contextlib.closing(built) as service:
        validate_service(service, loaded._replace(settings=strictly), None)
        return len(service.all)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

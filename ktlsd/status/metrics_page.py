"""The responses of the metrics listener: pure.

Strategy: a table of targets, each with a function of the present figures; nothing here reads a file or a site. On
loopback, other names than this machine's own are refused, so that no foreign page gets at it by DNS rebinding.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from ktlsd.http.uri_host import host_of
from ktlsd.metrics import prometheus
from ktlsd.status import status_page
from ktlsd.status.status_page import View

_TEXT: Final = "text/plain; charset=utf-8"
_METHODS: Final = ("GET", "HEAD")
_FIELDS: Final = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class Asked(NamedTuple):
    """A request."""

    method: str
    target: str
    host: str
    """The Host field, empty where there is none."""
    accept: str


class Reply(NamedTuple):
    """A response, with its body even where the method is HEAD."""

    status: HTTPStatus
    media_type: str
    body: bytes
    extra: tuple[tuple[str, str], ...] = ()

    def fields(self) -> list[tuple[str, str]]:
        """All header fields but Date."""
        described = [("Content-Type", self.media_type), ("Content-Length", str(len(self.body)))]
        return [*described, *_FIELDS, *self.extra]


def answer(asked: Asked, view: View, own_name: str | None) -> Reply:
    """The reply to a request. `own_name` is the name that was listened on; None allows every name in Host."""
    if host_of(asked.host) is None:
        return short(HTTPStatus.BAD_REQUEST, "a Host that names no host")
    if own_name is not None and not is_own(asked.host, own_name):
        return short(HTTPStatus.MISDIRECTED_REQUEST, f"metrics are served only for {own_name} and IP addresses")
    route = _ROUTES.get(asked.target.partition("?")[0])
    if route is None:
        return short(HTTPStatus.NOT_FOUND, f"there are {', '.join(_ROUTES)}")
    if asked.method not in _METHODS:
        return short(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", ("Allow", ", ".join(_METHODS)))
    return route(asked, view)


def short(status: HTTPStatus, text: str, *extra: tuple[str, str]) -> Reply:
    """A status with a line that explains it."""
    return Reply(status, _TEXT, f"{status.value} {status.phrase}: {text}\n".encode(), extra)


def is_own(host: str, own_name: str) -> bool:
    """True if a Host field names this machine as no foreign DNS can: an address, localhost, or `own_name`."""
    valid = host_of(host)
    if valid is None:
        return False
    name = valid.lower().removesuffix(".")
    if name in ("", "localhost", own_name.lower()) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _metrics(asked: Asked, view: View) -> Reply:
    shown = prometheus.render(view.store, view.validities, asked.accept, view.faults, view.orders, view.openssl)
    return Reply(HTTPStatus.OK, *shown)


def _health(asked: Asked, view: View) -> Reply:
    return Reply(HTTPStatus.OK, _TEXT, b"ok\n")


def _readiness(asked: Asked, view: View) -> Reply:
    if view.ready:
        return Reply(HTTPStatus.OK, _TEXT, b"ready\n")
    return Reply(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"draining\n")


def _page(asked: Asked, view: View) -> Reply:
    extra = (("Content-Security-Policy", status_page.POLICY), ("Referrer-Policy", "no-referrer"))
    return Reply(HTTPStatus.OK, "text/html; charset=utf-8", status_page.render_html(view), extra)


def _json(asked: Asked, view: View) -> Reply:
    return Reply(HTTPStatus.OK, "application/json", status_page.render_json(view))


_ROUTES: Final[Mapping[str, Callable[[Asked, View], Reply]]] = {
    "/": _page,
    "/status.json": _json,
    "/metrics": _metrics,
    "/healthz": _health,
    "/readyz": _readiness,
}

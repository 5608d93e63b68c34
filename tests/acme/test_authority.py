"""The lines about an authority that cannot be reached, or is none, and the pause that one asks for."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from pathlib import Path

import pytest

from ktlsd.acme.client import Orders
from ktlsd.acme.folder import AcmeFolder
from ktlsd.acme.job import Job
from ktlsd.acme.plan import Record, may_try
from ktlsd.config.options import AcmeOptions
from tests.acme.sites import NAME, authority
from tests.authority import Authority
from tests.pebble import Pebble

__all__ = ["authority"]


@pytest.mark.parametrize(
    ("url", "trusted", "problem"),
    [
        ("https://127.0.0.1:1/dir", True, "127.0.0.1:1 cannot be reached: Connection refused"),
        (
            "https://no-such-host.test/dir",
            True,
            "no-such-host.test cannot be reached: Failed to resolve 'no-such-host.test",
        ),
        (
            "https://localhost:{port}/dir",
            False,
            "localhost:{port} cannot be reached: unable to get local issuer certificate",
        ),
        ("https://127.0.0.1:{port}/dir", True, "127.0.0.1:{port} cannot be reached: IP address mismatch"),
        ("https://localhost:{port}/nothing", True, "localhost:{port} is no ACME server: it answers 404"),
    ],
)
def test_problems_in_words(authority: Pebble, tmp_path: Path, url: str, trusted: bool, problem: str) -> None:
    folder = AcmeFolder(tmp_path / "acme")
    folder.make()
    options = AcmeOptions(directory=url.format(port=authority.port), ca=authority.ca if trusted else None)
    Orders(Job(folder.path, options, ((NAME,),), None)).run()
    record = folder.read(NAME) or Record()
    assert record.failures == 1
    assert record.problem.startswith(problem.format(port=authority.port))
    assert not set("[]()<>\n") & set(record.problem)


class Overloaded(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "7200")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_an_overloaded_authority_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    """Even a reload does not ask earlier. Pebble never asks for it; Let's Encrypt does."""
    ca = Authority(tmp_path)
    folder = AcmeFolder(tmp_path / "acme")
    folder.make()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca.issue("localhost", ["localhost"]))
    with http.server.HTTPServer(("127.0.0.1", 0), Overloaded) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.handle_request)
        serving.start()
        options = AcmeOptions(directory=f"https://localhost:{server.server_port}/dir", ca=ca.ca)
        before = time.time()
        Orders(Job(folder.path, options, ((NAME,),), None)).run()
        serving.join()
    record = folder.read(NAME) or Record()
    assert record.problem.endswith("answers 503")
    assert before + 7198 < record.retry_after < time.time() + 7201
    assert not may_try(record, options.directory, before + 7000, forced=True)
    assert may_try(record, options.directory, before + 7300)

"""What a person reads if the authority cannot be reached, or is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktlsd.acme.client import Orders
from ktlsd.acme.folder import AcmeFolder
from ktlsd.acme.job import Job
from ktlsd.acme.plan import Record
from ktlsd.config.options import AcmeOptions
from tests.acme.sites import NAME, authority
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

"""The way to a server for people: addresses on the network, --open and --qr."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import segno

from ktlsd.config.refusal import Refusal
from ktlsd.process.address_display import AddressDisplay, network_addresses
from tests.serving import eventually, serving


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A browser that only writes down what it is to open."""
    program = tmp_path / "browser"
    program.write_text('#!/bin/sh\necho "$1" >>"$0.opened"\n')
    program.chmod(0o755)
    return program


def test_the_addresses_are_those_of_the_interfaces() -> None:
    command = ["ip", "-o", "address", "show", "scope", "global"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = re.findall(r"inet6? ([\d.a-f:]+)", "\n".join(line for line in lines if " deprecated" not in line))
    assert sorted(network_addresses()) == sorted(expected)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_where_it_listens_on_all_addresses(tmp_path: Path, browser: Path, workers: str) -> None:
    options = ["--open", "--qr", "--workers", workers]
    with serving(tmp_path, *options, state=tmp_path / "state", listen=("0.0.0.0:0",), BROWSER=str(browser)) as server:
        port = server.port
        addresses = [address for address in network_addresses() if ":" not in address]
        urls = [f"https://{address}:{port}/" for address in addresses]
        opened = browser.with_name("browser.opened")
        assert eventually(lambda: opened.exists() and opened.read_text() == f"https://localhost:{port}/\n")
        assert server.log.index(f"listening on https://0.0.0.0:{port}") > 0
        for url in urls:
            server.wait_for_line(f"^on the network: {re.escape(url)}$")
        if urls:
            code = io.StringIO()
            segno.make(urls[0], micro=False).terminal(out=code, compact=True)
            lines = code.getvalue().splitlines()
            assert eventually(lambda: lines[-1] in server.log)
            begin = server.log.index(lines[0])
            assert server.log[begin : begin + len(lines)] == lines


def test_an_address_of_this_machine_has_no_code(tmp_path: Path) -> None:
    with serving(tmp_path, "--qr", state=tmp_path / "state") as server:
        server.wait_for_line("^--qr: no other machine reaches this address: listen on all, such as --listen :8443$")
        assert not any(line.startswith("on the network: ") for line in server.log)


def test_without_the_extra_the_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    AddressDisplay().check()
    with pytest.raises(Refusal, match=r"^--qr needs the package segno, which is missing: pip install segno"):
        AddressDisplay(code=True).check()

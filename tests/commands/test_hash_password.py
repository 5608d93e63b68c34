"""`ktlsd hash-password`: from standard input, and from a terminal that does not show what is typed."""

from __future__ import annotations

import io
import os
import pty
import sys
import time

import pytest

from ktlsd.cli import main
from ktlsd.site import password_hashes
from ktlsd.site.password_file import parse_users


def fed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Have these bytes on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(password_hashes, "_BCRYPT_COST", "04")


@pytest.mark.parametrize("data", [b"secret", b"secret\n", b"secret\r\nand more\n"])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], data: bytes) -> None:
    fed(monkeypatch, data)
    assert main(["hash-password", "ann"]) == 0
    users = parse_users(capfd.readouterr().out.encode())
    assert password_hashes.verify(users.hashes[b"ann"], b"secret")


def test_the_hash_only(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    fed(monkeypatch, b"secret\n")
    assert main(["hash-password", "--algorithm", "argon2id"]) == 0
    assert password_hashes.verify(capfd.readouterr().out.rstrip("\n"), b"secret")


@pytest.mark.parametrize(
    ("arguments", "data", "reason"),
    [
        ([], b"\n", "the password is empty"),
        ([], b"a\tb\n", "no control characters"),
        ([], b"x" * 73, "up to 72 bytes"),
        (["a:b"], b"x", "a name has no colon"),
        (["#a"], b"x", "begins with no #"),
        (["a "], b"x", "no blanks at its ends"),
        (["--algorithm", "md5"], b"x", "invalid choice"),
    ],
)
def test_refusals(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    data: bytes,
    reason: str,
) -> None:
    fed(monkeypatch, data)
    assert main(["hash-password", *arguments]) == 2
    told = capfd.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert reason in told.err


@pytest.mark.parametrize(("again", "status"), [(b"secret\n", 0), (b"other\n", 2)])
def test_a_terminal(again: bytes, status: int) -> None:
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-m", "ktlsd", "hash-password", "--algorithm", "sha512"])
    seen = b""
    for prompt, typed in ((b"Password: ", b"secret\n"), (b"again: ", again)):
        while not seen.endswith(prompt):
            seen += os.read(terminal, 1024)
        # The echo is off before the prompt.
        os.write(terminal, typed)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            more = os.read(terminal, 1024)
        except OSError:
            break
        seen += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    assert b"secret" not in seen
    assert (b"$6$" in seen) == (status == 0)

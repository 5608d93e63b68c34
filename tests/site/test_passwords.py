"""Files of users, their hashes, and the verification of passwords: bounded, shared and remembered."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio

from ktlsd.config.options import LimitOptions
from ktlsd.http.basic_auth import Credentials
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.forwarded import Origin
from ktlsd.site import password_hashes, passwords
from ktlsd.site.password_file import parse_users
from ktlsd.site.passwords import MOST_OF_NETWORK, Passwords, Verdict
from ktlsd.site.watched_file import WatchedFile
from tests.files import nothing_stays_open


def made(password: bytes, setting: str) -> str:
    """A hash of low cost by the system's libcrypt."""
    return password_hashes._made(password, setting)


LOW_BCRYPT = "$2y$04$abcdefghijklmnopqrstu."
CLIENT = Origin("192.0.2.1", https=True)


def verifier_of(proxies: Iterable[str] = (), most: int = 10) -> Passwords:
    options = LimitOptions(client_wrong_passwords_per_minute=most)
    return Passwords(options, ClientNetworks(options, proxies))


@pytest.mark.parametrize("algorithm", password_hashes.ALGORITHMS)
def test_a_made_hash_is_its_passwords(algorithm: password_hashes.Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(password_hashes, "_BCRYPT_COST", "04")
    monkeypatch.setattr(password_hashes, "_SHA512_ROUNDS", 1000)
    stored = password_hashes.make("pässword".encode(), algorithm)
    password_hashes.check(stored)
    assert password_hashes.verify(stored, "pässword".encode())
    assert not password_hashes.verify(stored, b"password")
    assert password_hashes.make(b"pass", algorithm) != password_hashes.make(b"pass", algorithm)


# Of `openssl passwd`, and test vectors of crypt_blowfish (wrapper.c).
@pytest.mark.parametrize(
    ("stored", "password"),
    [
        ("$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", b"Hello world!"),
        (
            "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            b"Hello world!",
        ),
        ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", b"U*U"),
        ("$2y$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK", b"U*U*"),
    ],
)
def test_hashes_of_other_programs(stored: str, password: bytes) -> None:
    password_hashes.check(stored)
    assert password_hashes.verify(stored, password)
    assert not password_hashes.verify(stored, password + b"x")


def test_yescrypt() -> None:
    stored = made(b"secret", "$y$j75$abcdefghijkl")
    password_hashes.check(stored)
    assert password_hashes.verify(stored, b"secret")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("bob:$apr1$x$Mt/6kGXq5o6xsLzaZXXZF/", "line 3: Apache's MD5"),
        ("bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "line 3: SHA-1 without salt"),
        ("bob:secret", "line 3: not a hash"),
        ("bob:rl.3StKT.4T8M", "line 3: not a hash"),
        ("bob", "line 3: not a line NAME:HASH"),
        (":$2y$", "line 3: not a line NAME:HASH"),
        (f"ann:{made(b'x', LOW_BCRYPT)}", "line 3: ann is in a line above already"),
        ("bob:$2y$31$" + "a" * 53, "line 3: its cost"),
        ("bob:$6$rounds=999999999$salt$" + "a" * 86, "line 3: its cost"),
        ("bob:$argon2id$v=19$m=99999999,t=9,p=1$MTIzNDU2Nzg$" + "a" * 43, "line 3: its cost"),
        ("bob:$2y$04$short", "line 3: not a hash"),
    ],
)
def test_lines_that_refuse_a_file(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match="ktlsd hash-password") as error:
        parse_users(f"# users\nann:{made(b'x', LOW_BCRYPT)}\n{line}\n".encode())
    assert str(error.value).startswith(reason)
    assert "secret" not in str(error.value)
    assert "5en6" not in str(error.value)


def test_a_file_as_others_write_it() -> None:
    stored = made(b"x", LOW_BCRYPT)
    assert parse_users(f"\n# all\r\nann:{stored}\r\nbob:{stored}:a comment\n".encode()).hashes == {
        b"ann": stored,
        b"bob": stored,
    }


async def test_a_right_password_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    users = parse_users(f"ann:{made(b'right', LOW_BCRYPT)}".encode())
    verifier, given = verifier_of(), Credentials(b"ann", b"right")
    assert not verifier.knows(users, given)
    assert await verifier.verify(users, given, CLIENT) == (Verdict.RIGHT, 0)
    assert verifier.knows(users, given)
    assert not verifier.knows(users, Credentials(b"ann", b"wrong"))
    assert not verifier.knows(parse_users(b""), given)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + passwords.REMEMBERED_SECONDS)
    assert not verifier.knows(users, given)


async def test_wrong_passwords_of_a_network_are_limited() -> None:
    users = parse_users(f"ann:{made(b'right', LOW_BCRYPT)}".encode())
    verifier = verifier_of(["198.51.100.0/24"], most=3)
    for number in range(3):
        # A right one costs nothing.
        assert (await verifier.verify(users, Credentials(b"ann", b"right"), CLIENT))[0] is Verdict.RIGHT
        assert (await verifier.verify(users, Credentials(b"eve%d" % number, b"x"), CLIENT))[0] is Verdict.WRONG
    verdict, seconds = await verifier.verify(users, Credentials(b"ann", b"y"), CLIENT)
    assert (verdict, 15 <= seconds <= 20) == (Verdict.TOO_MANY, True)
    assert verifier.knows(users, Credentials(b"ann", b"right"))
    for other in ("192.0.2.2", "127.0.0.1", "198.51.100.7"):
        for number in range(4 if other != "192.0.2.2" else 2):
            given = Credentials(b"ann", b"%d" % number)
            assert (await verifier.verify(users, given, Origin(other, https=True)))[0] is Verdict.WRONG


class HeldVerifications:
    """Verifications that end when they may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = trio.Event()
        self.calls: list[bytes] = []
        monkeypatch.setattr(password_hashes, "verify", self._verify)

    def _verify(self, stored: str, password: bytes) -> bool:
        self.calls.append(password)
        trio.from_thread.run(self.free.wait)
        return password == b"right"


async def test_equal_requests_share_a_verification_and_a_network_has_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = parse_users(f"ann:{made(b'right', LOW_BCRYPT)}".encode())
    held, verifier = HeldVerifications(monkeypatch), verifier_of()
    verdicts: dict[bytes, list[Verdict]] = {}

    async def ask(password: bytes, address: str) -> None:
        verdict, _ = await verifier.verify(users, Credentials(b"ann", password), Origin(address, https=True))
        verdicts.setdefault(password, []).append(verdict)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask, b"right", "192.0.2.1")
        for number in range(MOST_OF_NETWORK + 1):
            nursery.start_soon(ask, b"a%d" % number, "192.0.2.2")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [verdict for by in verdicts.values() for verdict in by] == [Verdict.TOO_MANY]
        nursery.start_soon(ask, b"b", "192.0.2.3")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(held.calls) == passwords.THREADS
        held.free.set()
    assert verdicts[b"right"] == [Verdict.RIGHT] * 20
    assert held.calls.count(b"right") == 1
    assert verdicts[b"b"] == [Verdict.WRONG]


async def test_a_visitor_comes_before_an_attacker_with_many_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    users = parse_users(f"ann:{made(b'right', LOW_BCRYPT)}\nbob:{made(b'right', LOW_BCRYPT)}".encode())
    held, verifier = HeldVerifications(monkeypatch), verifier_of()
    order: list[str] = []

    async def ask(user: str, password: str, address: str) -> None:
        given = Credentials(user.encode(), password.encode())
        verdict, seconds = await verifier.verify(users, given, Origin(address, https=True))
        order.append(f"{user} {verdict.name} {seconds}")

    held.free.set()
    await ask("bob", "right", "192.0.2.1")
    for number in range(80):
        await ask("eve", f"{number}", f"198.51.{number}.1")
    order.clear()
    users.remembered[b"bob"] = users.remembered[b"bob"][0], 0.0
    held.free = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(80):
            nursery.start_soon(ask, "eve", f"again {number}", f"198.51.{number}.1")
        await trio.testing.wait_all_tasks_blocked(0.05)
        # Two run, 64 wait, and the oldest of these are refused.
        assert order == ["eve BUSY 5"] * 14
        nursery.start_soon(ask, "ann", "right", "192.0.2.2")
        await trio.testing.wait_all_tasks_blocked()
        # From a network of the attacker's, but with a password that was right before.
        nursery.start_soon(ask, "bob", "right", "198.51.1.1")
        await trio.testing.wait_all_tasks_blocked(0.05)
        held.calls.clear()
        order.clear()
        held.free.set()
    assert held.calls[:2] == [b"right"] * 2
    first = [line for line in order if "BUSY" not in line][:4]
    assert {"ann RIGHT 0", "bob RIGHT 0"} <= set(first)


async def test_a_cancelled_verification_is_made_again() -> None:
    users = parse_users(f"ann:{made(b'right', '$2y$08$abcdefghijklmnopqrstu.')}".encode())
    verifier, given = verifier_of(), Credentials(b"ann", b"right")
    seen = []

    async def ask() -> None:
        seen.append((await verifier.verify(users, given, CLIENT))[0])

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as inner:
                inner.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()
    assert seen == [Verdict.RIGHT]


def test_unknown_users_have_the_hash_of_another() -> None:
    users = parse_users(f"ann:{made(b'right', LOW_BCRYPT)}\nbob:{made(b'x', '$6$rounds=1000$abc$')}".encode())
    verifier = verifier_of()
    assert verifier._stored(users, b"eve") in users.hashes.values()
    assert verifier._stored(users, b"eve") == verifier._stored(users, b"eve")
    assert len({verifier._stored(users, b"%d" % number) for number in range(50)}) == 2


async def test_a_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "users"
    path.write_bytes(b"one")

    def parse(data: bytes) -> bytes:
        if data == b"bad":
            raise ValueError("line 1: bad")
        return data

    file = WatchedFile(path, parse)

    async def after(data: bytes | None, times: tuple[int, int] | None = None) -> bytes:
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
            os.utime(path, times)
        # Until a version has settled.
        for _ in range(3):
            file._look_again = 0.0
            await file.refresh()
            await trio.sleep(0.06)
        return file.value

    assert file.value == b"one"
    assert await after(b"two") == b"two"
    assert await after(b"bad") == b"two"
    assert [record.message for record in caplog.records].count(
        f"{path}: line 1: bad; the former version stays in force"
    ) == 1
    assert await after(None) == b"two"
    assert await after(b"three") == b"three"
    assert sum("No such file" in record.message for record in caplog.records) == 1
    path.unlink()
    path.mkdir()
    with nothing_stays_open():
        for _ in range(3):
            file._look_again = 0.0
            await file.refresh()
    assert caplog.records[-1].message.startswith(f"{path}: is a folder, not a regular file: ")
    path.rmdir()
    os.mkfifo(path)
    file._look_again = 0.0
    await file.refresh()
    assert caplog.records[-1].message.startswith(f"{path}: is a named pipe, not a regular file: ")
    assert file.value == b"three"
    path.unlink()
    in_the_future = int(time.time()) + 3600
    assert await after(b"from a machine whose clock is ahead", (in_the_future, in_the_future)) != b"three"

"""Settings: command line over environment over file over defaults, and one line for the operator when one is bad."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ktlsd.ktls import Mode
from ktlsd.settings import MOST_WORKERS, Listen, Settings, SettingsError, combine, parse_listen

KEYS = [field.name for field in dataclasses.fields(Settings)]
DIGITS = "1" * 5000
"""More than int() takes."""

ALL = """
root = "site"
listen = ["[::1]:8443", "localhost:9443"]
cert = "tls/cert.pem"
key = "/keys/key.pem"
workers = 2
ktls = "require"
dotfiles = true
libssl = "libssl.so.3"
log_level = "debug"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "ktlsd.toml"
    path.write_text(text, encoding="utf-8")
    return path


def from_options(**options: Any) -> Settings:
    return combine(options, {})


def from_file(path: Path, **options: Any) -> Settings:
    return combine({"config": str(path), **options}, {})


def refusal_of(options: dict[str, Any]) -> str:
    """The one line that the operator gets."""
    with pytest.raises(SettingsError) as caught:
        combine(options, {})
    text = str(caught.value)
    assert text.isprintable(), "not one line"
    return text


# --- where settings come from


def test_defaults_need_a_root_alone() -> None:
    assert from_options(root="/srv") == Settings(
        root=Path("/srv"),
        listen=(Listen("localhost", 8443),),
        cert=None,
        key=None,
        workers=1,
        ktls=Mode.AUTO,
        dotfiles=False,
        libssl=None,
        log_level="info",
    )


def test_options_that_were_not_given_leave_the_defaults() -> None:
    assert from_options(**(dict.fromkeys([*KEYS, "config"]) | {"root": "/srv"})) == from_options(root="/srv")


def test_every_key_is_read_from_a_file(tmp_path: Path) -> None:
    assert from_file(write(tmp_path, ALL)) == Settings(
        root=tmp_path / "site",
        listen=(Listen("::1", 8443), Listen("localhost", 9443)),
        cert=tmp_path / "tls/cert.pem",
        key=Path("/keys/key.pem"),
        workers=2,
        ktls=Mode.REQUIRE,
        dotfiles=True,
        libssl="libssl.so.3",
        log_level="debug",
    )


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("root", "www", Path("www")),
        ("listen", [":1"], (Listen("", 1),)),
        ("cert", "c.pem", Path("c.pem")),
        ("key", "k.pem", Path("k.pem")),
        ("workers", "3", 3),
        ("ktls", "off", Mode.OFF),
        ("libssl", "lib/libssl.so", "lib/libssl.so"),
        ("log_level", "error", "error"),
    ],
)
def test_the_command_line_wins_over_the_file(tmp_path: Path, name: str, given: Any, read: Any) -> None:
    file = write(tmp_path, ALL)
    assert from_file(file, **{name: given}) == dataclasses.replace(from_file(file), **{name: read})


def test_the_command_line_can_switch_dotfiles_on(tmp_path: Path) -> None:
    assert from_file(write(tmp_path, "root = '/srv'\ndotfiles = false"), dotfiles=True).dotfiles is True


@pytest.mark.parametrize(
    ("in_file", "in_environment", "in_options", "wins"),
    [
        (None, None, None, None),
        ("f", None, None, "f"),
        (None, "e", None, "e"),
        ("f", "e", None, "e"),
        ("f", "", None, "f"),
        ("f", "e", "o", "o"),
        (None, "e", "o", "o"),
    ],
)
def test_libssl_comes_from_options_then_environment_then_file(
    tmp_path: Path, in_file: str | None, in_environment: str | None, in_options: str | None, wins: str | None
) -> None:
    config = str(write(tmp_path, f"libssl = '{in_file}'")) if in_file else None
    environment = {} if in_environment is None else {"KTLSD_LIBSSL": in_environment}
    assert combine({"root": "/srv", "config": config, "libssl": in_options}, environment).libssl == wins


@pytest.mark.parametrize("name", ["root", "cert", "key"])
def test_a_path_in_a_file_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    write(tmp_path / "etc", "root = '../srv'\ncert = '../srv'\nkey = '../srv'")
    monkeypatch.chdir(tmp_path / "home")
    read = getattr(from_file(Path("../etc/ktlsd.toml")), name)
    assert read.resolve() == tmp_path / "srv"


def test_a_path_on_the_command_line_is_relative_to_where_ktlsd_starts(tmp_path: Path) -> None:
    assert from_file(write(tmp_path, ALL), root="www", cert="c.pem").cert == Path("c.pem")


def test_a_libssl_path_in_a_file_is_relative_to_the_file_too(tmp_path: Path) -> None:
    """One with a slash: a bare name is for the dynamic linker to search (ALL has one)."""
    read = from_file(write(tmp_path, "root = '/srv'\nlibssl = 'openssl/libssl.so.3'")).libssl
    assert read == str(tmp_path / "openssl/libssl.so.3")


# --- bad settings


BAD_TEXTS = [
    ("root", ""),
    ("root", "a\0b"),
    ("cert", ""),
    ("key", ""),
    ("libssl", ""),
    ("listen", ""),
    ("listen", "8443"),
    ("listen", "localhost"),
    ("listen", "localhost:"),
    ("listen", "localhost:https"),
    ("listen", "localhost:65536"),
    ("listen", "localhost:-1"),
    ("listen", "localhost:+1"),
    ("listen", "localhost: 1"),
    ("listen", "localhost:\u0661"),
    ("listen", "::1:8443"),
    ("listen", "[::1]"),
    ("listen", "[::1]8443"),
    ("listen", "https://localhost:8443"),
    ("workers", ""),
    ("workers", "0"),
    ("workers", "-1"),
    ("workers", "1.5"),
    ("workers", "two"),
    ("workers", "\xb2"),
    ("workers", str(MOST_WORKERS + 1)),
    ("ktls", ""),
    ("ktls", "on"),
    ("ktls", "AUTO"),
    ("ktls", "no\nbreak"),
    ("log_level", "INFO"),
    ("log_level", "trace"),
]


@pytest.mark.parametrize(("name", "value"), BAD_TEXTS, ids=lambda text: repr(text[:24]))
def test_a_bad_option_is_named(name: str, value: str) -> None:
    option = "--" + name.replace("_", "-")
    given = [value] if name == "listen" else value
    assert refusal_of({"root": "/srv", name: given}).startswith(f"{option}: {given!r} is ")


@pytest.mark.parametrize(("name", "value"), BAD_TEXTS, ids=lambda text: repr(text[:24]))
def test_a_bad_text_in_a_file_is_named_with_the_file(tmp_path: Path, name: str, value: str) -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in value)
    file = write(tmp_path, f'{name} = "{escaped}"')
    assert refusal_of({"config": str(file)}).startswith(f"{file}: {name}: {value!r} is ")


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("root", "1"),
        ("root", "true"),
        ("root", "['/srv']"),
        ("root", "1979-05-27"),
        ("cert", "{ file = 'a' }"),
        ("key", "1.5"),
        ("libssl", "3"),
        ("listen", "8443"),
        ("listen", "[]"),
        ("listen", "[8443]"),
        ("listen", "['']"),
        ("listen", "['localhost:1', 'localhost']"),
        ("listen", "[['localhost:1']]"),
        ("listen", "{ host = 'localhost' }"),
        ("workers", "0"),
        ("workers", "-1"),
        ("workers", str(MOST_WORKERS + 1)),
        ("workers", "1.0"),
        ("workers", "true"),
        ("workers", "nan"),
        ("ktls", "true"),
        ("ktls", "1"),
        ("ktls", "['auto']"),
        ("dotfiles", "1"),
        ("dotfiles", "'true'"),
        ("dotfiles", "'yes'"),
        ("log_level", "10"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_is_named_with_the_file(tmp_path: Path, name: str, literal: str) -> None:
    file = write(tmp_path, f"{name} = {literal}")
    text = refusal_of({"config": str(file), "root": "/srv"})
    assert text.startswith(f"{file}: {name}: ")
    assert " is not " in text


@pytest.mark.parametrize(("name", "prefix", "bad"), [("workers", "", "0"), ("listen", "localhost:", "99999")])
def test_thousands_of_digits_get_the_answer_of_any_bad_number(name: str, prefix: str, bad: str) -> None:
    answers = [refusal_of({"root": "/srv", name: prefix + text}).partition(" is ")[2] for text in (bad, DIGITS)]
    assert answers[0] == answers[1]


def test_thousands_of_digits_in_a_file_are_refused_with_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, f"workers = {DIGITS}")
    assert refusal_of({"config": str(file), "root": "/srv"}).startswith(f"{file}: ")


def test_an_ipv6_address_without_brackets_is_told_of_them() -> None:
    assert "[::1]:8443" in refusal_of({"root": "/srv", "listen": ["::1:8443"]})


@pytest.mark.parametrize(
    ("name", "known"), [("ktls", "auto, require, off"), ("log_level", "debug, info, warning, error")]
)
def test_a_bad_choice_lists_the_good_ones(name: str, known: str) -> None:
    assert refusal_of({"root": "/srv", name: "?"}).endswith(f"'?' is not one of {known}")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("prot = 1", "prot"),
        ("Root = '/srv'", "Root"),
        ("log-level = 'info'", "log-level"),
        ("[server]\nroot = '/srv'", "server"),
        ("config = 'a'", "config"),
        ("root = '/srv'\nworkers = 0\nprot = 1", "prot"),
    ],
)
def test_an_unknown_key_lists_the_known_ones(tmp_path: Path, content: str, name: str) -> None:
    file = write(tmp_path, content)
    text = refusal_of({"config": str(file), "root": "/srv"})
    assert text.startswith(f"{file}: ")
    assert name in text.removeprefix(f"{file}: ").partition(": no such key")[0]
    assert text.endswith(f": no such key; there are {', '.join(KEYS)}")


def test_an_unknown_key_of_two_lines_is_refused_in_one(tmp_path: Path) -> None:
    file = write(tmp_path, '"a\\n\\u001b[2Jb" = 1')
    assert "no such key" in refusal_of({"config": str(file), "root": "/srv"})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"root = ", "is not TOML"),
        (b"root = '/srv'\nroot = '/srv'", "is not TOML"),
        (b"root /srv\n", "is not TOML"),
        (b"root = '\xff'", "is not UTF-8 text"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "ktlsd.toml"
    file.write_bytes(content)
    assert refusal_of({"config": str(file), "root": "/srv"}).startswith(f"{file}: {complaint}")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    assert refusal_of({"config": str(file), "root": "/srv"}).startswith(f"{file}: cannot be read: ")


def test_a_bad_file_is_refused_even_where_an_option_would_win(tmp_path: Path) -> None:
    file = write(tmp_path, "workers = 0")
    assert refusal_of({"config": str(file), "root": "/srv", "workers": "1"}).startswith(f"{file}: workers: ")


def test_without_a_root_there_is_nothing_to_serve() -> None:
    assert "--root" in refusal_of({})


@pytest.mark.parametrize(("given", "lacking"), [("cert", "key"), ("key", "cert")])
def test_a_certificate_needs_its_key(given: str, lacking: str) -> None:
    assert refusal_of({"root": "/srv", given: "a.pem"}).startswith(f"--{given} without --{lacking}")


def test_certificate_and_key_may_come_from_two_places(tmp_path: Path) -> None:
    read = from_file(write(tmp_path, "key = 'k.pem'"), root="/srv", cert="c.pem")
    assert (read.cert, read.key) == (Path("c.pem"), tmp_path / "k.pem")


# --- listen


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:8443", "localhost", 8443),
        ("127.0.0.1:443", "127.0.0.1", 443),
        ("[::1]:8443", "::1", 8443),
        ("[fe80::1%eth0]:8443", "fe80::1%eth0", 8443),
        ("[::]:0", "::", 0),
        (":8443", "", 8443),
        ("example.com:65535", "example.com", 65535),
        ("localhost:08443", "localhost", 8443),
    ],
)
def test_an_address_to_listen_on(text: str, host: str, port: int) -> None:
    assert parse_listen(text) == Listen(host, port)


@pytest.mark.parametrize("value", ["localhost:1", "[::1]:1"])
def test_one_address_in_a_file_needs_no_list(tmp_path: Path, value: str) -> None:
    assert from_file(write(tmp_path, f"listen = '{value}'"), root="/srv").listen == (parse_listen(value),)


@hypothesis_settings(deadline=None)
@given(st.ip_addresses().map(str) | st.sampled_from(["", "localhost", "example.com"]), st.integers(0, 65535))
def test_a_written_address_is_read_back(host: str, port: int) -> None:
    assert parse_listen(str(Listen(host, port))) == Listen(host, port)


@hypothesis_settings(deadline=None)
@given(st.text() | st.text("[]:0123456789.a"))
def test_no_text_breaks_the_reading_of_addresses(text: str) -> None:
    try:
        listen = parse_listen(text)
    except ValueError:
        return
    assert 0 <= listen.port <= 65535
    assert listen.host in text

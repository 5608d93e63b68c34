"""Settings: command line over environment over file over defaults, sites over the top level, and one line for the
operator when one is bad."""

from __future__ import annotations

import json
import re
import reprlib
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ktlsd.config.options import (
    ONE_OR_MORE,
    AcmeOptions,
    CacheOptions,
    CorsOptions,
    ErrorPageOptions,
    HeaderOptions,
    HstsOptions,
    LimitOptions,
    NamedSiteOptions,
    RedirectOptions,
    Settings,
    SiteOptions,
    default_site,
)
from ktlsd.config.refusal import SettingsError
from ktlsd.config.schema import schema
from ktlsd.config.values import MOST_WORKERS, Listen, LogPlace, Mode, parse_listen
from ktlsd.settings import combine
from tests.self_signed import self_signed
from tests.serving import run_to_end

KEYS = Settings.__struct_fields__
SITE_KEYS = NamedSiteOptions.__struct_fields__
CONFIG = Path(__file__).parents[2] / "config"
DIGITS = "1" * 5000
"""More than int() takes."""

ALL = """
root = "site"
listen = ["[::1]:8443", "localhost:9443"]
http_listen = ":80"
acme_challenges = "acme"
cert = "tls/cert.pem"
key = "/keys/key.pem"
workers = 2
ktls = "require"
dotfiles = true
listing = true
libssl = "libssl.so.3"
log_level = "debug"
error_log = "error.log"
access_log = "/logs/access.log"
access_log_format = "json"
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
    settings = from_options(root="/srv")
    assert settings == Settings(root=Path("/srv"))
    assert (settings.listen, settings.workers, settings.ktls) == ((Listen("localhost", 8443),), 1, Mode.AUTO)


def test_options_that_were_not_given_leave_the_defaults() -> None:
    assert from_options(**(dict.fromkeys([*KEYS, "config"]) | {"root": "/srv"})) == from_options(root="/srv")


def test_every_key_is_read_from_a_file(tmp_path: Path) -> None:
    assert from_file(write(tmp_path, ALL)) == Settings(
        root=tmp_path / "site",
        listen=(Listen("::1", 8443), Listen("localhost", 9443)),
        http_listen=(Listen("", 80),),
        acme_challenges=tmp_path / "acme",
        cert=(tmp_path / "tls/cert.pem",),
        key=(Path("/keys/key.pem"),),
        workers=2,
        ktls=Mode.REQUIRE,
        dotfiles=True,
        listing=True,
        libssl="libssl.so.3",
        log_level="debug",
        error_log=LogPlace(tmp_path / "error.log"),
        access_log=LogPlace(Path("/logs/access.log")),
        access_log_format="json",
    )


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("root", "www", Path("www")),
        ("listen", [":1"], (Listen("", 1),)),
        ("http_listen", ["[::1]:1", "a:2"], (Listen("::1", 1), Listen("a", 2))),
        ("acme_challenges", "acme", Path("acme")),
        ("cert", ["c.pem"], (Path("c.pem"),)),
        ("key", ["k.pem"], (Path("k.pem"),)),
        ("workers", "3", 3),
        ("ktls", "off", Mode.OFF),
        ("libssl", "lib/libssl.so", "lib/libssl.so"),
        ("log_level", "error", "error"),
        ("error_log", "logs/e.log", LogPlace(Path("logs/e.log"))),
        ("access_log", "stderr", LogPlace()),
        ("access_log_format", "combined", "combined"),
    ],
)
def test_the_command_line_wins_over_the_file(tmp_path: Path, name: str, given: Any, read: Any) -> None:
    file = write(tmp_path, ALL)
    assert from_file(file, **{name: given}) == msgspec.structs.replace(from_file(file), **{name: read})


@pytest.mark.parametrize("name", ["dotfiles", "listing"])
def test_the_command_line_can_switch_things_on(tmp_path: Path, name: str) -> None:
    assert getattr(from_file(write(tmp_path, f"root = '/srv'\n{name} = false"), **{name: True}), name) is True


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


@pytest.mark.parametrize("name", ["root", "cert", "key", "acme_challenges"])
def test_a_path_in_a_file_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    write(tmp_path / "etc", "root = '../srv'\ncert = '../srv'\nkey = ['../srv']\nacme_challenges = '../srv'")
    monkeypatch.chdir(tmp_path / "home")
    read = getattr(from_file(Path("../etc/ktlsd.toml")), name)
    (path,) = read if isinstance(read, tuple) else (read,)
    assert path.resolve() == tmp_path / "srv"


def test_a_path_on_the_command_line_is_relative_to_where_ktlsd_starts(tmp_path: Path) -> None:
    assert from_file(write(tmp_path, ALL), root="www", cert=["c.pem"]).cert == (Path("c.pem"),)


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
    ("acme_challenges", ""),
    ("http_listen", "80"),
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
    ("error_log", ""),
    ("access_log", "a\0b"),
    ("access_log_format", "common"),
]


@pytest.mark.parametrize(("name", "value"), BAD_TEXTS, ids=lambda text: repr(text[:24]))
def test_a_bad_option_is_named(name: str, value: str) -> None:
    option = "--" + name.replace("_", "-")
    given = [value] if name in ONE_OR_MORE else value
    assert refusal_of({"root": "/srv", name: given}).startswith(f"{option}: {value!r} is ")


@pytest.mark.parametrize(("name", "value"), BAD_TEXTS, ids=lambda text: repr(text[:24]))
def test_a_bad_text_in_a_file_is_named_with_the_file(tmp_path: Path, name: str, value: str) -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in value)
    file = write(tmp_path, f'{name} = "{escaped}"')
    assert refusal_of({"config": str(file)}).startswith(f"{file}:1: {name}: {value!r} is ")


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
        ("site", "{ names = 'a' }"),
        ("site", "[1]"),
        ("cors", "true"),
        ("types", "[]"),
        ("precompressed", "'br'"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_is_named_with_the_file(tmp_path: Path, name: str, literal: str) -> None:
    file = write(tmp_path, f"{name} = {literal}")
    text = refusal_of({"config": str(file), "root": "/srv"})
    assert re.match(rf"{re.escape(str(file))}:1: {name}(\[\d\]){{0,2}}: .* is not ", text), text


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
    ("content", "line", "complaint"),
    [
        (
            "root = '/srv'\nktls = 'off'\nzerocopy_sendfile = true",
            3,
            "zerocopy_sendfile needs kTLS: leave it out, or leave out ktls = 'off'",
        ),
        ("workers = 0", 1, 'workers: 0 is not a number from 1 to 256 or "auto"'),
        ("workers = true", 1, 'workers: true is not a number from 1 to 256 or "auto"'),
        ("dotfiles = 'yes'", 1, "dotfiles: 'yes' is not true or false"),
        ("listen = 8443", 1, "listen: 8443 is not ADDR:PORT or a list of such"),
        ("listen = []", 1, "listen: [] is not a list of at least one"),
        ("listen = ['a:1',\n'b']", 2, "listen[1]: 'b' is not ADDR:PORT with a port from 0 to 65535"),
        ("key = ['a', 1]", 1, "key[1]: 1 is not a path"),
        ("cert = true", 1, "cert: true is not a path or a list of such"),
        ("precompressed = ['br',\n'lzma']", 2, "precompressed[1]: 'lzma' is not one of zstd, br, gzip"),
        ("fallback = 'a'", 1, "fallback: 'a' is not a path below the root, with its leading slash"),
        ("charset = 'a b'", 1, "charset: 'a b' is not the name of a character encoding, or empty"),
        ("downloads = ['a', '']", 1, 'downloads[1]: \'\' is not a pattern for paths, such as "/assets/**" or "*.html"'),
        ("[types]\n'.a' = 'b/c'\ngpx = 'a/b'", 3, "types: 'gpx' is not a suffix with its dot, as \".gpx\""),
        ("[types]\n'.a' = 'b/c'\n'.d e' = 'f'", 3, "types.'.d e': 'f' is not a media type"),
        ("[types]\n'.a' = 'b/c; d=é'", 2, "types.'.a': 'b/c; d=é' is not a media type"),
        (
            "[error_pages]\n404 = '/x'\n200 = '/x'",
            3,
            "error_pages: '200' is not a status that a site refuses with: 401, 403, 404, 410, 412, 416, 429, 451, 500 "
            "or 503",
        ),
        (
            "[[error_page]]\npath = '**'\nstatus = 405\nfile = '/x'",
            3,
            "error_page[0].status: 405 is not a status that a site refuses with: 401, 403, 404, 410, 412, 416, 429, "
            "451, 500 or 503",
        ),
        (
            "try_files = ['{path}', '=405']",
            1,
            "try_files[1]: '=405' is not a path, or \"=404\" (or 403, 410, 451, 503) at the end of the list",
        ),
        (
            "try_files = ['{path}', '=404', '/x']",
            1,
            "try_files: nothing after =404 is tried: put it at the end",
        ),
        ("[error_pages]\n404 = 'x'", 2, "error_pages.404: 'x' is not a path below the root, with its leading slash"),
        *(
            (
                f"[limits]\n{key} = {number}",
                *(2, f"limits.{key}: {number} is not a whole number from 1 to 2147483647"),
            )
            for key in ("http2_concurrent_streams", "http2_header_block_bytes", "http2_continuations", "header_fields")
            for number in (0, 1 << 31, 1 << 32)
        ),
        ("[hsts]\nmax_age = -1", 2, "hsts.max_age: -1 is not a whole number of seconds"),
        ("[hsts]\nmax_age = 1.5", 2, "hsts.max_age: 1.5 is not a whole number of seconds"),
        ("hsts = true", 1, "hsts: true is not a table"),
        ("[cors]", 1, "cors: 'origins' is missing"),
        ("[cors]\norigins = '*'", 2, "cors.origins: '*' is not a list"),
        ("[redirect]\nfrom = '/'", 1, "redirect: {from = '/'} is not a list of tables: write [[redirect]]"),
        ("[[redirect]]\nto = '/'", 1, "redirect[0]: 'from' is missing, or 'regex'"),
        (
            "[[redirect]]\nto = '/'\n\nregex = '/a**'",
            4,
            "redirect[0].regex: /a** is no regular expression of RE2: column 3: bad repetition operator: **",
        ),
        (
            f"[[header]]\nregex = '{'a' * 1025}'",
            2,
            f"header[0].regex: {reprlib.repr('a' * 1025)} is not a regular expression of at most 1024 characters, "
            r'such as "^/old/(\d+)$"',
        ),
        ("[[cache]]\ncontrol = 'a'", 1, "cache[0]: 'path' is missing, or 'regex'"),
        (
            "root = '/srv'\n" + "[[cache]]\ncontrol = 'a'\nregex = 'a'\n" * 101,
            2,
            "cache: 101 rules have a regex, more than 100",
        ),
        ("[[redirect]]\nfrom = '/'\nto = 'x'", 3, "redirect[0].to: 'x' is not a path, or an http:// or https:// URL"),
        (
            "[[redirect]]\nfrom = '/'\nto = '/'\nstatus = 418",
            4,
            "redirect[0].status: 418 is not one of 200, 301, 302, 303, 307, 308, 404",
        ),
        (
            "[[header]]\npath = '*'\n\n[header.set]\n'a b' = 'c'",
            5,
            "header[0].set: 'a b' is not the name of a header field, such as \"X-Frame-Options\"",
        ),
        (
            "[[header]]\npath = '*'\nset.a = \"b\\nc\"",
            3,
            "header[0].set.a: 'b\\nc' is not a header field's value, on one line",
        ),
        # A `$` by itself would match here in Python.
        (
            '[[cache]]\npath = "*"\ncontrol = "a\\n"',
            3,
            "cache[0].control: 'a\\n' is not a header field's value, on one line",
        ),
        ("[[cache]]\npath = '*'", 1, "cache[0]: cache for *: 'control' is missing, or 'expires'"),
        (
            "[[cache]]\npath = '*'\nexpires = '7 days'",
            3,
            'cache[0].expires: \'7 days\' is not a time such as "7d" or "1h30m" (s, m, h, d, w, y), or "modified+7d"',
        ),
        (
            "[[site]]\nnames = 'a'\n[[site]]\nnames = 'b'\netag = 'md5'",
            5,
            "site[1].etag: 'md5' is not one of strong, size-mtime, content",
        ),
        ("[[site]]\nroot = '/'", 1, "site[0]: 'names' is missing"),
        ("[[site]]\nnames = []", 2, "site[0].names: [] is not a list of at least one"),
    ],
)
def test_a_bad_value_is_told_with_its_line_and_what_would_fit(
    tmp_path: Path, content: str, line: int, complaint: str
) -> None:
    file = write(tmp_path, content)
    assert refusal_of({"config": str(file), "root": "/srv"}) == f"{file}:{line}: {complaint}"


@pytest.mark.parametrize(
    "name",
    ["b\u00fccher.example", "a b", "a..b", "-a", "a-", "a/b", "*", "*a.b", "a.*.b", ".a", "a.", "a:443", "a" * 64, ""],
)
def test_a_name_is_a_host_name(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, f"root = '/srv'\n[[site]]\nnames = ['ok.example',\n'{name}']")
    text = refusal_of({"config": str(file)})
    assert text.startswith(f"{file}:4: site[0].names[1]: ")
    assert " is not a host name such as " in text
    assert "xn--" in text


@pytest.mark.parametrize("name", ["a", "a.example", "*.a.example", "xn--bcher-kva.example", "a_b.c", "1.2", "a" * 63])
def test_host_names_are_taken_in_lower_case(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, f"root = '/srv'\n[[site]]\nnames = '{name.upper()}'")
    assert from_file(file).site[0].names == (name,)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("prot = 1", "1: 'prot': no such key; did you mean 'root'?"),
        ("Root = '/srv'", "1: 'Root': no such key; did you mean 'root'?"),
        ("log-level = 'info'", "1: 'log-level': no such key; did you mean 'log_level'?"),
        ("\n\nworker = 1", "3: 'worker': no such key; did you mean 'workers'?"),
        ("zzz = 1", f"1: 'zzz': no such key; there are {', '.join(KEYS)}"),
        ("root = '/srv'\n[hsts]\nage = 1", "3: hsts: 'age': no such key; did you mean 'max_age'?"),
        *(
            (f"root = '/srv'\n{table}{key} = 1", f"{line}'{key}': no such key here; it belongs to [limits]")
            for key in ("http2_continuations", "connections")
            for table, line in (("", "2: "), ("[[site]]\nnames = 'a'\n", "4: site[0]: "))
        ),
        ("[hsts]\nzzz = 1", "2: hsts: 'zzz': no such key; there are max_age, include_subdomains, preload"),
        (
            "[hsts]\nworkers = 1",
            "2: hsts: 'workers': no such key here; it belongs to the top level, above the first [table]",
        ),
        (
            "[[site]]\nnames = 'a'\n[[site]]\nzzz = 1",
            f"4: site[1]: 'zzz': no such key; there are {', '.join(SITE_KEYS)}",
        ),
        ("[[redirect]]\nfrom_ = '/'", "2: redirect[0]: 'from_': no such key; did you mean 'from'?"),
    ],
)
def test_an_unknown_key_is_told_the_nearest_or_all_known(tmp_path: Path, content: str, complaint: str) -> None:
    file = write(tmp_path, content)
    assert refusal_of({"config": str(file), "root": "/srv"}) == f"{file}:{complaint}"


def test_an_unknown_key_of_two_lines_is_refused_in_one(tmp_path: Path) -> None:
    file = write(tmp_path, '"a\\n\\u001b[2Jb" = 1')
    assert "no such key" in refusal_of({"config": str(file), "root": "/srv"})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"root = ", ": is not TOML: "),
        (b"root = '/srv'\nroot = '/srv'", ": is not TOML: "),
        (b"\nroot /srv\n", ":2: column 6: is not TOML: expected '='"),
        (
            b"root = '/srv'\nhttp2 = yes\n",
            ":2: column 9: is not TOML: invalid value (texts stand in quotes; true and false are lower case)",
        ),
        (b"root = '\xff'", ": is not UTF-8 text"),
        (b"\xff\xfe", ": is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "ktlsd.toml"
    file.write_bytes(content)
    assert refusal_of({"config": str(file), "root": "/srv"}).startswith(f"{file}{complaint}")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    assert refusal_of({"config": str(file), "root": "/srv"}).startswith(f"{file}: cannot be read: ")


def test_a_bad_file_is_refused_even_where_an_option_would_win(tmp_path: Path) -> None:
    file = write(tmp_path, "workers = 0")
    assert refusal_of({"config": str(file), "root": "/srv", "workers": "1"}).startswith(f"{file}:1: workers: ")


def test_without_a_root_there_is_nothing_to_serve() -> None:
    assert "--root" in refusal_of({})


def test_an_access_rule_for_everybody_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('root = "/srv"\n[[access]]\npath = "**"\n')
    complaint = "every client has access: give allow, deny, certificate or certificate_names"
    assert refusal_of({"config": str(file)}) == f"{file}:2: access[0]: {complaint}"


@pytest.mark.parametrize(("given", "lacking"), [("cert", "key"), ("key", "cert")])
def test_a_certificate_needs_its_key(tmp_path: Path, given: str, lacking: str) -> None:
    ending = "give both, or neither for a self-signed certificate"
    assert refusal_of({"root": "/srv", given: ["a.pem"]}) == f"--{given} without --{lacking}: {ending}"
    file = write(tmp_path, f"root = '/srv'\n{given} = 'a.pem'")
    assert refusal_of({"config": str(file)}) == f"{file}:2: {given} without {lacking}: {ending}"
    file = write(tmp_path, f"root = '/srv'\ncert = 'c'\nkey = 'k'\n[[site]]\nnames = 'a'\n{given} = 'a.pem'")
    assert refusal_of({"config": str(file)}) == f"{file}:6: site[0]: {given} without {lacking}: {ending}"


def test_several_certificates_need_as_many_keys(tmp_path: Path) -> None:
    assert from_options(root="/srv", cert=["a", "b"], key=["c", "d"]).key == (Path("c"), Path("d"))
    ending = "give every certificate its key, in the same order"
    assert refusal_of({"root": "/srv", "cert": ["a", "b"], "key": ["c"]}) == (
        f"there are 2 of --cert, but 1 of --key: {ending}"
    )
    file = write(tmp_path, "root = '/srv'\ncert = 'a'\nkey = ['b', 'c', 'd']")
    assert refusal_of({"config": str(file)}) == f"{file}:3: there are 3 of key, but 1 of cert: {ending}"


def test_certificate_and_key_may_come_from_two_places(tmp_path: Path) -> None:
    read = from_file(write(tmp_path, "key = 'k.pem'"), root="/srv", cert=["c.pem"])
    assert (read.cert, read.key) == ((Path("c.pem"),), (tmp_path / "k.pem",))


@pytest.mark.parametrize("name", sorted(ONE_OR_MORE - {"names", "challenges"}))
def test_one_text_stands_for_a_list_of_one(tmp_path: Path, name: str) -> None:
    others = "client_ca = 'ca'\n" + "".join(f"{other} = ['b']\n" for other in ("cert", "key") if other != name)
    value = "::1" if name in ("proxy_protocol", "trusted_proxies") else "a:1"
    one = from_file(write(tmp_path, f"root = '/srv'\n{others}{name} = '{value}'"))
    assert one == from_file(write(tmp_path, f"root = '/srv'\n{others}{name} = ['{value}']"))
    assert len(getattr(one, name)) == 1


# --- proxies


def test_places_of_the_backend_are_addresses_and_files(tmp_path: Path) -> None:
    text = "root = '.'\nbackend_listen = ['[::1]:80', 'unix:run/a.sock', 'unix:/run/b.sock']"
    places = from_file(write(tmp_path, text)).backend_listen
    assert [place.place for place in places] == [Listen("::1", 80), tmp_path / "run/a.sock", Path("/run/b.sock")]
    assert [str(place) for place in places] == ["[::1]:80", f"unix:{tmp_path}/run/a.sock", "unix:/run/b.sock"]
    assert from_options(root=".", backend_listen=["unix:a"]).backend_listen[0].place == Path.cwd() / "a"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("backend_listen = ['unix:']", "backend_listen[0]: 'unix:' is not unix:PATH"),
        (
            "backend_listen = '/run/x.sock'",
            "'/run/x.sock' is neither ADDR:PORT nor unix:PATH; for a socket write unix:/run/x.sock",
        ),
        ("backend_listen = ['80']", "backend_listen[0]: '80' is not ADDR:PORT with a port from 0 to 65535"),
        ("backend_listen = 80", "backend_listen: 80 is not ADDR:PORT or unix:PATH or a list of such"),
        ("backend_mode = '0888'", "backend_mode: '0888' is not the permissions of a file in octal, such as \"0660\""),
        ("trusted_proxies = '10.0.0.1/8'", "10.0.0.1/8 has host bits set"),
        ("proxy_protocol = ['unix', 'all']", "proxy_protocol[1]: 'all' is not a network such as \"10.0.0.0/8\", nor"),
        ("forwarded = 'both'", "forwarded: 'both' is not one of"),
        ("client_names = 'a'", "client_names without client_ca: name the authorities of client certificates"),
        (
            "unknown_names = 'refuse'",
            'unknown_names = "refuse" without a name that is known: add a [[site]] with names',
        ),
        ("client_crl = 'a'", "client_crl without client_ca: name the authorities of client certificates"),
        (
            "client_certificates = 'optional'",
            "client_certificates without client_ca: name the authorities of client certificates",
        ),
        (
            "client_verify_depth = 1",
            "client_verify_depth without client_ca: name the authorities of client certificates",
        ),
        (
            "[[access]]\npath = '**'\ncertificate = true",
            "access[0]: a client certificate without client_ca: name its authorities",
        ),
    ],
)
def test_what_is_said_about_proxies_is_checked(tmp_path: Path, line: str, complaint: str) -> None:
    file = write(tmp_path, f"root = '.'\n{line}\n")
    refusal = refusal_of({"config": str(file)})
    assert refusal.startswith(f"{file}:2: ")
    assert complaint in refusal


@pytest.mark.parametrize(
    "literal",
    ["1979-05-27", "07:32:00", "{a = true, 'b c' = [1, 2]}", "[false, 1.5, 'x']", "[]", "{}"],
)
def test_a_value_is_shown_as_toml_writes_it(tmp_path: Path, literal: str) -> None:
    file = write(tmp_path, f"root = {literal}\n")
    assert refusal_of({"config": str(file)}) == f"{file}:1: root: {literal} is not a path"


@pytest.mark.parametrize("literal", ["[[[[[[1]]]]]]", "[1, 2, 3, 4, 5, 6]", "{a = {b = {c = {d = 1}}}}"])
def test_a_large_value_is_shown_in_part(tmp_path: Path, literal: str) -> None:
    refusal = refusal_of({"config": str(write(tmp_path, f"root = {literal}\n"))})
    assert re.search(r": root: [\[{].*\.\.\.[\]}]+ is not a path", refusal)


# --- sites


SITES = """
root = "top"
cert = "top.pem"
key = "top.key"
listing = true
etag = "content"
[types]
".a" = "a/a"
[[header]]
path = "**"
[hsts]
[[site]]
names = ["One.example", "*.one.example"]
[[site]]
names = "two.example"
root = "two"
listing = false
etag = "strong"
hsts = { max_age = 1 }
header = []
[site.types]
".b" = "b/b"
[[site]]
names = "three.example"
cert = ["3.pem"]
key = ["3.key"]
"""


def test_a_site_takes_what_it_does_not_give_from_the_top_level(tmp_path: Path) -> None:
    settings = from_file(write(tmp_path, SITES))
    one, two, three = settings.site
    assert one.names == ("one.example", "*.one.example")
    for name in SiteOptions.__struct_fields__:
        assert getattr(one, name) == getattr(settings, name), name
        if name not in ("root", "listing", "etag", "hsts", "header", "types"):
            assert getattr(two, name) == getattr(settings, name), name
    assert (two.root, two.listing, two.etag, two.header) == (tmp_path / "two", False, "strong", ())
    assert two.types == {".b": "b/b"}, "a table is taken as a whole"
    assert two.hsts is not None
    assert two.hsts.max_age == 1
    assert (three.root, three.cert) == (tmp_path / "top", (tmp_path / "3.pem",))


def test_what_the_command_line_gives_holds_for_sites_that_do_not(tmp_path: Path) -> None:
    settings = from_file(write(tmp_path, SITES), root="other", listing=True)
    assert [site.root for site in settings.site] == [Path("other"), tmp_path / "two", Path("other")]
    assert [site.listing for site in settings.site] == [True, False, True]


def test_the_default_site_is_the_top_level_or_else_the_first(tmp_path: Path) -> None:
    with_root = from_file(write(tmp_path, SITES))
    assert default_site(with_root) is with_root
    without = from_file(write(tmp_path, "[[site]]\nnames='a'\nroot='a'\n[[site]]\nnames='b'\nroot='b'"))
    assert default_site(without) is without.site[0]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "[[site]]\nnames = 'a'\nroot = 'a'\n[[site]]\nnames = 'b'",
            "4: site[1]: 'root' is missing, here and at the top level",
        ),
        (
            "root = '/'\n[[site]]\nnames = ['a', 'B.c']\n[[site]]\nnames = ['d',\n'b.C']",
            "6: site[1].names[1]: 'b.C' is a name of site[0] already",
        ),
        ("root = '/'\n[[site]]\nnames = ['a', 'A']", "3: site[0].names[1]: 'A' is a name of site[0] already"),
        (
            "root = '/'\n[[site]]\nnames = 'a'\n[[site]]\nnames = 'a'",
            "5: site[1].names: 'a' is a name of site[0] already",
        ),
    ],
)
def test_sites_that_cannot_be_told_apart_or_served(tmp_path: Path, content: str, complaint: str) -> None:
    file = write(tmp_path, content)
    assert refusal_of({"config": str(file)}) == f"{file}:{complaint}"


# --- rules


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("[[redirect]]\nfrom = '/a/:b'\nto = '/:c'", ":c"),
        ("[[redirect]]\nfrom = '/a/*/b'\nto = '/'", "/a/*/b"),
        ("[[redirect]]\nfrom = '/a'\nto = 'https://b'\nstatus = 200", "200"),
        ("[[header]]\npath = '*'\nset.Content-Length = '1'", "Content-Length"),
        ("[[cache]]\npath = '*'\ncontrol = '\u00e9'", "Cache-Control"),
        ("[cors]\norigins = ['https://a/']", "cors: 'https://a/' is no origin as browsers send it"),
        ("[cors]\norigins = ['*']\ncredentials = true", 'cors: credentials are for named origins, not for "*"'),
    ],
)
def test_a_rule_that_cannot_be_followed_is_told_with_its_line(tmp_path: Path, rule: str, found: str) -> None:
    label = "cors" if rule.startswith("[cors") else rule[2:].partition("]")[0] + "[0]"
    in_site = "[[site]]\nnames = 'a'\n" + re.sub(r"^(\[+)", r"\1site.", rule)
    for text, place in ((rule, f"1: {label}"), (in_site, f"3: site[0].{label}")):
        file = write(tmp_path, text)
        refusal = refusal_of({"config": str(file), "root": "/srv"})
        assert refusal.startswith(f"{file}:{place}: ")
        assert found in refusal
        assert "cors: cors" not in refusal


def test_rules_that_can_be_followed_are_taken(tmp_path: Path) -> None:
    file = write(tmp_path, "[[redirect]]\nfrom = '/a/:b/*'\nto = 'https://c:8443/:b/:splat'\n")
    (rule,) = from_file(file, root="/srv").redirect
    assert (rule.from_, rule.to, rule.status) == ("/a/:b/*", "https://c:8443/:b/:splat", 301)


# --- any file


def toml_of(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml_of(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(f"{toml_of(inner)},\n" for inner in value) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


short = st.text(st.characters(max_codepoint=0x2100, exclude_categories=["Cs"]), max_size=3)
keys = st.sampled_from([*KEYS, *SITE_KEYS, "from", "to", "status", "path", "set", "origins", "404"]) | short
texts = st.sampled_from(["a", "/a/:b/*", "*", ":1", "strong", "br", "a/b", "https://a"]) | short
values = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@hypothesis_settings(deadline=None, max_examples=200)
@given(st.dictionaries(keys, values, max_size=4))
def test_any_file_is_taken_or_refused_in_one_line_that_names_a_line(document: dict[str, Any]) -> None:
    text = "".join(f"{json.dumps(name)} = {toml_of(value)}\n" for name, value in document.items())
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder), text)
        try:
            from_file(file, root="/srv")
        except SettingsError as error:
            refusal = str(error)
        else:
            return
    assert refusal.isprintable()
    found = re.match(rf"{re.escape(str(file))}:(\d+): ", refusal)
    assert found, refusal
    assert 1 <= int(found[1]) <= text.count("\n")


# --- the example and the schema


def uncommented() -> str:
    return re.sub(r"^#(?! |:|$)", "", (CONFIG / "ktlsd.toml").read_text(), flags=re.MULTILINE)


def test_the_example_is_valid_with_every_line_commented_out_or_in(tmp_path: Path) -> None:
    assert from_file(CONFIG / "ktlsd.toml", root="/srv") == Settings(root=Path("/srv"))
    assert from_file(write(tmp_path, uncommented())).site[0].names == ("example.org", "*.example.org")


def test_the_example_has_every_key() -> None:
    document = tomllib.loads(uncommented())
    assert document.keys() == set(KEYS)
    # A rule has one of several keys for its paths, so that one example cannot have all.
    lists = {
        "redirect": RedirectOptions,
        "header": HeaderOptions,
        "cache": CacheOptions,
        "error_page": ErrorPageOptions,
    }
    for name, kind in lists.items():
        assert set().union(*document[name]) == set(kind.__struct_encode_fields__)
    tables = {"cors": CorsOptions, "hsts": HstsOptions, "limits": LimitOptions, "acme": AcmeOptions}
    for name, kind in tables.items():
        assert document[name].keys() == set(kind.__struct_encode_fields__)
    assert document["types"]
    assert document["error_pages"]
    assert set(SITE_KEYS) - set(KEYS) <= document["site"][0].keys()


def test_the_example_has_the_defaults_where_there_are_any(tmp_path: Path) -> None:
    example, default = from_file(write(tmp_path, uncommented())), Settings()
    given = {name for name in KEYS if getattr(default, name)}
    assert {"workers", "ktls", "index", "etag", "limits"} <= given
    assert {name: getattr(example, name) for name in given} == {name: getattr(default, name) for name in given}


def test_the_schema_in_the_repository_is_that_of_the_types(tmp_path: Path) -> None:
    assert (CONFIG / "ktlsd.toml").read_text().startswith("#:schema ./ktlsd.schema.json\n")
    ended = run_to_end("check", "--schema", state=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == (CONFIG / "ktlsd.schema.json").read_text()


def tables_of_the_schema() -> list[dict[str, Any]]:
    made = schema()
    return [table for table in (made, *made["definitions"].values()) if table.get("type") == "object"]


def test_the_schema_has_every_key_with_a_description() -> None:
    for table in tables_of_the_schema():
        assert table["additionalProperties"] is False
        for name, key in table["properties"].items():
            assert len(key["description"]) > 5, name
    assert schema()["properties"].keys() == set(KEYS)
    assert schema()["definitions"]["NamedSiteOptions"]["properties"].keys() == set(SITE_KEYS)


def test_the_schema_promises_no_defaults_that_a_site_inherits() -> None:
    keys = schema()["definitions"]["NamedSiteOptions"]["properties"]
    assert not [name for name, key in keys.items() if "default" in key]
    assert schema()["properties"]["listen"]["default"] == ["localhost:8443"]


def test_the_schema_uses_only_what_draft_07_has() -> None:
    text = json.dumps(schema())
    assert "$defs" not in text
    assert '"null"' not in text
    references = re.findall(r'"\$ref": "#/definitions/(\w+)"(.)', text)
    assert {name for name, _ in references} == schema()["definitions"].keys()
    assert {after for _, after in references} == {"}"}, "draft-07 heeds nothing beside a $ref"


# --- ktlsd check


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    return self_signed(tmp_path, "a")


@pytest.mark.parametrize(
    ("top", "said"),
    [("root = 'www'\n", "ok, 2 sites"), ("", "ok, 1 site"), ("acme_challenges = 'www'\n", "ok, 1 site")],
)
def test_check_says_that_a_file_is_good(tmp_path: Path, pair: tuple[Path, Path], top: str, said: str) -> None:
    (tmp_path / "www").mkdir()
    file = write(tmp_path, f"{top}[[site]]\nnames = 'a'\nroot = 'www'\ncert = 'a.pem'\nkey = 'a.key'\n")
    ended = run_to_end("check", "--config", str(file), state=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{file}: {said}\n", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("workers = 0", '{0}/ktlsd.toml:1: workers: 0 is not a number from 1 to 256 or "auto"'),
        ("", '{0}/ktlsd.toml: root is missing: add root = "DIR"'),
        ("root = 'nowhere'", "{0}/ktlsd.toml:1: root {0}/nowhere: cannot be served: there is no such folder"),
        ("root = 'a.pem'", "{0}/ktlsd.toml:1: root {0}/a.pem: cannot be served: this is a file, not a folder: name .*"),
        (
            "root = '.'\nacme_challenges = 'b'",
            "{0}/ktlsd.toml:2: acme_challenges {0}/b: cannot be served: there is no such folder",
        ),
        (
            "root = '.'\n[[site]]\nnames = 'a'\nroot = 'b'",
            r"{0}/ktlsd.toml:4: site\[0\]: root {0}/b: cannot be served: there is no such folder",
        ),
        (
            "root = 'www'\n[[auth]]\npath = '**'\nusers = 'a.key'",
            r"{0}/ktlsd.toml:4: auth\[0\]: users {0}/a.key: line 1: not a line NAME:HASH: `ktlsd hash-password .*",
        ),
        (
            "root = 'www'\n[[auth]]\npath = '**'\nusers = 'www/a'",
            r"{0}/ktlsd.toml:4: auth\[0\]: users {0}/www/a: is inside root, where clients could get it: move .*",
        ),
        (
            "root = 'www'\n[[site]]\nnames = 'a'\n[[site.signed]]\npath = '**'\nkeys = 'no'",
            r"{0}/ktlsd.toml:6: site\[0\].signed\[0\]: keys {0}/no: No such file or directory: `echo .* makes it",
        ),
        (
            "root = 'www'\nsigned = [{ path = '**', keys = 'www' }]\n[[site]]\nnames = 'a'\ndotfiles = true",
            r"{0}/ktlsd.toml:2: signed\[0\]: keys {0}/www: is inside root, .*",
        ),
        (
            "root = 'www'\n[maintenance]\nenabled = true\npage = 'www'",
            r"{0}/ktlsd.toml:4: maintenance: page {0}/www: is a folder, not a regular file: put a file there",
        ),
        (
            "root = 'www'\n[maintenance]\nfile = 'switch'\npage = 'no'",
            r"{0}/ktlsd.toml:4: maintenance: page {0}/no: No such file or directory: create it, or name another",
        ),
        (
            "root = '.'\ncert = 'b'\nkey = 'a.key'",
            "{0}/ktlsd.toml:2: cert: {0}/b cannot be used as a PEM certificate chain: .*",
        ),
        ("root = '.'\ncert = 'a.pem'\nkey = 'a.pem'", "{0}/ktlsd.toml:3: key: {0}/a.pem cannot be used .*"),
        (
            "root = '.'\n[[site]]\nnames = 'a'\ncert = ['a.pem', 'c']\nkey = ['a.key', 'a.key']",
            r"{0}/ktlsd.toml:4: site\[0\].cert\[1\]: {0}/c cannot be used as a PEM certificate chain: .*",
        ),
    ],
)
def test_check_says_in_one_line_what_is_wrong(tmp_path: Path, pair: tuple[Path, Path], content: str, said: str) -> None:
    (tmp_path / "www").mkdir()
    ended = run_to_end("check", "--config", str(write(tmp_path, content)), state=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(f"ktlsd: {said.format(re.escape(str(tmp_path)))}\n", ended.stderr), ended.stderr


@pytest.mark.parametrize("arguments", [[], ["--schema", "--config", "a"], ["--bogus"]])
def test_check_needs_one_task(tmp_path: Path, arguments: list[str]) -> None:
    ended = run_to_end("check", *arguments, state=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


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

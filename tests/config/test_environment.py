"""Options from environment variables: every key has one, between the command line and the file, and unknown ones are
refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktlsd.config.environment import name_of, names
from ktlsd.config.options import AcmeOptions, CorsOptions, HstsOptions, LimitOptions, Settings
from ktlsd.config.refusal import SettingsError
from ktlsd.config.values import Listen, LogPlace, Mode, Network
from ktlsd.settings import combine, load
from tests.serving import run_to_end

TABLES = {"limits": LimitOptions, "acme": AcmeOptions, "cors": CorsOptions, "hsts": HstsOptions}


def settings_of(**variables: str) -> Settings:
    return combine({}, {"KTLSD_ROOT": "/srv", **{f"KTLSD_{name}": text for name, text in variables.items()}})


def refusal_of(**variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings_of(**variables)
    text = str(caught.value)
    assert text.isprintable(), "not one line"
    return text


def test_every_key_but_lists_of_tables_has_a_variable() -> None:
    top = {f"KTLSD_{key.upper()}" for key in Settings.__struct_fields__}
    without = {variable for variable in top if variable not in names()}
    assert {"KTLSD_SITE", "KTLSD_REDIRECT", "KTLSD_LIMITS", "KTLSD_ACME"} <= without
    for variable in without:
        assert any(words in refusal_of(**{variable.removeprefix("KTLSD_"): "x"}) for words in ("a file", "a table"))
    for table, kind in TABLES.items():
        assert {name_of((table, key)) for key in kind.__struct_fields__} <= set(names())
    assert name_of(("limits", "idle_seconds")) == "KTLSD_LIMITS_IDLE_SECONDS"
    assert (name_of(("acme_challenges",)), name_of(("acme", "challenges"))) == (
        "KTLSD_ACME_CHALLENGES",
        "KTLSD_ACME__CHALLENGES",
    )
    assert len(set(names())) == len(names())


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("ROOT", "www", "root", Path("www")),
        ("LISTEN", ":443", "listen", (Listen("", 443),)),
        ("LISTEN", "[::1]:1, localhost:2 ,", "listen", (Listen("::1", 1), Listen("localhost", 2))),
        ("INDEX", "a,b.html\nindex.html\n", "index", ("a,b.html", "index.html")),
        ("LISTING", "true", "listing", True),
        ("LISTING", "ON", "listing", True),
        ("LISTING", "1", "listing", True),
        ("NOSNIFF", "no", "nosniff", False),
        ("WORKERS", "3", "workers", 3),
        ("WORKERS", "1", "workers", 1),
        ("WORKERS", "auto", "workers", "auto"),
        ("KTLS", "off", "ktls", Mode.OFF),
        ("USER", "1000", "user", "1000"),
        ("CHARSET", "off", "charset", "off"),
        ("ACCESS_LOG", "-", "access_log", LogPlace(1)),
        ("ACCESS_LOG", "stdout", "access_log", LogPlace(1)),
        ("ERROR_LOG", "stderr", "error_log", LogPlace()),
        ("ERROR_LOG", "e.log", "error_log", LogPlace(Path("e.log"))),
        ("TRUSTED_PROXIES", "10.0.0.0/8,unix", "trusted_proxies", (Network("10.0.0.0/8"), Network("unix"))),
        ("PRECOMPRESSED", "br", "precompressed", ("br",)),
        ("ERROR_PAGES", "404=/404.html, 500=/e=1.html", "error_pages", {"404": "/404.html", "500": "/e=1.html"}),
        ("TYPES", ".gpx=application/gpx+xml", "types", {".gpx": "application/gpx+xml"}),
        ("LIMITS_IDLE_SECONDS", "1.5", "limits", LimitOptions(idle_seconds=1.5)),
        ("LIMITS_EXEMPT_CLIENTS", "10.0.0.1", "limits", LimitOptions(exempt_clients=(Network("10.0.0.1"),))),
        ("HSTS_MAX_AGE", "60", "hsts", HstsOptions(max_age=60)),
        ("CORS_ORIGINS", "*", "cors", CorsOptions(origins=("*",))),
        ("ROOT", "", "listing", False),
    ],
)
def test_values(name: str, text: str, key: str, value: object) -> None:
    environment = {"KTLSD_ROOT": "/srv", f"KTLSD_{name}": text}
    options = {} if text else {"root": "/srv"}
    assert getattr(combine(options, environment), key) == value


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("WORKERS", "two", "'two' is not a number from 1 to 256 or \"auto\""),
        ("WORKERS", "1" * 5000, 'is not a number from 1 to 256 or "auto"'),
        ("LISTING", "maybe", "'maybe' is not true or false"),
        ("LISTEN", ":443,8443", "'8443' is not ADDR:PORT with a port from 0 to 65535; for port 8443, write :8443"),
        ("LISTEN", ",", "[] is not a list of at least one"),
        ("KTLS", "a\nb", "'a\\nb' is not one of auto, require, off"),
        ("ETAG", "\udcff", r"'\udcff' is not one of strong, size-mtime, content"),
        ("PRECOMPRESSED", "br,lzma", "'lzma' is not one of zstd, br, gzip"),
        ("LIMITS_HEAD_BYTES", "1", "'1' is not a number of bytes from 256 to 1048576"),
        ("ERROR_PAGES", "/404.html", "'/404.html' is not KEY=VALUE"),
        ("TYPES", "gpx=a/b", "'gpx' is not a suffix with its dot, as \".gpx\""),
        ("TRY_FILES", "=404,/a", "nothing after =404 is tried: put it at the end"),
        ("CORS_MAX_AGE", "5", "[cors] needs origins, too: set KTLSD_CORS_ORIGINS"),
        ("WORKER", "2", "no such option; did you mean KTLSD_WORKERS?"),
        ("IDLE_SECONDS", "2", "no such option; did you mean KTLSD_LIMITS_IDLE_SECONDS?"),
        ("ZZZZZ", "", "no such option: a variable is KTLSD_ and a key of the configuration file in capitals"),
        ("SITE_ROOT", "/a", "[[site]] can only be given in a file: name one by KTLSD_CONFIG"),
        ("REDIRECT", "/a", "[[redirect]] can only be given in a file: name one by KTLSD_CONFIG"),
        ("ACME", "a.example", "[acme] is a table: give its keys, such as KTLSD_ACME_NAMES"),
    ],
)
def test_a_bad_variable_is_named(name: str, text: str, complaint: str) -> None:
    found = refusal_of(**{name: text})
    assert found.startswith(f"KTLSD_{name}: ")
    assert found.endswith(complaint)


def test_a_certificate_without_its_key() -> None:
    start = "KTLSD_CERT without KTLSD_KEY: give both"
    assert str(refusal_of(CERT="c.pem")).startswith(start)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "ktlsd.toml"
    file.write_text(
        "root = 'www'\nworkers = 2\nlisting = true\n[limits]\nidle_seconds = 5\nhead_seconds = 6\n"
        "[[site]]\nnames = ['a.example']\nlisting = true\n",
        encoding="utf-8",
    )
    environment = {
        **{"KTLSD_CONFIG": str(file), "KTLSD_WORKERS": "3", "KTLSD_LISTING": "false", "KTLSD_INDEX": "i.html"},
        **{"KTLSD_LIMITS_IDLE_SECONDS": "7", "KTLSD_LOG_LEVEL": "error"},
    }
    loaded = load({"workers": "4", "log_level": None}, environment)
    settings = loaded.settings
    assert (settings.workers, settings.listing, settings.log_level) == (4, False, "error")
    assert settings.limits == LimitOptions(idle_seconds=7, head_seconds=6)
    # A site inherits what the environment gives, and keeps its own.
    (site,) = settings.site
    assert (site.root, site.listing, site.index) == (tmp_path / "www", True, ("i.html",))
    assert loaded.where(("workers",)) == "--workers: "
    assert loaded.where(("index",)) == loaded.where(("site", 0, "index")) == "KTLSD_INDEX: "
    assert loaded.where(("limits", "idle_seconds")) == "KTLSD_LIMITS_IDLE_SECONDS: "
    assert loaded.where(("limits", "head_seconds")) == f"{file}:6: limits.head_seconds: "


@pytest.mark.parametrize(
    "name",
    [
        *("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTPS", "PORT", "PORT_443_TCP", "PORT_443_TCP_ADDR"),
        *("PORT_443_TCP_PROTO", "TEST_FRESH", "VM", "VM_CACHE", "EVERY_MACHINE", "INHERITED"),
    ],
)
def test_variables_of_others_are_ignored(name: str) -> None:
    assert settings_of(**{name: "tcp://10.0.0.1:443"}) == settings_of()


def test_the_command_tells_in_one_line(tmp_path: Path) -> None:
    ended = run_to_end(state=tmp_path, KTLSD_ROOT=str(tmp_path), KTLSD_LISTNE=":0")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "ktlsd: KTLSD_LISTNE: no such option; did you mean KTLSD_LISTEN?\n"


def test_check_names_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "ktlsd.toml"
    file.write_text(f"root = '{tmp_path}'\n", encoding="utf-8")
    ended = run_to_end("check", "--config", str(file), state=tmp_path, KTLSD_FALLBACK="/none.html")
    assert ended.returncode == 0
    assert ended.stderr.startswith("KTLSD_FALLBACK: warning: ")


def test_a_file_that_a_variable_names_and_that_cannot_be_used(tmp_path: Path) -> None:
    variables = {"KTLSD_ROOT": str(tmp_path), "KTLSD_MAINTENANCE_ENABLED": "true", "KTLSD_MAINTENANCE_PAGE": "/no"}
    ended = run_to_end("--listen", "127.0.0.1:0", state=tmp_path, **variables)
    complaint = "page /no: No such file or directory: create it, or name another"
    assert (ended.returncode, ended.stderr) == (2, f"ktlsd: KTLSD_MAINTENANCE_PAGE: {complaint}\n")

"""`ktlsd check`: each warning has its file, line, key and remedy, and what is right has none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ktlsd.commands.check import warnings_of
from ktlsd.settings import load
from tests.serving import run_to_end


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for a configuration file, with a root in it."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "index.html").write_text("index")
    (root / "404.html").write_text("not found")
    (root / "folder").mkdir()
    (root / "with-index").mkdir()
    (root / "with-index/index.html").write_text("index")
    (root / ".hidden").write_text("hidden")
    (root / "inside").symlink_to("index.html")
    (root / "outside").symlink_to("../elsewhere")
    (tmp_path / "elsewhere").write_text("elsewhere")
    return tmp_path


def warnings(folder: Path, text: str) -> list[str]:
    """The warnings about a configuration file of this text, without its folder."""
    file = folder / "ktlsd.toml"
    file.write_text(text)
    loaded = load({"config": str(file)}, {})
    return [line.replace(f"{folder}/", "") for line in warnings_of(loaded)]


HSTS_SHORT = (
    "max_age = 5: browsers' preload list takes 31536000 seconds or more: set max_age = 31536000, or leave preload out"
)


def test_a_warning_is_told_once_where_sites_inherit_its_key(folder: Path) -> None:
    text = """root = "www"
[hsts]
max_age = 5
preload = true
include_subdomains = true
[[site]]
names = "a.example"
[[site]]
names = "b.example"
"""
    assert warnings(folder, text) == [f"ktlsd.toml:3: warning: hsts.max_age: preload with {HSTS_SHORT}"]


def test_a_warning_of_a_site_names_the_site(folder: Path) -> None:
    text = """root = "www"
[[site]]
names = "a.example"
[[site]]
names = "b.example"
[site.hsts]
max_age = 5
preload = true
include_subdomains = true
"""
    assert warnings(folder, text) == [f"ktlsd.toml:7: warning: site[1].hsts.max_age: preload with {HSTS_SHORT}"]


def test_a_warning_about_a_default_names_the_key_and_the_line_of_the_table(folder: Path) -> None:
    text = 'root = "www"\n[hsts]\ninclude_subdomains = false\npreload = true\n'
    what = "preload without include_subdomains: browsers' preload list takes no such site"
    remedy = "set include_subdomains = true, or leave preload out"
    assert warnings(folder, text) == [f"ktlsd.toml:4: warning: hsts.preload: {what}: {remedy}"]
    assert warnings(folder, text.replace("false", "true")) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        # Which files answer.
        ("fallback = '/app.html'", "fallback: /app.html: no such file in {root}: create the file, or name another"),
        ("fallback = '/folder'", "fallback: /folder: a folder in {root} without an index file: create .*"),
        ("fallback = '/folder/'", "fallback: /folder/: a folder in {root} without an index file: create .*"),
        ("fallback = '/404'", "fallback: /404: no such file in {root}: create .*"),
        ("fallback = '/404.html/'", "fallback: /404.html/: no such file in {root}: create .*"),
        ("fallback = '/outside'", "fallback: /outside: a link leads out of {root}: create .*"),
        ("fallback = '/.hidden'", "fallback: /.hidden: a name that begins with a dot is not served: create .*"),
        ("fallback = '/../a'", "fallback: /../a: the path climbs above the root: create .*"),
        ("[error_pages]\n404 = '/lost.html'", "error_pages.404: /lost.html: no such file in {root}: create .*"),
        (
            "error_pages = { 404 = '/404.html', 500 = '/5.html' }",
            "error_pages.500: /5.html: no such file .*",
        ),
        (
            "[[error_page]]\npath = '**'\nstatus = 410\nfile = '/410.html'",
            r"error_page\[0\]: /410.html: no such file in {root}: create .*",
        ),
        ("try_files = ['$uri', '/index.html']", r"try_files\[0\]: \$uri stands for itself here: write \{path\} for .*"),
        ("try_files = ['{path}', '$uri/']", r"try_files\[1\]: \$uri stands for itself here: write \{path\} for .*"),
        ("try_files = ['{http.request.uri.path}']", r"try_files\[0\]: \{http.request.uri.path\} stands for itself .*"),
        (
            "try_files = ['{path}', '@app']",
            r"try_files\[1\]: @app is a file's name here, .*: leave it out.*",
        ),
        ("try_files = ['{path}', '/app.html']", r"try_files\[1\]: /app.html: no such file in {root}: create .*"),
        ("index = '/index.html'", "index: /index.html has a slash, but .*: write index.html"),
        ("index = ['index.html', 'en/']", r"index\[1\]: en/ has a slash, but .*: write en"),
        # Rules.
        (
            "[[cache]]\npath = '**'\ncontrol = 'no-cache'\n[[cache]]\npath = '*.js'\ncontrol = 'no-store'",
            r"cache\[1\]: never counts: cache\[0\] matches the same paths, .*: put this rule before it",
        ),
        (
            "[[redirect]]\nfrom='/a'\nto='/b'\n[[redirect]]\nfrom='/b'\nto='/a'",
            "redirect.0.: a redirect loop: /a to /b to /a: .*",
        ),
        ("[[redirect]]\nfrom = '/*'\nto = '/en/:splat'", "redirect.0.: a redirect loop: /x to /en/x to /en/en/x to .*"),
        (
            "[[redirect]]\nfrom = '/folder'\nto = '/folder'",
            "redirect.0.: a redirect loop: /folder to /folder/ to /.*",
        ),
        (
            "[[redirect]]\nfrom = '/a'\nto = '/b'\n[[redirect]]\nfrom = '/a'\nto = '/c'",
            r"redirect.1.: never counts: redirect.0. is for the same paths, .*: leave it out, .*",
        ),
        (
            "[[redirect]]\nregex = '^/b/(.*)$'\nto = '/a'\n[[redirect]]\nfrom = '/a'\nto = '/b/x'",
            r"redirect.1.: a redirect loop: /a to /b/x to /a: .*",
        ),
        (
            "[[redirect]]\nregex = '^/a$'\nto = '/b'\n[[redirect]]\nregex = '^/a$'\nto = '/c'",
            r"redirect.1.: never counts: redirect.0. is for the same paths, .*: leave it out, .*",
        ),
        (
            "hsts = { preload = true, max_age = 5, include_subdomains = true }",
            f"hsts.max_age: preload with {HSTS_SHORT}",
        ),
        # The server.
        (
            "user = 'nobody-of-that-name'",
            r"user: there is no such user: create it \(useradd --system .*",
        ),
        ("user = 'nobody'\ngroup = 'no-such-group'", r"user: there is no such group: create it \(groupadd --system .*"),
        ("user = '4000000'", "user: there is no such user to take the group from: give the group, too"),
        ("user = 'root'", "user: user root is root: name an unprivileged user"),
        ("group = 'nogroup'", "group: group without user: give both"),
        ("access_log = 'logs/access.log'", "access_log: there is no folder {folder}/logs: create it, .*"),
        ("error_log = 'logs/error.log'", "error_log: there is no folder {folder}/logs: create it, .*"),
        ("error_log = 'www'", "error_log: {folder}/www is a folder: name a file"),
        ("ticket_keys = 'elsewhere'", "ticket_keys: {folder}/elsewhere is open to other users: chmod 600 it"),
        ("ticket_keys = 'state/keys'", "ticket_keys: there is no folder {folder}/state: create it, .*"),
        ("backend_listen = 'unix:run/http.sock'", "backend_listen: there is no folder {folder}/run: create it, .*"),
        ("listen = [':1', ':1']", r"listen\[1\]: :1 is in listen\[0\] already: give each listener its own port"),
        (
            "listen = ['127.0.0.1:1', '0.0.0.0:1']",
            r"listen\[1\]: 0.0.0.0:1 overlaps 127.0.0.1:1 in listen\[0\]: give .*",
        ),
        ("listen = ['[::1]:1', '0.0.0.0:1', ':2', '127.0.0.1:3', '127.0.0.2:3', 'localhost:3']", None),
        ("listen = '[::1]:1'\nbackend_listen = ':1'", r"backend_listen: :1 overlaps \[::1\]:1 in listen\[0\]: give .*"),
        ("listen = ':1'\nhttp_listen = ':1'", r"http_listen: :1 is in listen\[0\] already: give .*"),
        ("access_log_format = 'json'", "access_log_format: there is no access_log: name its file, or leave this out"),
        (
            "tls_policy = 'nic'\nktls = 'off'",
            "tls_policy: without kTLS it is \"intermediate\": leave this out, or leave out ktls = 'off'",
        ),
        (
            "tls_policy = 'modern'\ntls_ciphers = 'ECDHE+AESGCM'",
            'tls_ciphers: no TLS 1.2 is offered, and .*: leave this out, or set tls_min_version = "1.2"',
        ),
        ("session_tickets = false\nticket_keys = 'keys'", "ticket_keys: session_tickets is false: leave one of .*"),
        ("forwarded = 'forwarded'", "forwarded: there are no trusted_proxies, .*: name the proxies' networks, .*"),
        # Files that every client could fetch.
        (
            "access_log = 'www/access.log'",
            "access_log: {root}/access.log is below the root {root}: .*",
        ),
        ("ticket_keys = 'www/folder/keys'", "ticket_keys: {root}/folder/keys is below the root {root}: everybody .*"),
        ("cert = 'www/a.pem'\nkey = 'www/a.key'", "key: {root}/a.key is below the root {root}: everybody .*: move .*"),
        ("dotfiles = true\naccess_log = 'www/.log'", "access_log: {root}/.log is below the root {root}: everybody .*"),
        # All is well.
        ("fallback = '/index.html'", None),
        ("fallback = '/with-index'", None),
        ("fallback = '/inside'", None),
        ("fallback = '/404'\nclean_urls = true", None),
        ("dotfiles = true\nfallback = '/.hidden'", None),
        ("error_pages = { 404 = '/404.html' }", None),
        ("try_files = ['{path}', '{path}.html', '{path}/', '/index.html']", None),
        ("try_files = ['{path}', '=404']", None),
        ("index = ['index.html', 'index.htm']", None),
        ("[[cache]]\npath='*.js'\ncontrol='no-cache'\n[[cache]]\npath='**'\ncontrol='no-store'", None),
        ("[[redirect]]\nfrom = '/a/*'\nto = '/b/:splat'\n[[redirect]]\nfrom = '/b/*'\nto = '/c/:splat'", None),
        ("[[redirect]]\nregex = '^/b/(.*)$'\nto = '/c/$1'\n[[redirect]]\nfrom = '/a'\nto = '/b/x'", None),
        ("[[cache]]\nregex='a'\ncontrol='no-cache'\n[[cache]]\nregex='b'\ncontrol='no-store'", None),
        ("[[redirect]]\nfrom = '/*'\nto = '/index.html'", None),
        ("[[redirect]]\nfrom = '/*'\nto = 'https://elsewhere.example/:splat'", None),
        ("[[redirect]]\nfrom='/404.html'\nto='/b'\nforce=false\n[[redirect]]\nfrom='/b'\nto='/404.html'", None),
        ("[[redirect]]\nfrom = '/a'\nto = '/b'\nstatus = 200\n[[redirect]]\nfrom = '/b'\nto = '/a'", None),
        ("user = 'nobody'", None),
        ("user = '4000000'\ngroup = '4000000'", None),
        ("access_log = 'access.log'\naccess_log_format = 'json'\nticket_keys = 'keys'", None),
        ("access_log = 'www/.log'", None),
        ("listen = [':0', ':0']", None),
        ("listen = ['127.0.0.1:1', '127.0.0.2:1']\nhttp_listen = '127.0.0.1:2'", None),
        ("hsts = { preload = true, include_subdomains = true }", None),
    ],
)
def test_each_warning_has_its_key_cause_and_remedy(folder: Path, line: str, told: str | None) -> None:
    found = warnings(folder, f"root = 'www'\n{line}\n")
    if told is None:
        assert found == []
        return
    told = told.replace("{root}", re.escape("www")).replace("{folder}/", "")
    matching = [text for text in found if re.fullmatch(rf"ktlsd\.toml:[0-9]+: warning: {told}", text)]
    assert len(matching) == 1, found


def test_a_warning_names_the_line_of_its_value(folder: Path) -> None:
    text = "root = 'www'\n\ntry_files = [\n  '{path}',\n  '@app',\n]\n[error_pages]\n404 = '/404.html'\n403 = '/no'\n"
    assert [line.partition(": ")[0] for line in warnings(folder, text)] == ["ktlsd.toml:5", "ktlsd.toml:9"]


def test_credentials_of_a_service_that_does_not_run(folder: Path) -> None:
    credential = "/run/credentials/ktlsd-absent.service/keys_site.pem"
    text = f"""root = "www"
cert = "{credential}"
key = "{credential}"
[[site]]
names = "a.example"
"""
    told = "systemd makes this file when ktlsd-absent.service starts (LoadCredential=), so the pair is not checked"
    assert warnings(folder, text) == [f"ktlsd.toml:2: warning: cert: {told}: check again as root while it runs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at files as another user")
def test_files_that_the_user_of_the_service_may_not_read_again(folder: Path) -> None:
    for name in ("users", "other", "keys"):
        (folder / name).write_text(f"k1:{32 * 'x'}" if name == "keys" else "")
    text = """root = "www"
user = "nobody"
auth = [{ path = "/a", users = "users" }, { path = "/b", users = "users" }, { path = "/c", users = "other" }]
"""
    text += '[[signed]]\npath = "/d"\nkeys = "keys"\n[[site]]\nnames = "a"\n'
    told = warnings(folder, text)
    assert len(told) == 1
    what = r"changes will not be read, and a reload will be refused: user \d+, group \d+ may not read keys and 2 more"
    remedy = r"let the group read it \(chgrp \d+, chmod g\+r\), or restart ktlsd after each change"
    assert re.fullmatch(rf"ktlsd.toml:6: warning: signed\[0\].keys: {what}: {remedy}", told[0])
    assert not warnings(folder, text.replace('user = "nobody"', ""))
    assert os.geteuid() == 0


def test_a_loop_between_sites_is_found(folder: Path) -> None:
    text = """root = "www"
[[site]]
names = "www.example.org"
redirect = [{ from = "/*", to = "https://example.org/:splat" }]
[[site]]
names = ["example.org", "*.example.org"]
redirect = [{ from = "/*", to = "https://www.example.org/:splat" }]
"""
    way = "www.example.org/x to example.org/x to www.example.org/x"
    remedy = "have one of them lead elsewhere"
    assert warnings(folder, text) == [f"ktlsd.toml:4: warning: site[0].redirect[0]: a redirect loop: {way}: {remedy}"]
    # Another port is another server.
    assert warnings(folder, text.replace("https://www.example.org/", "https://www.example.org:8443/")) == []


def test_what_is_left_out_of_a_static_hosts_files_is_told(folder: Path) -> None:
    (folder / "www/_headers").write_text("/*\n  X-A: b\n  nonsense\n")
    (folder / "www/_redirects").write_text("/a /b\n/c\n")
    text = "root = 'www'\nheaders_file = true\nredirects_file = true\n"
    first, second = warnings(folder, text)
    assert first.startswith("ktlsd.toml:2: warning: headers_file: www/_headers:3: nonsense: ")
    assert second.startswith("ktlsd.toml:3: warning: redirects_file: www/_redirects:2: /c: leads nowhere: ")
    assert first.endswith(": mend this line, which is left out")
    assert warnings(folder, "root = 'www'\n") == []


def test_a_static_hosts_file_that_protects_paths_and_is_not_used(folder: Path) -> None:
    (folder / "www/_headers").write_text("/private/*\n  Basic-Auth: user:password\n")
    (folder / "www/_redirects").write_text("/admin/* 200! Role=admin\n")
    ignored = "is not used: its lines that protect paths have no effect"
    fetched = ", and every client can fetch it with its passwords"
    first = f"ktlsd.toml:1: warning: headers_file: www/_headers {ignored}{fetched}: set headers_file = true, or remove"
    second = f"ktlsd.toml:1: warning: redirects_file: www/_redirects {ignored}: set redirects_file = true, or remove"
    assert warnings(folder, "root = 'www'\n") == [f"{first} the file", f"{second} the file"]
    used = warnings(folder, "root = 'www'\nheaders_file = true\n")
    assert [line for line in used if "not used" in line] == [f"{second} the file"]
    # A link out of the root is not served.
    (folder / "www/_headers").rename(folder / "_headers")
    (folder / "www/_headers").symlink_to(folder / "_headers")
    linked = warnings(folder, "root = 'www'\nredirects_file = true\n")
    assert not any(fetched in line for line in linked)
    assert any(f"www/_headers {ignored}: set headers_file" in line for line in linked)


def test_a_static_hosts_file_that_cannot_be_read_is_told(folder: Path) -> None:
    text = "root = 'www'\nheaders_file = true\n"
    (folder / "www/_headers").mkdir()
    assert warnings(folder, text)[0].startswith("ktlsd.toml:2: warning: headers_file: cannot be read: ")
    (folder / "www/_headers").rmdir()
    os.mkfifo(folder / "www/_headers")
    assert warnings(folder, text) == []


@pytest.mark.parametrize("url", ["https://a.example:99999/x", "https://[::1::2]/x"])
def test_an_url_that_no_browser_takes_ends_the_way(folder: Path, url: str) -> None:
    text = f"root = 'www'\n[[site]]\nnames = 'a.example'\nredirect = [{{ from = '/*', to = '{url}' }}]\n"
    assert warnings(folder, text) == []


def test_a_root_by_a_relative_path_and_through_a_link_is_looked_into(folder: Path) -> None:
    (folder / "current").symlink_to("www")
    assert warnings(folder, "root = 'current'\nfallback = '/index.html'\n") == []
    assert len(warnings(folder, "root = 'current'\nfallback = '/none.html'\naccess_log = 'www/log'\n")) == 2


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)])
def test_strict_makes_warnings_a_failure(folder: Path, options: list[str], status: int) -> None:
    file = folder / "ktlsd.toml"
    file.write_text('root = "www"\n[hsts]\npreload = true\n')
    ended = run_to_end("check", "--config", str(file), *options, state=folder)
    assert (ended.returncode, ended.stdout) == (status, f"{file}: ok, 1 site, 1 warning\n")
    assert ended.stderr.startswith(f"{file}:3: warning: hsts.preload: preload without include_subdomains: ")
    assert ended.stderr.count("\n") == 1
    file.write_text('root = "www"\n')
    ended = run_to_end("check", "--config", str(file), *options, state=folder)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{file}: ok, 1 site\n", "")


def test_options_of_listings_without_a_listing(folder: Path) -> None:
    text = "root = 'www'\nreadme = true\nthumbnails = true\nzip_bytes = 1000\ntar_bytes = 1000\n"
    without = "has no effect: folders are not listed: set listing = true, or remove it"
    found = [f"ktlsd.toml:{line}: warning: {key}: {without}" for line, key in ((2, "readme"), (3, "thumbnails"))]
    found += [f"ktlsd.toml:{line}: warning: {key}: {without}" for line, key in ((4, "zip_bytes"), (5, "tar_bytes"))]
    assert warnings(folder, text) == found
    assert warnings(folder, text + "listing = true\n") == []

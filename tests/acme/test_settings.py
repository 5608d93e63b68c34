"""Settings of ACME: a bad one is one line before anything is bound, and a good one is a path like any other."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ktlsd.acme.names import sni_name, wanted
from ktlsd.config.refusal import SettingsError
from ktlsd.config.values import Listen
from ktlsd.settings import combine
from tests.serving import run_to_end


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    return tmp_path / "state/ktlsd/acme/certificates"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ktlsd.toml"
    path.write_text(text)
    return path


def test_one_option_is_a_whole_site(tmp_path: Path, state: Path) -> None:
    settings = combine({"root": str(tmp_path), "acme": ["Example.org,www.example.org", "example.net"]}, {})
    (certificate,) = wanted(settings)
    assert certificate.names == ("example.org", "www.example.org", "example.net")
    assert settings.cert == settings.key == (state / "example.org.pem",)
    assert settings.listen == (Listen("", 443),)
    assert settings.http_listen == (Listen("", 80),)


def test_names_are_compared_as_certificates_have_them(tmp_path: Path) -> None:
    config = written(tmp_path, "[acme]\nprofile = 'shortlived'")
    names = ["A.example.ORG,a.example.org", "2a00:1450:0000::00FF"]
    (certificate,) = wanted(combine({"root": ".", "config": config, "acme": names}, {}))
    assert certificate.names == ("a.example.org", "2a00:1450::ff")


def test_a_log_line_has_few_names(tmp_path: Path) -> None:
    names = [f"{number}.example.org" for number in range(7)]
    (certificate,) = wanted(combine({"root": ".", "acme": names}, {}))
    assert certificate.label == "0.example.org, 1.example.org, 2.example.org, 3.example.org and 3 more"


def test_given_addresses_stay(tmp_path: Path) -> None:
    path = written(tmp_path, 'http_listen = []\n[acme]\nnames = "example.org"\n')
    settings = combine({"root": ".", "config": path, "listen": [":8443"]}, {})
    assert settings.listen == (Listen("", 8443),)
    assert settings.http_listen == ()


def test_a_site_has_a_certificate_for_its_names(tmp_path: Path, state: Path) -> None:
    text = """
root = "."
[acme]
names = "example.org"
dns_hook = "/bin/true"
[[site]]
names = ["*.example.net", "example.net"]
acme = true
[[site]]
names = "files.example.org"
[[site]]
names = "own.example"
cert = "own.pem"
key = "own.pem"
"""
    settings = combine({"config": written(tmp_path, text)}, {})
    certificates = [site.cert for site in (settings, *settings.site)]
    of_top = (state / "example.org.pem",)
    assert certificates == [of_top, (state / "_.example.net.pem",), of_top, (tmp_path / "own.pem",)]
    assert [certificate.names for certificate in wanted(settings)] == [
        ("example.org",),
        ("*.example.net", "example.net"),
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("*.example.org", "a wildcard, which only dns-01 can prove"),
        ("192.0.2.1", "an IP address: authorities certify it only with a short-lived profile"),
        ("2001:db8::1", "an IP address: authorities certify it only with a short-lived profile"),
        ("localhost", "an internal name"),
        ("printer.local", "an internal name"),
        ("a.home.arpa", "an internal name"),
        ("münchen.de", "is not a host name"),
        ("https://example.org", "is not a host name"),
        ("example..org", "is not a host name"),
        ("a.example.org,", "is not a text"),
        ("-a.example.org", "is not a host name"),
        ("x" * 64 + ".org", "is not a host name"),
        (",".join(f"{number}.example.org" for number in range(101)), "101 names are more than the authority takes"),
    ],
)
def test_bad_names_on_the_command_line(names: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)) as raised:
        combine({"root": ".", "acme": [names]}, {})
    assert str(raised.value).startswith("--acme: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[acme]\nnames = 'a.org'\ndirectory = 'zerossl'", ":3: acme.directory: 'zerossl' is not \"letsencrypt\""),
        ("[acme]\nnames = 'a.org'\nkey_type = 'dsa'", ":3: acme.key_type: 'dsa' is not one of p256"),
        ("[acme]\nnames = 'a.org'\nchallenges = 'dns-01'", ":3: acme.challenges: dns-01 needs a dns_hook"),
        ("[acme]\nnames = 'a.org'\nchallenges = 'dns-1'", ":3: acme.challenges: 'dns-1' is not one of"),
        ("[acme]\nnames = 'a.org'\neab_key_id = '1'", ":1: acme: eab_key_id and eab_key go together"),
        ("[acme]\nnames = 'a.org'\nnam = 1", ":3: acme: 'nam': no such key; did you mean 'names'?"),
        *(
            (
                f"acme = {value}",
                f':1: acme: {shown} is not a table: write [acme] with names = ["example.org"];'
                " acme = true is for a [[site]]",
            )
            for value, shown in (("true", "true"), ("'a.org'", "'a.org'"))
        ),
        ("acme_email = 'a@b.org'", ":1: 'acme_email': no such key; it is email in [acme]"),
        ("cert = 'c'\nkey = 'k'\n[acme]\nnames = 'a.org'", ":4: acme.names: there is a cert, too"),
        ("[[site]]\nnames = 'a.org'\nacme = true\ncert = 'c'\nkey = 'k'", "acme: there is a cert, too"),
        ("[acme]\nnames = 'a.org'\n[[site]]\nnames = 'a.org'\nacme = true", "a.org is in two certificates"),
        ("[[site]]\nnames = '*.a.org'\nacme = true", ":3: site[0].acme: *.a.org is a wildcard"),
        (
            "[acme]\nnames = '9.9.9.9'\nprofile = 'shortlived'\nchallenges = 'dns-01'\ndns_hook = '/bin/true'",
            "9.9.9.9 is an IP address, which dns-01 cannot prove",
        ),
        ("[acme]\nnames = '10.0.0.1'\nprofile = 'shortlived'", "10.0.0.1 is no public address"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said.format(folder=tmp_path))):
        combine({"root": ".", "config": written(tmp_path, text)}, {})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dns_hook = 'nothing'", ":4: acme.dns_hook: {folder}/nothing cannot be run: No such"),
        ("dns_hook = 'ktlsd.toml'", "ktlsd.toml is no program: chmod +x"),
        ("ca = 'nothing'", ":4: acme.ca: {folder}/nothing cannot be read: No such file"),
    ],
)
def test_bad_files_end_a_start_and_a_check(tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path, f"root = '.'\n[acme]\nnames = 'a.org'\n{line}")
    for arguments in (["--config", str(path)], ["check", "--config", str(path)]):
        done = run_to_end(*arguments, state=tmp_path / "state")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert said.format(folder=tmp_path) in done.stderr


def test_a_check_needs_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    text = "root = 'www'\n[acme]\nnames = 'example.org'\n[[site]]\nnames = 'example.net'\nacme = true\n"
    done = run_to_end("check", "--config", str(written(tmp_path, text)), state=tmp_path / "state")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "state/ktlsd/acme").exists()


def test_twenty_five_names_are_the_most_for_a_short_life(tmp_path: Path) -> None:
    names = [f"{number}.example.org" for number in range(26)]
    with pytest.raises(SettingsError, match="26 names are more than the authority takes, 25"):
        combine(
            {"root": ".", "acme": names, "config": written(tmp_path, "[acme]\nprofile = 'shortlived'")},
            {},
        )


def test_a_private_authority_takes_what_a_public_one_does_not(tmp_path: Path) -> None:
    text = "[acme]\ndirectory = 'https://ca.lan/acme'\nprofile = 'any'\nnames = ['printer.lan', 'nas', '10.0.0.1']"
    settings = combine({"root": ".", "config": written(tmp_path, text)}, {})
    assert wanted(settings)[0].names == ("printer.lan", "nas", "10.0.0.1")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("www.example.org", "www.example.org"),
        ("192.0.2.1", "1.2.0.192.in-addr.arpa"),
        ("::1", "1." + "0." * 31 + "ip6.arpa"),
    ],
)
def test_the_server_name_of_a_challenge(name: str, asked: str) -> None:
    """RFC 8738 section 6."""
    assert sni_name(name) == asked


def test_a_bad_option_ends_the_start_with_status_2(tmp_path: Path) -> None:
    done = run_to_end("--root", str(tmp_path), "--acme", "*.example.org", state=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--acme: *.example.org is a wildcard" in done.stderr
    assert "name dns_hook in [acme] of a configuration file" in done.stderr


def test_an_unwritable_state_folder_ends_the_start(tmp_path: Path) -> None:
    """A file stands where the folder should be: this holds for root, too."""
    blocked = tmp_path / "state"
    blocked.mkdir()
    (blocked / "ktlsd").write_text("")
    done = run_to_end("--root", str(tmp_path), "--acme", "www.example.org", "--listen", "127.0.0.1:0", state=blocked)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"certificates by ACME need a state folder: {blocked / 'ktlsd'}" in done.stderr


def test_without_the_extra_the_remedy_is_named(tmp_path: Path) -> None:
    """`find_spec` of an interpreter whose path has no `acme`: a folder of that name without a spec hides it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['josepy'] = None\n")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    done = run_to_end("--root", str(tmp_path), "--acme", "www.example.org", state=tmp_path, **environment)
    assert done.returncode == 2
    remedy = "pip install acme josepy, or pip install '.[acme]' in a checkout of ktlsd"
    assert f"the packages acme and josepy are missing: {remedy}" in done.stderr

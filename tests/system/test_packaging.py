"""What is built and installed: sdist, wheel, pipx, .deb, man pages and completion, each used as its user would."""

from __future__ import annotations

import email
import gzip
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from ktlsd import __version__
from ktlsd.cli import parsers
from ktlsd.config import options
from tests.serving import client_context, get, serving

REPOSITORY = Path(__file__).resolve().parents[2]
SHARE = REPOSITORY / "share"
COMMAND_PAGE, CONFIGURATION_PAGE = SHARE / "man/man1/ktlsd.1", SHARE / "man/man5/ktlsd.toml.5"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
UNTRACKED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "_openssl.py")

OPTIONS = [
    (command, option)
    for command, parser in parsers().items()
    for action in parser._actions
    for option in action.option_strings or [str(action.metavar)]
]
KEYS = [
    key
    for kind in vars(options).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
    for key in kind.__struct_encode_fields__
]
FAULTS_OF_PAGES = {
    "mandoc": ["mandoc", "-T", "lint", "-W", "warning"],
    "groff": ["groff", "-man", "-ww", "-z", "-K", "utf-8"],
}


def run(*command: str | Path, **environment: str) -> str:
    """Run a command that must succeed; what it printed."""
    ended = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool}")


# --- man pages and completion ----------------------------------------------------------------------------------------


def test_share_is_what_packaging_makes(tmp_path: Path) -> None:
    run(sys.executable, REPOSITORY / "packaging/make_share.py", tmp_path)
    assert files_below(tmp_path) == files_below(SHARE), "run: python packaging/make_share.py"


@needs("npm")
def test_the_table_of_media_types_is_what_packaging_makes(tmp_path: Path) -> None:
    run(sys.executable, REPOSITORY / "packaging/make_types.py", tmp_path)
    made = files_below(tmp_path)
    assert made.keys() == {"ktlsd/site/assets/media.types", "licenses/mime-db"}
    for path, content in made.items():
        assert content == (REPOSITORY / path).read_bytes(), "run: python packaging/make_types.py"


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_is_in_the_man_page(command: str, option: str) -> None:
    page = COMMAND_PAGE.read_text(encoding="utf-8").replace(r"\-", "-")
    _, _, section = page.partition(f"\n.SS {f'ktlsd {command}' if command else 'Options'}\n")
    section = re.split(r"\n\.S[SH] ", section)[0]
    assert re.search(rf"\.TP\n.*\\f[BI]{re.escape(option)}\\fR", section)


@pytest.mark.parametrize("key", sorted(set(KEYS)))
def test_every_key_is_in_the_man_page_with_its_text(key: str) -> None:
    page = CONFIGURATION_PAGE.read_text(encoding="utf-8")
    described = re.findall(rf"\.TP\n\\fB{key}\\fR \(.+\)\n(.+)\n", page)
    # Keys that a [[site]] inherits are described once.
    assert len(described) == len([name for name in KEYS if name == key]) - 2 * (key in SITE_KEYS)


SITE_KEYS = options.SiteOptions.__struct_encode_fields__


@pytest.mark.parametrize("page", [COMMAND_PAGE, CONFIGURATION_PAGE], ids=lambda page: page.name)
@pytest.mark.parametrize("tool", [pytest.param(tool, marks=needs(tool)) for tool in FAULTS_OF_PAGES])
def test_man_pages_have_no_faults(tool: str, page: Path) -> None:
    ended = subprocess.run([*FAULTS_OF_PAGES[tool], page], capture_output=True, text=True, check=False)
    faults = (ended.stdout + ended.stderr).splitlines()
    # A date would be wrong after the next change.
    assert [fault for fault in faults if "missing date" not in fault] == []


def type_into(shell: Sequence[str], keys: str, folder: Path, **environment: str) -> str:
    """What a shell on a terminal shows when `keys` are typed; it has to end by them."""
    near, far = pty.openpty()
    try:
        process = subprocess.Popen(
            shell,
            stdin=far,
            stdout=far,
            stderr=far,
            cwd=folder,
            env=os.environ | {"TERM": "dumb", "PATH": PATH} | environment,
            start_new_session=True,
        )
        os.close(far)
        os.write(near, keys.encode())
        shown = bytearray()
        # Linux reports the end of the other side by EIO.
        try:
            while part := os.read(near, 4096):
                shown += part
        except OSError:
            pass
        assert process.wait(timeout=60) == 0
        return shown.decode()
    finally:
        os.close(near)


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source /usr/share/bash-completion/bash_completion"),
    "zsh": (["zsh", "-f", "-i"], f"fpath=({SHARE}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D"),
}
TYPED = {
    "--kt\t": "<--ktls>",
    "--ktls r\t": "<--ktls><require>",
    "--log-level w\t": "<--log-level><warning>",
    "--workers a\t": "<--workers><auto>",
    "--acme-directory st\t": "<--acme-directory><staging>",
    "--user daem\t": "<--user><daemon>",
    "--group daem\t": "<--group><daemon>",
    "--config sit\t": "<--config><site.toml>",
    "--root fol\t": "<--root><folder>",
    "doc\t --js\t": "<doctor><--json>",
    "check --sch\t": "<check><--schema>",
    "compress --qu\t": "<compress><--quiet>",
}


@pytest.mark.parametrize(
    "shell",
    [
        pytest.param(
            "bash",
            marks=pytest.mark.skipif(not Path("/usr/share/bash-completion").is_dir(), reason="no bash-completion"),
        ),
        pytest.param("zsh", marks=needs("zsh")),
    ],
)
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    (tmp_path / "site.toml").touch()
    (tmp_path / "folder").mkdir()
    command, setup = SHELLS[shell]
    # The function shows which words the shell would have started the program with.
    lines = [setup, """ktlsd() { printf '<%s>' "$@"; echo; }""", *(f"ktlsd {typed}" for typed in TYPED), "exit", ""]
    shown = type_into(command, "\n".join(lines), tmp_path, XDG_DATA_DIRS=str(SHARE))
    # zsh takes the slash behind a folder's name back.
    words = [line.replace("/>", ">") for line in re.findall(r"^(<.*>)\r", shown, re.MULTILINE)]
    assert words == list(TYPED.values()), shown


@needs("fish")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("--kt", ["--ktls"]),
        ("--ktls ", ["auto", "require", "off"]),
        ("--workers ", ["auto"]),
        ("--user daem", ["daemon"]),
        ("--config sit", ["site.toml"]),
        ("--root fol", ["folder/"]),
        ("doc", ["doctor"]),
        ("doctor --js", ["--json"]),
        ("compress --qu", ["--quiet"]),
    ],
)
def test_fish_completes(typed: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "site.toml").touch()
    (tmp_path / "folder").mkdir()
    ended = subprocess.run(
        ["fish", "-c", f"complete -C 'ktlsd {typed}'"],
        env=os.environ | {"HOME": str(tmp_path), "XDG_DATA_DIRS": str(SHARE), "PATH": PATH},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t")[0] for line in ended.stdout.splitlines()] == offered


# --- sdist, wheel, pipx, .deb ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("packaging")
    # Not in place: what an earlier build has left in build/ would get into the wheel.
    shutil.copytree(REPOSITORY, folder / "source", ignore=UNTRACKED)
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder / "dist", folder / "source")
    return folder / "dist"


@pytest.fixture(scope="module")
def wheels(built: Path) -> Path:
    """A folder with the wheels of ktlsd and of all that it needs, for the Python that runs the tests."""
    folder = built.parent / "wheels"
    run(sys.executable, "-m", "pip", "wheel", "-q", "-w", folder, f"{next(built.glob('*.whl'))}[acme,pages,regex]")
    return folder


def test_the_sdist_has_what_a_build_and_a_test_need(built: Path) -> None:
    with tarfile.open(built / f"ktlsd-{__version__}.tar.gz") as sdist:
        there = {name.partition("/")[2] for name in sdist.getnames()}
    source = built.parent / "source"
    needed = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    # The build puts this into the source.
    assert needed - there == {"ktlsd/_openssl.py"}
    assert not [name for name in there if name.endswith((".pyc", "_openssl.py"))]


def test_the_kernel_module_of_the_tests_says_that_it_is_gpl() -> None:
    """It is in no wheel: the next test knows all of a wheel's files."""
    folder = REPOSITORY / "tests/vm/tlsnic"
    for name, mark in (("tlsnic.c", "//"), ("Makefile", "#")):
        assert (folder / name).read_text().startswith(f"{mark} SPDX-License-Identifier: GPL-2.0\n")
    assert "GNU GENERAL PUBLIC LICENSE" in (folder / "COPYING").read_text()


def test_the_wheel_has_all_that_is_installed(built: Path) -> None:
    name = f"ktlsd-{__version__}"
    with zipfile.ZipFile(built / f"{name}-py3-none-any.whl") as wheel:
        there = {path: wheel.read(path) for path in wheel.namelist() if ".dist-info/" not in path}
        for path in ("LICENSE", "licenses/mime-db"):
            assert wheel.read(f"{name}.dist-info/licenses/{path}") == (REPOSITORY / path).read_bytes()
    package = {f"ktlsd/{path}": content for path, content in files_below(REPOSITORY / "ktlsd").items()}
    share = {f"share/{path}": content for path, content in files_below(SHARE).items()}
    share |= {f"share/ktlsd/{path}": content for path, content in files_below(REPOSITORY / "config").items()}
    share |= {f"share/ktlsd/systemd/{path}": content for path, content in files_below(REPOSITORY / "systemd").items()}
    wanted = {path: content for path, content in package.items() if "__pycache__" not in path}
    wanted |= {f"{name}.data/data/{path}": content for path, content in share.items()}
    assert {"ktlsd/_openssl.py", "ktlsd/site/assets/media.types"} <= wanted.keys()
    assert there == wanted


def test_the_metadata_have_no_pins_and_a_readme_without_dead_links(built: Path) -> None:
    name = f"ktlsd-{__version__}"
    with zipfile.ZipFile(built / f"{name}-py3-none-any.whl") as wheel:
        metadata = email.message_from_bytes(wheel.read(f"{name}.dist-info/METADATA"))
    assert metadata.get_all("Provides-Extra") == ["acme", "pages", "qr", "regex"]
    wanted = [requirement.partition(";")[0] for requirement in metadata.get_all("Requires-Dist") or ()]
    assert [one for one in wanted if "==" in one] == []
    description = metadata.get_payload()
    assert isinstance(description, str)
    links = re.findall(r"\]\(([^)\s]+)\)", description)
    assert [link for link in links if not link.startswith("https://")] == []
    assert "docs/install.md" in description
    assert "<img" not in description


def test_pipx_installs_a_server_that_serves_and_its_man_pages(built: Path, tmp_path: Path) -> None:
    names = {"PIPX_HOME": "home", "PIPX_BIN_DIR": "bin", "PIPX_MAN_DIR": "man", "XDG_STATE_HOME": "state"}
    places = {name: str(tmp_path / folder) for name, folder in names.items()}
    run(sys.executable, "-m", "pipx", "install", next(built.glob("*.whl")), **places)
    assert run(tmp_path / "bin/ktlsd", "--version").splitlines()[0] == f"ktlsd {__version__}"
    assert (tmp_path / "man/man1/ktlsd.1").read_bytes() == COMMAND_PAGE.read_bytes()
    assert (tmp_path / "man/man5/ktlsd.toml.5").read_bytes() == CONFIGURATION_PAGE.read_bytes()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file.txt").write_text("content")
    program = [str(tmp_path / "bin/ktlsd")]
    with serving(tmp_path / "root", "--listing", program=program, state=tmp_path / "state") as server:
        context = client_context(cafile=server.certificate)
        assert get(server.port, "/file.txt", context=context).body == b"content"
        # Of the assets of a listing, one that was left out of the wheel would be missed.
        assert b"<svg" in get(server.port, "/", context=context).body
        assert server.stop() == 0
    run(sys.executable, "-m", "pipx", "uninstall", "ktlsd", **places)
    assert [path for folder in ("bin", "man") for path in (tmp_path / folder).rglob("*") if not path.is_dir()] == []


DEBIAN_PYTHON = Path("/usr/bin/python3").resolve()
IN_A_COPY = """
set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
cp "$2" "$1/root/ktlsd.deb"
exec chroot "$1/root" sh -euc "$3"
"""
"""Runs a shell's words ($3) on a copy of this machine's root that nobody else sees, where systemd does not run."""


@pytest.fixture(scope="module")
def package(wheels: Path) -> Path:
    """The .deb."""
    if DEBIAN_PYTHON.name != f"python{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip("the wheels are not for the Python of this release")
    return Path(run(REPOSITORY / "packaging/build-deb", wheels.parent / "deb", wheels).strip())


@needs("dpkg")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install a package")
def test_the_deb_makes_user_and_folders_without_systemd_and_its_purge_leaves_opt(package: Path, tmp_path: Path) -> None:
    copy = ["unshare", "--mount", "sh", "-c", IN_A_COPY, "sh", str(tmp_path), str(package)]
    if subprocess.run([*copy, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no overlay of this root can be mounted")
    shown = """
    dpkg --force-depends --install ktlsd.deb >&2
    getent passwd ktlsd | cut -d: -f6,7
    stat -c '%n %U %a' /var/lib/ktlsd /var/log/ktlsd /etc/ktlsd/keys /var/lib/ktlsd-acme/.well-known/acme-challenge
    dpkg --purge ktlsd >&2
    stat -c '%n %U %a' /opt
    ls /opt | grep -c ktlsd || true
    """
    lines = run(*copy, shown).splitlines()
    assert lines[0] == "/:/usr/sbin/nologin"
    assert lines[1:3] == ["/var/lib/ktlsd ktlsd 700", "/var/log/ktlsd ktlsd 750"]
    assert lines[3:5] == ["/etc/ktlsd/keys root 700", "/var/lib/ktlsd-acme/.well-known/acme-challenge root 755"]
    assert lines[5:] == ["/opt root 755", "0"]


@needs("dpkg-deb")
def test_the_deb_runs_where_it_is_unpacked(package: Path, tmp_path: Path) -> None:
    fields = dict(re.findall(r"^ (\S+): (.+)$", run("dpkg-deb", "--info", package), re.MULTILINE))
    assert fields["Version"].startswith(f"{__version__}-1~")
    assert fields["Depends"].split(", ") == [DEBIAN_PYTHON.name, "libssl3t64 | libssl3", "libc6"]
    root = tmp_path / "root"
    run("dpkg-deb", "--extract", package, root)
    made = files_below(root)
    described = re.findall(
        r"^\| `/(.+?)` \|", (REPOSITORY / "docs/install.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert described
    assert [path for path in described if not os.path.lexists(root / path)] == []
    assert gzip.decompress(made["usr/share/man/man1/ktlsd.1.gz"]) == COMMAND_PAGE.read_bytes()
    units = {path.name for path in (REPOSITORY / "systemd").iterdir() if path.suffix != ".conf"}
    assert {path.name for path in (root / "usr/lib/systemd/system").iterdir()} == units
    # Neither the folder of the build nor that of the source may be named in anything but compiled libraries.
    assert [name for name, content in made.items() if str(tmp_path).encode() in content] == []
    license_text = (REPOSITORY / "licenses/mime-db").read_bytes()
    assert license_text in made["usr/share/doc/ktlsd/copyright"]
    assert os.readlink(root / "usr/bin/ktlsd") == "/opt/ktlsd/bin/ktlsd"
    assert made["opt/ktlsd/bin/ktlsd"].startswith(b"#!/opt/ktlsd/bin/python\n")
    (tmp_path / "www").mkdir()
    (tmp_path / "www/file.txt").write_text("content")
    # Its own place is /opt, where a test has no business.
    program = [str(root / "opt/ktlsd/bin/python"), str(root / "opt/ktlsd/bin/ktlsd")]
    # With the extras that a service may use.
    (tmp_path / "www/README.md").write_text("# Title")
    lines = ['root = "www"', "listing = true", "readme = true", "thumbnails = true"]
    lines += ["[[redirect]]", "regex = '^/old/(.+)$'", 'to = "/$1"']
    (tmp_path / "ktlsd.toml").write_text("\n".join(lines))
    options = ("--config", str(tmp_path / "ktlsd.toml"))
    with serving(None, *options, program=program, state=tmp_path / "state") as server:
        context = client_context(cafile=server.certificate)
        assert get(server.port, "/file.txt", context=context).body == b"content"
        assert get(server.port, "/old/file.txt", context=context).fields["location"] == "/file.txt"
        assert b">Title</h" in get(server.port, "/", context=context).body
        assert server.stop() == 0
    assert files_below(root) == made

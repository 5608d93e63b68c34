"""README.md: each of its commands and configurations, by its very text, with real clients and a real HAProxy."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.ports import free_ports
from tests.proxies import running
from tests.self_signed import self_signed
from tests.serving import Running, eventually, serving
from tests.system.test_packaging import REPOSITORY, UNTRACKED

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CONTAINERFILE = REPOSITORY / "packaging/Containerfile"
PROGRAM = (str(Path(sys.executable).parent / "ktlsd"),)
_EXAMPLE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def commands(title: str) -> list[str]:
    """The lines of a section's shell examples."""
    blocks = [text for language, text in _EXAMPLE.findall(section(title)) if language == "sh"]
    return [line for block in blocks for line in block.splitlines()]


def placed(text: str, replaced: Mapping[str, str]) -> str:
    """A text of the README for a test: every address and path that is to be replaced must be there."""
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def options_of(title: str, replaced: Mapping[str, str]) -> list[str]:
    """The options of a section's ktlsd, with the section's configuration files in the folder `$PWD`."""
    (line,) = [line for line in commands(title) if line.startswith("ktlsd ")]
    return shlex.split(placed(line, replaced))[1:]


def curl(url: str, *options: str) -> str:
    """The body and the status; a certificate is checked only if an option requires it."""
    insecure = () if "--cacert" in options else ("-k",)
    ended = subprocess.run(
        ["curl", "-sS", "--max-time", "30", "-w", " %{http_code}", *insecure, *options, url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def make_root(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(text)
    (folder / "a.txt").write_text("content")
    return folder


def wait_for_https(server: Running) -> None:
    server.wait_for_line("^listening on https://")


def to(name: str, port: int) -> tuple[str, str]:
    """curl's option to find `name` at a port of this machine."""
    return ("--resolve", f"{name}:{port}:127.0.0.1")


def test_the_quick_start_shows_a_page(tmp_path: Path) -> None:
    (line,) = commands("Quick start")
    *install, serve = line.split(" && ")
    assert serve == ".venv/bin/ktlsd --root . --listing"
    copy = tmp_path / "checkout"
    shutil.copytree(REPOSITORY, copy, ignore=UNTRACKED)
    subprocess.run(["sh", "-euc", " && ".join(install)], cwd=copy, capture_output=True, check=True, timeout=300)
    # The port that is the default may be another test's.
    (port,) = free_ports(1)
    program = ("env", "-C", str(copy), *shlex.split(serve))
    with serving(None, f"--listen=127.0.0.1:{port}", program=program, listen=(), state=tmp_path / "state") as server:
        wait_for_https(server)
        page = curl(f"https://localhost:{port}/", "--cacert", str(server.certificate))
        assert page.endswith(" 200")
        assert ">README.md<" in page


def test_a_folder_is_shared(tmp_path: Path) -> None:
    (tmp_path / "Public").mkdir()
    (tmp_path / "Public/a.txt").write_text("content")
    (port,) = free_ports(1)
    options = options_of("Share a folder on the LAN", {"~": str(tmp_path), " :8443": f" :{port}"})
    with serving(None, *options, program=PROGRAM, listen=(), state=tmp_path / "state") as server:
        wait_for_https(server)
        address = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
        for host in ("127.0.0.1", *(one for one in address if ":" not in one)):
            assert ">a.txt<" in curl(f"https://{host}:{port}/")
            assert curl(f"https://{host}:{port}/a.txt") == "content 200"


def test_a_site_has_its_certificate_and_plain_http_leads_to_it(tmp_path: Path) -> None:
    root = make_root(tmp_path / "www", "page")
    self_signed(tmp_path, "example.org")
    https, http = free_ports(2)
    files = {"fullchain.pem": f"{tmp_path}/example.org.pem", "privkey.pem": f"{tmp_path}/example.org.key"}
    places = {"/srv/www": str(root), ":443": f"127.0.0.1:{https}", ":80": f"127.0.0.1:{http}"}
    options = options_of("A site with a certificate", files | places)
    with serving(None, *options, program=PROGRAM, listen=(), state=tmp_path / "state") as server:
        wait_for_https(server)
        trusting = ("--cacert", str(tmp_path / "example.org.pem"))
        resolved = (*to("example.org", https), *to("example.org", http))
        assert curl(f"https://example.org:{https}/", *trusting, *resolved) == "page 200"
        assert curl(f"http://example.org:{http}/a.txt", "-L", *trusting, *resolved) == "content 200"


def configured(title: str, folder: Path, replaced: Mapping[str, str]) -> list[str]:
    """Write the configuration files of a section, and give the options of its ktlsd."""
    for name, text in _NAMED.findall(placed(section(title), replaced)):
        (folder / name).write_text(text)
    option, name = options_of(title, {})
    assert option == "--config"
    assert (folder / name).exists()
    return [option, str(folder / name)]


def test_a_single_page_application_answers_for_its_routes(tmp_path: Path) -> None:
    root = make_root(tmp_path / "dist", "application")
    (root / "app.3f9c2b1a.js").write_text("script")
    (port,) = free_ports(1)
    options = configured("A single-page application", tmp_path, {})
    listen = f"--listen=127.0.0.1:{port}"
    with serving(None, *options, listen, program=PROGRAM, listen=(), state=tmp_path / "state") as server:
        wait_for_https(server)
        assert curl(f"https://127.0.0.1:{port}/route/of/it") == "application 200"
        assert "max-age=31536000" in curl(f"https://127.0.0.1:{port}/app.3f9c2b1a.js", "-i")


def test_each_line_of_the_rules_has_its_effect(tmp_path: Path) -> None:
    root = make_root(tmp_path / "www", "page")
    for name in ("404.html", "intern/a", "images/a", "a.bak", "videos/a"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"content of {name}")
    (tmp_path / "users.htpasswd").touch()
    (tmp_path / "keys").write_text(f"k1:{'0' * 64}\n")
    maintenance = tmp_path / "maintenance"
    title = "Passwords, links that expire, limits, maintenance"
    (text,) = [text for language, text in _EXAMPLE.findall(section(title)) if language == "toml"]
    places = {'"/srv/www"': f'"{root}"', "/run/ktlsd/maintenance": str(maintenance)}
    (tmp_path / "rules.toml").write_text(placed(text, places))
    (port,) = free_ports(1)
    options = ("--config", str(tmp_path / "rules.toml"), f"--listen=127.0.0.1:{port}")
    with serving(None, *options, program=PROGRAM, listen=(), state=tmp_path / "state") as server:
        wait_for_https(server)
        for path, status in {"/staff/a": 401, "/files/a": 403, "/intern/a": 403, "/videos/a": 200}.items():
            assert curl(f"https://127.0.0.1:{port}{path}").endswith(f" {status}"), path
        assert curl(f"https://127.0.0.1:{port}/a.bak") == "content of 404.html 404"
        assert "max-age=604800" in curl(f"https://127.0.0.1:{port}/images/a", "-i")
        assert "location: /archive/2024/a" in curl(f"https://127.0.0.1:{port}/2024/a.php", "-i").lower()
        maintenance.touch()
        assert eventually(lambda: curl(f"https://127.0.0.1:{port}/").endswith(" 503"))


def test_two_sites_have_their_folders_and_certificates(tmp_path: Path) -> None:
    names = ("example.org", "example.net")
    for name in names:
        make_root(tmp_path / name, name)
        self_signed(tmp_path / "etc", name)
    (port,) = free_ports(1)
    replaced = {"/srv": str(tmp_path), "/etc/ktlsd": f"{tmp_path}/etc", '":443"': f'"127.0.0.1:{port}"'}
    options = configured("Two sites", tmp_path, replaced)
    checked = subprocess.run([*PROGRAM, "check", *options], capture_output=True, text=True, check=False)
    # Its certificate has no www: a warning, with status 0.
    assert (checked.returncode, "ok, 2 sites" in checked.stdout) == (0, True), checked.stderr
    with serving(None, *options, program=PROGRAM, listen=(), state=tmp_path / "state") as server:
        wait_for_https(server)
        for name in names:
            trusting = ("--cacert", str(tmp_path / f"etc/{name}.pem"))
            assert curl(f"https://{name}:{port}/", *trusting, *to(name, port)) == f"{name} 200"
        for other in ("www.example.org", "elsewhere.example"):
            assert curl(f"https://{other}:{port}/", *to(other, port)) == "example.org 200"


def test_haproxy_passes_tls_through_and_the_client_is_known(tmp_path: Path) -> None:
    root = make_root(tmp_path / "www", "page")
    self_signed(tmp_path / "etc", "example.org")
    own, front = free_ports(2)
    replaced = {
        "/srv/www": str(root),
        "/etc/ktlsd": f"{tmp_path}/etc",
        "127.0.0.1:8443": f"127.0.0.1:{own}",
        ":443": f"127.0.0.1:{front}",
    }
    options = configured("Behind HAProxy", tmp_path, replaced)
    log = ("--access-log", "stderr")
    proxy = ("haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg"))
    with (
        serving(None, *options, *log, program=PROGRAM, listen=(), state=tmp_path / "state") as server,
        running("haproxy", tmp_path, (front,), *proxy),
    ):
        wait_for_https(server)
        trusting = ("--cacert", str(tmp_path / "etc/example.org.pem"))
        asked = curl(f"https://example.org:{front}/", *trusting, *to("example.org", front), "--interface", "127.0.0.9")
        assert asked == "page 200"
        server.wait_for_line(r'^127\.0\.0\.9 .* "GET / HTTP/2\.0" 200 ')


def test_the_service_is_the_one_that_other_tests_install() -> None:
    """test_packaging.py builds and unpacks the package, test_systemd.py runs its units under systemd."""
    build, install = commands("As a service")[0].split(" && ")
    assert os.access(REPOSITORY / build, os.X_OK)
    assert install == "apt install ./dist/ktlsd_*.deb"
    units = re.search(r"`systemctl enable --now (.+?)`", section("As a service"))
    assert units
    assert f"systemctl enable --now {units[1]}\n" in (REPOSITORY / "docs/install.md").read_text(encoding="utf-8")
    for unit in units[1].split():
        assert (REPOSITORY / "systemd" / (unit if unit.endswith(".socket") else f"{unit}.service")).is_file()


def test_a_container_serves(tmp_path: Path) -> None:
    """The instructions of the Containerfile, each run in namespaces of its own, over a copy-on-write root: the root of
    this machine stands in for the base image, so what apt would install has to be installed. Then as `docker run
    --read-only --tmpfs /var/lib/ktlsd` does it, with the health check beside it."""
    build, run_line = commands("In a container")
    assert build == f"docker build -t ktlsd -f {CONTAINERFILE.relative_to(REPOSITORY)} ."
    image_options, options = run_line.split(" ktlsd ")
    assert image_options == "docker run -p 8443:8443 -v /srv/www:/srv/www:ro"
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        pytest.skip("a container needs root, and Debian")
    www = make_root(tmp_path / "www", "page")
    (www / "folder").mkdir()
    port, metrics_port = free_ports(2)
    script = tmp_path / "container"
    image = Image(CONTAINERFILE.read_text(encoding="utf-8"))
    metrics = f"KTLSD_METRICS_LISTEN=127.0.0.1:{metrics_port}"
    script.write_text(container(tmp_path, image, www, metrics, options.replace(":8443", f"127.0.0.1:{port}")))
    program = ("unshare", "--mount", "sh", "-eu", str(script))
    with serving(None, program=program, listen=(), state=tmp_path / "state") as server:
        wait_for_https(server)
        assert curl(f"https://127.0.0.1:{port}/") == "page 200"
        assert curl(f"https://127.0.0.1:{port}/folder/").endswith(" 200")
        # Each step takes the place of the one before it, so this is ktlsd itself.
        pid = str(server.process.pid)
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE) == ["33"]
        inside = ["nsenter", "--target", pid, "--mount", "--root", "--", "setpriv", "--reuid=33", "--regid=33"]
        inside += ["--clear-groups", "env", "-i", *image.environment, metrics]
        checked = subprocess.run([*inside, *image.health], capture_output=True, text=True, timeout=60, check=False)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "ok\n", "")
        for place, writable in (("/", False), ("/opt/ktlsd", False), ("/var/lib/ktlsd", True)):
            touched = subprocess.run([*inside, "touch", f"{place}/x"], capture_output=True, timeout=60, check=False)
            assert (touched.returncode == 0) is writable
        assert server.stop() == 0


class Image:
    """A Containerfile: the stages share one root, which has at the end what the last one has, and more."""

    def __init__(self, text: str) -> None:
        self.steps: list[tuple[str, str]] = []
        self.environment: list[str] = []
        for line in text.splitlines():
            instruction, _, rest = line.partition(" ")
            match instruction:
                case "" | "FROM" | "#" | "EXPOSE":
                    pass
                case "RUN" | "COPY":
                    self.steps.append((instruction, rest))
                case "ENV":
                    self.environment += rest.split()
                case "USER":
                    self.user = rest
                case "ENTRYPOINT":
                    self.entry = json.loads(rest)
                case "HEALTHCHECK":
                    self.health = json.loads(rest.partition(" CMD ")[2])
                case _:
                    raise AssertionError(line)


def container(folder: Path, image: Image, www: Path, variable: str, options: str) -> str:
    """A shell script that does what docker does with the Containerfile and then with `docker run`."""
    root = folder / "root"
    lines = [
        f"mkdir {folder}/layer {root}",
        f"mount -t tmpfs tmpfs {folder}/layer",
        f"mkdir {folder}/layer/upper {folder}/layer/work",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={folder}/layer/upper,workdir={folder}/layer/work {root}",
        f"mount -t proc proc {root}/proc",
        f"mount --bind /dev {root}/dev",
        f"cd {REPOSITORY}",
    ]
    for instruction, rest in image.steps:
        if rest.startswith("apt-get"):
            (package,) = re.findall(r"--no-install-recommends (\S+) &&", rest)
            lines.append(f"dpkg-query -W {package} >&2")
        elif instruction == "RUN":
            lines.append(
                f"chroot {root} env -i PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/bin sh -ec {shlex.quote(rest)} >&2"
            )
        elif rest.startswith("--from="):
            _, source, target = rest.split()
            assert source == target
        else:
            *sources, target = rest.split()
            place = f"{root}{target}"
            lines.append(f"mkdir -p {place}")
            lines += (f"cp -r {source}{'/.' if (REPOSITORY / source).is_dir() else ''} {place}" for source in sources)
    lines += [f"mkdir -p {root}/srv/www", f"mount --bind -o ro {www} {root}/srv/www"]
    lines += [f"mount -t tmpfs -o uid=33,mode=700 tmpfs {root}/var/lib/ktlsd", f"mount -o remount,bind,ro {root}"]
    environment = " ".join((*image.environment, variable))
    entry = shlex.join(image.entry)
    lines.append(f"exec chroot --userspec={image.user} --groups= {root} env -i {environment} {entry} {options}")
    return "\n".join(lines) + "\n"


def test_the_test_command_is_the_one_of_ci() -> None:
    assert commands("Tests") == ["tests/run"]
    assert (REPOSITORY / ".ci/run").read_text(encoding="utf-8").rstrip().endswith(" && exec tests/run")

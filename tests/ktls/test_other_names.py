"""File systems that find a file under several names: rules and hidden names hold for all of them. Needs the machine's
kernel: FAT (short names, dots at the end) and ext4 with folders without case (Unicode case folding)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.protocols import ask_by_both
from tests.serving import Running, serving

pytestmark = [
    pytest.mark.ktls(machine="debian12"),
    pytest.mark.skipif(not os.environ.get("KTLSD_VM"), reason="this would disturb the machine"),
]

CONFIG = 'root = "{root}"\nheaders_file = true\n' + "".join(
    f'[[access]]\npath = "/{name}/**"\ndeny = ["0.0.0.0/0", "::/0"]\n' for name in ("secret folder", "files", "straße")
)
MAKE = {
    "vfat": ["mkfs.vfat", "-F", "16"],
    "ext4": ["mke2fs", "-q", "-t", "ext4", "-O", "casefold", "-E", "encoding=utf8"],
}
MOUNT = {"vfat": "loop,utf8", "ext4": "loop"}
FOLDERS = ("secret folder", "files", "straße", ".git", "grüße")


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module", params=list(MAKE))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp(kind)
    image, place = Path(f"/mnt/disk/names-{kind}"), folder / "place"
    with image.open("wb") as file:
        file.truncate(32 * 1024 * 1024)
    run(*MAKE[kind], image)
    place.mkdir()
    run("modprobe", "-a", "loop", *(["vfat", "nls_cp437", "nls_ascii"] if kind == "vfat" else []))
    run("mount", "-t", kind, "-o", MOUNT[kind], image, place)
    with contextlib.ExitStack() as stack:
        stack.callback(image.unlink)
        stack.callback(run, "umount", "-l", place)
        root = place / "root"
        root.mkdir()
        if kind == "ext4":
            run("chattr", "+F", root)
        for name in FOLDERS:
            (root / name).mkdir()
            (root / name / "a.txt").write_text("content")
        (root / "long name of a file.txt").write_text("content")
        (root / "_headers").write_text("/files/*\n  X-Secret: content\n")
        config = folder / "ktlsd.toml"
        config.write_text(CONFIG.format(root=root))
        yield stack.enter_context(serving(None, "--config", str(config), state=folder / "state"))


# The first five are forms of one file system, which the other one does not know.
OTHER_NAMES = [
    "SECRET~1/a.txt",
    "secret folder./a.txt",
    "GIT~1/a.txt",
    "_HEADE~1",
    "LONGNA~1.TXT",
    "STRASSE/a.txt",
    "strasse/a.txt",
    "\ufb01les/a.txt",
    "fi\u200dles/a.txt",
    "\u200d.git/a.txt",
    "_headers.",
    "_HEADERS",
    "SECRET FOLDER/a.txt",
    "FILES/a.txt",
    ".GIT/a.txt",
]


def finds(server: Running, name: str) -> bool:
    """Whether the file system has such a file."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return "content" in (root_of(server) / name).read_text()
    return False


def root_of(server: Running) -> Path:
    [line] = [line for line in server.log if " serves " in line]
    return Path(line.split(" serves ")[1].rpartition(" on ")[0])


def test_no_other_name_leads_to_what_is_guarded_or_hidden(server: Running, kind: str) -> None:
    found = [name for name in OTHER_NAMES if finds(server, name)]
    assert len(found) > 7
    for name in found:
        for target in (f"/{name}", f"/{name.removesuffix('a.txt')}"):
            for _ in range(3):
                answer = ask_by_both(server.port, quote(target))
                assert answer.status in (403, 404), target
                assert b"content" not in answer.body


def test_other_files_are_served(server: Running) -> None:
    for name in ("grüße/a.txt", "long name of a file.txt"):
        for _ in range(3):
            answer = ask_by_both(server.port, quote(f"/{name}"))
            assert (answer.status, answer.body) == (200, b"content"), name

"""What is served: files made once for a run, and a certificate.

Strategy: a file is made when a row first names it; its bytes are random so that nothing can compress them away.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.file_systems import FileSystem, MountError, mount, unmount

SIZES: Final = {
    "/1k.html": 1024,
    "/10k.html": 10 * 1024,
    "/100k.html": 100 * 1024,
    "/1m.bin": 1024 * 1024,
    "/cold.bin": 64 * 1024 * 1024,
    "/50m.bin": 50_000_000,
    "/100m.bin": 100_000_000,
    "/200m.bin": 200_000_000,
}
MANY_SIZE: Final = 10 * 1024
BLOCK: Final = 1024 * 1024
EVICTIONS: Final = 20
EVICTION_SECONDS: Final = 0.1
"""Pages that a server still reads stay; it is done with them soon."""


@dataclass(frozen=True)
class Site:
    """`directory` holds the served folder, the certificate and its key; its maker removes it.

    `mounts` unmounts when it is closed; `unmounted` has the reason for each file system that could not be mounted.
    """

    directory: Path
    client_cores: tuple[int, ...] = (0,)
    mounts: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, compare=False)
    unmounted: dict[FileSystem, str] = field(default_factory=dict, compare=False)

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def certificate(self) -> Path:
        return self.directory / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    def prepare(self) -> None:
        """Make the folder and the certificate. Raises subprocess.CalledProcessError where openssl fails."""
        self.root.mkdir(parents=True)
        for directory in (self.directory, self.root):
            directory.chmod(0o755)  # Apache drops its privileges
        make = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-noenc",
            "-days",
            "2",
        ]
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        files = ["-keyout", str(self.key), "-out", str(self.certificate)]
        subprocess.run([*make, *names, *files], check=True, capture_output=True, timeout=60)

    def file(self, path: str) -> Path:
        """The file of a target of SIZES, made where it is not there yet, and on disk."""
        file = self.root / path.removeprefix("/")
        if not file.exists():
            _write(file, SIZES[path])
        return file

    def on(self, kind: FileSystem, path: str) -> Path:
        """The root that is on another file system and has the same file; see `unmounted`."""
        folder = self.directory / f"{kind}-{path.removeprefix('/')}"
        if not folder.exists():
            try:
                daemon = mount(kind, folder, [self.file(path)], self.client_cores)
            except MountError as error:
                self.unmounted[kind] = str(error)
                return folder
            self.mounts.callback(unmount, folder, daemon)
        return folder

    def targets(self, path: str, files: int) -> list[str]:
        """The targets of `files` different files below `path`, or of the file `path` if there are none."""
        if files:
            return self.many(path, files)
        self.file(path)
        return [path]

    def many(self, directory: str, count: int) -> list[str]:
        """The targets of `count` different files in a folder."""
        targets = [f"{directory}{number:05}.html" for number in range(count)]
        (self.root / directory.strip("/")).mkdir(exist_ok=True)
        for target in targets:
            file = self.root / target.removeprefix("/")
            if not file.exists():
                file.write_bytes(os.urandom(MANY_SIZE))
        return targets


def _write(file: Path, size: int) -> None:
    block = os.urandom(min(BLOCK, size))
    with file.open("wb") as handle:
        for start in range(0, size, BLOCK):
            handle.write(block[: size - start])
        handle.flush()
        os.fsync(handle.fileno())


def evict(file: Path) -> int:
    """Take a file that is on disk out of the page cache (posix_fadvise(2)); how many bytes are in it all the same."""
    handle = os.open(file, os.O_RDONLY)
    try:
        for _ in range(EVICTIONS):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            left = _cached(file)
            if left == 0:
                break
            time.sleep(EVICTION_SECONDS)
    finally:
        os.close(handle)
    return left


def _cached(file: Path) -> int:
    done = subprocess.run(["fincore", "-nbo", "RES", str(file)], check=True, capture_output=True, text=True, timeout=60)
    return int(done.stdout)

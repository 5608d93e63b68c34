"""The machine with kTLS: QEMU boots a Debian kernel over a Debian root, runs one command, brings the outcome back.

Strategy: nothing is installed anywhere; kernel, initrd, debootstrap'ed roots and disks are made once, into a cache.
The root is a directory of this host (its own `/` where the release is the wanted one) shared read-only by 9p, under an
overlay in memory, so that a guest may write wherever it likes; /results is the one share that it can write for good.

    python -m tests.vm.machine prepare [--root debian13]
    python -m tests.vm.machine run --root debian12 -- python -m pytest tests
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import json
import lzma
import mmap
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).resolve().parent / "guest"
TLSNIC = Path(__file__).resolve().parent / "tlsnic"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TOOL_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"  # mke2fs is not on every user's PATH

# What the host has to have: the tool and the Debian package that brings it.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "depmod": "kmod",
    "cpio": "cpio",
    "mke2fs": "e2fsprogs",
    "debootstrap": "debootstrap",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "tar": "tar",
}

# Loaded by the initrd, with all that they depend on. Any other module of the kernel is a `modprobe` away in the guest.
BOOT_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_console", "virtio_blk", "ext4")
TEST_MODULES = (
    *("tls", "inet_diag", "tcp_diag", "aesni-intel", "ghash-clmulni-intel", "gcm", "ctr"),
    *("libchacha", "chacha-x86_64", "poly1305-x86_64", "chacha20poly1305"),
)

# The packages of a debootstrap'ed root: what the tests call in the guest.
PACKAGES = (
    *("python3", "python3-venv", "ca-certificates", "netbase", "procps", "kmod", "strace", "iproute2"),
    *(
        "iputils-ping",
        "curl",
        "openssl",
        "gnutls-bin",
        "e2fsprogs",
        "dosfstools",
        "squashfs-tools",
        "erofs-utils",
        "psmisc",
        "systemd",
    ),
    *("nginx", "libnginx-mod-stream", "haproxy", "caddy", "nghttp2-client"),
)
SERVICES = ("nginx", "haproxy", "caddy")  # tests start them as they need them
# What builds a module for a kernel, beside its headers and the compiler that they depend on, and what they depend on in
# vain there.
BUILDERS = ("make", "dash", "coreutils", "findutils", "grep", "sed", "mawk")
NO_BUILDERS = re.compile(r"linux-image-|initramfs-|systemd|udev|kmod$|libgprofng|lib(a|hwa|l|t|ub)san")

SCRIPTS = ("init", "stage2", "stage3")  # of the guest
DAY = 86400
MIB = 1024 * 1024
DISK_SIZE = 4096 * MIB
SLOW_SIZE = 64 * MIB
# Emulated AVX costs more than it saves: with only SSE, AES-GCM and ChaCha20-Poly1305 run a third faster. With erms the
# kernel and libc copy by `rep movsb`, which QEMU runs byte by byte: without it a download takes a quarter less.
CPU = "max,-la57,-avx,-avx2,-erms"
SLOW_BYTES_PER_SECOND = MIB
SLOW_FILES = {"cold.bin": 8 * MIB, "second.bin": 8 * MIB, "medium.bin": MIB, "small.bin": 10 * 1024, "tiny.bin": 100}

OnLine = Callable[[str], None]


class MachineError(Exception):
    """The machine could not be made, or it did not live to the end of its command."""


@dataclass(frozen=True)
class Variant:
    name: str
    suite: str
    openssl: str
    systemd: bool = False  # is process 1, and the command one of its services

    @property
    def is_host(self) -> bool:
        """Is this host that release? Then its own root serves and nothing has to be debootstrap'ed."""
        if self.systemd:
            return False  # the host's own services would start in the machine
        release = platform.freedesktop_os_release()
        return release.get("ID") == "debian" and release.get("VERSION_CODENAME") == self.suite


VARIANTS = {
    "debian12": Variant("debian12", "bookworm", "3.0"),
    "debian13": Variant("debian13", "trixie", "3.5"),
}
SYSTEMD = Variant("systemd", "trixie", "3.5", systemd=True)
MACHINES = {**VARIANTS, SYSTEMD.name: SYSTEMD}


@dataclass(frozen=True)
class Kernel:
    image: Path
    modules: Path  # the directory that becomes /lib/modules
    version: str
    builder: Path  # a root with the kernel's headers and compiler


@dataclass(frozen=True)
class Prepared:
    """All that a boot needs."""

    variant: Variant
    root: Path
    kernel: Kernel
    initrd: Path
    slow_image: Path
    slow_manifest: Path
    nic: Path  # the module tlsnic
    python_bin: str  # a directory in the guest, first on its PATH
    shares: tuple[Path, ...] = field(default=())  # beside the root, each at its own path in the guest


# --- the host -------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """One cache for all checkouts of a user, so that a fresh clone has no second debootstrap to wait for."""
    if chosen := os.environ.get("KTLSD_VM_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "ktlsd-vm"


def tool(name: str) -> str:
    path = shutil.which(name, path=TOOL_PATH)
    if path is None:
        raise MachineError(f"{name} is not installed (Debian package {TOOLS.get(name, name)})")
    return path


def is_static(binary: str) -> bool:
    return b"/ld-linux-x86-64.so.2\0" not in Path(binary).read_bytes()


def missing() -> list[str]:
    """What this host lacks, one line of text each, with the Debian package that has it."""
    if platform.machine() != "x86_64":
        return [f"an x86-64 host (this is {platform.machine()})"]
    lacking = [
        f"{name} (package {package})" for name, package in TOOLS.items() if not shutil.which(name, path=TOOL_PATH)
    ]
    busybox = shutil.which("busybox", path=TOOL_PATH)
    if busybox and not is_static(busybox):
        lacking.append("a static busybox (package busybox-static)")
    if not KEYRING.exists():
        lacking.append(f"{KEYRING} (package debian-archive-keyring)")
    return lacking


def call(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a tool to its end and give its output; a failure carries what it printed."""
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise MachineError(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def as_root(*command: str) -> str:
    """debootstrap and chroot need root: be it, or have a sudo that asks for no password."""
    env = {**os.environ, "PATH": TOOL_PATH, "LC_ALL": "C.UTF-8"}
    return call(*(() if os.geteuid() == 0 else ("sudo", "-n")), *command, env=env)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two sessions must not make the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A new directory under another name that gets its own only when all went well: the cache holds no halves."""
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        as_root("rm", "-rf", str(partial))
    partial.mkdir(parents=True)
    yield partial
    partial.rename(target)


def host_mirror() -> str | None:
    """The Debian mirror that this machine's apt uses; None where it uses none (Ubuntu), for debootstrap has its own."""
    if chosen := os.environ.get("KTLSD_VM_MIRROR"):
        return chosen
    listing = call("apt-get", "indextargets", "--format", "$(ORIGIN)\t$(LABEL)\t$(COMPONENT)\t$(REPO_URI)")
    for line in listing.splitlines():
        origin, label, component, uri = (line.split("\t") + [""] * 4)[:4]
        if (origin, label, component) == ("Debian", "Debian", "main"):
            return uri
    return None


def debootstrap_mirror() -> str:
    """The mirror that debootstrap takes if none is named."""
    found = re.search(r'^DEF_MIRROR="(\S+)"', Path(tool("debootstrap")).read_text(), re.MULTILINE)
    if found is None:
        raise MachineError("debootstrap names no mirror: name one in KTLSD_VM_MIRROR")
    return found[1]


# --- what is prepared -----------------------------------------------------------------------------------------------


def make_root(variant: Variant, target: Path, say: OnLine) -> None:
    say(f"{variant.name}: debootstrap of {variant.suite} into {target}")
    with made_whole(target) as partial:
        options = ["--variant=minbase", f"--keyring={KEYRING}", "--include=" + ",".join(PACKAGES)]
        mirror = host_mirror()
        as_root(tool("debootstrap"), *options, variant.suite, str(partial), *([mirror] if mirror else []))
        as_root("chroot", str(partial), "apt-get", "clean")
        enabled = partial / "etc/systemd/system/multi-user.target.wants"
        as_root("rm", "-f", *(str(enabled / f"{service}.service") for service in SERVICES))


def root_mirror(root: Path) -> str:
    """The mirror that debootstrap took, from the sources.list it left behind."""
    found = re.search(r"^deb (?:\[.*?\] )?(\S+)", (root / "etc/apt/sources.list").read_text(), re.MULTILINE)
    if found is None:
        raise MachineError(f"{root}/etc/apt/sources.list names no mirror")
    return found[1]


@contextlib.contextmanager
def apt_of(mirror: str, suite: str) -> Iterator[tuple[Path, list[str]]]:
    """A scratch folder, and options for an apt with lists of its own there: no root needed, nothing touched."""
    with tempfile.TemporaryDirectory(prefix="ktlsd-apt-") as scratch:
        apt = Path(scratch)
        for directory in ("lists/partial", "archives/partial", "unpacked"):
            (apt / directory).mkdir(parents=True)
        (apt / "status").touch()
        (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
        settings = {
            "Dir::Etc::sourcelist": f"{apt}/sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": f"{apt}/lists",
            "Dir::State::status": f"{apt}/status",
            "Dir::Cache": str(apt),
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        call("apt-get", *options, "update", cwd=apt)
        yield apt, options


def fetch_package(name: str, suite: str, target: Path) -> None:
    """A package of Debian, unpacked."""
    mirror = host_mirror() or debootstrap_mirror()
    with made_whole(target) as partial, apt_of(mirror, suite) as (apt, options):
        call("apt-get", *options, "download", name, cwd=apt)
        [archive] = apt.glob(f"{name}_*.deb")
        call("dpkg-deb", "-x", str(archive), str(partial))


def fetch_kernel(variant: Variant, mirror: str, target: Path, say: OnLine) -> None:
    """The distribution's kernel, unpacked, and a root in which modules for it are built."""
    say(f"{variant.name}: the kernel of {variant.suite} into {target}")
    with made_whole(target) as partial, apt_of(mirror, variant.suite) as (apt, options):
        depends = call("apt-cache", *options, "depends", "linux-image-amd64", cwd=apt)
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise MachineError(f"linux-image-amd64 of {variant.suite} depends on no kernel:\n{depends}")
        call("apt-get", *options, "download", package[1], cwd=apt)
        [archive] = apt.glob("linux-image-*.deb")
        unpacked = apt / "unpacked"
        call("dpkg-deb", "-x", str(archive), str(unpacked))
        archive.unlink()
        [image] = (unpacked / "boot").glob("vmlinuz-*")
        version = image.name.removeprefix("vmlinuz-")
        shutil.copy(image, partial / "vmlinuz")
        (partial / "lib").mkdir()
        library = "lib" if (unpacked / "lib").is_dir() else "usr/lib"  # trixie's packages know only /usr/lib
        shutil.copytree(unpacked / library / "modules", partial / "lib/modules", symlinks=True)
        call(tool("depmod"), "-b", str(partial), version)
        wanted = ("--no-install-recommends", "install", f"linux-headers-{version}", *BUILDERS)
        plan = call("apt-get", *options, "-s", *wanted, cwd=apt)
        names = [name for name in re.findall(r"^Inst (\S+)", plan, re.MULTILINE) if not NO_BUILDERS.match(name)]
        call("apt-get", *options, "download", *names, cwd=apt)
        unpack_root(partial / "builder", sorted(apt.glob("*.deb")))


def unpack_root(root: Path, archives: Sequence[Path]) -> None:
    """A root of packages that nobody configured: enough for a compiler, and much quicker than debootstrap."""
    for directory in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / directory).mkdir(parents=True)
        (root / directory).symlink_to(f"usr/{directory}")
    for archive in archives:
        unpack = f"dpkg-deb --fsys-tarfile {shlex.quote(str(archive))} | tar -x --keep-directory-symlink"
        call("sh", "-c", f"{unpack} --no-same-owner -C {shlex.quote(str(root))}")
    (root / "usr/bin/awk").symlink_to("mawk")
    for directory in ("dev", "tmp"):
        (root / directory).mkdir(exist_ok=True)
    as_root("mknod", "-m", "666", str(root / "dev/null"), "c", "1", "3")


def read_kernel(directory: Path) -> Kernel:
    [modules] = (directory / "lib/modules").iterdir()
    return Kernel(directory / "vmlinuz", directory / "lib/modules", modules.name, directory / "builder")


def make_nic(kernel: Kernel, target: Path, say: OnLine) -> None:
    """The module tlsnic for this kernel."""
    say(f"module {target}")
    source = kernel.builder / "tmp/tlsnic"
    as_root("rm", "-rf", str(source))
    shutil.copytree(TLSNIC, source)
    headers = f"/usr/src/linux-headers-{kernel.version}"
    as_root("chroot", str(kernel.builder), "make", "-C", headers, "M=/tmp/tlsnic", "modules")
    shutil.copy(source / "tlsnic.ko", target.with_suffix(".partial"))
    target.with_suffix(".partial").rename(target)


def insmod_order(kernel: Kernel) -> list[Path]:
    """The files of the wanted modules, each after what it depends on. Those built into a kernel are none."""
    order: list[Path] = []
    prefix = [tool("modprobe"), "-C", "/nonexistent", "-d", str(kernel.modules.parents[1]), "-S", kernel.version]
    for module in (*BOOT_MODULES, *TEST_MODULES):
        done = subprocess.run([*prefix, "--show-depends", module], check=False, capture_output=True, text=True)
        if done.returncode and module in BOOT_MODULES:
            raise MachineError(f"kernel {kernel.version} has no module {module}: {done.stderr}")
        for line in done.stdout.splitlines():
            words = line.split()
            if words[0] == "insmod" and Path(words[1]) not in order:
                order.append(Path(words[1]))
    return order


def module_bytes(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".ko":
        return path.read_bytes()
    raise MachineError(f"{path}: a compression that nothing here undoes")


def make_initrd(kernel: Kernel, target: Path, say: OnLine) -> None:
    say(f"initrd {target}")
    with tempfile.TemporaryDirectory(prefix="ktlsd-initrd-") as scratch:
        tree = Path(scratch) / "tree"
        for directory in ("bin", "modules", "proc", "sys", "dev", "results", "layers", "newroot"):
            (tree / directory).mkdir(parents=True)
        shutil.copy(tool("busybox"), tree / "bin/busybox")
        for script in SCRIPTS:
            shutil.copy(GUEST / script, tree / script)
            (tree / script).chmod(0o755)
        names = []
        for module in insmod_order(kernel):
            names.append(module.name.removesuffix(".xz"))
            (tree / "modules" / names[-1]).write_bytes(module_bytes(module))
        (tree / "modules/order").write_text("".join(f"{name}\n" for name in names))
        archive = Path(scratch) / "initrd"
        call("sh", "-c", f"find . | {shlex.quote(tool('cpio'))} --quiet -o -H newc >../initrd", cwd=tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, target.with_suffix(".partial"))
        target.with_suffix(".partial").rename(target)


def make_slow_image(target: Path, say: OnLine) -> None:
    """A small ext4 image that is born with its files, so that the guest that mounts it has none of them in memory."""
    say(f"slow disk {target}")
    with made_whole(target) as partial, tempfile.TemporaryDirectory(prefix="ktlsd-slow-") as scratch:
        source, manifest = random.Random("ktlsd"), {}
        for name, size in SLOW_FILES.items():
            content = source.randbytes(size)
            (Path(scratch) / name).write_bytes(content)
            manifest[name] = hashlib.sha256(content).hexdigest()
        Path(scratch).chmod(0o755)
        make_ext4(partial / "image", SLOW_SIZE, "-d", scratch, "-J", "size=4")
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))


def make_ext4(path: Path, size: int, *options: str) -> None:
    with path.open("wb") as image:
        image.truncate(size)
    call(tool("mke2fs"), "-q", "-F", "-t", "ext4", "-m", "0", *options, str(path))


def requirements() -> list[str]:
    pyproject = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    return sorted({*pyproject["project"]["dependencies"], *pyproject["dependency-groups"]["test"]})


def make_venv(variant: Variant, root: Path, say: OnLine) -> str:
    """A virtual environment of the root's own Python. This host's pip fetches the wheels: it knows the way."""
    wanted = requirements()
    name = "venv-" + hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    if (root / "opt" / name / "complete").exists():
        return f"/opt/{name}/bin"
    say(f"{variant.name}: Python environment {root}/opt/{name}")
    version = as_root("chroot", str(root), "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    with tempfile.TemporaryDirectory(prefix="ktlsd-wheels-") as wheels:
        tags = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)] + ["manylinux2014_x86_64"]
        platforms = [word for tag in tags for word in ("--platform", tag)]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
        call(*pip, "--python-version", version, *platforms, "-d", wheels, *wanted)
        inside = f"/opt/{name}"
        as_root("rm", "-rf", f"{root}{inside}", f"{root}/opt/wheels")
        as_root("cp", "-r", wheels, f"{root}/opt/wheels")
    as_root("chroot", str(root), "python3", "-m", "venv", inside)
    install = ["-m", "pip", "install", "-q", "--no-index", "--find-links", "/opt/wheels", "--disable-pip-version-check"]
    as_root("env", "-u", "PIP_CERT", "chroot", str(root), f"{inside}/bin/python", *install, *wanted)
    as_root("rm", "-rf", f"{root}/opt/wheels")
    as_root("touch", f"{root}{inside}/complete")
    return f"{inside}/bin"


def host_python() -> tuple[str, tuple[Path, ...]]:
    """The running interpreter's environment serves in the guest too, by its path; under /tmp it has to be shared."""
    prefixes = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    covered = ("/tmp", "/run", "/dev")  # the guest mounts its own file systems there
    hidden = [p for p in sorted(prefixes) if p.is_relative_to(CHECKOUT) is False and str(p).startswith(covered)]
    return str(Path(sys.prefix) / "bin"), tuple(hidden)


def prepare(name: str, say: OnLine = print) -> Prepared:
    """Make what is not in the cache yet: minutes the first time, nothing from then on (and then no network either)."""
    variant = MACHINES[name]
    if lacking := missing():
        raise MachineError("this host lacks " + ", ".join(lacking))
    cache = cache_dir()
    store = cache / variant.suite
    with locked(cache / "lock"):
        root, python_bin, shares = Path("/"), "", ()  # type: tuple[Path, str, tuple[Path, ...]]
        if variant.is_host:
            python_bin, shares = host_python()
        else:
            packages = hashlib.sha256(repr(PACKAGES).encode()).hexdigest()[:12]
            root = store / f"root-{packages}"
            if not root.exists():
                make_root(variant, root, say)
            python_bin = make_venv(variant, root, say)
        packages = hashlib.sha256(repr((BUILDERS, NO_BUILDERS.pattern)).encode()).hexdigest()[:12]
        unpacked = store / f"kernel-{packages}"
        if not unpacked.exists():
            mirror = host_mirror() if variant.is_host else root_mirror(root)
            if mirror is None:
                raise MachineError("this machine's apt configuration names no Debian mirror")
            fetch_kernel(variant, mirror, unpacked, say)
        kernel = read_kernel(unpacked)
        recipe = hashlib.sha256(kernel.version.encode())
        for file in (TLSNIC / "tlsnic.c", TLSNIC / "Makefile"):
            recipe.update(file.read_bytes())
        nic = store / f"tlsnic-{recipe.hexdigest()[:12]}.ko"
        if not nic.exists():
            make_nic(kernel, nic, say)
        recipe = hashlib.sha256(repr((BOOT_MODULES, TEST_MODULES, kernel.version)).encode())
        for script in SCRIPTS:
            recipe.update((GUEST / script).read_bytes())
        initrd = store / f"initrd-{recipe.hexdigest()[:12]}"
        if not initrd.exists():
            make_initrd(kernel, initrd, say)
        slow = cache / ("slow-" + hashlib.sha256(repr((SLOW_FILES, SLOW_SIZE)).encode()).hexdigest()[:12])
        if not slow.exists():
            make_slow_image(slow, say)
    shared = (CHECKOUT, *shares)
    return Prepared(variant, root, kernel, initrd, slow / "image", slow / "manifest.json", nic, python_bin, shared)


# --- the run --------------------------------------------------------------------------------------------------------


def guest_environment(prepared: Prepared) -> dict[str, str]:
    passed = {key: value for key, value in os.environ.items() if key == "CI" or key.startswith("KTLSD_")}
    return passed | {
        "KTLSD_VM": prepared.variant.name,
        "KTLSD_VM_SLOW": "/mnt/slow",
        "KTLSD_VM_SLOW_MANIFEST": "/results/.machine/slow.json",
        "KTLSD_VM_NIC": "/results/.machine/tlsnic.ko",
        "PYTHONPATH": str(CHECKOUT),
        "PATH": f"{prepared.python_bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }


def write_orders(prepared: Prepared, command: Sequence[str], orders: Path) -> None:
    """What the guest's scripts read from /results/.machine: the shares to mount and the command to run."""
    if orders.exists():
        shutil.rmtree(orders)
    orders.mkdir(parents=True)
    shares = "".join(f"share{number} {path}\n" for number, path in enumerate(prepared.shares))
    (orders / "shares").write_text(shares)
    (orders / "init").write_text("systemd\n" if prepared.variant.systemd else "command\n")
    (orders / "hostname").write_text(f"ktlsd-{prepared.variant.name}\n")
    exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in guest_environment(prepared).items())
    where = shlex.quote(str(CHECKOUT))
    (orders / "command").write_text(f"{exports}cd {where} || exit 125\nexec {shlex.join(command)}\n")
    shutil.copy(prepared.slow_manifest, orders / "slow.json")
    shutil.copy(prepared.nic, orders / "tlsnic.ko")


def share_options(tag: str, path: Path, writable: bool = False) -> list[str]:
    escaped = str(path).replace(",", ",,")
    mode = "" if writable else ",readonly=on"
    return ["-virtfs", f"local,path={escaped},mount_tag={tag},security_model=none,multidevs=remap{mode}"]


def drive_options(name: str, path: Path, extra: str) -> list[str]:
    escaped = str(path).replace(",", ",,")
    drive = f"file={escaped},if=none,id={name},format=raw,discard=unmap{extra}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


@functools.cache
def tsc_khz() -> int:
    """Frequency of this processor's time stamp counter, which is QEMU's guests' too, measured over half a second."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
    start = ctypes.c_char.from_buffer(code)
    read_counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))

    def both() -> tuple[int, int]:
        """Nanoseconds and counter at one time: of several readings that between which the least time has passed."""
        readings = [(time.monotonic_ns(), read_counter(), time.monotonic_ns()) for _ in range(20)]
        before, count, after = min(readings, key=lambda reading: reading[2] - reading[0])
        return (before + after) // 2, count

    began, first = both()
    time.sleep(0.5)
    ended, last = both()
    return (last - first) * 1_000_000 // (ended - began)


def qemu_command(prepared: Prepared, results: Path, scratch: Path, console: Path) -> list[str]:
    accel = os.environ.get("KTLSD_VM_ACCEL", "tcg,thread=multi")
    # An oops is a panic, so that a kernel bug that a test finds is never a mere line in a log.
    # Without address randomisation QEMU's translated code serves one process after the other: a third less CPU. Pages
    # that are not cleared twice and stacks that are not moved take a fifth off a server's start.
    # On a busy host the kernel may miss the timer's first ticks, and no_timer_check keeps it from a panic for that.
    kernel_line = "console=ttyS0 panic=-1 oops=panic loglevel=5 random.trust_cpu=on"
    kernel_line += " mitigations=off cryptomgr.notests norandmaps nokaslr no_timer_check"
    kernel_line += " init_on_alloc=0 randomize_kstack_offset=off"
    # On a busy host the kernel takes the TSC for ten times slower than it is, unless told: QEMU passes on the host's.
    kernel_line += f" tsc=reliable tsc_early_khz={tsc_khz()}"
    command = [
        tool("qemu-system-x86_64"),
        "-accel",
        accel,
        "-cpu",
        os.environ.get("KTLSD_VM_CPU", CPU),
        "-smp",
        # QEMU may run an int3 that another processor's kernel has long replaced (a panic in inet_ehashfn was seen).
        os.environ.get("KTLSD_VM_PROCESSORS", "1"),
        "-m",
        "4G",
    ]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"]
    command += ["-kernel", str(prepared.kernel.image), "-initrd", str(prepared.initrd), "-append", kernel_line]
    command += ["-serial", f"file:{console}"]
    command += ["-device", "virtio-serial-pci", "-chardev", "file,id=out,path=/dev/stdout"]
    command += ["-device", "virtserialport,chardev=out,name=out"]
    command += share_options("root", prepared.root)
    command += share_options("modules", prepared.kernel.modules)
    command += share_options("results", results, writable=True)
    for number, path in enumerate(prepared.shares):
        command += share_options(f"share{number}", path)
    command += drive_options("disk", scratch / "disk", ",cache=unsafe")
    # snapshot=on: what the guest writes is forgotten, and the image in the cache stays as it was made.
    command += drive_options("slow", prepared.slow_image, f",snapshot=on,throttling.bps-read={SLOW_BYTES_PER_SECOND}")
    return command


def tail(path: Path, lines: int = 80) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error})"


def sweep(cache: Path) -> None:
    """Throw away what killed sessions left behind, and old consoles of failures."""
    for old in [*cache.glob("run-*"), *cache.glob("consoles/*")]:
        with contextlib.suppress(OSError):  # another session sweeps too
            if time.time() - old.stat().st_mtime > DAY:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


class Boot:
    """One life of the machine. Make it, then wait() from whichever thread; kill() ends it early."""

    def __init__(self, prepared: Prepared, command: Sequence[str], results: Path, timeout: float) -> None:
        self.name, self.timeout = prepared.variant.name, timeout
        self.results = results.absolute()
        self.results.mkdir(parents=True, exist_ok=True)
        self.verdict = ""  # why it was killed, if it was
        logs = cache_dir() / "consoles"
        logs.mkdir(parents=True, exist_ok=True)
        sweep(cache_dir())
        self.scratch = Path(tempfile.mkdtemp(prefix=f"run-{self.name}-", dir=cache_dir()))
        self.console = logs / f"{self.scratch.name}.log"
        self.console.touch()
        write_orders(prepared, command, self.results / ".machine")
        make_ext4(self.scratch / "disk", DISK_SIZE, "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard")
        qemu = qemu_command(prepared, self.results, self.scratch, self.console)
        # setpriv: a machine must not outlive the session that waits for it, however that session ends.
        with self.console.open("ab") as console:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *qemu],
                env={**os.environ, "TMPDIR": str(self.scratch)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
            )
        self.timer = threading.Timer(timeout, self.kill, [f"was not done after {timeout:.0f} seconds"])
        self.timer.daemon = True
        self.timer.start()

    def kill(self, why: str) -> None:
        self.verdict = self.verdict or why
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)

    def wait(self, on_line: OnLine) -> int:
        """Hand on the command's output line by line and give its exit status, or say how the machine died."""
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                on_line(line.decode(errors="replace").rstrip("\n"))
            self.process.wait()
        except BaseException:
            self.kill("was interrupted")
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()
            self.timer.cancel()
            shutil.rmtree(self.scratch, ignore_errors=True)
        status = self.results / ".machine/status"
        if self.verdict or not status.exists():
            raise MachineError(self.obituary())
        self.console.unlink()
        return int(status.read_text())

    def obituary(self) -> str:
        why = self.verdict or f"died (QEMU exit status {self.process.returncode})"
        return f"the machine {self.name} {why}; its console, {self.console}, ends with\n{tail(self.console)}"


def run(name: str, command: Sequence[str], results: Path, timeout: float, on_line: OnLine = print) -> int:
    return Boot(prepare(name), command, results, timeout).wait(on_line)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.machine", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    preparing = actions.add_parser("prepare", help="make what is not in the cache yet")
    preparing.add_argument("--root", choices=MACHINES, action="append")
    running = actions.add_parser("run", help="boot, run a command as root in the checkout, exit with its status")
    running.add_argument("--root", choices=MACHINES, default="debian12")
    running.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")
    running.add_argument("--results", type=Path, metavar="DIR", help="the host's directory behind the guest's /results")
    running.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    try:
        if options.action == "prepare":
            for name in options.root or MACHINES:
                prepare(name, say_on_stderr)
            return 0
        prepared = prepare(options.root, say_on_stderr)
        with tempfile.TemporaryDirectory(prefix="ktlsd-results-") as fallback:
            results = options.results or Path(fallback)
            return Boot(prepared, options.command, results, options.timeout).wait(say_at_once)
    except MachineError as error:
        print(f"tests.vm.machine: {error}", file=sys.stderr)
        return 125


def say_at_once(line: str) -> None:
    print(line, flush=True)


def say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

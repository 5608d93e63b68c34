"""What the machine promises to the tests that run in it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from .machine import SLOW_BYTES_PER_SECOND, VARIANTS
from .plugin import SlowDisk

pytestmark = pytest.mark.ktls


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def variant() -> str:
    name = os.environ.get("KTLSD_VM")
    if name is None:
        pytest.skip("says something of the virtual machine only")
    return name


def test_kernel_has_tls() -> None:
    assert "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    assert "TlsTxSw" in Path("/proc/net/tls_stat").read_text()


def test_chacha_is_there_for_tls(variant: str) -> None:
    assert "chacha20poly1305" in output_of("lsmod")


def test_tls_module_goes_and_comes_back(variant: str) -> None:
    output_of("modprobe", "-r", "tls")
    try:
        assert "tls" not in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    finally:
        output_of("modprobe", "tls")
    assert "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()


def test_openssl_is_that_of_the_release(variant: str) -> None:
    assert output_of("openssl", "version").startswith(f"OpenSSL {VARIANTS[variant].openssl}.")


def test_slow_disk_is_slow_and_whole(slow_disk: SlowDisk) -> None:
    name = "second.bin"
    started = time.monotonic()
    content = (slow_disk.path / name).read_bytes()
    assert time.monotonic() - started > 0.5 * len(content) / SLOW_BYTES_PER_SECOND
    assert hashlib.sha256(content).hexdigest() == slow_disk.manifest[name]


def test_scratch_disk_has_room(variant: str) -> None:
    room = os.statvfs("/mnt/disk")
    assert room.f_bavail * room.f_frsize >= 3 << 30


def test_netem_delays_a_veth(variant: str) -> None:
    output_of("ip", "netns", "add", "peer")
    try:
        output_of("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", "peer")
        output_of("ip", "address", "add", "10.99.0.1/24", "dev", "veth0")
        output_of("ip", "link", "set", "veth0", "up")
        output_of("ip", "-n", "peer", "address", "add", "10.99.0.2/24", "dev", "veth1")
        output_of("ip", "-n", "peer", "link", "set", "veth1", "up")
        output_of("tc", "qdisc", "add", "dev", "veth0", "root", "netem", "delay", "200ms", "loss", "0.1%")
        assert "netem" in output_of("tc", "qdisc", "show", "dev", "veth0")
    finally:
        output_of("ip", "netns", "delete", "peer")


def test_results_are_writable(variant: str) -> None:
    Path("/results/hello").write_text("hello")
    assert Path("/results/hello").read_text() == "hello"

"""What is compared: one record for each row of the table, with what it must reach.

Strategy: a row is a client with its parameters, the peers it makes sense for, and limits on medians; everything else is
told by the client's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bench.clients import (
    RANGES,
    Bulk,
    Client,
    Connections,
    Curl,
    H2load,
    Handshakes,
    IdleMemory,
    Latency,
    SharedLatency,
    Start,
    Wrk,
)
from bench.file_systems import FileSystem
from bench.http2_clients import Downloads, Http2Traffic, Streams
from bench.mounted_client import Mounted
from bench.peers import OURS
from bench.traffic import Tree
from bench.traffic_client import Browsing, Forwarded, Scanning, Traffic

MEGABYTE: Final = 1_000_000


class Setting(StrEnum):
    HOST = "host"
    """The machine itself: TLS in user space for everyone where its kernel has no kTLS."""
    VM = "vm"
    """The QEMU machine of tests/vm, whose kernel has kTLS."""


@dataclass(frozen=True)
class Limit:
    """`value` bounds the median of ktlsd's own figure, or with a peer the ratio to it (above 1: ktlsd is better)."""

    metric: str
    value: float
    peer: str | None = None


@dataclass(frozen=True)
class Row:
    name: str
    work: str
    setting: Setting
    client: Client
    peers: tuple[str, ...]
    subject: str = OURS
    """The server whose figures are compared with the peers'."""
    at_least: tuple[Limit, ...] = ()
    aim: tuple[Limit, ...] = ()
    workers: tuple[int, ...] = (1, 2)


NATIVE: Final = ("nginx", "lighttpd", "caddy", "apache", "granian")
PYTHON: Final = ("uvicorn", "hypercorn", "aiohttp")
OVER_KTLS: Final = ("nginx-ktls", "lighttpd-ktls")


def _both(metrics: Sequence[str], value: float, peer: str) -> tuple[Limit, ...]:
    return tuple(Limit(metric, value, peer) for metric in metrics)


BYTES: Final = ("throughput", "cpu per byte")

BIG: Final = tuple(
    Row(
        f"big-{connections}",
        f"200 MB file, {connections} connection{'s' * (connections > 1)}",
        Setting.VM,
        Curl("/200m.bin", 1) if connections == 1 else Bulk("/200m.bin", connections),
        (*OVER_KTLS, *(("s_server",) if connections == 1 else ())),
        at_least=_both(BYTES, 1.0, "nginx-ktls"),
        aim=_both(BYTES, 1.01, "nginx-ktls"),
    )
    for connections in (1, 4, 32)
)

MEDIUM: Final = Row(
    "50m",
    "50 MB file, 1 connection",
    Setting.VM,
    Curl("/50m.bin", 1),
    OVER_KTLS,
    at_least=(Limit("cpu per byte", 0.97, "nginx-ktls"),),
    aim=(Limit("cpu per byte", 1.0, "nginx-ktls"),),
    workers=(1,),
)

LARGE: Final = tuple(
    Row(
        f"large-{connections}",
        f"100 MB file, {connections} connection{'s' * (connections > 1)}",
        Setting.HOST,
        Curl("/100m.bin", 20) if connections == 1 else Bulk("/100m.bin", connections),
        (*NATIVE, *PYTHON, *(("s_server",) if connections == 1 else ())),
        at_least=_both(BYTES, 1.0, "nginx"),
        aim=_both(BYTES, 1.0, "granian"),
    )
    for connections in (1, 4, 32)
)

SMALL: Final = (
    Row(
        "small",
        "10 KiB file, 32 keep-alive connections",
        Setting.HOST,
        Wrk("/10k.html", 32),
        (*NATIVE, *PYTHON),
        at_least=(Limit("requests", 10, "uvicorn"), Limit("requests", 20, "hypercorn")),
        aim=(Limit("requests", 1.0, "granian"), Limit("requests", 0.5, "nginx")),
    ),
    Row(
        "small-h2load",
        "the same, asked by h2load",
        Setting.HOST,
        H2load("/10k.html", 32),
        (*NATIVE, *PYTHON),
        at_least=(Limit("requests", 10, "uvicorn"), Limit("requests", 20, "hypercorn")),
        aim=(Limit("requests", 1.0, "granian"), Limit("requests", 0.5, "nginx")),
    ),
    Row(
        "small",
        "10 KiB file, 32 keep-alive connections",
        Setting.VM,
        Wrk("/10k.html", 32, apart=True),
        OVER_KTLS,
        at_least=(Limit("requests", 0.4, "nginx-ktls"), Limit("cpu per request", 0.8, "nginx-ktls")),
        aim=_both(("requests", "cpu per request"), 1.0, "nginx-ktls"),
    ),
)

_KINDS: Final[tuple[tuple[str, str, Client], ...]] = (
    ("1k", "1 KiB file, 32 connections", Wrk("/1k.html", 32)),
    ("100k", "100 KiB file, 32 connections", Wrk("/100k.html", 32)),
    ("1m", "1 MiB file, 32 connections", Wrk("/1m.bin", 32)),
    (
        "new-heads",
        "10 KiB file, 32 connections, a browser's fields and in each request another cookie",
        Wrk("/10k.html", 32, new_heads=True),
    ),
    ("not-modified", "304 for a 10 KiB file, 32 connections", Wrk("/10k.html", 32, status=304, conditional=True)),
    (
        "range",
        f"{RANGES:,} different ranges of 10 KiB of a 1 MiB file, each asked for before, 32 connections",
        Wrk("/1m.bin", 32, status=206, range_length=10240),
    ),
    (
        "many",
        "10,000 different files of 10 KiB, each asked for before, 32 connections",
        Wrk("/many/", 32, files=10_000),
    ),
)

KINDS: Final = tuple(
    Row(
        name,
        work,
        setting,
        client,
        NATIVE if setting is Setting.HOST else OVER_KTLS,
        at_least=(Limit("requests", 0.3, peer),),
        aim=(Limit("requests", 1.0, peer),),
    )
    for setting, peer in ((Setting.HOST, "nginx"), (Setting.VM, "nginx-ktls"))
    for name, work, client in _KINDS
)

AT_FIRST_AND_LATER: Final = ("cpu per request at first", "cpu per request")
SITE: Final = Tree("traffic", files=20_000, folders=200, median=8 * 1024, sigma=1.2)

TRAFFIC: Final = (
    Row(
        "traffic",
        "real traffic: 20,000 files by Zipf's law, browsers' heads that differ, 32 connections",
        Setting.HOST,
        Traffic(Browsing(SITE)),
        ("nginx", "lighttpd", "caddy"),
        at_least=(
            Limit("cpu per request at first", 1.0, "caddy"),
            Limit("cpu per request", 0.6, "nginx"),
            Limit("p99 at first", 1 / 3, "nginx"),
            Limit("memory", 150),
        ),
        aim=(
            Limit("cpu per request at first", 0.5, "nginx"),
            Limit("cpu per request", 0.8, "nginx"),
            Limit("p99 at first", 1 / 1.5, "nginx"),
            Limit("memory", 75),
        ),
        workers=(1,),
    ),
    Row(
        "traffic-4k",
        "the same with 200,000 files of 4 KiB in 2,000 folders",
        Setting.HOST,
        Traffic(Browsing(Tree("small", files=200_000, folders=2_000, median=4096, sigma=0)), timed=False),
        ("nginx",),
        at_least=_both(AT_FIRST_AND_LATER, 0.4, "nginx"),
        aim=_both(AT_FIRST_AND_LATER, 0.7, "nginx"),
        workers=(1,),
    ),
    Row(
        "traffic",
        "real traffic over kTLS",
        Setting.VM,
        Traffic(Browsing(SITE), timed=False, hold=True),
        ("nginx-ktls",),
        at_least=_both(AT_FIRST_AND_LATER, 0.6, "nginx-ktls"),
        aim=_both(AT_FIRST_AND_LATER, 1.0, "nginx-ktls"),
        workers=(1,),
    ),
    *(
        Row(
            name,
            f"real traffic with {what}, beside that without",
            Setting.HOST,
            Traffic(Browsing(SITE), timed=False),
            (OURS,),
            subject=f"{OURS}-{name}",
            at_least=_both(AT_FIRST_AND_LATER, ratio, OURS),
            workers=(1,),
        )
        for name, what, ratio in (
            ("rules", "access log, two sites and header rules", 0.9),
            ("auth", "passwords for other paths", 0.95),
        )
    ),
    Row(
        "scanners",
        "random paths that do not exist, 32 connections",
        Setting.HOST,
        Traffic(Scanning(), first_seconds=1),
        ("nginx", "lighttpd", "caddy"),
        at_least=_both(AT_FIRST_AND_LATER, 0.4, "nginx"),
        aim=_both(AT_FIRST_AND_LATER, 0.8, "nginx"),
        workers=(1,),
    ),
    Row(
        "backend",
        "10 KiB file over plain HTTP, fields of a proxy that differ, 32 connections",
        Setting.HOST,
        Traffic(Forwarded("/10k.html"), timed=False),
        ("nginx-backend",),
        subject="ktlsd-backend",
        at_least=(Limit("cpu per request", 0.5, "nginx-backend"),),
        aim=(Limit("cpu per request", 0.8, "nginx-backend"),),
        workers=(1,),
    ),
)

MOUNTED: Final = (
    *(
        Row(
            kind.lower(),
            f"10 KiB file on {kind}, 32 connections",
            Setting.HOST,
            Mounted(kind, Wrk("/10k.html", 32)),
            ("nginx",),
            at_least=(Limit("as on the disk", at_least),),
            aim=aim,
            workers=(1,),
        )
        for kind, at_least, aim in (
            (FileSystem.TMPFS, 0.9, (Limit("as on the disk", 1.0),)),
            (FileSystem.OVERLAYFS, 0.9, (Limit("as on the disk", 1.0),)),
            (FileSystem.FUSE, 0.6, ()),
        )
    ),
    Row(
        "overlayfs-large",
        "100 MB file on overlayfs, 4 connections",
        Setting.HOST,
        Mounted(FileSystem.OVERLAYFS, Bulk("/100m.bin", 4)),
        ("nginx",),
        at_least=_both(BYTES, 1.1, "nginx"),
        aim=(Limit("as on the disk", 1.0),),
        workers=(1,),
    ),
    Row(
        "tmpfs",
        "10 KiB file on tmpfs, 32 connections",
        Setting.VM,
        Mounted(FileSystem.TMPFS, Wrk("/10k.html", 32, apart=True)),
        OVER_KTLS,
        at_least=(Limit("cpu per request", 0.8, "nginx-ktls"),),
        aim=(Limit("cpu per request", 1.0, "nginx-ktls"),),
        workers=(1,),
    ),
)

HANDSHAKES: Final = tuple(
    Row(
        name,
        work,
        Setting.HOST,
        Handshakes("/1k.html", resumed),
        NATIVE,
        at_least=(Limit("handshakes", 0.6, "nginx"),),
        aim=(Limit("handshakes", 1.0, "nginx"), Limit("cpu per handshake", 1.0, "nginx")),
    )
    for name, work, resumed in (
        ("handshakes", "full handshakes (ECDSA P-256), one small request each", False),
        ("resumed", "resumed handshakes, one small request each", True),
    )
)

MEMORY: Final = Row(
    "memory",
    "resident memory per idle keep-alive connection, 5,000 held",
    Setting.HOST,
    IdleMemory("/10k.html", 5000),
    (*NATIVE, *PYTHON),
    at_least=(Limit("memory per connection", 48),),
    aim=(Limit("memory per connection", 1.0, "nginx"),),
    workers=(1,),
)

_ASKED: Final = {Setting.HOST: 100, Setting.VM: 20}
"""10 KiB requests a second: few, so that they cause no queue."""
_DOWNLOAD_RATE: Final = {Setting.HOST: 4 * MEGABYTE, Setting.VM: MEGABYTE // 8}

LATENCY: Final = tuple(
    Row(
        name,
        work,
        setting,
        client,
        (NATIVE if setting is Setting.HOST else OVER_KTLS),
        at_least=(Limit("p99 growth", 2.0),),
        aim=(Limit("p99 growth", 1.2),),
        workers=(1,),
    )
    for setting in Setting
    for name, work, client in (
        (
            "p99-downloads",
            f"p99 of 10 KiB requests while 32 big downloads run, {_DOWNLOAD_RATE[setting] / MEGABYTE:g} MB/s each",
            Latency("/10k.html", _ASKED[setting], "/200m.bin", downloads=32, rate=_DOWNLOAD_RATE[setting]),
        ),
        (
            "p99-saturated",
            "p99 of 10 KiB requests while 32 big downloads take all they can get",
            Latency("/10k.html", _ASKED[setting], "/200m.bin", downloads=32, rate=0),
        ),
        (
            "p99-slow-disk",
            "p99 of 10 KiB requests while one file is read from a disk throttled to 2 MiB/s",
            Latency("/10k.html", _ASKED[setting], "/cold.bin", downloads=1, rate=0, disk_rate=2 * 1024 * 1024),
        ),
    )
)

CONNECTIONS: Final = Row(
    "connections",
    "10 KiB requests/s at 10, 100, 1,000, 5,000 connections",
    Setting.HOST,
    Connections("/10k.html", (10, 100, 1000, 5000)),
    ("nginx", "granian"),
    at_least=(Limit("rate kept", 0.8),),
    aim=(Limit("rate kept", 0.99),),
)

START: Final = Row(
    "start",
    "start to first response",
    Setting.HOST,
    Start("/10k.html"),
    (*NATIVE, *PYTHON),
    at_least=(Limit("start", 0.3),),
    aim=(Limit("start", 0.1),),
    workers=(1,),
)

OURS_H2: Final = "ktlsd-h2"
OTHERS_H2: Final = ("caddy-h2", "lighttpd-h2", "granian-h2")


def _ahead_of_others(metric: str, value: float) -> tuple[Limit, ...]:
    return tuple(Limit(metric, value, peer) for peer in OTHERS_H2)


HTTP2_SMALL: Final = tuple(
    Row(
        name,
        f"HTTP/2: {work}",
        Setting.HOST,
        client,
        ("nginx-h2", *OTHERS_H2),
        subject=OURS_H2,
        at_least=(Limit("requests", at_least, "nginx-h2"), *_ahead_of_others("requests", 1.0)),
        aim=(Limit("requests", aim, "nginx-h2"), *_ahead_of_others("requests", 2.0)),
        workers=(1,),
    )
    for name, work, client, at_least, aim in (
        ("h2-small", "10 KiB file, 32 connections, 1 stream each", Streams("/10k.html", 32), 0.8, 1.0),
        ("h2-streams", "10 KiB file, 8 connections, 10 streams each", Streams("/10k.html", 8, 10), 1.0, 1.2),
        ("h2-1k", "1 KiB file, 8 connections, 10 streams each", Streams("/1k.html", 8, 10), 1.3, 1.6),
        ("h2-files", "40 files of 10 KiB, 8 connections, 10 streams each", Streams("/forty/", 8, 10, 40), 0.8, 1.0),
    )
)

HTTP2_TRAFFIC: Final = Row(
    "h2-traffic",
    "HTTP/2: real traffic, 8 connections, 10 streams each",
    Setting.HOST,
    Http2Traffic(Browsing(SITE)),
    ("nginx-h2", "caddy-h2", "lighttpd-h2"),
    subject=OURS_H2,
    at_least=_both(AT_FIRST_AND_LATER, 0.6, "nginx-h2"),
    aim=_both(AT_FIRST_AND_LATER, 0.8, "nginx-h2"),
    workers=(1,),
)

HTTP2_LARGE: Final = tuple(
    Row(
        f"h2-large-{connections}",
        f"HTTP/2: 100 MB file, {connections} connection{'s' * (connections > 1)}",
        Setting.HOST,
        Downloads("/100m.bin", connections, times=20 // connections),
        ("nginx-h2", OURS, *OTHERS_H2),
        subject=OURS_H2,
        at_least=(
            *_both(BYTES, 1.1, "nginx-h2"),
            *_both(BYTES, 1.0, OURS),
            *_ahead_of_others("throughput", 1.0),
        ),
        aim=(*_both(BYTES, 1.2, "nginx-h2"), *_ahead_of_others("throughput", 2.0)),
        workers=(1,),
    )
    for connections in (1, 4)
)

HTTP2_OVER_KTLS: Final = (
    Row(
        "h2-big",
        "HTTP/2: 200 MB file, 1 connection",
        Setting.VM,
        Downloads("/200m.bin", 1),
        ("nginx-h2-ktls", "ktlsd-h2-off", OURS),
        subject=OURS_H2,
        at_least=(Limit("cpu per byte", 1.0, "nginx-h2-ktls"),),
        aim=(Limit("cpu per byte", 0.9, OURS),),
        workers=(1,),
    ),
    Row(
        "h2-small",
        "HTTP/2: 10 KiB file, 16 connections, 4 streams each",
        Setting.VM,
        Streams("/10k.html", 16, 4),
        ("nginx-h2-ktls", "ktlsd-h2-off"),
        subject=OURS_H2,
        at_least=_both(("requests", "cpu per request"), 0.8, "nginx-h2-ktls"),
        aim=_both(("requests", "cpu per request"), 1.0, "nginx-h2-ktls"),
        workers=(1,),
    ),
)
HTTP2_MEMORY: Final = Row(
    "h2-memory",
    "HTTP/2: resident memory per idle connection, 5,000 held",
    Setting.HOST,
    IdleMemory("/10k.html", 5000),
    ("nginx-h2", *OTHERS_H2),
    subject=OURS_H2,
    at_least=(Limit("memory per connection", 24),),
    aim=(Limit("memory per connection", 1.0, "nginx-h2"),),
    workers=(1,),
)

HTTP2_LATENCY: Final = tuple(
    Row(
        "h2-p99",
        f"HTTP/2: p99 of 10 KiB while 8 big downloads run on the same connection, {rate / MEGABYTE:g} MB/s each",
        setting,
        SharedLatency("/10k.html", _ASKED[setting], "/200m.bin", downloads=8, rate=rate),
        peers,
        subject=OURS_H2,
        at_least=(Limit("p99 growth", 3.0),),
        aim=(Limit("p99 growth", 1.5),),
        workers=(1,),
    )
    for setting, rate, peers in (
        (Setting.HOST, _DOWNLOAD_RATE[Setting.HOST], ("nginx-h2", *OTHERS_H2)),
        (Setting.VM, _DOWNLOAD_RATE[Setting.VM], ("nginx-h2-ktls",)),
    )
)
HTTP2: Final = (*HTTP2_SMALL, HTTP2_TRAFFIC, *HTTP2_LARGE, *HTTP2_OVER_KTLS, HTTP2_MEMORY, *HTTP2_LATENCY)

AS_USED: Final = (*TRAFFIC, *MOUNTED)
ROWS: Final = (
    *AS_USED,
    *BIG,
    MEDIUM,
    *LARGE,
    *SMALL,
    *KINDS,
    *HTTP2,
    *HANDSHAKES,
    MEMORY,
    *LATENCY,
    CONNECTIONS,
    START,
)


def select(setting: Setting, names: Sequence[str]) -> list[Row]:
    """The rows of a setting whose names are these or begin with one of them and a hyphen; all for no names.

    Raises KeyError for a name that no row of the setting has.
    """
    rows = [row for row in ROWS if row.setting is setting]
    if not names:
        return rows
    for name in names:
        if not any(_called(row, name) for row in rows):
            raise KeyError(name)
    return [row for row in rows if any(_called(row, name) for name in names)]


def _called(row: Row, name: str) -> bool:
    return row.name == name or (row.name.startswith(f"{name}-") and not any(r.name == name for r in ROWS))

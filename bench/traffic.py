"""What browsers and scanners ask a public site for: a tree of files, and a list of requests, from fixed seeds.

Strategy: nothing here knows a protocol or a server. A request is a target with its fields; the fields that differ
each time have placeholders, which the client of a protocol fills in (traffic.lua for HTTP/1.1).
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LISTED: Final = 200_000
"""Requests of a list: more than most servers answer in the seconds in which every file is new to them."""
SETTLED_SECONDS: Final = 3.0
LINK_SECONDS: Final = 300
SUFFIXES: Final = ("html", "css", "js", "json")
USER_AGENTS: Final = 50
_PLATFORMS: Final = (
    ("Windows NT 10.0; Win64; x64", "Windows"),
    ("Macintosh; Intel Mac OS X 10_15_7", "macOS"),
    ("X11; Linux x86_64", "Linux"),
    ("X11; CrOS x86_64 14541.0.0", "Chrome OS"),
    ("Linux; Android 10; K", "Android"),
)
_VERSIONS: Final = range(133, 143)
_SCANNED: Final = (
    "/wp-content/plugins/{}/readme.txt",
    "/.env.{}",
    "/{}.php",
    "/admin/{}/login.jsp",
    "/cgi-bin/{}",
    "/api/v1/{}",
    "/backup-{}.zip",
    "/vendor/phpunit/{}/eval-stdin.php",
)

Fields = tuple[tuple[str, str], ...]
"""Names and values; {referer}, {number} and {address} in a value stand for what differs."""


@dataclass(frozen=True)
class Tree:
    """Files of a lognormal size in folders of the same number of files."""

    name: str
    files: int
    folders: int
    median: int
    """Bytes."""
    sigma: float
    """Standard deviation of the size's logarithm; 0 for files that all have the median."""
    smallest: int = 64
    largest: int = 1024 * 1024

    def targets(self) -> list[str]:
        return [
            f"/{self.name}/{number % self.folders:04}/page-{number:06}.{SUFFIXES[number % len(SUFFIXES)]}"
            for number in range(self.files)
        ]

    def sizes(self) -> list[int]:
        source = random.Random(f"{self.name} sizes")
        mean = math.log(self.median)
        drawn = (source.lognormvariate(mean, self.sigma) for _ in range(self.files))
        return [min(max(round(size), self.smallest), self.largest) for size in drawn]

    def write(self, folder: Path) -> None:
        """Write the files with random bytes below `folder`, and wait for the disk."""
        for target, size in zip(self.targets(), self.sizes(), strict=True):
            file = folder / target.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(size))
        os.sync()

    def link(self, folder: Path, root: Path) -> None:
        """Have the tree in `root` under names that the kernel has never looked up, with all its pages in memory.

        Folders that were served before would still know which siblings of their files do not exist. Pages leave the
        memory of some machines after minutes without use, and the first server of a round would read from disk.
        """
        made, linked = str(folder / self.name), str(root / self.name)
        read = ["sh", "-c", 'exec find "$0" -type f -exec cat {} + >/dev/null', made]
        for command in (["rm", "-rf", linked], ["cp", "-al", made, linked], read):
            subprocess.run(command, check=True, capture_output=True, timeout=LINK_SECONDS)
        # No visitor comes in the second of a deployment; ktlsd trusts no times that are younger than two seconds.
        time.sleep(SETTLED_SECONDS)


@dataclass(frozen=True)
class Request:
    """`head` is the number of its fields in the list's heads."""

    head: int
    target: str
    referer: str


@dataclass(frozen=True)
class RequestList:
    heads: tuple[Fields, ...]
    requests: tuple[Request, ...]

    def http1_heads(self, host: str) -> str:
        """The heads as HTTP/1.1 (RFC 9112 section 3) has them, as traffic.lua reads them."""
        return "".join(
            "\n".join(
                ["GET {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in fields), "---\n"]
            )
            for fields in self.heads
        )

    def lines(self) -> str:
        """The requests as traffic.lua reads them."""
        return "".join(f"{one.head + 1}\t{one.target}\t{one.referer}\n" for one in self.requests)

    def uris(self, origin: str, start: int = 0, count: int | None = None) -> str:
        """`count` targets or all, one a line from number `start` on and around, as `h2load -i` reads them.

        h2load sends the same fields with all of them, and each of its clients begins at the first line.
        """
        around = (*self.requests[start:], *self.requests[:start])
        return "".join(f"{origin}{one.target}\n" for one in around[:count])


def user_agents() -> list[tuple[str, str, int]]:
    """User agent, platform and version of each."""
    return [
        (
            f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version}.0.0.0 Safari/537.36",
            name,
            version,
        )
        for (system, name), version in itertools.product(_PLATFORMS, _VERSIONS)
    ]


def browser(user_agent: str, platform: str, version: int) -> Fields:
    """The fields of a navigation in Chromium, in its order, with a cookie that differs each time."""
    return (
        ("Connection", "keep-alive"),
        ("sec-ch-ua", f'"Chromium";v="{version}", "Not=A?Brand";v="24"'),
        ("sec-ch-ua-mobile", "?1" if platform == "Android" else "?0"),
        ("sec-ch-ua-platform", f'"{platform}"'),
        ("Upgrade-Insecure-Requests", "1"),
        ("User-Agent", user_agent),
        (
            "Accept",
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
            "application/signed-exchange;v=b3;q=0.7",
        ),
        ("Sec-Fetch-Site", "same-origin"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-User", "?1"),
        ("Sec-Fetch-Dest", "document"),
        ("Referer", "https://www.example.org{referer}"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Accept-Language", "en-US,en;q=0.9"),
        ("Cookie", "consent=yes; session=5f1c9d2e7ab34086{number}; visits={number}"),
    )


@functools.cache
def browsing(tree: Tree) -> RequestList:
    """Visitors of a tree: popularity by Zipf's law with s = 1, and one of 50 browsers."""
    source = random.Random(f"{tree.name} requests")
    targets = tree.targets()
    source.shuffle(targets)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, tree.files + 1)))
    drawn = source.choices(targets, cum_weights=weights, k=LISTED)
    referers = source.choices(targets, cum_weights=weights, k=LISTED)
    heads = source.choices(range(USER_AGENTS), k=LISTED)
    return RequestList(tuple(browser(*one) for one in user_agents()), tuple(map(Request, heads, drawn, referers)))


@functools.cache
def scanning() -> RequestList:
    """Scanners: paths that do not exist, another one each time."""
    fields = (("User-Agent", "Mozilla/5.0 zgrab/0.x"), ("Accept", "*/*"), ("Accept-Encoding", "gzip"))
    source = random.Random("scanned paths")
    targets = (source.choice(_SCANNED).format(f"{source.getrandbits(64):016x}") for _ in range(LISTED))
    return RequestList((fields,), tuple(Request(0, target, "/") for target in targets))


def forwarded(targets: list[str]) -> RequestList:
    """Requests that a proxy passes on: client address and request id differ each time."""
    fields = (
        *browser(*user_agents()[0])[1:],
        ("X-Forwarded-For", "{address}"),
        ("X-Forwarded-Proto", "https"),
        ("X-Request-ID", "7c0e1f52-93b4-4d1a-{number}"),
    )
    return RequestList((fields,), tuple(Request(0, target, "/") for target in targets))

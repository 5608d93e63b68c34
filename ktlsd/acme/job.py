"""The task of one run of the client, as JSON from the process that serves to the one that orders.

Strategy: it is written to the client's standard input, not to its command line, which every user can read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from ktlsd.config.options import AcmeOptions

DONE: Final = 0
FAILED: Final = 1
BUSY: Final = 75
"""Exit status if another process orders (EX_TEMPFAIL of sysexits.h)."""


class Job(Struct, frozen=True):
    folder: Path
    """The state folder of ACME."""
    options: AcmeOptions
    certificates: tuple[tuple[str, ...], ...]
    """The names of each."""
    http_answers: Path | None
    """The folder that is served for http-01; None if plain HTTP is not served."""
    forced: bool = False
    """True to try at once what has failed."""


def encode(job: Job) -> bytes:
    return msgspec.json.encode(job, enc_hook=os.fspath) + b"\n"


def decode(line: bytes) -> Job:
    def read(kind: type, value: Any) -> Any:
        return kind(value)

    return msgspec.json.decode(line, type=Job, dec_hook=read)

"""Certificates are ordered by a process of their own: started when something is due, and read when it has ended.

Strategy: the records in the state folder say when that is; between orders ACME costs neither memory nor time. One
process of a server has an Orders: the parent of workers, or the only one. It never waits for the client.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from ktlsd.acme import plan
from ktlsd.acme.folder import of_settings, terms
from ktlsd.acme.job import BUSY, DONE, Job, encode
from ktlsd.acme.names import Wanted, wanted
from ktlsd.acme.plan import Record
from ktlsd.acme.words import state, trouble, waiting
from ktlsd.config.options import AcmeOptions, Settings
from ktlsd.config.refusal import cause
from ktlsd.logs.error_log import NOTICE

log = logging.getLogger("ktlsd")

_BUSY_SECONDS: Final = 30.0
"""Pause while another process orders."""
_LONGEST_OUTPUT: Final = 65536
_LONGEST_RUN_SECONDS: Final = 6 * 3600.0
"""For the orders of hundreds of sites, one after the other, or a state folder that hangs."""


class Orders:
    """The orders of one server. The creator closes it."""

    def __init__(self, settings: Settings, *, http: bool) -> None:
        """`http` is whether plain HTTP is served, and http-01 can be answered."""
        self._http = http
        self._run: _Run | None = None
        self._broken = 0
        """Runs in a row that failed as a whole."""
        self._not_before = 0.0
        self._due = 0.0
        self.note = ""
        """The troubles, for the status of the service; "" if there are none."""
        self._settings: Settings | None = None
        self._forced = False
        self.use(settings)
        self._forced = False

    def use(self, settings: Settings) -> None:
        """Follow the settings in force; if they are read anew, failed orders are tried again at once."""
        if settings is self._settings:
            return
        self._settings = settings
        self._forced = True
        self._broken = 0
        self._not_before = 0.0
        self._options = settings.acme or AcmeOptions()
        self._wanted = wanted(settings)
        self._folder = of_settings(settings)
        answers = settings.acme_challenges or self._folder.http_answers
        self._answers = answers if self._http else None
        self._records: dict[str, Record] = {}
        self._due = 0.0
        self._is_new = True
        """True until the records were read with these settings."""

    @property
    def running(self) -> bool:
        """True while certificates are ordered."""
        return self._run is not None

    def tick(self) -> bool:
        """Start the client if something is due, or see what it has done; True if there is a new certificate.

        Never waits. To be called every few seconds.
        """
        try:
            if self._run is not None:
                return self._follow(self._run)
            now = time.time()
            if now >= max(self._not_before, self._due):
                self._read(now)
                if self._is_new:
                    self._is_new = False
                    self._tell_waiting(now)
                if self._forced or now >= self._due:
                    self._start()
        except OSError as error:
            self._fail(cause(error))
        except Exception:
            # A defect here must not end the server.
            self._not_before = time.time() + plan.DAY
            log.exception("a defect in ktlsd's orders of certificates, please report it; next try in a day")
        return False

    def _follow(self, run: _Run) -> bool:
        """Log what the client says; True if it has ended, with a new certificate."""
        if time.monotonic() - run.began > _LONGEST_RUN_SECONDS:
            run.client.kill()
        ended = run.client.poll() is not None
        for line in run.output.lines():
            log.log(NOTICE, "%s", line)
        return ended and self._collect(run)

    def _read(self, now: float) -> None:
        """The records, and when something is due by them."""
        self._due = math.inf
        for certificate in self._wanted:
            record = self._folder.read(certificate.name)
            self._records[certificate.name] = record or Record()
            due = now if record is None else plan.next_step(record, terms(certificate, self._options), now)
            self._due = min(self._due, due)

    def _start(self) -> None:
        """Raises OSError."""
        names = tuple(certificate.names for certificate in self._wanted)
        job = encode(Job(self._folder.path, self._options, names, self._answers, self._forced))
        self._forced = False
        output, errors = _Stream("output"), _Stream("errors")
        # Wherever this process has ktlsd from; -P keeps the current folder out.
        paths = [os.fspath(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        client = subprocess.Popen(
            [sys.executable, "-P", "-m", "ktlsd.acme.client"],
            stdin=subprocess.PIPE,
            stdout=output.file,
            stderr=errors.file,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            cwd="/",
        )
        self._run = _Run(client, output, errors, time.monotonic())
        if client.stdin is not None:
            # Shorter than a pipe. It stays open: the client ends with this process.
            os.write(client.stdin.fileno(), job)

    def _collect(self, run: _Run) -> bool:
        status, errors = run.client.returncode, run.errors.lines()
        run.close()
        self._run = None
        now = time.time()
        before = dict(self._records)
        self._read(now)
        if status == BUSY:
            log.debug("another process orders certificates")
            self._not_before = now + _BUSY_SECONDS
        elif status != DONE:
            self._fail(errors[-1] if errors else f"the client ended with status {status}")
            return False
        else:
            self._broken = 0
        renewed = False
        for certificate in self._wanted:
            renewed = self._tell(certificate, before.get(certificate.name, Record()), now) or renewed
        self._take_note(now)
        return renewed

    def _fail(self, text: str) -> None:
        """The run as a whole failed; nothing of it may be on disk."""
        pause = min(plan.MINUTE * 2.0 ** min(self._broken, 20), plan.DAY)
        self._broken += 1
        self._not_before = time.time() + pause
        self.note = f"certificates are not renewed: {text}"
        log.error("certificates are not renewed: %s; next try in %g s", text, pause)

    def _tell(self, certificate: Wanted, before: Record, now: float) -> bool:
        """Log what a run has changed; True for a new certificate."""
        record, names = self._records[certificate.name], certificate.label
        if record.ends and (record.begins, record.ends) != (before.begins, before.ends):
            log.log(NOTICE, "certificate for %s: %s", names, state(record, now))
            return True
        if record.failures > before.failures:
            log.error("certificate for %s: %s", names, trouble(record, now))
        return False

    def _tell_waiting(self, now: float) -> None:
        """Log the certificates that an earlier failure keeps from being ordered now."""
        for certificate in self._wanted:
            record, asked = self._records[certificate.name], terms(certificate, self._options)
            if plan.reason(record, asked, now) and not plan.may_try(record, asked.directory, now, forced=self._forced):
                log.error("certificate for %s: %s", certificate.label, waiting(record, now))
        self._take_note(now)

    def _take_note(self, now: float) -> None:
        troubled = [
            f"certificate for {certificate.name}: {trouble(record, now)}"
            for certificate in self._wanted
            if (record := self._records[certificate.name]).failures
        ]
        self.note = "; ".join(troubled)

    def close(self) -> None:
        """End the client, if it runs: another one goes on with what it left."""
        if self._run is not None:
            self._run.client.kill()
            self._run.client.wait()
            self._run.close()
            self._run = None


class _Stream:
    """The output of the client on one of its streams, in memory: a full disk is no reason to lose it."""

    def __init__(self, name: str) -> None:
        self.file = os.memfd_create(name)
        self._read = 0

    def lines(self) -> list[str]:
        """The lines that are new and complete."""
        data = os.pread(self.file, _LONGEST_OUTPUT, self._read)
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        return data.decode("utf-8", "replace").splitlines()


class _Run(Struct, frozen=True):
    """The client while it runs, with all that it prints."""

    client: subprocess.Popen[bytes]
    output: _Stream
    errors: _Stream
    began: float

    def close(self) -> None:
        if self.client.stdin is not None:
            self.client.stdin.close()
        os.close(self.output.file)
        os.close(self.errors.file)

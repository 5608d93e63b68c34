"""A client's sample on another file system, beside the same sample on the disk's.

Strategy: two new servers of a kind, one with its root on each; the client takes a sample of the one, then the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.clients import Bulk, ClientError, Target, Wrk
from bench.file_systems import FileSystem
from bench.metrics import Sample
from bench.servers import Server
from bench.site import Site


@dataclass(frozen=True)
class Mounted:
    """The client's one file on another file system."""

    kind: FileSystem
    client: Wrk | Bulk

    serial = False
    warms_up = True

    def prepare(self, site: Site) -> None:
        self.client.prepare(site)
        site.on(self.kind, self.client.path)

    def check(self, server: Server, site: Site) -> str:
        return site.unmounted.get(self.kind) or self.client.check(server, site)

    def measure(self, target: Target) -> Sample:
        with target.fresh() as disk, target.fresh(target.site.on(self.kind, self.client.path)) as mounted:
            there = self.client.measure(replace(target, server=disk))
            disk.wait_until_still()
            if reason := self.client.check(mounted, target.site):
                raise ClientError(reason)
            here = self.client.measure(replace(target, server=mounted))
            mounted.wait_until_still()
        [figure] = here.keys() & {"cpu per request", "cpu per byte"}
        if here[figure] == 0:
            raise ClientError("no processor time was counted")
        return {**here, "as on the disk": there[figure] / here[figure]}

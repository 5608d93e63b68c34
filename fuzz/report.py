"""What libFuzzer says about a run, as a row of a table: pure.

Strategy: the last line of its status and the statistics at the end are read; what is not there counts as nothing.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HEADER: Final = """\
| target | executions | minutes | a second | edges | inputs | outcome |
| --- | --: | --: | --: | --: | --: | --- |"""

_EXECUTIONS: Final = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_STATUS: Final = re.compile(r"cov: (\d+) ft: \d+ corp: (\d+)")


class Outcome(NamedTuple):
    """One run of a target."""

    target: str
    status: int
    """Of the process: 0 when nothing was found."""
    seconds: float
    executions: int
    edges: int
    """Of the instrumented code, that were reached."""
    inputs: int
    """That reach something which no other does."""

    def as_row(self) -> str:
        result = "nothing found" if self.status == 0 else f"FOUND SOMETHING ({self.status})"
        rate = self.executions / self.seconds if self.seconds else 0.0
        return (
            f"| {self.target} | {self.executions:,} | {self.seconds / 60:.1f} | {rate:,.0f} | {self.edges:,} |"
            f" {self.inputs} | {result} |"
        )


def parse(target: str, status: int, seconds: float, output: str) -> Outcome:
    executions = _EXECUTIONS.search(output)
    edges, inputs = (int(number) for number in (_STATUS.findall(output) or [("0", "0")])[-1])
    return Outcome(target, status, seconds, int(executions[1]) if executions else 0, edges, inputs)

"""One process of atheris: `python -m fuzz.worker TARGET [libFuzzer's arguments]`; the fuzzer ends it.

Strategy: ktlsd and h11 are instrumented while they are imported, all else runs as it is.
"""

from __future__ import annotations

import sys

import atheris

from fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv[1]]
    with atheris.instrument_imports(include=["ktlsd", "h11"]):
        check = target.load()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

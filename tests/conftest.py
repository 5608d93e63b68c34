"""What all tests share."""

import contextlib
import signal

import pytest

# The name under which pytest knows this directory depends on whether it is a package.
pytest_plugins = [f"{__package__}.vm.plugin" if __package__ else "vm.plugin"]

# A shell without job control starts background jobs with SIGINT ignored, nohup with SIGHUP, and so would be whatever
# tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine exceeds the 200 ms that hypothesis allows each example by default. A guest may be without it.
with contextlib.suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("ktlsd", deadline=None)
    settings.load_profile("ktlsd")


@pytest.fixture(params=["HTTP/1.1", "HTTP/2.0"], ids=["http1", "http2"])
def protocol(request: pytest.FixtureRequest) -> str:
    """A test that asks for this runs over both protocols: see protocols.py."""
    return str(request.param)

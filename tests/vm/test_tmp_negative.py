import os, time
import pytest, trio

pytestmark = pytest.mark.ktls


@pytest.mark.parametrize("v", ["TLSv1.2", "TLSv1.3"])
async def test_async(v):
    await trio.sleep(0.01)
    print("hello from", v)
    assert v == "TLSv1.2", "inner text"


class TestClass:
    @pytest.mark.parametrize("a", [1])
    @pytest.mark.parametrize("b", [2])
    def test_m(self, a, b):
        pass


def test_skip():
    pytest.skip("inner reason")


@pytest.mark.xfail(strict=True)
def test_xf():
    assert 0


@pytest.fixture
def bad():
    yield 1
    raise RuntimeError("teardown trouble")


def test_teardown(bad):
    pass


def test_panic():
    if os.environ.get("KTLSD_T") == "panic":
        open("/proc/sysrq-trigger", "w").write("c")
    if os.environ.get("KTLSD_T") == "hang":
        time.sleep(1000)


def test_after():
    pass

"""What people really download with: curl, wget, aria2 and ffmpeg get every byte, whole, resumed and in parts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS
from tests.serving import START_SECONDS, WAIT_SECONDS, Running, run_to_end, serving

LARGE: Final = 12_000_001
TEXT: Final = "".join(f"line {number} of a script that compresses well\n" for number in range(2_000))
# Names that a page has to quote, a link to encode and a client to decode.
TREE: Final = (
    "a.txt",
    "sub/b & 'c'.txt",
    "sub/100%/d?e#f.txt",
    "sub/100%/ünï çödé.txt",
    "javascript:alert(1)/g+h=i.txt",
    "sub/-option.txt",
    'sub/"quoted".txt',
)
FILM_SECONDS: Final = 10
ONE_FRAME: Final = ("-frames:v", "1", "-f", "hash", "-hash", "sha256", "-")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("clients")
    root = base / "root"
    root.mkdir()
    (root / "script.js").write_text(TEXT)
    made = run_to_end("compress", str(root), state=base / "state")
    assert made.returncode == 0, made.stderr
    (root / "large.bin").write_bytes(os.urandom(LARGE))
    for name in TREE:
        path = root / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000) + name.encode())
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Running]:
    with serving(root, "--listing", "--log-level", "debug", state=root.parent / "state") as running:
        yield running


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a client to its end, in a folder and without the user's settings for it."""
    return subprocess.run(
        words,
        cwd=folder,
        env=os.environ | {"HOME": str(folder), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=START_SECONDS,
        check=False,
    )


def connections(server: Running) -> int:
    return sum(" ktls tx=" in line for line in server.log)


# --- curl -------------------------------------------------------------------------------------------------------------


def curl(
    server: Running, path: str, *words: str, folder: Path, protocol: str = HTTP_2, output: str = "out"
) -> dict[str, str]:
    """Download into `output`; what curl -w and the response head say, names in lower case."""
    if protocol == HTTP_1:
        words = ("--http1.1", *words)
    facts = "%{stderr}http_code=%{http_code}\nsize=%{size_download}\nhttp_version=%{http_version}\n"
    common = ["curl", "-sS", "-q", "--cacert", str(server.certificate), "-D", "head", "-o", output, "-w", facts]
    ended = run(*common, *words, server.url(path), folder=folder)
    assert ended.returncode == 0, ended.stderr
    head = (folder / "head").read_bytes().decode("latin-1").split("\r\n\r\n")[-2]
    fields = (line.split(": ", 1) for line in head.split("\r\n")[1:])
    said = dict(line.split("=", 1) for line in ended.stderr.splitlines())
    if "--http1.0" not in words:
        assert said["http_version"] == ("1.1" if protocol == HTTP_1 else "2")
    return {name.lower(): value for name, value in fields} | said


@pytest.mark.parametrize("words", [(), ("--tls-max", "1.2"), ("--limit-rate", "20M")])
def test_curl_whole(server: Running, root: Path, tmp_path: Path, protocol: str, words: tuple[str, ...]) -> None:
    whole_by_curl(server, root, tmp_path, protocol, *words)


def test_curl_whole_over_http_1_0(server: Running, root: Path, tmp_path: Path) -> None:
    whole_by_curl(server, root, tmp_path, HTTP_1, "--http1.0")


def whole_by_curl(server: Running, root: Path, tmp_path: Path, protocol: str, *words: str) -> None:
    facts = curl(server, "/large.bin", *words, folder=tmp_path, protocol=protocol)
    assert (facts["http_code"], facts["size"], facts["content-length"]) == ("200", str(LARGE), str(LARGE))
    assert sha256(tmp_path / "out") == sha256(root / "large.bin")


def test_curl_listing_over_http_1_0(server: Running, tmp_path: Path) -> None:
    facts = curl(server, "/tree/", "--http1.0", "-H", "Accept: application/json", folder=tmp_path)
    assert "transfer-encoding" not in facts
    assert facts["connection"] == "close"
    assert [row["name"] for row in json.loads((tmp_path / "out").read_bytes())] == [
        "javascript:alert(1)",
        "sub",
        "a.txt",
    ]


@pytest.mark.parametrize("missing", [1, 5_000_000, LARGE - 1])
def test_curl_resumes(server: Running, root: Path, tmp_path: Path, protocol: str, missing: int) -> None:
    (tmp_path / "out").write_bytes((root / "large.bin").read_bytes()[:-missing])
    facts = curl(server, "/large.bin", "-C", "-", folder=tmp_path, protocol=protocol)
    assert (facts["http_code"], facts["size"]) == ("206", str(missing))
    assert sha256(tmp_path / "out") == sha256(root / "large.bin")


def test_curl_several_ranges(server: Running, root: Path, tmp_path: Path, protocol: str) -> None:
    facts = curl(server, "/large.bin", "-r", "0-99,1000000-3999999,-70000", folder=tmp_path, protocol=protocol)
    assert facts["http_code"] == "206"
    data = (tmp_path / "out").read_bytes()
    assert len(data) == int(facts["content-length"])
    boundary = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-f]+)", facts["content-type"])
    assert boundary
    first, *parts, end = data.split(b"\r\n--" + boundary[1].encode())
    assert (first, end) == (b"", b"--\r\n")
    whole = (root / "large.bin").read_bytes()
    for part, (start, stop) in zip(parts, [(0, 100), (1_000_000, 4_000_000), (LARGE - 70_000, LARGE)], strict=True):
        fields, _, body = part.partition(b"\r\n\r\n")
        assert f"content-range: bytes {start}-{stop - 1}/{LARGE}" in fields.decode().lower().split("\r\n")
        assert hashlib.sha256(body).digest() == hashlib.sha256(whole[start:stop]).digest()


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, "zstd"),
        ("zstd", "zstd"),
        ("br", "br"),
        ("gzip", "gzip"),
        ("gzip, br;q=0.5", "gzip"),
        ("identity", None),
        ("compress", None),
    ],
)
def test_curl_gets_the_coding_that_it_asks_for(
    server: Running, root: Path, tmp_path: Path, protocol: str, accepted: str | None, coding: str | None
) -> None:
    words = () if accepted is None else ("-H", f"Accept-Encoding: {accepted}")
    facts = curl(server, "/script.js", "--compressed", *words, folder=tmp_path, protocol=protocol)
    assert facts.get("content-encoding") == coding
    assert facts["vary"] == "Accept-Encoding"
    assert sha256(tmp_path / "out") == sha256(root / "script.js")
    suffix = {None: "", "gzip": ".gz", "br": ".br", "zstd": ".zst"}[coding]
    assert int(facts["content-length"]) == (root / f"script.js{suffix}").stat().st_size


def test_curl_asks_for_what_is_newer(server: Running, root: Path, tmp_path: Path, protocol: str) -> None:
    changed = (root / "script.js").stat().st_mtime
    for when, expected in ((changed + 1, ("304", "0")), (changed - 10, ("200", str(len(TEXT))))):
        (tmp_path / "known").touch()
        os.utime(tmp_path / "known", (when, when))
        facts = curl(server, "/script.js", "-z", "known", folder=tmp_path, protocol=protocol)
        assert (facts["http_code"], facts["size"]) == expected


def test_curl_compares_etags(server: Running, root: Path, tmp_path: Path, protocol: str) -> None:
    words = ("--etag-save", "tag", "--etag-compare", "tag")
    (tmp_path / "tag").touch()
    assert curl(server, "/script.js", *words, folder=tmp_path, protocol=protocol)["http_code"] == "200"
    again = curl(server, "/script.js", *words, folder=tmp_path, protocol=protocol, output="again")
    assert (again["http_code"], again["size"]) == ("304", "0")
    assert sha256(tmp_path / "out") == sha256(root / "script.js")


@pytest.mark.parametrize(
    ("protocol", "words"),
    [*((protocol, words) for protocol in PROTOCOLS for words in ((), ("-r", "5-9"))), (HTTP_1, ("--http1.0",))],
)
@pytest.mark.parametrize("path", ["/large.bin", "/script.js", "/tree/", "/nothing"])
def test_curl_head(server: Running, tmp_path: Path, protocol: str, path: str, words: tuple[str, ...]) -> None:
    common = [word for word in words if word.startswith("--")]
    whole = curl(server, path, *common, folder=tmp_path, protocol=protocol)
    head = curl(server, path, "-I", *words, folder=tmp_path, protocol=protocol)
    assert head.pop("size") == "0"
    # With HEAD, a field that depends on the content may be left out (RFC 9110 section 9.3.2).
    for only_once in ("size", "transfer-encoding", "connection", "date"):
        whole.pop(only_once, None)
        head.pop(only_once, None)
    assert head == whole


def test_curl_keeps_its_connection(server: Running, root: Path, tmp_path: Path) -> None:
    paths = ("/large.bin", "/tree/", "/nothing", "/script.js", "/large.bin")
    words = [word for place, path in enumerate(paths) for word in (server.url(path), "-o", f"out{place}")]
    ended = run("curl", "-sS", "--cacert", str(server.certificate), "-w", "%{num_connects} ", *words, folder=tmp_path)
    assert ended.stdout.split() == ["1", "0", "0", "0", "0"], ended.stderr
    assert sha256(tmp_path / "out0") == sha256(tmp_path / "out4") == sha256(root / "large.bin")
    assert sha256(tmp_path / "out3") == sha256(root / "script.js")


def test_curl_upload_is_refused_before_its_body(server: Running, root: Path, tmp_path: Path, protocol: str) -> None:
    facts = curl(server, "/upload.bin", "-T", str(root / "large.bin"), folder=tmp_path, protocol=protocol)
    assert (facts["http_code"], facts["allow"]) == ("405", "GET, HEAD, OPTIONS")
    assert not (root / "upload.bin").exists()


# --- wget -------------------------------------------------------------------------------------------------------------


def wget(server: Running, *words: str, folder: Path) -> str:
    """Run wget with these options; what it says."""
    common = ["wget", "--no-config", "--tries=1", f"--ca-certificate={server.certificate}"]
    ended = run(*common, *words, folder=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def kill_half_way(words: list[str], part: Path, *more: Path) -> None:
    """Start a client, and kill it when it has written 1 MB of what it loads, and some of `more`."""
    with subprocess.Popen(words, cwd=part.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        deadline = time.monotonic() + WAIT_SECONDS
        while not all(path.exists() for path in (part, *more)) or part.stat().st_blocks * 512 < 1_000_000:
            assert client.poll() is None, "it ended"
            assert time.monotonic() < deadline, "nothing came"
            time.sleep(0.01)
        client.kill()
        assert client.wait() == -signal.SIGKILL


def test_wget_goes_on_where_it_was_killed(server: Running, root: Path, tmp_path: Path) -> None:
    part = tmp_path / "large.bin"
    url = server.url("/large.bin")
    certificate = f"--ca-certificate={server.certificate}"
    kill_half_way(["wget", "--no-config", "-q", certificate, "--limit-rate=4m", url], part)
    had = part.stat().st_size
    assert had < LARGE
    said = wget(server, "-c", url, folder=tmp_path)
    assert "206 Partial Content" in said
    assert f"Length: {LARGE}" in said
    assert f"{LARGE - had} (" in said
    assert sha256(part) == sha256(root / "large.bin")
    assert "already fully retrieved" in wget(server, "-c", url, folder=tmp_path)


def test_wget_loads_what_is_newer(server: Running, root: Path, tmp_path: Path) -> None:
    url = server.url("/script.js")
    assert "200 OK" in wget(server, "-N", url, folder=tmp_path)
    assert int((tmp_path / "script.js").stat().st_mtime) == int((root / "script.js").stat().st_mtime)
    assert "304 Not Modified" in wget(server, "-N", url, folder=tmp_path)


def test_wget_follows_a_listing_through_all_folders(server: Running, root: Path, tmp_path: Path) -> None:
    words = ("-r", "-np", "-nH", "--cut-dirs=1", "--reject=index.html*", "--restrict-file-names=nocontrol")
    wget(server, *words, server.url("/tree/"), folder=tmp_path)
    loaded = {str(path.relative_to(tmp_path)): sha256(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert loaded == {name: sha256(root / "tree" / name) for name in TREE}


# --- aria2 ------------------------------------------------------------------------------------------------------------

ARIA2: Final = ("aria2c", "--no-conf", "--check-certificate=false", "-x4", "-s4", "-k1M")


def test_aria2_loads_over_four_connections(server: Running, root: Path, tmp_path: Path) -> None:
    before = connections(server)
    ended = run(*ARIA2, "--max-overall-download-limit=16M", server.url("/large.bin"), folder=tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert sha256(tmp_path / "large.bin") == sha256(root / "large.bin")
    assert connections(server) - before >= 4


def test_aria2_goes_on_where_it_was_killed(server: Running, root: Path, tmp_path: Path) -> None:
    part = tmp_path / "large.bin"
    words = [*ARIA2, "--file-allocation=none", "--auto-save-interval=1", server.url("/large.bin")]
    kill_half_way([*words, "--max-overall-download-limit=4M"], part, tmp_path / "large.bin.aria2")
    ended = run(*words, "-c", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert sha256(part) == sha256(root / "large.bin")


# --- ffmpeg -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(root: Path) -> Path:
    """An MP4 file whose table of contents stands at its end, so that a reader has to seek twice."""
    path = root / "film.mp4"
    source = f"testsrc=size=320x240:rate=25:duration={FILM_SECONDS},noise=alls=30:allf=t"
    words = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "mpeg4", "-q:v", "2", str(path)]
    ended = run(*words, folder=root.parent)
    assert ended.returncode == 0, ended.stderr
    data = path.read_bytes()
    assert len(data) > 5_000_000
    assert data.index(b"mdat") < 100 < 4_000_000 < data.index(b"moov")
    return path


def test_ffprobe_reads_the_end_first(server: Running, film: Path, tmp_path: Path) -> None:
    words = ("ffprobe", "-v", "error", "-of", "json", "-show_entries", "format=duration,size,nb_streams:stream")
    said = [run(*words, place, folder=tmp_path) for place in (server.url("/film.mp4"), str(film))]
    assert [ended.returncode for ended in said] == [0, 0], said[0].stderr
    over_https, local = (json.loads(ended.stdout) for ended in said)
    assert over_https == local
    assert float(local["format"]["duration"]) == FILM_SECONDS


@pytest.mark.parametrize("second", ["0", "5", "9.5"])
def test_ffmpeg_seeks(server: Running, film: Path, tmp_path: Path, second: str) -> None:
    hashes = []
    for place in (server.url("/film.mp4"), str(film)):
        ended = run("ffmpeg", "-v", "error", "-ss", second, "-i", place, *ONE_FRAME, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
        hashes.append(ended.stdout)
    assert re.fullmatch("SHA256=[0-9a-f]{64}\n", hashes[0])
    assert hashes[0] == hashes[1]


def test_ffmpeg_cannot_read_it_without_ranges(server: Running, film: Path, tmp_path: Path) -> None:
    ended = run("ffmpeg", "-v", "error", "-seekable", "0", "-i", server.url("/film.mp4"), *ONE_FRAME, folder=tmp_path)
    assert "SHA256" not in ended.stdout, "the film is no test of seeking"

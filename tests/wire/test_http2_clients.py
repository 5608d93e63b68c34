"""Other implementations of HTTP/2 as clients over TLS: node's http2 module, httpx, curl. Chromium is in tests/browser/,
clients without TLS in test_http2_prior_knowledge.py.

Strategy: each client is a small program in a process of its own, which prints what it got as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import WAIT_SECONDS, Running, serving

MANY = 60
BIG = os.urandom(2_000_003)

# Everything over one session: files side by side, conditions, ranges, HEAD, uploads, trailers, a reset, PING.
NODE = """
const http2 = require("http2"), crypto = require("crypto"), fs = require("fs");
const [url, authority, many] = process.argv.slice(2);
const session = http2.connect(url, { ca: fs.readFileSync(authority) });
const ask = (path, fields = {}, body = null, after = null) => new Promise((resolve, reject) => {
    const options = after === null ? {} : { waitForTrailers: true };
    const stream = session.request({ ":path": path, ...fields }, { endStream: body === null, ...options });
    const hash = crypto.createHash("sha256");
    let head, size = 0;
    stream.on("response", fields => { head = fields; });
    stream.on("data", data => { hash.update(data); size += data.length; });
    stream.on("error", error => reject(new Error(path + ": " + error.message)));
    stream.on("wantTrailers", () => stream.sendTrailers(after));
    stream.on("close", () => resolve({ status: head[":status"], head, size, hash: hash.digest("hex") }));
    if (body !== null) stream.end(body);
});
const reset = path => new Promise(resolve => {
    const stream = session.request({ ":path": path });
    stream.once("data", () => stream.close(http2.constants.NGHTTP2_CANCEL));
    stream.on("close", () => resolve(stream.rstCode));
});
const ping = () => new Promise((resolve, reject) => session.ping(error => error ? reject(error) : resolve()));
(async () => {
    const said = { alpn: session.alpnProtocol };
    const paths = Array.from({ length: Number(many) }, (_, number) => "/" + number + ".txt");
    said.many = (await Promise.all([...paths, "/big"].map(path => ask(path)))).map(one => one.hash);
    said.alpn = session.alpnProtocol;
    said.head = await ask("/big", { ":method": "HEAD" });
    said.part = await ask("/big", { range: "bytes=1000-1999" });
    said.same = await ask("/big", { "if-none-match": said.head.head.etag });
    said.absent = await ask("/absent");
    said.small = await ask("/0.txt", { ":method": "POST" }, "body");
    said.trailers = await ask("/0.txt", { ":method": "POST" }, "body", { "x-after": "1" });
    said.large = await ask("/0.txt", { ":method": "PUT", "content-length": 1000000 }, Buffer.alloc(1000000));
    said.reset = await reset("/big");
    await ping();
    said.last = await ask("/0.txt");
    console.log(JSON.stringify(said));
    session.close();
})().catch(error => { console.error(error); process.exit(1); });
"""

HTTPX = """
import hashlib, json, ssl, sys
import httpx
url, authority, many = sys.argv[1:]
with httpx.Client(http2=True, http1=False, verify=ssl.create_default_context(cafile=authority)) as client:
    said = {"many": []}
    for path in [*(f"/{number}.txt" for number in range(int(many))), "/big"]:
        response = client.get(url + path)
        said["many"].append(hashlib.sha256(response.content).hexdigest())
    said["alpn"] = response.http_version
    said["part"] = len(client.get(url + "/big", headers={"Range": "bytes=1000-1999"}).content)
    said["small"] = client.post(url + "/0.txt", content=b"body").status_code
    said["head"] = client.head(url + "/big").headers["content-length"]
    said["cookies"] = client.get(url + "/0.txt", headers=[("cookie", "a=1"), ("cookie", "b=2")]).status_code
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients") / "www"
    folder.mkdir()
    for number in range(MANY):
        (folder / f"{number}.txt").write_text(f"file {number}\n" * number)
    (folder / "big").write_bytes(BIG)
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(root, "--log-level", "debug", state=tmp_path_factory.mktemp("state")) as running:
        yield running


def told(server: Running, *program: str) -> Any:
    """The output of a client."""
    url = f"https://localhost:{server.port}"
    command = (*program, url, str(server.certificate), str(MANY))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def hashes(root: Path) -> list[str]:
    paths = [*(root / f"{number}.txt" for number in range(MANY)), root / "big"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def connections(server: Running, since: int) -> int:
    return sum(" ktls tx=" in line for line in server.log[since:])


def test_node(server: Running, root: Path, tmp_path: Path) -> None:
    program, since = tmp_path / "client.cjs", len(server.log)
    program.write_text(NODE)
    said = told(server, "node", str(program))
    assert said["alpn"] == "h2"
    assert said["many"] == hashes(root)
    assert (said["head"]["status"], said["head"]["size"]) == (200, 0)
    assert said["head"]["head"]["content-length"] == str(len(BIG))
    assert (said["part"]["status"], said["part"]["hash"]) == (206, hashlib.sha256(BIG[1000:2000]).hexdigest())
    assert (said["same"]["status"], said["same"]["size"]) == (304, 0)
    assert said["absent"]["status"] == 404
    assert [said[name]["status"] for name in ("small", "trailers", "large")] == [405] * 3
    assert said["reset"] == 8
    assert said["last"]["status"] == 200
    assert connections(server, since) == 1


def test_httpx(server: Running, root: Path) -> None:
    since = len(server.log)
    said = told(server, sys.executable, "-c", HTTPX)
    assert said["alpn"] == "HTTP/2"
    assert said["many"] == hashes(root)
    assert (said["part"], said["head"]) == (1000, str(len(BIG)))
    assert (said["small"], said["cookies"]) == (405, 200)
    assert connections(server, since) == 1


def test_curl_downloads_side_by_side(server: Running, root: Path, tmp_path: Path) -> None:
    since = len(server.log)
    urls = [f"https://localhost:{server.port}/{name}" for name in ("big", *(f"{number}.txt" for number in range(20)))]
    command = ["curl", "-sS", "--parallel", "--cacert", str(server.certificate), "--remote-name-all", *urls]
    subprocess.run(command, check=True, timeout=WAIT_SECONDS, cwd=tmp_path)
    for url in urls:
        name = url.rpartition("/")[2]
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
    # The transfers that begin before the protocol is known may have connections of their own.
    assert connections(server, since) < 10

"""aiohttp as a static file server: `python -m bench.aiohttp_server ROOT CERTIFICATE KEY PORT WORKERS`.

Strategy: it has no workers of its own, so processes share the port by SO_REUSEPORT.
"""

from __future__ import annotations

import os
import ssl
import sys

from aiohttp import web


def main() -> None:
    root, certificate, key, port, workers = sys.argv[1:]
    for _ in range(int(workers) - 1):
        if os.fork() == 0:
            break
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    application = web.Application()
    application.router.add_static("/", root)
    options = {
        "host": "127.0.0.1",
        "port": int(port),
        "ssl_context": context,
        "backlog": 4096,
        "keepalive_timeout": 600,
    }
    web.run_app(application, **options, access_log=None, reuse_port=True, print=None)


if __name__ == "__main__":
    main()

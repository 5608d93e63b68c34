"""Chromium opens a site with a certificate by ACME without a warning, once it trusts the authority's root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Error, sync_playwright

from tests.acme.sites import ISSUED, NAME, authority, becomes_trusted, site, www
from tests.pebble import Pebble

__all__ = ["authority", "www"]


def test_no_warning(authority: Pebble, www: Path) -> None:
    executable = shutil.which("chromium")
    if executable is None:
        assert not os.environ.get("CI"), "Chromium must be there in CI"
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    home = www.parent / "home"
    store = home / ".pki/nssdb"
    store.mkdir(parents=True)
    (www / "index.html").write_text("<!doctype html><title>trusted</title>")
    # Before Chromium makes one: certutil would ask a terminal whether to replace it.
    subprocess.run(["certutil", "-d", f"sql:{store}", "-N", "--empty-password"], check=True)
    add = ["certutil", "-d", f"sql:{store}", "-A", "-t", "C,,", "-n", "pebble", "-i", str(authority.root())]
    flags = ["--no-sandbox", f"--host-resolver-rules=MAP {NAME} 127.0.0.1"]
    with site(authority, www) as server:
        server.wait_for_line(ISSUED)
        assert becomes_trusted(authority)
        url = f"https://{NAME}:{authority.https}/"
        environment: dict[str, str | float | bool] = {**os.environ, "HOME": str(home)}
        with sync_playwright() as playwright:
            for trusted in (False, True):
                if trusted:
                    subprocess.run(add, check=True)
                browser = playwright.chromium.launch(executable_path=executable, args=flags, env=environment)
                page = browser.new_page()
                if trusted:
                    page.goto(url)
                    assert page.title() == "trusted"
                else:
                    with pytest.raises(Error, match="ERR_CERT_AUTHORITY_INVALID"):
                        page.goto(url)
                browser.close()

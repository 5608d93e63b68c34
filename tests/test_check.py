"""`ktlsd check`: each warning has its file, line, key and remedy, and what is right has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktlsd.check import warnings_of
from ktlsd.settings import load
from tests.serving import run_to_end


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for a configuration file, with a root in it."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "index.html").write_text("index")
    (root / "404.html").write_text("not found")
    (root / "folder").mkdir()
    return tmp_path


def warnings(folder: Path, text: str) -> list[str]:
    """The warnings about a configuration file of this text, without its folder."""
    file = folder / "ktlsd.toml"
    file.write_text(text)
    loaded = load({"config": str(file)}, {})
    return [line.replace(f"{folder}/", "") for line in warnings_of(loaded)]


HSTS_SHORT = (
    "max_age = 5: browsers' preload list takes 31536000 seconds or more: set max_age = 31536000, or leave preload out"
)


def test_a_warning_is_told_once_where_sites_inherit_its_key(folder: Path) -> None:
    text = """root = "www"
[hsts]
max_age = 5
preload = true
include_subdomains = true
[[site]]
names = "a.example"
[[site]]
names = "b.example"
"""
    assert warnings(folder, text) == [f"ktlsd.toml:3: warning: hsts.max_age: preload with {HSTS_SHORT}"]


def test_a_warning_of_a_site_names_the_site(folder: Path) -> None:
    text = """root = "www"
[[site]]
names = "a.example"
[[site]]
names = "b.example"
[site.hsts]
max_age = 5
preload = true
include_subdomains = true
"""
    assert warnings(folder, text) == [f"ktlsd.toml:7: warning: site[1].hsts.max_age: preload with {HSTS_SHORT}"]


def test_a_warning_about_a_default_names_the_key_and_the_line_of_the_table(folder: Path) -> None:
    text = 'root = "www"\n[hsts]\ninclude_subdomains = false\npreload = true\n'
    what = "preload without include_subdomains: browsers' preload list takes no such site"
    remedy = "set include_subdomains = true, or leave preload out"
    assert warnings(folder, text) == [f"ktlsd.toml:4: warning: hsts.preload: {what}: {remedy}"]
    assert warnings(folder, text.replace("false", "true")) == []


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)])
def test_strict_makes_warnings_a_failure(folder: Path, options: list[str], status: int) -> None:
    file = folder / "ktlsd.toml"
    file.write_text('root = "www"\n[hsts]\npreload = true\n')
    ended = run_to_end("check", "--config", str(file), *options, state=folder)
    assert (ended.returncode, ended.stdout) == (status, f"{file}: ok, 1 site, 1 warning\n")
    assert ended.stderr.startswith(f"{file}:3: warning: hsts.preload: preload without include_subdomains: ")
    assert ended.stderr.count("\n") == 1
    file.write_text('root = "www"\n')
    ended = run_to_end("check", "--config", str(file), *options, state=folder)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{file}: ok, 1 site\n", "")

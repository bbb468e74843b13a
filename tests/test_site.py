"""The documentation site: it builds without a warning, shows what GitHub shows, and needs no other host."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.test_docs import COMMANDS, PAGES, ROOT
from tools.site_hooks import OUTSIDE


def build(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    # Not with --quiet, which keeps --strict from seeing warnings.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert not done.returncode, done.stderr
    return out


def shown(html: str) -> Counter[str]:
    return Counter(re.findall(r"<(h[1-6]|ul|ol|li|tr|td|th|pre|strong|em|img)\b", html))


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_a_page_has_the_same_lists_tables_and_code_as_on_github(path: Path, site: Path) -> None:
    page = (site / OUTSIDE.get(path.name, path.name)).with_suffix(".html").read_text(encoding="utf-8")
    article = re.search("<article.*?</article>", page, re.DOTALL)
    github = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(path.read_text(encoding="utf-8"))
    assert article and shown(article[0]) == shown(github), "Python-Markdown wants lists inside lists indented by 4"


def test_the_generated_pages_have_every_command_and_the_methods_of_a_predictor(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS.commands if f'id="dimvl-{name}"' not in commands]
    python = (site / "python.html").read_text(encoding="utf-8")
    for name in ("predictor.Predictor.caption", "predictor.Predictor.from_pretrained", "data.answers.Answer"):
        assert f'id="dimvl.{name}"' in python


def test_a_page_outside_the_navigation_and_a_broken_link_fail_the_build(tmp_path: Path) -> None:
    for name in ("docs", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", *OUTSIDE):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs" / "stray.md").write_text("# Stray\n\n[lost](nowhere.md), [no such place](scenes.md#nowhere)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode
    for warning in (r"'nowhere\.md'", r"'#nowhere'", r'not included in the "nav" configuration:\s+- stray\.md'):
        assert re.search(f"WARNING -  .*{warning}", done.stderr), done.stderr


def test_a_link_to_a_file_that_is_not_part_of_the_site_becomes_its_path(site: Path) -> None:
    assert "Apache-2.0 (<code>LICENSE</code>)" in (site / "index.html").read_text(encoding="utf-8")


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
    assert not [(page.name, found) for page in site.glob("*.html") for found in loads.findall(page.read_text())]


def test_the_search_works_from_a_folder_and_asks_no_other_host(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by the package playwright")
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("the browser is Debian's package chromium")
    with playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.click("[data-md-component=search-query]")
        page.keyboard.type("length penalty", delay=20)
        found = page.locator(".md-search-result__item", has_text="Captions of Flickr8k").first
        found.wait_for(timeout=60_000)
    assert addresses and not [address for address in addresses if not address.startswith("file:")]

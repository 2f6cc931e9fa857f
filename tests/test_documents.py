"""Every page: its links lead somewhere, and what it names is there."""

import re
from pathlib import Path

import pytest

from coordinator.observing.metrics import Metrics
from tests.document_facts import (
    ROOT,
    anchors,
    commands,
    help_of,
    is_key,
    is_module,
    is_reason,
    is_whole,
    links,
)

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
}
SECTIONS = "server|privacy|routing|security|compliance|monitoring|federation|storage"
VALUES = "coordinator|nodeAgent|istio|networkPolicy|monitoring"
FILES = (".yaml", ".yml", ".db", ".crt", ".key", ".py", ".json", ".md", ".service", ".internal")

CODES_OF_OTHERS = re.compile(
    r"(FEDDP|OTEL|AWS|ENABLE|LISTEN|SANITIZE|FOR|READ|SHA|HTTPS?|PG)_\w+|[A-Z]+_(PROXY|PATH)"
)
"""Variables of an environment, and words of PostgreSQL and Envoy."""


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_to_a_file_and_a_heading(page: str) -> None:
    """Relative to the page, as a reader follows it."""
    for target in links(PAGES[page]):
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path.read_text()), target


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_each_command_exists_with_its_options(page: str) -> None:
    """By the command's own help; the changelog also tells of what is gone."""
    for words, options in commands(PAGES[page]):
        assert is_whole(words), words
        if options:
            said = help_of(words)
            for option in options:
                assert f"{option} " in said or f"{option}\n" in said, (words, option)


@pytest.mark.parametrize("page", PAGES)
def test_each_key_of_a_configuration_and_each_value_of_the_chart_exists(page: str) -> None:
    """Between backticks and with its section; a value may end in what it holds."""
    for name in re.findall(rf"`((?:{SECTIONS}|{VALUES})(?:\.\w+)+)[`:]", PAGES[page]):
        if not name.endswith(FILES) and not is_module(name):
            assert is_key(name), name


@pytest.mark.parametrize("page", PAGES)
def test_each_metric_exists(page: str) -> None:
    """Names of this program's own, in blocks of code as well."""
    shown = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Metrics().registry.collect()
    }
    pattern = (
        r"\b(?:feddp_[a-z]+_[a-z_]+|privacy_budget_\w+|federated_node_\w+|request_duration_\w+)"
    )
    for name in re.findall(pattern, PAGES[page]):
        assert re.sub(r"_(bucket|sum|count)$", "", name) in shown, name


@pytest.mark.parametrize("page", PAGES)
def test_each_reason_exists(page: str) -> None:
    """Codes in capitals stand as they are in the programs."""
    for name in re.findall(r"`([A-Z]+(?:_[A-Z0-9]+)+)`", PAGES[page]):
        assert CODES_OF_OTHERS.fullmatch(name) or is_reason(name), name


def test_the_pages_are_all_in_the_readmes_list() -> None:
    """A page that nobody finds is not there."""
    table = PAGES["README.md"].partition("## What to read next")[2].partition("\n## ")[0]
    listed = {target.partition("#")[0] for target in links(table)}
    for page in PAGES:
        if Path(page).parent == Path("docs"):
            assert page in listed or page in LINKED_FROM_OTHERS, page


LINKED_FROM_OTHERS = {"docs/benchmarks.md"}
"""From capacity.md and scaling.md."""

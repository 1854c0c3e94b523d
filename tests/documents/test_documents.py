"""The documents' form: every block has a language, every link leads somewhere, every key exists, none is forgotten."""

import re

import pytest

from ruyi_rl.cli.compose import ConfigSource
from ruyi_rl.cli.schema import check_key
from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from tests.documents.pages import ROOT, blocks, pages, prose, spans

LANGUAGES = ("sh", "python", "text", "yaml", "json", "ini")
"""sh and python are run, see test_document_commands.py; text is what a command prints, or a file."""
FILES = (".py", ".md", ".json", ".jsonl", ".yaml", ".csv", ".png")
READERS = {"mine"}
"""Choices that a page has the reader make."""
PAGES = pages()
KEY = re.compile(r"\+?([a-z_]+(?:\.[A-Za-z0-9_<>]+)+)(?:=[^ =].*)?")
CHOICE = re.compile(r"([a-z_]+)=([a-z0-9_|]+)")


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request):
    return request.param


def test_every_block_has_a_language(page):
    assert [f"{block}: {block.language!r}" for block in blocks(page) if block.language not in LANGUAGES] == []


def test_code_is_fenced(page):
    """An indented block has no language, so nothing would run it."""
    lines = prose(page).splitlines()
    after_blank = [number for number, (before, line) in enumerate(zip(["", *lines], lines), 1) if not before.strip()]
    indented = [number for number in after_blank if re.match(r" {4}\S", lines[number - 1])]
    assert indented == []


def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file() and file.is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page.name}: {target}"


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\(docs/([a-z_]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_every_picture_is_shown_and_described():
    shown = {}
    for page in PAGES:
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", prose(page)):
            shown[(page.parent / target).resolve()] = text
    assert set(shown) == {path.resolve() for path in (ROOT / "docs").glob("*.png")}
    assert all(len(text) > 20 for text in shown.values())


def test_every_key_exists(page):
    """`grpo.token_budget`, `sft.trainer.max_steps=5`: from the root of the configuration on."""
    unknown = []
    for span in spans(page):
        match = KEY.fullmatch(span.text)
        if match is None or match[1].split(".")[0] not in RunConfig.__dataclass_fields__ or match[1].endswith(FILES):
            continue
        try:
            check_key(match[1])
        except Refusal as refusal:
            unknown.append(f"{span}: {span.text}: {refusal}")
    assert unknown == []


def test_every_choice_exists(page):
    """`rollout=vllm|vllm_server`: of a group of the configuration."""
    groups = ConfigSource().choices()
    unknown = []
    for span in spans(page):
        match = CHOICE.fullmatch(span.text)
        if match is not None and match[1] in groups and set(match[2].split("|")) - set(groups[match[1]]) - READERS:
            unknown.append(f"{span}: {span.text}")
    assert unknown == []


def test_no_page_names_a_place_of_the_machine_it_was_written_on(page):
    text = page.read_text()
    assert not re.search(r"/(?:tmp|work|home|root|Users)/", text)


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

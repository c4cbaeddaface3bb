"""The page is one file that a browser may run under its policy, and that can be used without seeing or pointing."""

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from internvl_jax.serving.page_source import page

HTML, POLICY = page()
VOID = {"meta", "link", "input", "br", "hr", "img"}
CONTROLS = {"input", "select", "textarea"}
REFERENCES = ("for", "aria-labelledby", "aria-describedby", "aria-controls")


class Document(HTMLParser):
    """Elements of a text in their order, each with its attributes and the text directly in it; `wrong` has what isn't
    nested.
    """

    def __init__(self, text):
        super().__init__()
        self.elements, self.wrong, self._open = [], [], []
        self.feed(text)
        self.close()
        self.wrong += [tag for tag, _ in self._open]

    def handle_starttag(self, tag, attrs):
        self.wrong += [name for name, times in Counter(name for name, _ in attrs).items() if times > 1]
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self._open.append((tag, self.elements[-1]))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop()[0] != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self._open:
            self._open[-1][1][2] += data

    def all(self, *tags):
        return [(attributes, text) for tag, attributes, text in self.elements if tag in tags]


DOCUMENT = Document(HTML.decode())
IDS = [attributes["id"] for _, attributes, _ in DOCUMENT.elements if "id" in attributes]
((_, SCRIPT),) = DOCUMENT.all("script")
DIRECTIVES = {name: values for name, *values in (part.split() for part in POLICY.split("; "))}


@pytest.mark.parametrize("tag", ["script", "style"])
def test_the_policy_names_what_stands_in_the_page(tag):
    ((attributes, text),) = DOCUMENT.all(tag)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert attributes == {} and DIRECTIVES[f"{tag}-src"] == [f"'sha256-{digest}'"]


def test_the_policy_lets_nothing_else_in():
    assert DIRECTIVES["default-src"] == ["'none'"] and DIRECTIVES["connect-src"] == ["'self'"]
    sources = {value for values in DIRECTIVES.values() for value in values if not value.startswith("'sha256-")}
    assert sources == {"'none'", "'self'", "data:", "blob:", "'script'"}
    assert len(DIRECTIVES) == POLICY.count(";") + 1
    assert POLICY.isascii() and "\n" not in POLICY


def test_what_the_policy_would_block_is_not_there():
    names = {name for _, attributes, _ in DOCUMENT.elements for name in attributes}
    assert not [name for name in names if name == "style" or name.startswith("on")]


def test_no_other_host():
    """Only the namespace of the icon's SVG looks like an address."""
    assert set(re.findall(r"\w+://[^\s'\"]*", HTML.decode())) == {"http://www.w3.org/2000/svg"}
    links = [attributes.get("href", "#") for _, attributes, _ in DOCUMENT.elements]
    assert all(link.startswith(("#", "data:image/svg+xml,")) for link in links) and not re.search(
        r"\bsrc=", HTML.decode()
    )
    assert not re.search(r"@import|url\(", HTML.decode())
    assert set(re.findall(r"fetch\((.*?),", SCRIPT)) == {'"v1/models"', '"v1/chat/completions"'}


@pytest.mark.parametrize(
    "way", ["HTML", "document.write", "eval(", "Function(", "DOMParser", "createContextualFragment", "import("]
)
def test_text_never_becomes_markup_or_code(way):
    assert way not in SCRIPT


def test_the_key_outlives_the_tab_nowhere():
    assert not re.search(r"localStorage|indexedDB|cookie|caches", SCRIPT)


def test_tags_are_nested():
    assert HTML.startswith(b"<!doctype html>\n") and DOCUMENT.wrong == []


@pytest.mark.parametrize("wrong", ["<p><b></p></b>", "<p>", "</p>", "<p id='a' id='b'></p>"])
def test_wrong_nesting_is_found(wrong):
    assert Document(wrong).wrong


def test_ids_are_unique_and_all_that_are_asked_for_exist():
    assert [name for name, times in Counter(IDS).items() if times > 1] == []
    named = {value for _, attributes, _ in DOCUMENT.elements for name in REFERENCES if (value := attributes.get(name))}
    anchors = {attributes["href"][1:] for attributes, _ in DOCUMENT.all("a")}
    asked = set(re.findall(r'\$\("([^"]+)"\)', SCRIPT))
    assert len(asked) > 20 and named | anchors | asked <= set(IDS)


def test_every_control_has_a_label():
    labels = {attributes["for"]: text for attributes, text in DOCUMENT.all("label")}
    controls = [attributes for attributes, _ in DOCUMENT.all(*CONTROLS)]
    assert len(controls) > 10 and all(labels[attributes["id"]].strip() for attributes in controls)
    assert all(attributes.get("aria-label") or text.strip() for attributes, text in DOCUMENT.all("button"))
    assert all(text.strip() for _, text in DOCUMENT.all("legend"))


def test_it_says_what_assistive_technology_needs():
    ((html, _),) = DOCUMENT.all("html")
    viewport = next(attributes for attributes, _ in DOCUMENT.all("meta") if attributes.get("name") == "viewport")
    assert html["lang"] == "en" and DOCUMENT.all("title") == [({}, "InternVL")]
    assert len(DOCUMENT.all("main")) == len(DOCUMENT.all("h1")) == 1
    assert not re.search(r"user-scalable|maximum-scale", viewport["content"])  # anybody may zoom
    roles = {attributes["id"]: role for _, attributes, _ in DOCUMENT.elements if (role := attributes.get("role"))}
    assert roles == {"problem": "alert", "status": "status"}


def test_every_setting_of_a_number_is_bounded():
    numbers = [attributes for attributes, _ in DOCUMENT.all("input") if attributes["type"] == "number"]
    fields = {attributes["name"] for attributes in numbers}
    assert {"temperature", "top_p", "seed", "max_dynamic_patch", "relative", "absolute"} < fields
    assert all("min" in attributes and "step" in attributes for attributes in numbers)

"""The page in a real browser, at the width of a phone and of a desk."""

import pytest
from browsing import Browser, needs_chromium
from reading import TEXT

pytestmark = [needs_chromium, pytest.mark.slow, pytest.mark.process]
HOSTILE = "<img src=x onerror=window.hit=1> \U0001f600 Ada met Bob in London."
ASK = "document.getElementById('go').click()"
CARDS = """return [...document.querySelectorAll('#answers section')].map(one => one.dataset.task)"""


@pytest.fixture
def browser(tmp_path):
    one = Browser(tmp_path / "profile")
    yield one
    one.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_person_pastes_a_text_and_reads_the_answers(width, browser, serve, tmp_path):
    server = serve()
    browser.open(f"http://127.0.0.1:{server.port}/", width)
    browser.wait("return !document.getElementById('go').disabled")
    assert browser.run("return document.getElementById('model').textContent") == "out"
    assert "sequence-classification, token-classification, " in browser.run("return document.body.innerText")

    expected = server.pipeline(HOSTILE)
    browser.run("document.getElementById('field-text').value = arguments[0];" + ASK, HOSTILE)
    browser.wait("return document.querySelectorAll('#answers section').length")
    assert browser.run(CARDS) == list(expected)
    found = browser.run(
        "return [...document.querySelectorAll('[data-task=token-classification] mark')].map(one => "
        "[one.firstChild.textContent, one.querySelector('small')?.textContent])"
    )
    spans = [[HOSTILE[one["start"] : one["end"]], one["entity_group"]] for one in expected["token-classification"]]
    assert found == spans and spans
    (label,) = browser.run(
        "return [...document.querySelectorAll('[data-task=sequence-classification] .row')].map(one => one.innerText)"
    )
    answer = expected["sequence-classification"]
    assert answer["label"] in label and f"{answer['score']:.3f}" in label
    assert "An embedding of 32 numbers" in browser.run("return document.body.innerText")
    assert browser.run("return window.hit") is None
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.screenshot(tmp_path / f"page-{width}.png")

    for kind, fields in {
        "question and context": {"question": "Where is it?", "context": TEXT},
        "question and choices": {"question": "It is", "choices": "a place.\nlate."},
    }.items():
        browser.run(
            "const kind = document.getElementById('kind');"
            "kind.selectedIndex = [...kind.options].findIndex(one => one.text.toLowerCase() === arguments[0]);"
            "kind.dispatchEvent(new Event('change'));"
            "for (const [key, value] of Object.entries(arguments[1])) document.getElementById(`field-${key}`).value = value;"
            "document.getElementById('answers').replaceChildren();" + ASK,
            kind,
            fields,
        )
        browser.wait("return document.querySelectorAll('#answers section').length")
        assert browser.run("return document.documentElement.scrollWidth") <= width
    row = browser.run("return document.querySelector('#answers .row').innerText")
    assert row.split("\n")[0] in ("a place.", "late.")


def test_mistakes_are_told_on_the_page(browser, serve):
    server = serve(token="s3cret")
    browser.open(f"http://127.0.0.1:{server.port}/", 390)
    browser.wait("return !document.getElementById('access').hidden")
    browser.run("document.getElementById('token').value = 's3cret';" + ASK)
    browser.wait("return document.getElementById('field-text')")
    browser.run(
        "for (const box of document.querySelectorAll('#tasks input')) box.checked = box.value === 'fill-mask';" + ASK
    )
    problem = browser.wait("return document.getElementById('problem').textContent")
    assert problem.startswith("inputs: ") and "mask token" in problem
    browser.run("for (const box of document.querySelectorAll('#tasks input')) box.checked = false;" + ASK)
    browser.wait("return document.getElementById('problem').textContent === 'Choose a task.'")

"""The page as a visitor uses it: in a browser, with mouse, keyboard and sliders.

What the server answers is constructed, so that every slider moves the scores on every processor;
test_server.py and test_session.py hold real answers against the library.
"""

import re
from urllib.parse import parse_qs

import pytest

from browsing import axe_violations, overflow
from oneway.playground import Worker
from oneway.playground.settings import SLIDERS
from oneway.releases import release
from oneway.report.sentences import FAILED
from playground.planted import CLOSED_GAPS, PATIENCE, PlantedSession, default_setting
from playground.tiny import served

SHOWN = "body[data-state=shown]"
EXACT = f"{SHOWN}[data-attackers=done]"


@pytest.fixture(scope="module")
def session():
    return PlantedSession()


@pytest.fixture(scope="module")
def worker(session):
    return Worker(lambda: session)


@pytest.fixture(scope="module")
def address(worker):
    with served(worker) as url:
        yield url


@pytest.fixture(scope="module")
def open_page(browser, address):
    """Open the page at a place, in one tab; whatever the browser complains of fails the test."""
    complaints = []

    def at_home(url):
        return url.startswith(address) or url == "about:blank"

    context = browser.new_context()
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("request", lambda request: at_home(request.url) or complaints.append(request.url))

    def open_at(place="", width=1280, height=900, **media):
        page.set_viewport_size({"width": width, "height": height})
        # Each frame of a motion is painted by this processor.
        page.emulate_media(**{"color_scheme": "light", "reduced_motion": "reduce"} | media)
        page.goto("about:blank")  # else only what follows the # would change
        page.goto(f"{address}/#{place if 'view=' in place else 'view=one&' + place}")
        page.wait_for_selector(SHOWN)
        assert complaints == []
        return page

    yield open_at
    context.close()
    assert complaints == []


def place_of(page):
    """Return what stands behind the # of the address, once it is written."""
    page.wait_for_selector("body[data-address=written]")
    return {name: values[0] for name, values in parse_qs(page.url.partition("#")[2]).items()}


def scores(page, column):
    return [float(text) for text in page.locator(f"#bars td:nth-child({column})").all_inner_texts()]


def pixels(page, selector):
    """Return the gray values of a picture, 32 x 32."""
    return page.eval_on_selector(
        selector,
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data]"
        ".filter((_, at) => at % 4 === 0)",
    )


def draw(page, *strokes):
    """Draw strokes with the mouse, at shares of the drawing area."""
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=6)
        page.mouse.up()


def test_a_sample_a_defense_and_a_slider_show_at_once(open_page, session):
    page = open_page("defense=rounding")
    page.get_by_label("A clear 7").check()
    page.wait_for_selector(SHOWN)
    query = session.samples[7:8]
    clean = release(session.target.logits(query))[0].tolist()
    for decimals in (5, 1):
        page.locator("#decimals").fill(str(decimals - 1))
        page.wait_for_selector(SHOWN)
        assert page.locator("output[for=decimals]").inner_text() == str(decimals)
        setting = default_setting("rounding").of("rounding", {"decimals": decimals})
        released = session.trace(setting, query).released[0].tolist()
        assert scores(page, 2) == [pytest.approx(score, abs=5.1e-4) for score in clean]
        assert scores(page, 3) == [pytest.approx(score, abs=5.1e-4) for score in released]
    assert page.locator("#label").inner_text() == "7"
    assert place_of(page)["sample"] == "7"


def test_every_slider_moves_what_leaves_and_what_it_says(open_page):
    page = open_page()
    for defense in [name for name, sliders in SLIDERS.items() if sliders]:
        page.locator(f"input[value={defense}]").check()
        page.wait_for_selector(SHOWN)
        for name, positions in SLIDERS[defense].items():
            slider, ends = page.locator(f"#{name}"), []
            before = slider.input_value()
            for at in (0, len(positions) - 1):
                slider.fill(str(at))
                page.wait_for_selector(SHOWN)
                ends.append((scores(page, 3), page.locator(f"output[for={name}]").inner_text()))
                written = "null" if positions[at] is None else f"{positions[at]:g}"
                assert place_of(page)[name] == written
                assert slider.get_attribute("aria-valuetext") == ends[-1][1]
            slider.fill(before)
            assert ends[0][0] != ends[1][0], f"scores of {defense} at both ends of {name}"
            assert ends[0][1] != ends[1][1], f"text of {defense} at both ends of {name}"


def test_a_drawn_digit_is_read_attacked_and_there_again_after_a_reload(open_page):
    page = open_page("defense=codebook")
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector(SHOWN)
    assert page.locator("#label").inner_text() == "…"
    draw(page, [(0.52, 0.2), (0.5, 0.8)])
    page.wait_for_selector(EXACT)
    assert page.locator("#label").inner_text() == "1"
    before = scores(page, 2), pixels(page, "#as-sent"), place_of(page)
    assert max(before[1]) == 255
    assert "sample" not in before[2]
    page.reload()
    page.wait_for_selector(SHOWN)
    assert (scores(page, 2), pixels(page, "#as-sent"), place_of(page)) == before
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(SHOWN)
    assert page.locator("#label").inner_text() == "…"


def test_a_digit_can_be_drawn_by_keyboard(open_page):
    page = open_page()
    page.get_by_role("button", name="Clear").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "pad"
    for key, times in (("ArrowUp", 8), (" ", 1), ("ArrowDown", 16), (" ", 1), ("ArrowRight", 3)):
        for _ in range(times):
            page.keyboard.press(key)
    page.wait_for_selector(SHOWN)
    assert page.locator("#label").inner_text() == "1"
    drawn = place_of(page)["drawing"]
    page.keyboard.press("ArrowUp")
    assert place_of(page)["drawing"] == drawn
    page.keyboard.press("Backspace")
    page.wait_for_selector(SHOWN)
    assert page.locator("#label").inner_text() == "…"


def test_the_page_says_which_attacker_it_shows_and_what_comes_of_it(open_page, session):
    page = open_page("defense=adversarial-noise&sample=2")
    page.wait_for_selector(EXACT)
    note = page.locator("#retrained-note")
    assert note.inner_text() == "retrained for exactly this setting"
    assert " 119\xa0% of" in page.locator("#verdict-text").inner_text()
    assert len(page.locator("#numbers tr").all_inner_texts()) == 3
    label = f"{session.baseline_errors['label']:.4f}"[1:]
    assert label in page.locator("#numbers-note").inner_text()
    # Another setting: the attacker of mixed settings at once, and then one of this setting.
    session.proceed.clear()
    try:
        page.locator("#step_size").fill("7")
        page.wait_for_selector(f"{SHOWN}[data-attackers=working]")
        assert note.inner_text() == "retrained on mixed settings; training for this setting…"
    finally:
        session.proceed.set()
    page.wait_for_selector(EXACT)
    assert note.inner_text() == "retrained for exactly this setting"
    assert place_of(page)["step_size"] == "0.6"


def test_where_the_attack_failed_no_number_stands_in_the_place_of_g(open_page):
    page = open_page("defense=label-only")
    page.wait_for_selector(EXACT)
    page.locator("#verdict-text", has_text=FAILED).wait_for()
    note = page.locator("#verdict-note").inner_text()
    assert f"G: {FAILED};" in note
    assert not re.search(r"1\.0", note)
    assert not page.locator("#mark").is_visible()
    page = open_page("defense=codebook")
    page.locator("#verdict-note", has_text=f"G: {CLOSED_GAPS['codebook']};").wait_for()
    assert page.locator("#mark").is_visible()


INKED = """canvas => {
  const empty = document.createElement("canvas");
  [empty.width, empty.height] = [canvas.width, canvas.height];
  return canvas.toDataURL() !== empty.toDataURL();
}"""
"""Whether something is drawn on a canvas."""


def test_nothing_is_shown_of_a_cleared_drawing_and_the_same_digit_can_be_picked_again(open_page):
    page = open_page("view=all&sample=6")
    page.wait_for_selector(SHOWN)
    shown = page.locator("#pad, #as-sent, #all canvas")
    assert all(canvas.evaluate(INKED) for canvas in shown.all())
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector(SHOWN)
    assert not any(canvas.evaluate(INKED) for canvas in shown.all())
    page.get_by_label("A clear 6").check()
    page.wait_for_selector(SHOWN)
    assert all(canvas.evaluate(INKED) for canvas in shown.all())


def test_what_went_wrong_is_in_sight_wherever_a_reader_is(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{address}/#view=all&sample=6")
    page.wait_for_selector(EXACT)
    page.route("**/api/**", lambda route: route.abort())
    page.get_by_label("A clear 3").check()
    page.locator("#trouble", has_text="The server does not answer").wait_for()
    assert page.evaluate("scrollY") > 0
    assert page.locator("#trouble").bounding_box()["y"] >= 0
    page.close()


@pytest.mark.parametrize("view", ["one", "all"])
def test_the_tab_key_goes_down_a_narrow_page(open_page, view):
    page = open_page(f"view={view}", 390, 844)
    page.wait_for_selector(SHOWN)
    tops = page.locator("#ready > :is(section, div):visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().top)"
    )
    assert len(tops) >= 3
    assert tops == sorted(tops)


def test_before_anybody_trained_for_a_setting_the_page_says_so(browser, session):
    class Idle(Worker):
        def enqueue(self, setting):
            """Never get to it."""

    with served(Idle(lambda: session)) as url:
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(f"{url}/#view=one&defense=rounding")
        page.wait_for_selector(SHOWN)
        note = page.locator("#retrained-note").inner_text()
        assert note == "retrained on mixed settings; training for this setting…"
        assert page.locator("#verdict-text").inner_text().startswith("Measuring")
        page.locator("input[value=label-only]").check()
        page.wait_for_selector(EXACT)
        page.close()


def test_all_defenses_are_compared_side_by_side(open_page):
    page = open_page("defense=rounding&decimals=2&sample=5")
    page.get_by_role("button", name="Compare all").click()
    page.wait_for_selector(EXACT)
    assert not page.locator("#one").is_visible()
    rows = page.locator("#all-rows tr")
    assert rows.count() == len(SLIDERS)
    assert "2 decimals" in rows.nth(3).inner_text()
    for row, defense in zip(rows.all(), SLIDERS, strict=True):
        assert "retrained for exactly this setting" in row.inner_text()
        share = row.locator(".share").inner_text()
        gap = CLOSED_GAPS[defense]
        assert share == (FAILED if gap >= 1 else f"{max(0, round(100 * (1 - gap)))}\xa0%")
    assert place_of(page)["view"] == "all"
    page.reload()
    page.wait_for_selector(EXACT)
    assert page.locator("#all-rows").is_visible()


def test_a_slider_and_its_effect_are_in_sight_together_from_the_first_view_on(open_page):
    for width, height in ((1366, 850), (390, 844)):
        page = open_page("view=", width, height)
        page.wait_for_selector("#all-rows tr.current[data-defense=codebook]")
        for view, effect in (("all", "#all-rows tr.current .retrained canvas"), ("one", "#mark")):
            page.locator(f"#view-{view}").click()
            page.wait_for_selector(EXACT)
            for seen in ("#min_members", "#rate_weight", effect):
                box = page.locator(seen).bounding_box()
                assert box["y"] >= 0, (seen, width)
                assert box["y"] + box["height"] <= height, (seen, width)
        assert page.evaluate("scrollY") == 0


def test_a_slider_asks_for_its_own_row_of_the_comparison_alone(open_page):
    page = open_page("view=all&defense=rounding")
    page.wait_for_selector(EXACT)
    strips = page.locator("#all-rows .strip")
    before = [strip.get_attribute("aria-label") for strip in strips.all()]
    with page.expect_request("**/api/answers") as asked:
        page.locator("#decimals").fill("4")
    (setting,) = asked.value.post_data_json["settings"]
    assert setting == {"defense": "rounding", "options": {"decimals": 5}}
    page.wait_for_selector(EXACT)
    after = [strip.get_attribute("aria-label") for strip in strips.all()]
    row = list(SLIDERS).index("rounding")
    assert [a != b for a, b in zip(after, before, strict=True)] == [
        number == row for number in range(len(SLIDERS))
    ]


def test_a_preset_sets_defense_and_sliders(open_page):
    page = open_page("defense=none&step_size=1")
    page.get_by_role("button", name="the paper's larger step").click()
    page.wait_for_selector(SHOWN)
    place = place_of(page)
    assert (place["defense"], place["step_size"], place["steps"]) == (
        "adversarial-noise",
        "0.4",
        "10",
    )
    assert page.locator("input[value=adversarial-noise]").is_checked()


def test_an_address_that_is_changed_by_hand_is_followed(open_page):
    page = open_page("defense=rounding&decimals=1&sample=4")
    page.evaluate("location.hash = 'defense=codebook&sample=9'")
    page.wait_for_selector(f"{SHOWN}:has(input[value=codebook]:checked)")
    place = place_of(page)
    assert (place["defense"], place["sample"]) == ("codebook", "9")


def test_an_address_that_says_nonsense_is_read_as_far_as_it_makes_sense(open_page):
    nonsense = "view=x&defense=y&decimals=77&sample=999&drawing=!!!&steps=3"
    place = place_of(open_page(nonsense))
    assert (place["view"], place["defense"], place["decimals"]) == ("all", "codebook", "1")
    assert place["steps"] == "3"
    assert "drawing" not in place or place["drawing"] == ""


def test_it_is_readable_for_everybody_and_fits(open_page):
    # Another scheme changes colors alone, and another width what is beside what.
    for view, (width, scheme), (other_width, other_scheme) in (
        ("one", (1280, "light"), (390, "dark")),
        ("all", (390, "light"), (1280, "dark")),
    ):
        page = open_page(f"view={view}", width, color_scheme=scheme)
        page.wait_for_selector(EXACT)
        assert axe_violations(page) == [], (view, width, scheme)
        assert overflow(page) <= 0, (view, width, scheme)
        page.set_viewport_size({"width": other_width, "height": 900})
        page.emulate_media(color_scheme=other_scheme)
        assert axe_violations(page, colors_alone=True) == [], (view, other_width, other_scheme)
        assert overflow(page) <= 0, (view, other_width, other_scheme)


def test_nothing_moves_for_who_wants_nothing_to_move(open_page):
    moving = (
        "[...document.querySelectorAll('*')]"
        ".filter(one => getComputedStyle(one).transitionDuration !== '0s').length"
    )
    assert open_page("", reduced_motion="no-preference").evaluate(moving) > 0
    assert open_page("", reduced_motion="reduce").evaluate(moving) == 0

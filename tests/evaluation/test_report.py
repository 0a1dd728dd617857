"""The report, as a browser shows it (Debian's Chromium, headless) and as a file."""

import re
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page

from rtdmd_lightning.evaluation.report import BINS, Provenance, histogram, write_report
from rtdmd_lightning.evaluation.settings import Gallery
from tests.support.scores import PROMPTS, REWARD_SETTINGS, SCORES, draw_files, hand_made

MINUS = "\N{MINUS SIGN}"
PROVENANCE = Provenance("2026-01-02 03:04 UTC", "rtdmd evaluate --config '<x>.yaml'", {"torch": "2.0"})


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    draw_files(hand_made(), folder)
    return write_report(hand_made(), folder, Gallery(), PROVENANCE)


@pytest.fixture
def page(browser, report):
    """The opened report; it must complain of nothing and ask for nothing but itself."""
    opened = browser.new_page()
    opened.set_default_timeout(120_000)
    complaints, requests = [], []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:image/")} == {report.as_uri()}
    opened.close()


def shown(page: Page) -> list[int]:
    """The prompts in view, by number, in the order of the page."""
    return [int(number) for number in page.locator(".row:visible .index").all_text_contents()]


def choose(page: Page, control: str, option: str) -> None:
    page.locator(f"[name={control}]").select_option(option)


def test_filter_by_tag(page):
    assert shown(page) == [0, 1, 2, 3]
    choose(page, "tag", "counting")
    assert shown(page) == [2, 3]
    assert page.get_by_role("status").inner_text() == "2 of 4 prompts"
    choose(page, "tag", "all")
    assert shown(page) == [0, 1, 2, 3]


def test_sort_by_a_rewards_difference(page):
    """<RTDMD> - teacher in clip is -0.20, 0.30, -0.01, 0.04; in strict 0, 1, -1, 1."""
    assert page.locator("[name=entry]").is_disabled()  # nothing to choose in prompt order
    choose(page, "sort", "difference in clip")
    assert page.locator("[name=entry] option:enabled").all_text_contents() == ["cold | start", "<RTDMD>"]
    choose(page, "entry", "<RTDMD>")
    assert page.locator(".minus").inner_text() == f"{MINUS} teacher"
    assert shown(page) == [1, 3, 2, 0]
    assert page.locator(".row .value").all_text_contents() == ["+0.300", "+0.040", f"{MINUS}0.010", f"{MINUS}0.200"]
    choose(page, "direction", "lowest")
    assert shown(page) == [0, 2, 3, 1]
    choose(page, "sort", "difference in strict")
    assert shown(page) == [2, 0, 1, 3]  # equal ones stay in prompt order
    choose(page, "tag", "colors")
    assert shown(page) == [0, 1]
    choose(page, "sort", "prompt order")
    choose(page, "tag", "all")
    assert shown(page) == [0, 1, 2, 3] and page.locator(".value:visible").count() == 0


def test_sort_by_a_score_and_by_disagreement(page):
    """The scores of clip differ between entries by at most 0.21, 0.30, 0.02 and 0.04."""
    choose(page, "sort", "score in clip")
    choose(page, "entry", "teacher")
    assert shown(page) == [0, 2, 3, 1]
    assert page.locator(".row .value").all_text_contents() == ["0.300", "0.250", "0.250", "0.200"]
    scores = page.locator(".row").first.locator("dd").all_text_contents()
    assert scores[:2] == ["1", "0.300"]  # right and wrong need no decimals
    choose(page, "sort", "disagreement in clip")
    assert page.locator("[name=entry]").is_disabled()
    assert shown(page) == [1, 0, 3, 2]
    choose(page, "direction", "lowest")
    assert shown(page) == [2, 3, 0, 1]


def test_search_finds_prompts_that_have_all_words(page):
    page.keyboard.press("/")
    page.keyboard.type("CIRCLES t")
    assert shown(page) == [2, 3]
    page.keyboard.type("w")
    assert shown(page) == [2] and page.get_by_role("status").inner_text() == "1 of 4 prompts"
    page.keyboard.press("Escape")
    assert shown(page) == [0, 1, 2, 3]
    page.keyboard.press("/")
    page.keyboard.type("</script> &")  # as it stands there
    assert shown(page) == [1]


def enlarged(page: Page) -> tuple[str, int]:
    """Entry and prompt of the enlarged image, which must be theirs."""
    dialog = page.locator("#enlarged")
    entry = dialog.locator(".entry").inner_text()
    number = int(dialog.locator(".index").inner_text())
    place = list(SCORES).index(entry)
    assert PROMPTS[number] in dialog.locator("h4").inner_text()
    original = page.locator(".rows .row:visible").nth(shown(page).index(number)).locator("img").nth(place)
    assert dialog.locator("img").get_attribute("src") == original.get_attribute("src")
    assert dialog.locator("a").get_attribute("href") == f"images/{place}_{number}.png"
    return entry, number


def focused(page: Page) -> str:
    """What the image that has the focus shows."""
    return page.evaluate("document.activeElement.querySelector('img').alt")


def test_an_image_is_enlarged_and_arrows_go_through_entries_and_prompts_in_view(page):
    page.keyboard.press("/")
    page.keyboard.type("circles")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert enlarged(page) == ("cold | start", 2)
    page.keyboard.press("ArrowRight")
    assert enlarged(page) == ("<RTDMD>", 2)
    page.keyboard.press("ArrowRight")  # round
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # there is no further one
    assert enlarged(page) == ("teacher", 3)
    page.get_by_label("next entry").click()
    assert enlarged(page) == ("cold | start", 3)
    page.keyboard.press("Escape")
    assert not page.locator("#enlarged").is_visible() and focused(page) == "three circles, by cold | start"
    page.keyboard.press("ArrowLeft")
    assert focused(page) == "three circles, by teacher"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # one sees where one is
    page.locator(".row:visible img").first.click()
    assert enlarged(page) == ("teacher", 2)
    page.get_by_text("close", exact=True).click()
    assert not page.locator("#enlarged").is_visible()


def test_a_click_on_a_column_sorts_its_table(page):
    table = page.locator("table").first
    names, column = table.locator("tbody th"), table.locator("thead th").nth(1)
    for order, wanted in {
        "descending": ["<RTDMD>", "cold | start", "teacher"],
        "ascending": ["teacher", "cold | start", "<RTDMD>"],
        "none": ["teacher", "cold | start", "<RTDMD>"],
    }.items():
        column.get_by_role("button").click()
        assert names.all_text_contents() == wanted and column.get_attribute("aria-sort") == order


@pytest.mark.parametrize(("width", "columns"), [(700, 1), (1280, 2), (2560, 4)])
def test_wide_screens_are_used(page, width, columns):
    """Prompts stand beside one another, and nothing is wider than the window."""
    page.set_viewport_size({"width": width, "height": 900})
    left = page.locator(".row").evaluate_all("rows => rows.map(row => Math.round(row.getBoundingClientRect().left))")
    assert len(set(left)) == columns
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_command_can_be_pasted_and_the_time_has_its_zone():
    made = Provenance.of_command(["--output=a b"], datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    assert (made.command, made.date) == ("rtdmd evaluate '--output=a b'", "2026-01-02 03:04 UTC")
    assert {"Python", "torch", "diffusers"} <= made.versions.keys()


def test_the_page_says_when_and_how_it_was_made(page):
    page.get_by_text("2026-01-02 03:04 UTC: command, versions, settings").click()
    told = page.locator("header").inner_text()
    assert "rtdmd evaluate --config '<x>.yaml'" in told and "torch 2.0" in told and "class_path: x.Backbone" in told


def test_images_are_those_of_prompt_and_entry(page):
    """Decoded by the browser; also after sorting."""
    choose(page, "sort", "difference in clip")
    for number, row in zip(shown(page), page.locator(".row").all(), strict=True):
        assert row.locator("h4").text_content().startswith(f"{number} {PROMPTS[number]}")
        row.scroll_into_view_if_needed()
        pixels = row.locator("img").evaluate_all(
            """images => Promise.all(images.map(async image => {
                await image.decode();
                const context = document.createElement("canvas").getContext("2d");
                context.drawImage(image, 0, 0);
                return [...context.getImageData(3, 3, 1, 1).data.slice(0, 2)];
            }))"""
        )
        assert pixels == [[round(255 * e / 3), round(255 * number / 4)] for e in range(3)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    """WCAG's contrast of 4.5, for all text, in both colour schemes."""
    page.emulate_media(color_scheme=scheme)
    worst = page.evaluate(
        """() => {
            const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            const numbers = color => color.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
            const ground = element => {
                const color = numbers(getComputedStyle(element).backgroundColor);
                return color[3] === 0 ? ground(element.parentElement) : color;
            };
            const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
            const contrasts = [...document.querySelectorAll("body *:not(script):not(:disabled)")].filter(hasText).map(element => {
                const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            });
            return Math.min(...contrasts);
        }"""
    )
    assert worst > 4.5


def test_the_file_needs_nothing_else(report):
    """No address but the browser's own namespace names; prompts cannot break out of the page."""
    text = report.read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert "innerHTML" not in text
    assert set(re.findall(r'src="(.{6})', text)) == {"data:i", "data:,"}
    assert text.count("</script>") == 1 and "&lt;RTDMD&gt;" in text and "<RTDMD>" not in text


def test_a_large_set_shows_some_spread_evenly(tmp_path):
    draw_files(hand_made(), tmp_path)
    text = write_report(hand_made(tags=False), tmp_path, Gallery(prompts=2), PROVENANCE).read_text()
    assert re.findall(r'class="index">(\d+)<', text) == ["0", "3"] and "2 of 4 prompts" in text
    assert 'name="tag"' not in text  # no tags, no filter


def test_of_several_images_of_a_prompt_the_first_is_shown_with_its_scores(tmp_path):
    """The second images have other scores: the tables have the means of both."""
    several = {
        entry: {reward: [*of_one, *(score + 1 for score in of_one)] for reward, of_one in scores.items()}
        for entry, scores in SCORES.items()
    }
    one, two = hand_made(), hand_made(scores=several)
    pages = {}
    for name, results in {"one": one, "two": two}.items():
        draw_files(results, tmp_path / name)
        pages[name] = write_report(results, tmp_path / name, Gallery(), PROVENANCE).read_text()
    assert "4 prompts, 2 images each" in pages["two"] and "the first of its 2 images" in pages["two"]
    gallery = [re.findall(r'(?:data-scores|src)="[^"]*"', page) for page in pages.values()]
    assert gallery[0] == gallery[1] and len(gallery[0]) == 4 + 12 + 1  # where one is enlarged
    assert "0.782 ± 0.083" in pages["two"]


def test_the_table_shows_what_is_published_and_how_rewards_were_made(tmp_path):
    rewards = REWARD_SETTINGS | {"clip": {"class_path": "x.Clip", "init_args": {"resize": "bicubic"}}}
    results = hand_made(rewards=rewards, published={"<RTDMD>": {"clip": 0.3161}})
    draw_files(results, tmp_path)
    text = write_report(results, tmp_path, Gallery(), PROVENANCE).read_text()
    row = re.search(r'<th scope="row"><span class="entry c2">RTDMD \(paper\)</span></th>(.*?)</tr>', text, re.DOTALL)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row[1]) == ["", "0.3161"]
    assert text.count("(paper)") == 1 and text.count("paper: arXiv 2605.26108") == 1
    assert text.count("scored with clip (resize=bicubic)") == 1
    assert "512 px, 4 steps, no CFG" in text


def test_histograms_share_an_axis_and_count_every_score():
    chart = histogram("r", {"a": [0.0, 0.0, 1.0], "b": [2.0]})
    assert (chart.low, chart.high) == (0, 2) and chart.position(0.5) == 0.25
    assert chart.means == {"a": pytest.approx(1 / 3), "b": 2.0}
    assert [index for index, height in enumerate(chart.heights["a"]) if height] == [0, BINS // 2]
    assert chart.heights["a"][0] == 1 and chart.heights["a"][BINS // 2] == 0.5 and chart.heights["b"][-1] == 0.5


def test_equal_scores_have_an_axis_too():
    chart = histogram("r", {"a": [0.3, 0.3]})
    assert chart.low < 0.3 < chart.high and 0 < chart.position(0.3) < 1

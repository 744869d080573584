"""The report: one file, nothing foreign in it, and a slider that works from the keyboard."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import odd_inputs as odd
from fr_deploy.pipeline import RestoredPhoto
from fr_deploy.report import MAX_FACES, ReportRow, photo_pairs, write_report

CHROMIUM = Path("/usr/bin/chromium")
NASTY = "<script>alert(1)</script>\"'&\u202e\n.jpg"


def restored(rgb: np.ndarray, faces: int) -> RestoredPhoto:
    crops = np.full((faces, 512, 512, 3), 90, np.uint8)
    return RestoredPhoto(255 - rgb, (), crops, crops + 100, ())


def write(tmp_path: Path, name: str = "photo.jpg") -> str:
    rgb = odd.gradient(300, 400)
    photo, crops = photo_pairs(rgb, restored(rgb, 2))
    rows = [
        ReportRow(name, "restored", "reduced_to_8_bit", 1.25, 2, photo, crops),
        ReportRow("empty.jpg", "no_face"),
        ReportRow("bad <b>.jpg", "failed", "corrupt: <img src=x onerror=alert(1)>"),
    ]
    path = tmp_path / "report.html"
    write_report(path, rows, {"Model": "lafr-mini", "Device": "cpu & more"})
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_structure(tmp_path):
    page = Page(write(tmp_path))
    assert len(page.all("article")) == 1
    assert [a["type"] for a in page.all("input")] == ["range"] * 3  # one photo, two faces
    assert all(a["aria-label"] for a in page.all("input"))
    assert [a["alt"] for a in page.all("img")] == ["before", "after"] * 3
    assert len(page.all("tr")) == 4  # the head and one a photo
    assert {a.get("class") for a in page.all("tr")} == {None, "restored", "no_face", "failed"}


def test_pictures_are_what_they_say(tmp_path):
    images = Page(write(tmp_path)).all("img")
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(str(a["src"]).partition(",")[2]))))
        for a in images
    ]
    rgb = odd.gradient(300, 400)
    assert np.abs(pixels[0].astype(int) - rgb).mean() < 4
    assert np.abs(pixels[1].astype(int) - (255 - rgb)).mean() < 4
    assert pixels[2].shape == (320, 320, 3)
    assert abs(int(pixels[2].mean()) - 90) <= 1
    assert abs(int(pixels[3].mean()) - 190) <= 1


def test_pictures_have_at_most_768_pixels_a_side():
    rgb = np.zeros((100, 2000, 3), np.uint8)
    pair, crops = photo_pairs(rgb, restored(rgb, MAX_FACES + 3))
    assert (pair.width, pair.height) == (768, 38)
    assert len(crops) == MAX_FACES


def test_an_enlarged_photo_is_paired_with_its_small_original():
    rgb = odd.gradient(40, 60)
    big = RestoredPhoto(
        np.zeros((160, 240, 3), np.uint8), (), *[np.empty((0, 512, 512, 3), "u1")] * 2, ()
    )
    pair, _ = photo_pairs(rgb, big)
    for data in (pair.before, pair.after):
        assert Image.open(io.BytesIO(data)).size == (240, 160)


def test_names_are_escaped_everywhere(tmp_path):
    text = write(tmp_path, NASTY)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 6
    assert not page.all("b") or all(word.isdigit() for word in re.findall("<b>(.*?)</b>", text))
    assert "\u202e" not in text
    shown = "<script>alert(1)</script>\"'&\\u202e\\n.jpg"
    assert shown in page.words
    assert any(str(a["aria-label"]).startswith(shown) for a in page.all("input"))


def test_policy_allows_our_own_script_and_style_alone(tmp_path):
    text = write(tmp_path)
    page = Page(text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert body
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "unsafe" not in str(policy)


def test_nothing_is_fetched(tmp_path):
    text = write(tmp_path)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    sources = [a[key] for _, a in Page(text).tags for key in ("src", "href") if key in a]
    assert all(str(source).startswith("data:") for source in sources)
    assert not re.search(r"<[^>]+\s(style|on\w+)=", text)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"],
        )
        yield chromium
        chromium.close()


def open_page(browser, tmp_path: Path, **options):
    write(tmp_path, NASTY)
    page = browser.new_page(**options)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto((tmp_path / "report.html").as_uri())
    return page, errors


def clip_paths(page) -> list[str]:
    script = (
        "[...document.querySelectorAll('.pair img + img')].map(e => getComputedStyle(e).clipPath)"
    )
    return page.evaluate(script)


def test_slider_by_keyboard(browser, tmp_path):
    page, errors = open_page(browser, tmp_path)
    assert clip_paths(page) == ["inset(0px 0px 0px 50%)"] * 3
    page.keyboard.press("Tab")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert clip_paths(page) == ["inset(0px 0px 0px 80%)"] + ["inset(0px 0px 0px 50%)"] * 2
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    assert clip_paths(page)[1] == "inset(0px 0px 0px 0%)"
    assert errors == []


def test_slider_by_mouse_and_on_a_phone(browser, tmp_path):
    page, errors = open_page(browser, tmp_path, viewport={"width": 390, "height": 800})
    box = page.locator(".pair").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    percent = float(clip_paths(page)[0].split()[-1].rstrip("%)"))
    assert 20 <= percent <= 30
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert errors == []


def test_dark_and_light_differ_and_pictures_show(browser, tmp_path):
    colours = set()
    for scheme in ("dark", "light"):
        page, errors = open_page(browser, tmp_path, color_scheme=scheme)
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert errors == []
    assert len(colours) == 2

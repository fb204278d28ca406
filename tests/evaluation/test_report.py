"""The page: everything is in it, nothing is loaded, nothing that it shows can run."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from datasets.description import load_description
from evaluation.report import HIGH, POINTS, WIDE, _embedded, page, thumbnail
from evaluation.tables import as_csv

EVIL = "<script>alert('x')</script> \"onload=alert(1) {{ 7 * 7 }}"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]


def card(**more):
    picture = _embedded(Image.new("RGB", (300, 200), "red"))
    return {
        "run": "r", "person": "S1", "session": "01", "recording": 1, "trial": 2, "true": "dog", "decoded": "cup",
        "right": False, "text": "a text", "prompt": "a prompt", "model": "tiny", "simulated": False, "seen": picture,
        "drawn": picture, "read_by": "head", "chances": [("dog", 0.25), ("cup", 0.75)], "eeg": None,
    } | more  # fmt: skip


def made(tmp_path, cards, **more):
    Image.new("RGB", (20, 10)).save(tmp_path / "figure_1.png")
    sections = {"Results": (["run", "accuracy"], [["r", "75.0 %"], [EVIL, "1 %"]])}
    return page(sections, [EVIL], [EVIL], [tmp_path / "figure_1.png"], cards)


def test_the_page_holds_tables_figures_and_cards(tmp_path):
    text = made(tmp_path, [card(), card(right=True, decoded="dog", person="S2")])
    tags = Tags(text)
    assert tags.tags.count("table") == 1 and tags.tags.count("li") == 2 and "75.0 %" in text
    assert "wrong: dog decoded as cup" in text and "right: dog" in text and "75.0 %</span>" in text
    options = [value for tag, name, value in tags.attributes if (tag, name) == ("option", "value")]
    assert options == ["*", "right", "wrong", "*", "r", "*", "dog", "*", "S1", "S2"]


def test_what_would_turn_a_line_or_a_spreadsheet_is_shown_and_does_nothing(tmp_path):
    text = made(tmp_path, [card(text="left \u202e thgir \u2066 \x07")])
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x07]", text) and "thgir" in text
    lines = [{"run": "=cmd|' /C calc'!A0", "accuracy": -0.5}, {"run": "@x", "accuracy": 0.5}]
    assert as_csv(["run", "accuracy"], lines).splitlines()[1:] == ["'=cmd|' /C calc'!A0,-0.5", "'@x,0.5"]


def test_whatever_is_shown_is_text_and_runs_nothing(tmp_path):
    text = made(tmp_path, [card(text=EVIL, prompt=EVIL, run=EVIL, person=EVIL, true=EVIL, decoded=EVIL, model=EVIL)])
    tags = Tags(text)
    assert tags.tags.count("script") == 1  # the page's own
    assert not any(name.startswith("on") for _, name, _ in tags.attributes)
    assert "{{ 7 * 7 }}" in text and "49" not in re.sub(r"base64,[^\"]*", "", text)
    assert ("li", "data-run", EVIL) in tags.attributes


def test_nothing_is_loaded_from_anywhere(tmp_path):
    text = made(tmp_path, [card(eeg=thumbnail(np.ones((22, 50)), load_description("BCICIV2a").montage, 250.0))])
    tags = Tags(text)
    addresses = [
        value for _, name, value in tags.attributes if name in ("src", "href", "action", "poster", "srcset", "data")
    ]
    assert addresses and all(value.startswith(("data:image/", "#")) for value in addresses)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp|import\(", re.sub(r"base64,[^\"]*", "", text))
    policy = next(
        value for tag, name, value in tags.attributes if tag == "meta" and name == "content" and "default" in value
    )
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_simulated_eeg_is_marked_on_its_card_and_real_eeg_is_not(tmp_path):
    text = made(tmp_path, [card(simulated=True), card(), card(simulated=True)])
    assert text.count("simulated EEG: no person was recorded") == 2


def test_the_eeg_on_a_card_is_the_regions_means(tmp_path):
    montage = load_description("BCICIV2a").montage
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((22, 1000))
    signal[[k for k, region in enumerate(montage.region_names) if region == "central"]] += 50 * np.sin(
        np.arange(1000) / 40
    )
    drawn = thumbnail(signal, montage, 250.0)
    assert [name for name, _ in drawn["lines"]] == list(dict.fromkeys(montage.region_names)) and drawn["seconds"] == 4
    points = {name: np.array([p.split(",") for p in line.split()], float) for name, line in drawn["lines"]}
    assert all(p.shape == (POINTS, 2) and p[0, 0] == 0 and p[-1, 0] == WIDE for p in points.values())
    spread = {name: np.ptp(p[:, 1]) for name, p in points.items()}
    assert max(spread, key=spread.get) == "central" and spread["central"] > 5 * spread["frontal"]
    assert 95 < drawn["scale"] < 110 and drawn["height"] == HIGH * len(points)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
def test_the_filters_work_in_a_browser(tmp_path):
    cards = [card(), card(right=True), card(person="S2 ")]
    text = made(tmp_path, cards)
    choose = "<script>const s = document.querySelector('[data-kind=right]'); s.value = 'wrong'; "
    choose += "s.dispatchEvent(new Event('input', {bubbles: true}));</script>"
    for name, content in (("plain", text), ("chosen", text.replace("</body>", choose + "</body>"))):
        (tmp_path / f"{name}.html").write_text(content)
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update",
             "--disable-sync", "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")  # fmt: skip

    def shown(name):
        done = subprocess.run(
            ["chromium", *quiet, f"file://{tmp_path / name}.html"], capture_output=True, text=True, timeout=120
        )
        return re.search(r"<output[^>]*>(.*?)</output>", done.stdout)[1], done.stdout.count(' hidden=""')

    assert shown("plain") == ("3 of 3 pictures", 0)
    assert shown("chosen") == ("2 of 3 pictures", 1)
    person = choose.replace("right", "person", 1).replace("'wrong'", "'S2 '")
    (tmp_path / "person.html").write_text(text.replace("</body>", person + "</body>"))
    assert shown("person") == ("1 of 3 pictures", 2)  # a name that ends with a blank

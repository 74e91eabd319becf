import html
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib import image

from experiments import report, screenshots
from experiments.reporting import looks, page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def test_the_page_needs_nothing_else(runs, tmp_path):
    report.write_report(runs, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#)""", text)
    assert "@import" not in text
    assert "{{" not in text
    assert "1 diverged" in text
    assert 'id="m0--rates-lost"' in text
    # No colour of the figures is fixed to one scheme.
    for color in (looks.INK, *looks.LIGHT):
        assert color not in text[text.index("<figure>") : text.index("<details>")]


def test_every_look_differs_and_can_be_drawn():
    styles = [looks.look(i) for i in range(44)]
    assert len({(s.linestyle, s.marker) for s in styles}) == 44
    assert len({(s.color, s.marker) for s in styles}) == 44  # of points without a line
    assert {s.marker for s in styles} == set(page._SHAPES)
    assert {s.linestyle for s in styles} == set(page._DASHES)
    assert len(looks.DARK) == len(looks.LIGHT)


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium (make system-deps)")
def test_the_page_works_on_a_phone_in_both_schemes(runs, tmp_path):
    report.write_report(runs, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    script = """
    <script>
    const table = document.querySelector("table");
    const order = () => [...table.tBodies[0].rows].map(
      row => row.cells[0].textContent).join("; ");
    const said = [order()];
    for (const column of [2, 2, 5, 0, 0]) {
      table.tHead.rows[0].cells[column].firstChild.click();
      said.push(order());
    }
    const parts = [...document.querySelectorAll('svg [id^="m0--"]')];
    const others = [...document.querySelectorAll('svg [id^="m1--"]')];
    const hidden = found => found.filter(
      part => getComputedStyle(part).display === "none").length;
    document.querySelector('[data-method=m0]').click();
    const all = hidden(parts) === parts.length;
    said.push(`${all} ${parts.length > 5} ${hidden(others)}`);
    document.querySelector('[data-method=m0]').click();
    said.push(String(hidden(parts)));
    said.push(`${innerWidth} ${document.documentElement.scrollWidth}`);
    const seen = ["body", "svg text", "#m0--step-line path"].map(
      found => getComputedStyle(document.querySelector(found)));
    said.push(seen[0].backgroundColor, seen[1].fill, seen[2].stroke);
    parent.document.title = said.join(" | ");
    </script>"""
    # A frame, as no window of the browser is as narrow as a phone's. It has the scheme
    # of what it lies in.
    inner = html.escape(text.replace("</body>", script + "</body>"))
    outer = tmp_path / "outer.html"
    outer.write_text(
        '<meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<title></title><iframe width="360" height="800" srcdoc="{inner}"></iframe>'
    )
    adamw, sgd = "adamw, cosine", "sgd, cosine"
    does = [
        f"{sgd}; {adamw}",  # as the table is made: by loss
        f"{sgd}; {adamw}",  # by loss, lowest first
        f"{adamw}; {sgd}",  # highest first
        f"{sgd}; {adamw}",  # by steps to the baseline's loss, unknown last
        f"{adamw}; {sgd}",
        f"{sgd}; {adamw}",
        "true true 0",
        "0",
    ]
    schemes = {
        1: ["#ffffff", looks.INK, looks.LIGHT[0]],
        0: ["#14171b", "#e6e9ec", looks.DARK[0]],
    }
    for scheme, colors in schemes.items():
        done = subprocess.run(
            [
                *(CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}"),
                f"--blink-settings=preferredColorScheme={scheme}",
                *("--dump-dom", outer.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=900,
            check=True,
        )
        said = re.search("<title>(.*?)</title>", done.stdout)[1].split(" | ")
        assert said[: len(does)] == does
        width, content = map(int, said[len(does)].split())
        assert width == 360
        assert content <= width  # it is the table that scrolls, not the page
        wanted = [str(tuple(bytes.fromhex(color[1:]))) for color in colors]
        assert said[len(does) + 1 :] == [f"rgb{color}" for color in wanted]


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium (make system-deps)")
def test_pictures_of_the_page_are_light_and_dark(runs, tmp_path, given):
    report.write_report(runs, tmp_path / "report")
    given(screenshots._FLAGS, output=tmp_path / "shots")
    assert screenshots.main([str(tmp_path / "report" / "index.html")], []) == 0
    pictures = {
        name: image.imread(tmp_path / "shots" / f"page_{name}.png")[..., :3]
        for name in ("light", "dark", "narrow")
    }
    shapes = {name: picture.shape[:2] for name, picture in pictures.items()}
    assert shapes == {
        "light": (2600, 1400),
        "dark": (2600, 1400),
        "narrow": (3600, 500),
    }
    assert pictures["light"].mean() > 0.9
    assert pictures["dark"].mean() < 0.2
    # Something is drawn on the paper.
    assert all(np.ptp(picture) > 0.7 for picture in pictures.values())

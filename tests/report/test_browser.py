"""Pages as a browser shows them: on a phone and on a desk, in light and in dark colours."""

import numpy as np
import pytest

from tests.helpers.browser import open_browser
from vidlatent.media.sheets import contact_sheet, encode_picture
from vidlatent.media.write import write_video
from vidlatent.report.page import GalleryVideo, write_report

pytestmark = pytest.mark.slow

LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA, of text of common size; 3 of large text
# Text whose contrast with the nearest opaque background above it is too low: [text, ratio].
FIND_FAINT = """
(least) => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (c) => {
    const part = c.slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba(getComputedStyle(document.documentElement).colorScheme.includes('dark')
      && matchMedia('(prefers-color-scheme: dark)').matches ? '#121212' : '#ffffff');
  };
  const faint = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const of = node.parentElement, style = getComputedStyle(of);
    if (!node.textContent.trim() || !of.getClientRects().length) continue;
    if (['STYLE', 'SCRIPT', 'TITLE'].includes(of.tagName)) continue;
    const ink = rgba(of.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(of))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : least)) faint.push([node.textContent.trim().slice(0, 40), ratio]);
  }
  return faint;
}
"""
# Pictures that did not load, and videos of which not one frame is there.
FIND_BROKEN = """
() => [...document.images].filter((i) => !(i.complete && i.naturalWidth)).map((i) => i.alt)
  .concat([...document.querySelectorAll('video')].filter((v) => v.error || !v.videoWidth)
    .map((v) => v.src.slice(0, 60)))
"""
LOADED = """
() => [...document.images].every((i) => i.complete)
  && [...document.querySelectorAll('video')].every((v) => v.readyState >= 1 || v.error)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with everything that pages have, and names that cannot be broken at a space."""
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 48, 64, 3), np.uint8)
    write_video(folder / "red square #1.mp4", frames, 8)
    sheet = contact_sheet([frames, frames[::-1]], ["a_clip_with_a_long_name_" * 3, "restored"])
    long = "val/original_and_reconstruction_of_a_clip_" * 4
    steps = list(range(0, 100, 10))
    rows = [{"frame": n, "psnr": 20 + n, "ssim": 0.5, "file": f"{long}{n}.mp4"} for n in range(60)]
    write_report(
        folder / "report.html",
        title=f"fsae (demo) {long}",
        subtitle=f"4x4x4 pixels to 16 numbers; {long}",
        scores={"psnr": 31.4159, "ssim": 0.912345, "lpips_vgg/random_weights": 0.1, "clips": 8},
        sheets=[
            (f"sheet {long}", sheet),
            ("side by side", (folder / "red square #1.mp4").read_bytes()),
        ],
        gallery=[
            GalleryVideo("red square #1.mp4", long, "seed 1", encode_picture(frames[0])),
            GalleryVideo("red square #1.mp4", "red square", "seed 2"),
        ],
        tables={"By frame": rows, "Empty": []},
        curves={name: (steps, list(rng.random(10))) for name in ("train/loss", "val/psnr", long)},
        config={"data": {"path": long, "buckets": ((9, 64, 64, 4),) * 12}, "seed": 0},
        command=f"python -m vidlatent.main --config=configs/fsae.py --workdir={long}",
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_read(browser, report, width, scheme, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
    page.wait_for_function(LOADED)
    page.screenshot(path=str(tmp_path / f"{scheme}_{width}.png"), full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FIND_BROKEN) == []
    assert page.evaluate(FIND_FAINT, LEAST_CONTRAST) == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    page.close()


def test_a_broken_picture_and_faint_text_are_found(browser):
    """The checks themselves."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_content(
        '<body style="background:#fff"><img alt="gone" src="data:image/png;base64,AAAA">'
        '<p style="color:#999">faint</p><p style="width:900px">wide</p></body>'
    )
    page.wait_for_function(LOADED)
    assert page.evaluate(FIND_BROKEN) == ["gone"]
    ((text, ratio),) = page.evaluate(FIND_FAINT, LEAST_CONTRAST)
    assert text == "faint" and 2 < ratio < 3
    assert page.evaluate("document.documentElement.scrollWidth") > 390
    page.close()

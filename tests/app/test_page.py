"""The page as it is served: by its interface, and in a browser that shows nothing."""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio, of the extra 'app'")

from tests.helpers.browser import open_browser
from tests.helpers.generator_runs import tokenizer_run
from vidlatent.app.run import main, serve
from vidlatent.errors import VidlatentError
from vidlatent.media.decode import iter_frames
from vidlatent.media.write import write_video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page's address and its folder."""
    place = tmp_path_factory.mktemp("app")
    run = tokenizer_run(place / "run")
    (place / "files").mkdir()
    page, address = serve([f"--tokenizer={run}", "--max_frames=5"], str(place / "files"))
    yield address, place / "files"
    page.close()


@pytest.fixture
def clip(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (7, 24, 32, 3), np.uint8)
    write_video(tmp_path / "mine.mp4", frames, 10)
    return tmp_path / "mine.mp4"


def uploads_in(folder):
    return [path for path in folder.rglob("mine.mp4")]


def test_a_clip_is_restored_and_its_upload_removed(served, clip):
    from gradio_client import Client, handle_file

    address, folder = served
    client = Client(address, verbose=False, analytics_enabled=False)
    restored, facts, *_ = client.predict(handle_file(str(clip)), api_name="/restore")
    path = restored["video"] if isinstance(restored, dict) else restored
    assert len(list(iter_frames(path)[1])) == 5
    assert "dB" in facts and "bytes** in the latent file" in facts
    assert not uploads_in(folder)
    (Path(clip).parent / "mine.mp4").write_bytes(b"no video")
    with pytest.raises(Exception, match="cannot be read as a video"):
        client.predict(handle_file(str(clip)), api_name="/restore")


def test_it_is_local_and_reports_nothing(served):
    address, _ = served
    assert address.startswith("http://127.0.0.1:")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_mistakes_are_one_sentence(tmp_path, capsys):
    with pytest.raises(VidlatentError, match="give --tokenizer"):
        serve([], str(tmp_path))
    assert main([f"--tokenizer={tmp_path / 'none'}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_in_a_browser(served, clip, tmp_path):
    """Upload, restore, compare, download; nothing is asked of another server."""
    address, _ = served
    asked = []
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.set_default_timeout(300_000)  # of a busy machine
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator("input[type=file]").first.set_input_files(str(clip))
        page.get_by_role("button", name="Compress and restore").click()
        page.get_by_text("in the latent file").wait_for()
        # Two videos that can be played, and no page wider than a phone.
        page.wait_for_function("document.querySelectorAll('video').length >= 2")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        with page.expect_download() as download:
            page.locator("a[download]", has_text="").last.click()
        download.value.save_as(tmp_path / "got")
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert (tmp_path / "got").stat().st_size > 100
    own = ("http://127.0.0.1", "data:", "blob:")
    assert not [url for url in asked if not url.startswith(own)]

"""The status page, as a real browser shows it. The screenshot goes to MALLARD_SCREENSHOT if that names a file."""

import json
import os
import re
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from support import PASSWORD, USER, WITH_USERS, until

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
except ImportError:
    webdriver = None

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER and webdriver), reason="needs chromium, chromedriver and selenium"
)


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        f" --disable-component-update --disable-sync --window-size=1100,1350 --user-data-dir={tmp_path / 'profile'}"
    )
    for flag in flags.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def test_a_browser_shows_what_runs_and_how_to_connect(launch, browser):
    server = launch("--auth", settings={**WITH_USERS, "MALLARD__ADMIN__SHOW_STATEMENTS": "true"})
    with server.client() as client:
        options = flight.FlightCallOptions(headers=[client.authenticate_basic_token(USER, PASSWORD)])
        server.put("birds", pa.table({"name": ["mallard", "teal"] * 500_000}), options)
        client.do_get(flight.Ticket(b"FROM birds"), options).read_all()
        running = client.do_get(
            flight.Ticket(b"SELECT name, 'a secret' FROM birds, range(1_000_000_000) WHERE range <> 42"), options
        )
        running.read_chunk()
        # A minute's throughput has a few samples by now and then.
        until(lambda: _polyline(server).count(",") >= 3, seconds=20, what="samples of throughput")

        browser.get(server.admin)
        text = browser.find_element(By.TAG_NAME, "body").text
        assert browser.title.startswith("Mallard grpc://127.0.0.1:")
        assert browser.find_element(By.ID, "state").text == "ready"
        assert "state ok" in text and "database ok" in text
        statements = browser.find_element(By.ID, "statements").text
        assert "SELECT name, ? FROM birds, range(?) WHERE range <> ?" in statements and "running" in statements
        assert "a secret" not in browser.page_source and "42" not in statements
        sent = browser.find_element(By.ID, "throughput").text
        assert re.search(r"in 1\d{6} rows since start", sent), sent
        for line in browser.find_elements(By.TAG_NAME, "svg"):
            assert line.size["height"] > 20 and line.size["width"] > 100
        # Drawn with the style sheet, not as plain text.
        assert browser.find_element(By.CLASS_NAME, "grid").value_of_css_property("display") == "grid"

        picture = os.environ.get("MALLARD_SCREENSHOT")
        if picture:
            assert browser.save_screenshot(picture)
        assert len(browser.get_screenshot_as_png()) > 20_000
        running.cancel()

    # Nothing was asked of anyone else, and nothing failed.
    assert [line for line in browser.get_log("browser") if "favicon" not in line["message"]] == []
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    # Not those of the browser's own first tab.
    urls = {url for url in urls if url.startswith("http")}
    assert urls and all(url.startswith(server.admin) for url in urls), urls

    # The snippets do what they say.
    python = browser.find_element(By.ID, "pyarrow").text.replace('"USER"', f'"{USER}"')
    environment = os.environ | {"MALLARD_PASSWORD": PASSWORD}
    done = subprocess.run([sys.executable, "-c", python], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "v2" in done.stdout, done
    command = browser.find_element(By.ID, "mallard").text.replace("USER", USER)
    command = command.replace("mallard", os.environ["MALLARD_BIN"], 1)
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "v2" in done.stdout, done


def _polyline(server):
    return re.search(r'points="([^"]*)"', server.http("/")[1])[1]

"""The page in a real, headless Chromium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bokeh", reason="the page needs the extra report")
pytest.importorskip("selenium", reason="the browser is driven by selenium")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from agents.breakdown import EpisodeEnd, end_of
from agents.evaluate import AgentResult
from tests.agents.pages import HOSTILE, HOSTILE_NAME, build_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="there is no Chromium with its chromedriver"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a person does with the page."""

    def __init__(self, driver: webdriver.Chrome, path: Path) -> None:
        self.driver = driver
        driver.get("about:blank")
        driver.get(path.as_uri())
        WebDriverWait(driver, 20).until(lambda _: self.text("count"))

    def text(self, element_id: str) -> str:
        return self.driver.find_element(By.ID, element_id).text

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def pick(self, element_id: str, text: str) -> None:
        Select(self.driver.find_element(By.ID, element_id)).select_by_visible_text(text)

    def filter_by(self, end: str) -> None:
        next(chip for chip in self.all(".chip") if chip.text.rsplit(" ", 1)[0] == end).click()


Shown = tuple[Page, AgentResult, AgentResult]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[AgentResult]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return build_page(tmp_path_factory.mktemp("page"), monkeypatch)


@pytest.fixture
def shown(chromium: webdriver.Chrome, built: tuple[Path, list[AgentResult]]) -> Shown:
    path, (trm, by_user) = built
    return Page(chromium, path), trm, by_user


def test_hostile_texts_are_only_texts(shown: Shown) -> None:
    page, _, _ = shown
    page.pick("agent-a", HOSTILE_NAME)
    for end in ("hit", "malformed"):
        page.filter_by(end)
        assert HOSTILE in page.text("episodes")
    assert page.driver.title == "DeepRec-Env report"
    assert page.all("img") == []
    assert len(page.all("script")) == 5
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []  # type: ignore[no-untyped-call]


def test_columns_sort_both_ways(shown: Shown) -> None:
    page, _, _ = shown
    table = page.all("table")[0]

    def values() -> list[float]:
        return [float(row.split("\n")[0]) for row in texts(table, f"td:nth-child({place + 1})")]

    place = [button.text for button in table.find_elements(By.CSS_SELECTOR, "thead button")].index("Reward")
    heading = table.find_elements(By.CSS_SELECTOR, "thead button")[place]
    heading.click()
    assert values() == sorted(values(), reverse=True)
    heading.click()
    assert values() == sorted(values())
    assert len(set(values())) == 2


def texts(element: Any, selector: str) -> list[str]:
    return [found.text for found in element.find_elements(By.CSS_SELECTOR, selector)]


def test_plots_are_drawn(shown: Shown) -> None:
    page, _, _ = shown
    plots = page.all(".plot")
    assert len(plots) == 11
    for plot in plots:
        page.driver.execute_script("arguments[0].scrollIntoView()", plot)  # type: ignore[no-untyped-call]
        WebDriverWait(page.driver, 20).until(lambda _, plot=plot: plot.find_elements(By.CSS_SELECTOR, "*"))
        assert plot.size["height"] > 80


@pytest.mark.parametrize("end", list(EpisodeEnd))
def test_users_are_filtered_by_what_became_of_them(shown: Shown, end: EpisodeEnd) -> None:
    page, _, by_user = shown
    page.pick("agent-a", HOSTILE_NAME)
    page.filter_by(end.replace("_", " "))
    expected = [row for row in by_user.rows if end_of(row) is end]
    assert expected
    assert [entry.get_attribute("data-user") for entry in page.all(".user")] == [str(r.user_index) for r in expected]
    assert page.text("count") == f"{len(expected)} users"
    badge = page.all(".badge")[0].text
    assert badge.startswith({"hit": "hit at", "malformed": "malformed: "}.get(end, end.replace("_", " ")))


def test_a_transcript_shows_tags_candidates_target_and_rewards(shown: Shown) -> None:
    page, trm, _ = shown
    page.filter_by("hit")
    row = next(row for row in trm.rows if row.rank)
    assert page.text("user").startswith(f"User {row.user_id} ")
    search, recommend = page.all(".turn")
    assert texts(search, ".tag") == ["<|begin_of_preference|>", "<|end_of_preference|>"]
    assert len(search.find_elements(By.CSS_SELECTOR, "li")) == 20
    assert f"target at {row.rank}" in search.text  # the agent keeps the order of the search
    assert len(search.find_elements(By.CSS_SELECTOR, "li.target")) == 1
    assert f"target at {row.rank} of 10" in recommend.text
    assert len(recommend.find_elements(By.CSS_SELECTOR, ".action .target")) == 1
    assert [found.text for found in page.all(".turn .reward")] == ["+0.000", f"{row.reward:+.3f}"]
    assert "outcome +" in recommend.text


def test_two_agents_stand_side_by_side_and_in_the_address(shown: Shown) -> None:
    page, _, by_user = shown
    page.pick("agent-b", HOSTILE_NAME)
    page.pick("outcome-b", "malformed")
    malformed = [row for row in by_user.rows if not row.well_formed]
    assert len(page.all(".user")) == len(malformed)
    left, right = page.all(".episode")
    assert left.location["y"] == right.location["y"]
    assert left.location["x"] < right.location["x"]
    assert "malformed: thinking not closed" in right.text or "malformed: recommendation tags" in right.text
    page.all("#users")[0].send_keys(Keys.ARROW_DOWN)
    second = f"User {malformed[1].user_id} "
    assert page.text("user").startswith(second)
    page.driver.refresh()
    WebDriverWait(page.driver, 20).until(lambda _: len(page.all(".episode")) == 2)
    assert page.text("user").startswith(second)


def test_a_user_is_found_by_id(shown: Shown) -> None:
    page, _, _ = shown
    page.all("#find")[0].send_keys("u21")
    assert [entry.get_attribute("data-user") for entry in page.all(".user")] == ["21"]
    page.all("#find")[0].send_keys("9")
    assert page.text("count") == "0 users"
    assert page.text("user") == "No user is left by these filters."


def test_a_thousand_users_are_no_burden(
    chromium: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = build_page(tmp_path, monkeypatch, num_users=1000)
    assert path.stat().st_size < 5e6
    page = Page(chromium, path)
    assert page.text("count") == "1000 users"
    started = time.perf_counter()
    for end in ("hit", "malformed", "all"):
        page.filter_by(end)
    for _ in range(20):
        page.all("#users")[0].send_keys(Keys.ARROW_DOWN)
    assert page.text("user").startswith("User u20 ")
    assert time.perf_counter() - started < 20  # 23 clicks and keys, each through the driver

# SPDX-License-Identifier: Apache-2.0
"""What the overview of all jobs shows, in a real browser, with a fake of Airflow's REST API."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.e2e.browsers import barriers, click, complaints, press, text, until, wait_for_text
from tests.support.airflow_rest_api import AirflowRestApi

PROMPT = "Turn the day into a rainy night with neon lights"
MARKUP = "<img src=x onerror=\"window.hit='markup'\">"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
UNKNOWN = {"type": "LumaSubmissionUnknownError", "code": None, "msg": "No response", "remedy": "See the account's logs"}
TIMED_OUT = {"type": "LumaTimeoutError", "code": None, "msg": "not finished within 1800 s", "remedy": "Clear this task"}
REFUSED = {"type": "LumaInsufficientCreditsError", "code": 402, "msg": "Top up."}
GAVE_UP = {"type": "LumaGenerationError", "code": 501, "msg": "The model gave up."}

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("page states")]


@pytest.fixture(scope="module")
def served() -> Iterator[AirflowRestApi]:
    with AirflowRestApi(Path("/no-clip")).running() as api:
        yield api


@pytest.fixture
def api(served: AirflowRestApi) -> AirflowRestApi:
    """Return an Airflow with nothing in it."""
    served.reset()
    return served


def open_page(browser: Chrome, api: AirflowRestApi, query: str = "") -> None:
    browser.get(f"{api.url}/luma/overview{query}")


def request(**changes: Any) -> dict[str, Any]:
    return {"kind": "clip", "prompt": PROMPT, "video_url": "https://e.com/v.mp4", **changes}


def result(luma_task_id: str, age: timedelta, **changes: Any) -> dict[str, Any]:
    completed_at = (datetime.now(UTC) - age).isoformat()
    urls = [f"https://e.com/{luma_task_id}.mp4"]
    return {"luma_task_id": luma_task_id, "result_urls": urls, "completed_at": completed_at, **changes}


def add_finished(api: AirflowRestApi, dag_id: str, luma_task_id: str, age: timedelta, **changes: Any) -> None:
    api.add_job(
        dag_id, "success", started=age, luma_request=request(), return_value=result(luma_task_id, age, **changes)
    )


def add_download(api: AirflowRestApi, luma_task_id: str) -> None:
    fetched: dict[str, Any] = {f"luma_fetched_{luma_task_id}": ["/videos/a.mp4"]}
    api.add_job("films", "success", operator="LumaDownloadOperator", **fetched)


def rows(browser: Chrome, table: str) -> list[list[str]]:
    """Return the texts of a table's cells, row by row."""
    script = """
        return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map(
            row => [...row.children].map(cell => cell.innerText.replace(/\\s+/g, ' ').trim()))"""
    return [[str(cell) for cell in row] for row in browser.execute_script(script, table)]


def prompts(browser: Chrome) -> list[str]:
    """Return the prompts of all jobs, in order."""
    return [row[3] for row in rows(browser, "jobs")]


def wait_for_hands(browser: Chrome, found: str) -> None:
    wait_for_text(browser, "hands-note", f"{found}: outcomes that are unknown")


def field(browser: Chrome, element_id: str) -> WebElement:
    return browser.find_element(By.ID, element_id)


# -- all jobs --------------------------------------------------------------------------------------------------------


def test_overview_lists_the_jobs_of_all_dags_newest_first_with_what_is_known(
    stranger: Chrome, api: AirflowRestApi
) -> None:
    api.add_job("films", "deferred", started=HOUR, luma_request=request(prompt="wait"), luma_task_id="job-1")
    add_finished(api, "adverts", "job-2", 3 * DAY)
    add_finished(api, "adverts", "job-3", 2 * DAY, service="luma")
    add_download(api, "job-2")
    api.jobs[1]["xcoms"]["luma_request"]["price"] = 1.08
    decorated, sensor = "_LumaModifyDecoratedOperator", "LumaTaskSensor"
    api.add_job("clips", "failed", started=4 * DAY, operator=decorated, luma_request=request(), luma_error=REFUSED)
    api.add_job("clips", "running", started=5 * DAY, operator=sensor, map_index=2, luma_request=request(prompt=None))
    api.add_job("others", "success", operator="BashOperator")
    api.add_job("films", "success", started=16 * DAY, luma_request=request(prompt="too old"))
    for state in (None, "upstream_failed", "removed"):
        api.add_job("never ran", state)

    open_page(stranger, api)
    expected = [
        ["modify Log films / run_1", "waiting for Luma", "1 h ago", "wait", "", "", ""],
        ["modify Log adverts / run_3", "finished", "2 days ago", PROMPT, "", "renewable", "no"],
        ["modify Log adverts / run_2", "finished", "3 days ago", PROMPT, "about $1.08", "in 10 days", "yes"],
        ["modify Log clips / run_5", "failed", "4 days ago", PROMPT, "", "", ""],
        ["modify [2] Log clips / run_6", "running", "5 days ago", "", "", "", ""],
    ]
    until(stranger, lambda: rows(stranger, "jobs") == expected, f"{expected}, not {rows(stranger, 'jobs')}")
    wait_for_text(stranger, "state", "5 jobs")
    wait_for_hands(stranger, "None")
    assert not field(stranger, "hands").is_displayed()
    assert complaints(stranger) == []
    assert barriers(stranger) == []


@pytest.mark.long
def test_each_job_leads_to_its_result_page_and_its_log(stranger: Chrome, api: AirflowRestApi) -> None:
    region = {"region_id": "0198c0de-0000-7000-8000-000000000001", "region_index": 4}
    api.add_job("films & more", "success", map_index=3)
    api.add_job("films", "success", started=2 * HOUR)
    api.jobs[1] |= region
    open_page(stranger, api)
    until(stranger, lambda: len(rows(stranger, "jobs")) == 2, "both jobs")
    links = [
        urlsplit(str(link.get_attribute("href"))) for link in stranger.find_elements(By.CSS_SELECTOR, "td a, th a")
    ]
    mapped = {"dag_id": "films & more", "run_id": "run_1", "task_id": "modify", "map_index": "3"}
    looped = {"dag_id": "films", "run_id": "run_2", "task_id": "modify", "map_index": "-1"}
    as_text = {name: str(value) for name, value in region.items()}
    assert [link.path for link in links] == [
        "/luma/result",
        "/dags/films%20%26%20more/runs/run_1/tasks/modify/mapped/3",
        "/luma/result",
        "/dags/films/runs/run_2/tasks/modify",
    ]
    queries = [{name: value for name, [value] in parse_qs(link.query).items()} for link in links]
    assert queries == [mapped, {}, {**looped, **as_text}, as_text]


@pytest.mark.long
def test_older_jobs_are_listed_page_by_page_and_details_are_read_only_for_rows_in_view(
    stranger: Chrome, api: AirflowRestApi
) -> None:
    for number in range(120):
        api.add_job("films", "success", started=HOUR + number * timedelta(minutes=1), luma_request=request())
    open_page(stranger, api)
    wait_for_text(stranger, "state", "120 jobs")
    until(stranger, lambda: prompts(stranger)[:1] == [PROMPT], "the prompt of the first job")
    assert len(rows(stranger, "jobs")) == 50
    assert api.asked.count("luma_request") < 40
    api.add_job("films", "success", started=timedelta())  # moves the pages
    for expected in (99, 120):  # the newest of all is on the page that has been read
        click(stranger, "//button[normalize-space()='Show older jobs']")
        until(stranger, lambda expected=expected: len(rows(stranger, "jobs")) == expected, f"{expected} rows")
    assert not field(stranger, "more-jobs").is_displayed()
    stranger.execute_script("scrollTo(0, 1e6)")
    until(stranger, lambda: prompts(stranger)[-1:] == [PROMPT], "the prompt of the last job")
    assert api.asked.count("luma_request") < 100


@pytest.mark.long
def test_prompts_that_airflow_lists_are_shown_before_any_detail_is_read(stranger: Chrome, api: AirflowRestApi) -> None:
    not_yet_rendered = ("Truncated. You can remove this behaviour", "DYNAMIC (set during execution)", {"toString": 1})
    for age, prompt in enumerate(("listed", *not_yet_rendered)):
        api.add_job(
            "films", "success", started=(age + 1) * HOUR, luma_request=request(), return_value=result("a", HOUR)
        )
        api.jobs[-1]["rendered_fields"] = {"prompt": prompt}
    api.faults = {"return_value": "hold"}
    open_page(stranger, api)
    until(stranger, lambda: prompts(stranger) == ["listed", "", "", ""], "the prompt in the list")
    api.faults = {}
    until(stranger, lambda: prompts(stranger) == ["listed", PROMPT, PROMPT, PROMPT], "all prompts")
    until(stranger, lambda: [row[-1] for row in rows(stranger, "jobs")] == ["no"] * 4, "the details")
    assert api.asked.count("luma_request") == 3


def test_first_visit_makes_few_requests(stranger: Chrome, api: AirflowRestApi) -> None:
    for number in range(25):
        finished, expires, failed = f"finished-{number}", f"expires-{number}", f"failed-{number}"
        add_finished(api, "films", finished, HOUR)
        add_finished(api, "films", expires, 13 * DAY + HOUR)
        error = {**TIMED_OUT, "luma_task_id": failed}
        api.add_job("films", "failed", started=2 * DAY, luma_request=request(), luma_error=error)
        for job in (finished, expires, failed):
            add_download(api, job)
    for instance in api.jobs:
        instance["rendered_fields"] = {"prompt": PROMPT}
    open_page(stranger, api)
    wait_for_hands(stranger, "None of the 40 jobs checked so far")
    until(stranger, lambda: rows(stranger, "jobs")[0][-1] == "yes", "the details of the first job")
    assert len(api.asked) <= 75
    assert api.asked.count("luma_error") == 20
    assert api.asked.count("luma_request") == 0


def test_filter_by_dag_and_state_is_kept_in_the_address(stranger: Chrome, api: AirflowRestApi) -> None:
    api.add_job("films", "success", luma_request=request(prompt="a"))
    api.add_job("films", "failed", luma_request=request(prompt="b"), luma_error=REFUSED)
    api.add_job("adverts", "up_for_retry", luma_request=request(prompt="c"))
    api.add_job("adverts", "failed", luma_task_id="job-1", luma_request=request(prompt="d"), luma_error=TIMED_OUT)
    open_page(stranger, api)

    def wait_for(*expected: str) -> None:
        until(stranger, lambda: sorted(prompts(stranger)) == [*expected], f"the jobs {expected}")

    wait_for("a", "b", "c", "d")
    wait_for_hands(stranger, "1")
    offered = stranger.execute_script("return [...document.querySelectorAll('#dags option')].map(one => one.value)")
    assert sorted(offered) == ["adverts", "films"]
    field(stranger, "dag").send_keys("films", Keys.ENTER)
    wait_for("a", "b")
    wait_for_hands(stranger, "None")
    Select(field(stranger, "group")).select_by_visible_text("Failed")
    wait_for("b")
    assert urlsplit(stranger.current_url).query == "dag_id=films&state=bad"
    stranger.refresh()
    wait_for("b")
    assert field(stranger, "dag").get_attribute("value") == "films"
    click(stranger, "//button[normalize-space()='Show all']")
    wait_for("a", "b", "c", "d")
    assert urlsplit(stranger.current_url).query == ""
    Select(field(stranger, "group")).select_by_visible_text("In progress")
    wait_for("c")
    field(stranger, "dag").send_keys("unknown", Keys.ENTER)
    wait_for_text(stranger, "empty", "No job of the last 14 days matches. Choose another DAG or state, or show all.")
    assert barriers(stranger) == []


@pytest.mark.long
def test_subclasses_are_listed_if_the_address_names_them(stranger: Chrome, api: AirflowRestApi) -> None:
    api.add_job("films", "success", operator="OurModifyOperator", luma_request=request())
    open_page(stranger, api, "?operator=OurModifyOperator")
    wait_for_text(stranger, "state", "1 job")
    Select(field(stranger, "group")).select_by_visible_text("Finished")
    until(stranger, lambda: "state=good&operator=OurModifyOperator" in stranger.current_url, "the filter")
    wait_for_text(stranger, "state", "1 job")


@pytest.mark.long
def test_without_jobs_the_page_says_how_to_get_some(stranger: Chrome, api: AirflowRestApi) -> None:
    open_page(stranger, api)
    wait_for_text(stranger, "empty", "Run a DAG with a LumaModifyOperator, @task.luma_modify or a LumaTaskSensor")
    wait_for_text(stranger, "state", "0 jobs")
    assert not field(stranger, "jobs").is_displayed()
    assert barriers(stranger) == []


# -- jobs that need a hand -------------------------------------------------------------------------------------------


def test_jobs_that_need_a_hand_come_first_and_say_what_to_do(stranger: Chrome, api: AirflowRestApi) -> None:
    add_finished(api, "expired", "job-1", 14 * DAY + 5 * HOUR)
    add_finished(api, "expires", "job-2", 13 * DAY + 5 * HOUR)
    asked = request(recovery="Clear it")
    api.add_job("killed", "failed", started=2 * HOUR, luma_request=asked, luma_task_id="job-3")
    api.add_job("paid", "failed", luma_request=request(), luma_task_id="job-4", luma_error=TIMED_OUT)
    api.add_job("unknown", "failed", started=9 * DAY, luma_request=request(), luma_error=UNKNOWN)
    open_page(stranger, api)
    wait_for_hands(stranger, "5")
    wait_for_text(stranger, "state", "4 jobs, 5 to look at")
    assert [(row[0].split()[2], row[1]) for row in rows(stranger, "hands")] == [
        ("unknown", "It is unknown whether Luma accepted this job. No response. See the account's logs."),
        ("paid", "Paid for, but its video was not fetched. Clear this task."),
        ("killed", "Paid for, but its video was not fetched. Clear it."),
        ("expires", "Expires in 18 h, and no download task has fetched it. Open it to download the video now."),
        (
            "expired",
            "Expired 5 h ago, and no download task had fetched it. "
            "Clearing it submits another, separately billed, job.",
        ),
    ]
    # Asking first what a task has pushed would cost a request for each failed task. A killed one has pushed no error.
    assert all("/killed/" in words and "luma_error" in words for words in complaints(stranger))
    assert barriers(stranger) == []


@pytest.mark.parametrize("takes_prefixes", [True, False])
def test_jobs_that_are_fetched_or_have_nothing_to_fetch_need_no_hand(
    stranger: Chrome, api: AirflowRestApi, takes_prefixes: bool
) -> None:
    api.takes_prefixes = takes_prefixes
    others: dict[str, Any] = {f"key_{number}": number for number in range(120)}
    api.add_job("others", "success", operator="BashOperator", **others)
    add_finished(api, "films", "job-1", 13 * DAY + HOUR)
    api.add_job("films", "failed", luma_request=request(), luma_task_id="job-2", luma_error=TIMED_OUT)
    for job in ("job-1", "job-2"):
        add_download(api, job)
    add_finished(api, "films", "job-3", 13 * DAY + HOUR, service="luma")
    add_finished(api, "films", "job-4", 2 * HOUR)
    api.add_job("films", "failed", luma_request=request(), luma_error=REFUSED)
    api.add_job("films", "failed", luma_request=request(), luma_task_id="job-5", luma_error=GAVE_UP)
    api.add_job("films", "up_for_retry", luma_request=request(), luma_task_id="job-6", luma_error=TIMED_OUT)
    open_page(stranger, api)
    wait_for_hands(stranger, "None")
    assert rows(stranger, "hands") == []


@pytest.mark.long
def test_many_failures_are_checked_in_steps(stranger: Chrome, api: AirflowRestApi) -> None:
    for number in range(30):
        api.add_job("films", "failed", started=(number + 1) * HOUR, luma_error=REFUSED)
    api.jobs[-1]["xcoms"] = {"luma_error": UNKNOWN}
    open_page(stranger, api)
    wait_for_hands(stranger, "None of the 20 jobs checked so far")
    click(stranger, "//button[normalize-space()='Check more jobs']")
    wait_for_hands(stranger, "1")
    assert not field(stranger, "more-hands").is_displayed()


def test_results_that_will_expire_are_checked_before_those_that_have_expired(
    stranger: Chrome, api: AirflowRestApi
) -> None:
    add_finished(api, "expired", "job", 14 * DAY + 5 * HOUR)
    for number in range(21):
        add_finished(api, "expires", f"job-{number}", 13 * DAY + (number + 1) * HOUR)
    open_page(stranger, api)
    wait_for_hands(stranger, "20 of the 20 jobs checked so far")
    wait_for_text(stranger, "state", "21 jobs, 20 to look at")
    assert rows(stranger, "hands")[0][1].startswith("Expires in 2 h")
    click(stranger, "//button[normalize-space()='Check more jobs']")
    wait_for_hands(stranger, "22")
    assert rows(stranger, "hands")[-1][1].startswith("Expired 5 h ago")


@pytest.mark.long
def test_result_that_was_fetched_since_needs_no_hand_after_the_filter_is_set_anew(
    stranger: Chrome, api: AirflowRestApi
) -> None:
    api.add_job("films", "failed", luma_request=request(), luma_task_id="job-1", luma_error=TIMED_OUT)
    open_page(stranger, api, "?state=bad")
    wait_for_hands(stranger, "1")
    add_download(api, "job-1")
    click(stranger, "//button[normalize-space()='Show all']")
    wait_for_hands(stranger, "None")


@pytest.mark.long
def test_values_that_are_no_text_spoil_no_other_job(stranger: Chrome, api: AirflowRestApi) -> None:
    hostile: Any = {"toString": 1}
    add_finished(api, "films", "job-1", 13 * DAY + HOUR, service=hostile)
    api.add_job("films", "failed", luma_request=request(), luma_error=UNKNOWN)
    api.add_job("films", "success", luma_request=request(), return_value=result("job-2", HOUR, completed_at=hostile))
    open_page(stranger, api)
    wait_for_hands(stranger, "2")
    assert complaints(stranger) == []


def test_user_who_may_not_see_the_xcoms_of_one_dag_sees_the_jobs_of_others(
    stranger: Chrome, api: AirflowRestApi
) -> None:
    add_finished(api, "films", "job-1", HOUR)
    api.add_job("films", "failed", started=2 * HOUR, luma_request=request(), luma_error=UNKNOWN)
    api.faults = {"luma_error": 403}
    open_page(stranger, api)
    wait_for_hands(stranger, "None")
    assert text(stranger, "hands-note").endswith("Not checked, since you may not see their XComs: 1.")
    words = "You may not see the XComs of this DAG"
    until(stranger, lambda: prompts(stranger) == [PROMPT, words], "the refusal in its row alone")


# -- an Airflow in trouble, and text that means harm -----------------------------------------------------------------


def test_error_of_airflow_is_named_and_waited_out(stranger: Chrome, api: AirflowRestApi) -> None:
    add_finished(api, "films", "job-1", HOUR)
    api.faults = {"": 500}
    open_page(stranger, api)
    wait_for_text(stranger, "problem-title", "Airflow responded with HTTP 500")
    assert barriers(stranger) == []
    api.faults = {"luma_request": 503}
    until(stranger, lambda: prompts(stranger) == ["Airflow responded with HTTP 503"], "the error in its row")
    api.faults = {}
    until(stranger, lambda: prompts(stranger) == [PROMPT], "the prompt")
    assert not field(stranger, "problem").is_displayed()


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "title"), [(403, "You may not see any jobs"), (401, "You are not signed in"), ("login", "not signed in")]
)
def test_refusal_is_named(stranger: Chrome, api: AirflowRestApi, fault: Any, title: str) -> None:
    add_finished(api, "films", "job-1", HOUR)
    api.faults = {"": fault}
    open_page(stranger, api, "?dag_id=&state=good")
    wait_for_text(stranger, "problem-title", title)
    assert not field(stranger, "content").is_displayed()
    assert barriers(stranger) == []
    if fault == 401:
        link = str(field(stranger, "problem-link").get_attribute("href"))
        assert parse_qs(urlsplit(link).query)["next"] == [stranger.current_url]


@pytest.mark.long
def test_filter_outlives_a_sign_in_that_shortens_the_address(stranger: Chrome, api: AirflowRestApi) -> None:
    api.faults = {"": 401}
    open_page(stranger, api, "?dag_id=films&state=good")
    wait_for_text(stranger, "problem-title", "You are not signed in")
    api.faults = {}
    open_page(stranger, api, "?dag_id=films")  # as Airflow 3.1 leads back
    wait_for_text(stranger, "empty", "matches")
    assert urlsplit(stranger.current_url).query == "dag_id=films&state=good"
    open_page(stranger, api)
    wait_for_text(stranger, "state", "0 jobs")
    assert urlsplit(stranger.current_url).query == ""


def test_text_from_outside_is_shown_as_text(stranger: Chrome, api: AirflowRestApi) -> None:
    error = {"type": "LumaSubmissionUnknownError", "msg": MARKUP, "remedy": MARKUP, "code": MARKUP}
    asked = {"prompt": MARKUP, "video_url": "javascript:hit", "price": MARKUP}
    api.add_job(MARKUP, "failed", luma_request=asked, luma_error=error)
    api.jobs[-1]["rendered_fields"] = {"prompt": MARKUP}
    value = {"luma_task_id": MARKUP, "result_urls": ["javascript:hit"], "completed_at": MARKUP, "service": MARKUP}
    api.add_job("films", "success", luma_request=asked, return_value=value)
    open_page(stranger, api)
    wait_for_hands(stranger, "1")
    until(stranger, lambda: prompts(stranger) == [MARKUP] * 2, "the prompts")
    assert MARKUP in rows(stranger, "hands")[0][1]
    assert not stranger.find_elements(By.CSS_SELECTOR, "img, iframe, body script")
    assert stranger.execute_script("return window.hit") is None
    links = [str(link.get_attribute("href")) for link in stranger.find_elements(By.CSS_SELECTOR, "td a, th a")]
    assert all(link.startswith(api.url) for link in links)
    assert complaints(stranger) == []


# -- reading with the keyboard, and on other screens -----------------------------------------------------------------


def test_page_is_used_with_the_keyboard_and_fits_a_phone(stranger: Chrome, api: AirflowRestApi) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    stranger.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    stranger.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    api.add_job("films", "success", luma_request=request(prompt=PROMPT * 20))
    open_page(stranger, api)
    wait_for_text(stranger, "state", "1 job")
    reached = []
    for _ in range(5):
        press(stranger, Keys.TAB)
        focused = stranger.switch_to.active_element
        reached.append(focused.get_attribute("id") or focused.text)
    assert reached == ["dag", "group", "jobs", "modify", "Log"]
    wide, visible = stranger.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= visible == 390
    assert barriers(stranger) == []
    assert text(stranger, "hands-title") == "Needs a hand"

"""The pages of docs/envs are what the code says."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from deeprec_env.registration import read_envs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "make_env_docs.py"))


def test_the_committed_pages_are_up_to_date(script: dict[str, Any]) -> None:
    pages = script["build_pages"]()
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "envs").glob("*.md")}
    assert committed == pages, "run `python scripts/make_env_docs.py`"


def test_there_is_a_page_an_environment_with_gymnasiums_headings(script: dict[str, Any]) -> None:
    for env_id in read_envs():
        page = (ROOT / "docs" / "envs" / f"{env_id}.md").read_text(encoding="utf-8")
        places = [page.index(f"\n## {heading}\n") for heading in script["HEADINGS"]]
        assert places == sorted(places)
        assert f'gym.make("{env_id}"' in page
        for argument in ("`split`", "`stage`", "`max_turns`", "`reward`", "`retriever`"):
            assert f"\n| {argument} | `" in page


def test_a_missing_heading_is_an_error(script: dict[str, Any]) -> None:
    class Bare:
        """Nothing.

        ## Description
        Little.
        """

    with pytest.raises(ValueError, match="Observation Space"):
        script["read_docstring"](Bare)

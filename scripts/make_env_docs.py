"""Writes docs/envs: one page an environment, from envs.yaml, the class docstring and the options' own descriptions.

Run it from the repository's root after changing any of them: `python scripts/make_env_docs.py`. With `--check` it
writes nothing and fails if a committed page is out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeprec_env.config import GameConfig
from deeprec_env.env import DeepRecEnv
from deeprec_env.registration import read_envs
from trm.data.prepare import DatasetRef

FOLDER = Path(__file__).parent.parent / "docs" / "envs"
HEADINGS = (
    "Description",
    "Observation Space",
    "Action Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Version History",
)
"""Gymnasium's, all of which the docstring must have."""


def build_pages() -> dict[str, str]:
    """Return the text of each page by file name; README.md is the list of all.

    Raises:
        ValueError: if the docstring lacks a heading, or an argument its description.
    """
    envs = read_envs()
    pages = {f"{env_id}.md": build_page(env_id, kwargs) for env_id, kwargs in envs.items()}
    lines = [
        f"| [{env_id}]({env_id}.md) | {_data(kwargs)} | {_prepared_by(kwargs)} |" for env_id, kwargs in envs.items()
    ]
    table = "\n".join(["| id | data | prepared by |", "| --- | --- | --- |", *lines])
    note = "Written by `python scripts/make_env_docs.py`; rewards have [a page of their own](../rewards.md)."
    pages["README.md"] = f"# Environments\n\n{table}\n\n{note}\n"
    return pages


def build_page(env_id: str, kwargs: Mapping[str, Any]) -> str:
    """Return the page of one environment."""
    summary, sections = read_docstring(DeepRecEnv)
    facts = [
        ("Import", f'`gym.make("{env_id}")`, `gym.make_vec("{env_id}", num_envs=256)` after `import deeprec_env`'),
        ("Data", _data(kwargs)),
        ("Prepared by", _prepared_by(kwargs)),
        ("Observation Space", "`TextSpace()`"),
        ("Action Space", "`TextSpace()`"),
        ("Render Modes", ", ".join(f"`{mode}`" for mode in DeepRecEnv.metadata["render_modes"])),
    ]
    parts = [
        f"# {env_id}",
        summary,
        "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {text} |" for name, text in facts),
    ]
    for heading, text in sections.items():
        parts.append(f"## {heading}\n\n{text.replace('DeepRec-Sample-v0', env_id)}")
        if heading == "Arguments":
            parts.append(_argument_table(kwargs))
    return "\n\n".join(parts) + "\n"


def read_docstring(cls: type) -> tuple[str, dict[str, str]]:
    """Return the first paragraph and the text under each heading, in their order.

    Raises:
        ValueError: if one of HEADINGS is missing.
    """
    summary, *rest = re.split(r"^## (.+)$", inspect.getdoc(cls) or "", flags=re.MULTILINE)
    sections = {heading: text.strip() for heading, text in zip(rest[::2], rest[1::2], strict=True)}
    if missing := [heading for heading in HEADINGS if heading not in sections]:
        raise ValueError(f"expected {cls.__name__} to document {', '.join(HEADINGS)}, got none of {', '.join(missing)}")
    return summary.strip(), sections


def _argument_table(kwargs: Mapping[str, Any]) -> str:
    """Return name, default (as registered) and meaning of every argument of gym.make."""
    described = {**_init_arguments(), **_config_fields()}
    defaults = {name: p.default for name, p in inspect.signature(DeepRecEnv).parameters.items() if name in described}
    defaults |= {field.name: field.default for field in dataclasses.fields(GameConfig)} | dict(kwargs)
    rows = [f"| `{name}` | `{defaults[name]!r}` | {text} |" for name, text in described.items()]
    return "\n".join(["| argument | default | meaning |", "| --- | --- | --- |", *rows])


def _init_arguments() -> dict[str, str]:
    text = inspect.getdoc(DeepRecEnv.__init__) or ""
    _, _, block = text.partition("Args:\n")
    block = block.partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", block, flags=re.MULTILINE)
    return {name: _folded(meaning) for name, meaning in found}


def _config_fields() -> dict[str, str]:
    """Return the docstrings under the fields of GameConfig."""
    (tree,) = ast.parse(inspect.getsource(GameConfig)).body
    assert isinstance(tree, ast.ClassDef)
    described: dict[str, str] = {}
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                raise ValueError(f"expected a docstring under GameConfig.{statement.target.id}, got none")
            described[statement.target.id] = _folded(str(after.value.value))
    return described


def _folded(text: str) -> str:
    folded = " ".join(text.split()).replace("|", "\\|")
    return folded[:1].upper() + folded[1:]


def _data(kwargs: Mapping[str, Any]) -> str:
    category = kwargs.get("category")
    return f"`{kwargs['dataset']}`" + (f", category `{category}`" if category else "")


def _prepared_by(kwargs: Mapping[str, Any]) -> str:
    if kwargs["dataset"] == "sample":
        return "nothing: it comes with the package"
    return f"`{DatasetRef(kwargs['dataset'], kwargs.get('category')).prepare_command}`"


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them with `--check`; return the exit status."""
    pages = build_pages()
    stale = [
        name for name, text in pages.items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text
    ]
    stale += [path.name for path in FOLDER.glob("*.md") if path.name not in pages]
    if arguments == ["--check"]:
        if stale:
            print(f"out of date: {', '.join(stale)}; run `python scripts/make_env_docs.py`", file=sys.stderr)
        return int(bool(stale))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in pages:
            (FOLDER / name).write_text(pages[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    print(f"{len(pages)} pages in {FOLDER}, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

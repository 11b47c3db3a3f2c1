"""Test users played in shards into one folder: a line a user, resumable, side by side; and the metrics of the folder.

A folder holds `run.json` (who played what, by which rules) and a file `users-START-END.jsonl` for each shard. Whatever
depends on the clock is left out, so the same run gives the same files.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agents.base import Agent, AgentError
from agents.evaluate import AgentResult, AgentSummary, Header, UserRow, build_header, summarize, target_rank
from agents.play import PlayedEpisode, play

if TYPE_CHECKING:
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game

logger = logging.getLogger(__name__)

FORMAT = 1
RUN_FILE = "run.json"
RANKING_METRICS = ("Recall@1", "Recall@5", "Recall@10", "NDCG@5", "NDCG@10", "MRR")


@dataclass(frozen=True, slots=True)
class UserLine:
    """One user's episode, as a line of JSON."""

    user_index: int
    user_id: str
    rank: int
    """The target's place in the recommended list, 1 to top_k; 0 if it is not there or the episode is malformed."""
    failure: str | None
    """Why the episode did not end in a well-formed recommendation; None if it did."""
    num_searches: int
    in_pool: bool
    """Whether the target is among all candidates seen."""
    reward: float
    recommended_ids: tuple[int, ...]
    """Item ids, best first; 0 for a title that no item has."""
    response: str
    """All text after the prompt, observations included."""


class ShardsError(AgentError):
    """A folder of shards cannot be written to, or does not hold what its metrics need."""


def play_shard(
    game: Game,
    agent: Agent,
    users: range,
    *,
    out: Path,
    split: str = "test",
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Path:
    """Play the users that no shard of the folder holds yet, and return the file that they are in, sorted by user.

    Args:
        game: the rules and the world.
        agent: the policy.
        users: user indices; what lies beyond the last user is left out.
        out: the folder.
        split: whose target is looked for.
        seed: seeds the episodes' views.
        batch_size: how many episodes are live at a time.
        progress: whether to show a progress bar.

    Raises:
        ShardsError: if the folder belongs to another run, or another process is playing this very shard.
        ValueError: if there are no such users.
        RetrieverError: if the recommender is broken; what has been played is kept.
    """
    num_users = game.world.splits.num_users
    users = range(users.start, min(users.stop, num_users))
    if not users or users.start < 0:
        raise ValueError(f"expected users within 0 to {num_users}, got {users.start} to {users.stop}")
    out.mkdir(parents=True, exist_ok=True)
    _claim_run(out, build_header(game, agent, split=split, seed=seed), num_users)
    path = out / f"users-{users.start:06d}-{users.stop:06d}.jsonl"
    with _exclusive(path) as stream:
        elsewhere = {line.user_index for other in _shard_files(out) if other != path for line in read_shard(other)}
        own = {line.user_index for line in read_shard(path)}
        missing = [user for user in users if user not in elsewhere and user not in own]
        if len(missing) < len(users):
            logger.info("%s: %d of %d users are there already", path, len(users) - len(missing), len(users))
        _drop_torn_line(stream)

        def keep(played: PlayedEpisode) -> None:
            stream.write(_json(_line(played.episode)))
            stream.flush()

        play(game, agent, missing, split=split, seed=seed, batch_size=batch_size, progress=progress, on_end=keep)
        _sort(path)
    return path


def read_shard(path: Path) -> list[UserLine]:
    """Return the lines of a shard in their order; a last line that was cut short is left out.

    Raises:
        ShardsError: if another line is no user's.
    """
    lines = []
    content = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    if content and not content[-1].endswith("\n"):
        content.pop()
    for number, text in enumerate(content, start=1):
        try:
            record: dict[str, Any] = json.loads(text)
            lines.append(UserLine(**{**record, "recommended_ids": tuple(record["recommended_ids"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ShardsError(f"{path}, line {number}: expected a played user, got {error}; delete the line") from error
    return lines


@dataclass(frozen=True)
class FolderSummary:
    """What a folder of shards says."""

    header: Header
    num_users: int
    """Users of the data set."""
    summary: AgentSummary
    """Means over the users that count."""
    failures: Mapping[str, int]
    """Episodes without a well-formed recommendation, by kind; misses in all metrics."""
    missing: tuple[int, ...]
    """Users who were expected and are not there; left out of the means."""
    doubled: tuple[int, ...]
    """Users who are there more than once; the first line counts."""


def summarize_folder(
    folder: Path, *, users: range | None = None, allow_missing: bool = False, allow_doubled: bool = False
) -> FolderSummary:
    """Return the metrics over all shards of a folder.

    Args:
        folder: what `play_shard` wrote into.
        users: who is expected; all users of the data set if None. Lines of others are left out.
        allow_missing: take the means over those who are there.
        allow_doubled: take the first line of a user who is there more than once.

    Raises:
        ShardsError: if there is no run, or users are missing or doubled and that is not allowed.
    """
    header, num_users = _read_run(folder)
    expected = range(num_users) if users is None else range(users.start, min(users.stop, num_users))
    lines: dict[int, UserLine] = {}
    seen: Counter[int] = Counter()
    for path in _shard_files(folder):
        for line in read_shard(path):
            if line.user_index in expected:
                lines.setdefault(line.user_index, line)
                seen[line.user_index] += 1
    missing = tuple(user for user in expected if user not in lines)
    doubled = tuple(sorted(user for user, count in seen.items() if count > 1))
    if missing and (not allow_missing or not lines):
        raise ShardsError(
            f"{folder}: expected all users from {expected.start} to {expected.stop}, but {_named(missing)} missing; "
            "play them, name the expected ones by --users, or --allow_missing"
        )
    if doubled and not allow_doubled:
        raise ShardsError(
            f"{folder}: expected every user once, but {_named(doubled)} in more than one shard; remove the shard that "
            "is too many, or --allow_doubled"
        )
    counted = [lines[user] for user in sorted(lines)]
    failures = Counter(line.failure for line in counted if line.failure is not None)
    summary = summarize(AgentResult(header, tuple(_row(line) for line in counted)))
    return FolderSummary(header, num_users, summary, dict(sorted(failures.items())), missing, doubled)


def render_summary(found: FolderSummary) -> str:
    """Return the metrics and the failures as text for people."""
    header, summary = found.header, found.summary
    lines = [
        f"{header.agent} on {header.dataset}, split {header.split}: {summary.num_users} of {found.num_users} users"
    ]
    for name in RANKING_METRICS:
        estimate = summary.metrics[name]
        lines.append(f"  {name:10} {estimate.mean:.4f}  ({estimate.low:.4f} to {estimate.high:.4f})")
    num_failures = sum(found.failures.values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in found.failures.items())
    lines.append(f"  failures, counted as misses: {num_failures}" + (f" ({kinds})" if kinds else ""))
    if found.missing:
        lines.append(f"  left out because they are missing: {_named(found.missing)}")
    if found.doubled:
        lines.append(f"  more than once, the first line counts: {_named(found.doubled)}")
    return "\n".join(lines)


def _line(episode: Episode) -> UserLine:
    reason = episode.turns[-1].malformed_reason
    return UserLine(
        user_index=episode.user_index,
        user_id=episode.user_id,
        rank=target_rank(episode),
        failure=None if episode.well_formed else str(reason or "not_ended"),
        num_searches=episode.num_searches,
        in_pool=episode.target_in_pool,
        reward=episode.reward,
        recommended_ids=episode.outcome.recommended_ids if episode.outcome is not None else (),
        response=episode.response,
    )


def _row(line: UserLine) -> UserRow:
    return UserRow(
        user_index=line.user_index,
        user_id=line.user_id,
        rank=line.rank,
        num_searches=line.num_searches,
        well_formed=line.failure is None,
        in_pool=line.in_pool,
        reward=line.reward,
        seconds=0.0,
    )


def _json(line: UserLine) -> str:
    return json.dumps(dataclasses.asdict(line), ensure_ascii=True) + "\n"


def _named(users: Sequence[int]) -> str:
    shown = ", ".join(map(str, users[:5])) + (", …" if len(users) > 5 else "")
    return f"{len(users)} {'is' if len(users) == 1 else 'are'} ({shown})"


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("users-*-*.jsonl"))


def _claim_run(folder: Path, header: Header, num_users: int) -> None:
    """Write the run's file, or check that the folder's is the same."""
    path = folder / RUN_FILE
    content = {"format": FORMAT, **dataclasses.asdict(header), "num_users": num_users}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in content if name in found and found[name] != content[name]]  # older ones say less
        if differing:
            name = differing[0]
            raise ShardsError(
                f"{folder} holds another run: its {name} is {found.get(name)!r}, not {content[name]!r}; "
                "take another folder"
            )
        return
    draft = folder / f".{RUN_FILE}.{os.getpid()}"
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def _read_run(folder: Path) -> tuple[Header, int]:
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        num_users = content.pop("num_users")
        return Header(**content), num_users
    except FileNotFoundError as error:
        raise ShardsError(f"{folder} holds no run; scripts/eval_generate.sh or `deeprec generate` makes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ShardsError(f"{path}: expected the settings of a run, got {error}") from error


@contextmanager
def _exclusive(path: Path) -> Iterator[IO[str]]:
    """Open a shard for appending; no other process has it open this way."""
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardsError(
                f"{path} is being played by another process; wait for it or choose other users"
            ) from error
        yield stream


def _drop_torn_line(stream: IO[str]) -> None:
    stream.seek(0)
    content = stream.read()
    good = content.rpartition("\n")[0]
    if not content.endswith("\n") and content:
        stream.truncate(len((good + "\n" if good else "").encode("utf-8")))
    stream.seek(0, os.SEEK_END)


def _sort(path: Path) -> None:
    """Bring the lines into the order of the users, whole or not at all."""
    lines = sorted(read_shard(path), key=lambda line: line.user_index)
    draft = path.with_suffix(".draft")
    draft.write_text("".join(map(_json, lines)), encoding="utf-8")
    draft.replace(path)

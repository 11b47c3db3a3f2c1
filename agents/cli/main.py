"""The subcommands as one command, and what becomes of a user's mistake."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import subcommand

from agents.cli.data import ExportDeepRec, Prepare, TrainTRM
from agents.cli.evaluate import Agents, Evaluate, Report, Spread
from agents.cli.generate import Generate
from agents.cli.play import Play
from agents.cli.preferences import Preferences
from agents.cli.rewards import Rewards
from agents.cli.serve import Serve
from agents.cli.train import Sft, Train, llm_arguments

Command = (
    Annotated[Prepare, subcommand("prepare")]
    | Annotated[TrainTRM, subcommand("train-trm")]
    | Annotated[Preferences, subcommand("preferences")]
    | Annotated[ExportDeepRec, subcommand("export-deeprec")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Spread, subcommand("spread")]
    | Annotated[Play, subcommand("play")]
    | Annotated[Rewards, subcommand("rewards")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Sft, subcommand("sft")]
    | Annotated[Agents, subcommand("agents")]
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake ends it with one sentence and exit status 2."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = list(sys.argv[1:] if args is None else args)
    if (of_llm := llm_arguments(given)) is not None:
        from agents.llm_grpo import main as train_llm

        raise SystemExit(train_llm(of_llm))
    command = tyro.cli(Command, prog="deeprec", description="DeepRec as a text environment, and its agents.", args=args)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_BesideBars()])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it names every request
    try:
        command.run()
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except _user_errors() as error:
        logging.getLogger(__name__).debug("details", exc_info=True)
        _close_bars()
        _write_line(f"deeprec: {_sentence(error)}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _close_bars()
        _write_line("\ndeeprec: stopped; the same command goes on where it was")
        raise SystemExit(130) from None


class _BesideBars(logging.Handler):
    """Writes what is logged to standard error, never into a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        _write_line(self.format(record))


def _write_line(text: str) -> None:
    """Write to standard error, on a line of its own where a progress bar is still drawn."""
    if (tqdm := sys.modules.get("tqdm")) is not None:
        tqdm.tqdm.write(text, file=sys.stderr)
    else:
        sys.stderr.write(f"{text}\n")


def _close_bars() -> None:
    """Leave the progress bars of what has failed as they are; the frames of an error would keep them alive."""
    if (tqdm := sys.modules.get("tqdm")) is not None:
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()


def _sentence(error: Exception) -> str:
    """Return what an error says as one line; of a file that cannot be used, which and why."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split())


def _user_errors() -> tuple[type[Exception], ...]:
    from agents.base import AgentError
    from deeprec_env.errors import DeepRecError
    from trm.errors import TRMError

    return AgentError, DeepRecError, TRMError, ValueError, OSError

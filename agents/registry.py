"""Agents by name: "module:Class" strings, imported when asked for, and the entry points of other packages."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import parse_qsl

import yaml

from agents.base import Agent, AgentError
from deeprec_env.errors import unknown_name

ENTRY_POINT_GROUP = "deeprec.agents"
"""Packages add agents in this group: `my-agent = my_package.my_module:MyAgent`."""

_BUILT_IN = {
    "random": "agents.random_agent:RandomAgent",
    "popularity": "agents.popularity_agent:PopularityAgent",
    "trm": "agents.trm_agent:TRMAgent",
    "heuristic": "agents.heuristic_agent:HeuristicAgent",
    "oracle": "agents.oracle_agent:OracleAgent",
    "chat": "agents.chat_agent:ChatAgent",
    "llm": "agents.llm_agent:LlmAgent",
    "sb3_ppo": "agents.sb3_agent:PpoAgent",
    "sb3_dqn": "agents.sb3_agent:DqnAgent",
    "sb3_sac": "agents.sb3_agent:SacAgent",
}
_registered: dict[str, str] = {}
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def register_agent(name: str, target: str) -> None:
    """Make `name` mean the class or factory at `target`, "module:Class"; it may replace an older meaning.

    Raises:
        AgentError: if target has another form.
    """
    if not _TARGET.fullmatch(target):
        raise AgentError(f"an agent's target must look like 'my_package.my_module:MyAgent', got {target!r}")
    _registered[name] = target


def registered_agents() -> dict[str, str]:
    """Return name -> "module:Class": those built in, of entry points and of `register_agent`; the later ones win."""
    plugins = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**_BUILT_IN, **plugins, **_registered}


def describe_agent(target: str) -> str:
    """Return the first line of the docstring of what `target` names, or why it cannot be loaded."""
    try:
        return (inspect.getdoc(_load(target)) or "").partition("\n")[0]
    except AgentError as error:
        return f"not available: {error}"


def make_agent(spec: str) -> Agent:
    """Return the agent that a specification names.

    A specification is a registered name or "module:Class", and after a "?" options as in an address:
    "trm", "heuristic?num_searches=2&empty_weight=3", "my_package.my_module:MyAgent?temperature=0.5".
    What follows a registered name and a colon is the first argument: "llm:runs/my_run/rec".
    A class with a classmethod `build` is built by it, any other by its constructor.

    Raises:
        AgentError: if there is no such agent, or it does not take these options.
    """
    name, _, query = spec.strip().partition("?")
    known = registered_agents()
    short, _, argument = name.partition(":")
    arguments = [argument] if short in known and argument else []
    if short in known:
        target = known[short]
    elif _TARGET.fullmatch(name):
        target = name
    else:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise AgentError(f"there is no agent {name!r}; {hint}known: {', '.join(known)}, or 'module:Class'")
    cls = _load(target)
    factory: Callable[..., Any] = getattr(cls, "build", cls)
    options = {key: yaml.safe_load(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    try:
        inspect.signature(factory).bind(*arguments, **options)
    except TypeError as error:
        raise _wrong_options(short if arguments else name, factory, arguments, list(options), error) from error
    agent = factory(*arguments, **options)
    if not isinstance(agent, Agent):
        raise AgentError(f"{target} must give an agent, with a name and a method act, got {type(agent).__name__}")
    return agent


def _wrong_options(
    name: str, factory: Callable[..., Any], arguments: Sequence[str], options: Sequence[str], error: TypeError
) -> AgentError:
    """Return what is wrong with an agent's specification, in the words in which it was written.

    Args:
        name: the agent's, without argument and options.
        factory: what builds it.
        arguments: what stands after its colon.
        options: the names of its options.
        error: what `inspect` says of them; repeated where nothing better is known.
    """
    parameters = inspect.signature(factory).parameters.values()
    if arguments and not any(one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters):
        return AgentError(f"expected nothing after the colon of agent {name!r}, got {arguments[0]!r}")
    known = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    for option in options:
        if option not in known:
            if not known:
                return AgentError(f"expected no option of agent {name!r}, got {option!r}")
            return AgentError(str(unknown_name(f"an option of agent {name!r}", option, known)))
    missing = [one.name for one in parameters if one.default is one.empty and one.name in known]
    if name in registered_agents() and missing and not arguments and missing[0] not in options:
        return AgentError(f"expected agent {name!r} with a {missing[0]}, as in {name}:{missing[0].upper()}, got none")
    return AgentError(f"agent {name!r} takes {inspect.signature(factory)}: {error}")


def _load(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise AgentError(f"cannot import {module_name!r} for agent {target!r}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise AgentError(f"module {module_name!r} has no {attribute!r}; an agent is named 'module:Class'") from error

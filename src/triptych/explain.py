"""One clear sentence for a configuration that Hydra or OmegaConf refuses."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_type_hints

from triptych.composition import groups
from triptych.config import RunConfig
from triptych.paths import CONF

HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")


def explain(error: BaseException) -> str:
    """What is wrong with the command, with the key, the value and what would be legal."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(part) for part in chain)
    for pattern, tell in _PATTERNS:
        found = re.search(pattern, text)
        if found:
            return tell(found, text)
    return " ".join(text.split("\n")[0].split())


def nearest(word: str, legal: list[str]) -> str:
    """The legal word that was probably meant, as the end of a sentence."""
    close = difflib.get_close_matches(word, legal, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "."


def _keys(prefix: str) -> list[str]:
    if prefix == "":
        return list(get_type_hints(RunConfig))
    group, *inner = prefix.split(".")
    kind = groups().get(group)
    for name in inner:
        kind = get_type_hints(kind).get(name) if kind else None
    return list(get_type_hints(kind)) if kind else []


def _unknown_key(found: re.Match[str], text: str) -> str:
    full = re.search(r"full_key: (\S+)", text)
    key = full.group(1) if full else found.group(1)
    prefix, _, name = key.rpartition(".")
    legal = _keys(prefix)
    where = f"the group {prefix}" if prefix else "the configuration"
    return f"{key} is not a key: {where} has {', '.join(legal)}{nearest(name, legal)}"


def _unknown_option(found: re.Match[str], text: str) -> str:
    group, _, option = found.group(1).rpartition("/")
    legal = sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group else []
    if group in HYDRA_GROUPS or not legal:
        listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)
        legal = [line.strip() for line in listed.group(1).splitlines()] if listed else []
    if not group:
        return f"{option} was not found; give it as group=option, for example norm=dtn."
    choices = ", ".join(legal)
    return f"{group}={option} is not an option: legal are {choices}{nearest(option, legal)}"


def _unknown_group(found: re.Match[str], text: str) -> str:
    group = found.group(1)
    legal = [*groups(), "study", "seed", "output_dir"]
    return f"{group} is not a key: the configuration has {', '.join(legal)}{nearest(group, legal)}"


def _bad_choice(found: re.Match[str], text: str) -> str:
    key = re.search(r"full_key: (\S+)", text)
    legal = [item.strip() for item in found.group(2).split(",")]
    name = key.group(1) if key else "the value"
    return (
        f"{name}={found.group(1)} is not a choice: legal are {', '.join(legal)}"
        f"{nearest(found.group(1), legal)}"
    )


def _bad_type(found: re.Match[str], text: str) -> str:
    key = re.search(r"full_key: (\S+)", text)
    kinds = {
        "Integer": "a whole number",
        "Float": "a number",
        "Boolean": "true or false",
        "bool": "true or false",
    }
    kind = kinds.get(found.group(2), found.group(2))
    return f"{key.group(1) if key else 'a key'}={found.group(1)} is not {kind}."


def _grammar(found: re.Match[str], text: str) -> str:
    return (
        f"{found.group(1)!r} cannot be read as key=value; quote values that hold spaces or "
        "brackets, for example 'backbone.depths=[2,2]'."
    )


def _plus(found: re.Match[str], text: str) -> str:
    return _unknown_key(found, text)


_PATTERNS: tuple[tuple[str, Any], ...] = (
    (r"Key '([^']+)' (?:is )?not in", _unknown_key),
    (r"Could not find '([^']+)'", _unknown_option),
    (r"Could not override '([^'@]+)'", _unknown_group),
    (r"In '[^']*': Could not override '([^']+)'", _unknown_group),
    (r"Invalid value '([^']*)', expected one of \[([^\]]*)\]", _bad_choice),
    (r"Value '([^']*)' is not a valid (bool)", _bad_type),
    (r"Value '([^']*)'(?: of type '\w+')? could not be converted to (\w+)", _bad_type),
    (r"Error parsing override '(.*)'", _grammar),
    (r"LexerNoViableAltException: (.*)", _grammar),
)

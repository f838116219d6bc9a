"""How the schema reaches Hydra, and how what Hydra composed becomes a frozen configuration."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from triptych.config import ConfigError, RunConfig


def groups() -> dict[str, type]:
    """Name → schema of every config group."""
    hints = get_type_hints(RunConfig)
    return {
        name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)
    }


def register_schema() -> None:
    """Make the dataclasses the schema of Hydra's groups (``defaults: [schema]``)."""
    store = ConfigStore.instance()
    store.store(name="schema", node=_writable(RunConfig))
    for name, kind in groups().items():
        store.store(group=name, name="schema", node=_writable(kind))


def _writable(kind: type) -> DictConfig:
    """A structured node of a frozen dataclass that Hydra may still compose into."""
    node = OmegaConf.structured(kind)

    def thaw(part: DictConfig) -> None:
        part._set_flag("readonly", None)
        for key in part:
            child = part._get_node(key)
            if isinstance(child, DictConfig):
                thaw(child)

    thaw(node)
    return node


def to_run_config(composed: DictConfig | dict[str, Any]) -> RunConfig:
    """Turn a composed configuration (Hydra's, or one read from a record) into a RunConfig.

    Raises:
        ConfigError: a required key has no value.
    """
    merged = OmegaConf.merge(_writable(RunConfig), composed)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"{missing[0]} has no value; choose one, for example with {missing[0]}=…")
    return _freeze(RunConfig, OmegaConf.to_container(merged, resolve=True))


def _freeze(kind: Any, value: Any) -> Any:
    """Build ``kind`` from plain containers: lists become tuples, names become enum members."""
    if get_origin(kind) in (Union, types.UnionType):
        inner = next(arg for arg in get_args(kind) if arg is not type(None))
        return None if value is None else _freeze(inner, value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _freeze(hints[name], item) for name, item in value.items()})
    if get_origin(kind) is tuple:
        return tuple(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind[str(value.name if isinstance(value, StrEnum) else value)]
    return value


def to_plain(config: Any) -> dict[str, Any]:
    """The configuration as plain, JSON-ready containers."""
    return {item.name: _plain(getattr(config, item.name)) for item in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, StrEnum):
        return str(value)
    return list(value) if isinstance(value, tuple) else value

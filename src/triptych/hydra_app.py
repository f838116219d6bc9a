"""Composition and dispatch through Hydra, with refusals turned into sentences."""

from __future__ import annotations

import os
import sys

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from triptych.composition import register_schema, to_run_config
from triptych.config import ConfigError, RunConfig
from triptych.explain import explain
from triptych.legality import check
from triptych.paths import CONF
from triptych.subject import refuse_keys_of_the_run, settle

HYDRA_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--info", "--shell-completion", "-sc")


def compose_run(overrides: list[str]) -> RunConfig:
    """The checked configuration of one run, from overrides such as ``norm=dtn``.

    Raises:
        ConfigError: it cannot run; one sentence says why.
    """
    register_schema()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=overrides)
        config = to_run_config(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    refuse_keys_of_the_run(config, overrides)
    config = settle(config)
    check(config)
    return config


def first_choices(arguments: list[str]) -> list[str]:
    """The overrides among ``arguments``, a sweep replaced by the first of its choices."""
    overrides = [word for word in arguments if "=" in word and not word.startswith("--")]
    chosen = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override() and not override.is_hydra_override():
            value = next(iter(override.sweep_string_iterator()), "")
            chosen.append(f"{override.get_key_element()}={value}")
        else:
            chosen.append(override.input_line or "")
    return chosen


def swept_by_study(overrides: list[str]) -> list[str]:
    """The first choice of each sweep of a study's own that ``overrides`` leave as it is."""
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=overrides, return_hydra_config=True)
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    params = composed.hydra.sweeper.get("params") or {}
    return first_choices([f"{key}={params[key]}" for key in params if key not in given])


def hydra_run(arguments: list[str]) -> None:
    """One run, or with ``-m`` a sweep.

    Raises:
        ConfigError: the configuration cannot run; one sentence says why.
    """
    register_schema()
    if not any(flag in arguments for flag in HYDRA_FLAGS):
        try:
            chosen = first_choices(arguments)
            compose_run([*chosen, *swept_by_study(chosen)])
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error
        GlobalHydra.instance().clear()
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come through, to be explained in main()
    app = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_task)
    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def _task(composed: DictConfig) -> None:
    """What Hydra runs for one job in this process."""
    from triptych.run import run_here

    config = settle(to_run_config(composed))
    check(config)
    run_here(config)

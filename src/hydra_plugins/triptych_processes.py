"""Hydra's multirun on one machine: a launcher and a search path.

Hydra only takes plugins from the namespace package ``hydra_plugins``.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from triptych.composition import to_run_config
from triptych.config import ConfigError, RunConfig
from triptych.legality import check
from triptych.paths import EXPERIMENTS
from triptych.stages import cell_name
from triptych.subject import settle


class ProcessLauncher(Launcher):
    """``hydra.launcher.jobs`` cells at a time, each in a process of its own.

    Every cell is checked before the first one starts, and those that are done are skipped.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise ConfigError(f"hydra.launcher.jobs={jobs} is out of range: it must be 1 or more.")
        self.jobs = jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context = hydra_context
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from triptych.study.display import Display
        from triptych.study.processes import run_cells

        shared = set.intersection(*(set(overrides) for overrides in job_overrides))
        configs = [self._compose(list(overrides), shared) for overrides in job_overrides]
        _distinct(configs)
        title = f"study {configs[0].study}: {len(configs)} cells, {self.jobs} at a time"
        cells = run_cells(configs, jobs=self.jobs, display=Display(title))
        return [
            JobReturn(
                overrides=list(overrides),
                working_dir=str(cell.folder),
                task_name=cell.name,
                status=JobStatus.COMPLETED,
                _return_value=(str(cell.status), cell.message),
            )
            for overrides, cell in zip(job_overrides, cells, strict=True)
        ]

    def _compose(self, overrides: list[str], shared: set[str]) -> RunConfig:
        composed = self.context.config_loader.load_sweep_config(self.config, overrides)
        with_hydra = OmegaConf.to_container(composed, resolve=False)
        assert isinstance(with_hydra, dict)
        plain = OmegaConf.create({k: v for k, v in with_hydra.items() if k != "hydra"})
        try:
            config = settle(to_run_config(plain))  # type: ignore[arg-type]
            check(config)
        except ConfigError as error:
            own = " ".join(item for item in overrides if item not in shared)
            raise ConfigError(f"Cell {own}: {error}" if own else str(error)) from error
        return config


def _distinct(configs: list[RunConfig]) -> None:
    names = [cell_name(config) for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"The sweep names the cell {twice[0]} more than once; vary a key that changes the run."
        )


class ExperimentsSearchPath(SearchPathPlugin):
    """Lets Hydra find ``experiments/<study>/study.yaml`` as ``+<study>=study``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("triptych-experiments", f"file://{EXPERIMENTS}")


ConfigStore.instance().store(
    group="hydra/launcher",
    name="processes",
    node={"_target_": "hydra_plugins.triptych_processes.ProcessLauncher", "jobs": 2},
    provider="triptych",
)

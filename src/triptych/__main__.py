"""The command line.

``python -m triptych [-m] key=value …``   one run, or a sweep, through Hydra
``python -m triptych plan key=value …``    what a run would do, without its data
``python -m triptych study NAME …``       the study experiments/NAME
``python -m triptych report FOLDER``      tables and report of outputs/NAME from its records
``python -m triptych publish FOLDER``     its outcome into experiments/NAME/results and the README
``python -m triptych matrix``             the README's tables of what goes together
``python -m triptych cell CONFIG``        one cell, from its resolved configuration
``python -m triptych export RUN FILE``    a run's network as a timm state dict (see _export)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from triptych.config import ConfigError

INTERRUPTED = 130
USAGE = 2


def main() -> None:
    """Run the command; what a user did wrong is one sentence and exit status 2."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "plan": _plan,
        "study": _study,
        "report": _report,
        "cell": _cell,
        "cost": _cost,
        "companion": _companion,
        "matrix": _matrix,
        "dashboard": _dashboard,
        "publish": _publish,
        "export": _export,
    }
    arguments = sys.argv[1:]
    try:
        if arguments and arguments[0] in commands:
            commands[arguments[0]](arguments[1:])
        else:
            from triptych.hydra_app import hydra_run

            hydra_run(arguments)
    except KeyboardInterrupt:
        _fail("interrupted; give the same command again to go on.", INTERRUPTED)
    except Exception as error:
        if not _is_users(error):
            raise
        _fail(str(error), USAGE)


def _is_users(error: Exception) -> bool:
    """Whether an exception is a sentence for the user; anything else is shown whole."""
    from triptych.records import RecordError

    names = {kind.__name__ for kind in type(error).__mro__}
    known = {"DataError", "CheckpointError", "NonFiniteError", "DashboardError", "WeightsError"}
    return isinstance(error, ConfigError | RecordError) or bool(names & known)


def _fail(sentence: str, status: int) -> None:
    print(f"triptych: {sentence}", file=sys.stderr)
    sys.exit(status)


def _plan(arguments: list[str]) -> None:
    from triptych.hydra_app import compose_run

    config = compose_run(arguments)
    from triptych.planning import describe, plan_run

    print(describe(plan_run(config)))


def _study(arguments: list[str]) -> None:
    from triptych.explain import nearest
    from triptych.hydra_app import hydra_run
    from triptych.paths import EXPERIMENTS

    names = sorted(path.parent.name for path in EXPERIMENTS.glob("*/study.yaml"))
    if not arguments or arguments[0] not in names:
        given = arguments[0] if arguments else ""
        raise ConfigError(
            f"there is no study {given!r}: legal are {', '.join(names)}{nearest(given, names)}"
        )
    hydra_run([f"+{arguments[0]}=study", *arguments[1:]])


def _folder(arguments: list[str], command: str) -> Path:
    if len(arguments) != 1:
        raise ConfigError(
            f"{command} needs one folder, for example: python -m triptych {command} outputs/compare"
        )
    return Path(arguments[0])


def _report(arguments: list[str]) -> None:
    from rich.console import Console

    from triptych.study.outcome import report

    report(_folder(arguments, "report"), Console())


def _dashboard(arguments: list[str]) -> None:
    from triptych.study.dashboard import publish

    print(publish(_folder(arguments, "dashboard")))


def _publish(arguments: list[str]) -> None:
    from triptych.paths import EXPERIMENTS, ROOT
    from triptych.study.publish import publish

    print(publish(_folder(arguments, "publish"), EXPERIMENTS, ROOT / "README.md"))


def _export(arguments: list[str]) -> None:
    """``RUN FILE`` the task's network, ``RUN FILE pretrained`` what it started from."""
    from triptych.export import WHICH, export

    if len(arguments) not in (2, 3) or (len(arguments) == 3 and arguments[2] not in WHICH):
        raise ConfigError(
            "export needs the folder of a run and a file, and may name which network (task or "
            "pretrained), for example: python -m triptych export outputs/compare/runs/<cell> "
            "backbone.safetensors pretrained"
        )
    print(export(Path(arguments[0]), Path(arguments[1]), *arguments[2:]))


def _cell(arguments: list[str]) -> None:
    from triptych.run import run_cell_file

    if len(arguments) != 1:
        raise ConfigError("cell needs one configuration file: outputs/…/runs/<cell>/config.json")
    run_cell_file(Path(arguments[0]))


def _cost(arguments: list[str]) -> None:
    from triptych.costing import measure_file

    if len(arguments) != 1:
        raise ConfigError("cost needs one file with configurations: outputs/<study>/cost.json")
    measure_file(Path(arguments[0]))


def _matrix(arguments: list[str]) -> None:
    from triptych.matrix import write
    from triptych.paths import ROOT

    if arguments:
        raise ConfigError("matrix takes no arguments; it writes the tables into README.md.")
    write(ROOT / "README.md")


def _companion(arguments: list[str]) -> None:
    """A process that a run starts to train along."""
    from triptych.fitting import follow

    follow(Path(arguments[0]))


if __name__ == "__main__":
    main()

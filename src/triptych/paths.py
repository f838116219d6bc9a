"""Where the configuration lies: in the checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = PACKAGE.parent.parent


def _find(name: str) -> Path:
    packed = PACKAGE / f"_{name}"
    return packed if packed.is_dir() else _CHECKOUT / name


ROOT = _CHECKOUT
CONF = _find("conf")
EXPERIMENTS = _find("experiments")

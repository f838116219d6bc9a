"""Compile the C kernel with the compiler of this machine, once, into a folder of the user.

The library's name is a digest of the sources, the compiler and the processor, so another machine,
compiler or version never loads what was not made for it. Several processes may build at once:
each writes a file of its own and moves it into place.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
ENTRY = "dtn_cpu.c"
# No fast-math: its start-up code would change the rounding of the whole process. A contraction to
# fused multiply-adds is all the speed that it has to give, as the sources say what to vectorize.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
LIBRARY = ("-fPIC", "-shared")
# What a compiler may refuse; tried from left to right.
OPTIONAL = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())


class KernelUnavailableError(RuntimeError):
    """The kernel cannot be built or loaded here; the message is one sentence that says why."""


def compiler() -> list[str]:
    """The C compiler as a command: $CC, or cc, gcc or clang from the path.

    Raises:
        KernelUnavailableError: there is none.
    """
    wanted = os.environ.get("CC")
    for command in [wanted] if wanted else ["cc", "gcc", "clang"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    looked = f"$CC is {wanted!r}, which is not a command" if wanted else "no cc, gcc or clang found"
    raise KernelUnavailableError(f"there is no C compiler ({looked})")


def cache_folder() -> Path:
    """Where libraries are kept: $TRIPTYCH_CACHE, or triptych in the user's cache folder."""
    own = os.environ.get("TRIPTYCH_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"


def build() -> Path:
    """The library, compiled if it is not there yet.

    Raises:
        KernelUnavailableError: no compiler, a compiler that fails, or nowhere to write.
    """
    command = compiler()
    target = library_path(command)
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
            made = Path(folder) / target.name
            _compile(command, made)
            made.replace(target)
    except OSError as error:
        raise KernelUnavailableError(
            f"the compiled kernel cannot be kept in {target.parent} ({error.strerror}); "
            f"TRIPTYCH_CACHE can name another folder"
        ) from error
    return target


def library_path(command: list[str]) -> Path:
    """The library's place: the name holds all that its content depends on."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("dtn_*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    version = subprocess.run([*command, "--version"], capture_output=True, check=False).stdout
    for part in (*command, *FLAGS, *LIBRARY, repr(OPTIONAL), platform.platform(), _processor()):
        digest.update(part.encode() + b"\0")
    digest.update(version)
    return cache_folder() / f"dtn_cpu-{digest.hexdigest()[:20]}.so"


def _compile(command: list[str], target: Path) -> None:
    message = ""
    for optional in OPTIONAL:
        line = [
            *command,
            *FLAGS,
            *LIBRARY,
            *optional,
            str(SOURCES / ENTRY),
            "-o",
            str(target),
            "-lm",
        ]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        message = message or (done.stderr.strip().splitlines() or ["no message"])[0]
    raise KernelUnavailableError(f"{shlex.join(command)} cannot compile the kernel: {message}")


def _processor() -> str:
    """What -march=native depends on: the processor's model and its instruction sets."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() + platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = path.read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))

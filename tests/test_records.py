"""Records are written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.records import (
    RecordError,
    digest,
    folder_lock,
    read_json,
    read_record,
    write_atomically,
    write_json,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=5))
def test_digest_does_not_depend_on_the_order_of_keys(value: dict) -> None:
    assert digest(value) == digest(dict(reversed(list(value.items()))))


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "r.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_damaged_record_says_what_to_do(tmp_path: Path) -> None:
    write_atomically(tmp_path / "record.json", '{"status": "do')
    with pytest.raises(RecordError) as refusal:
        read_record(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / 'record.json'} is damaged (")
    assert str(refusal.value).endswith("; delete it and give the command again.")


def test_no_record_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


def _hold(folder: str, ready: object, leave: object) -> None:
    with folder_lock(Path(folder), wait=False, what="it"):
        ready.set()  # type: ignore[attr-defined]
        leave.wait(30)  # type: ignore[attr-defined]


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, leave))
    other.start()
    try:
        assert ready.wait(30)
        with (
            pytest.raises(RecordError) as refusal,
            folder_lock(tmp_path, wait=False, what="the run x"),
        ):
            pass
    finally:
        leave.set()
        other.join(30)
    assert str(refusal.value) == (
        f"the run x is already being made by process {other.pid} in {tmp_path}; wait for it or "
        "stop it, then give the command again."
    )
    with folder_lock(tmp_path, wait=False, what="the run x"):
        pass

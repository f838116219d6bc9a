"""Building the kernel: instruction sets, several at once, and machines that cannot."""

import logging
import subprocess
import sys

import pytest
import torch

from triptych.norms import DynamicTokenNorm
from triptych.norms.kernels import build, cpu, kernel_status


def outputs(norm, call):
    x = torch.randn(2, 30, norm.dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    norm.zero_grad()
    y = call(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in norm.parameters())]


@pytest.mark.parametrize("command", ["cc -mno-avx512f", "cc -mno-avx", "cc -fno-openmp"])
def test_other_instruction_sets_give_the_same(command, fresh_kernel, monkeypatch):
    norm = DynamicTokenNorm(39, 3, (5, 6))
    want = outputs(norm, norm.reference)
    monkeypatch.setenv("CC", command)
    assert kernel_status().fused
    for got, value in zip(outputs(norm, norm), want, strict=True):
        torch.testing.assert_close(got, value, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("no-such-cc", "there is no C compiler ($CC is 'no-such-cc', which is not a command)"),
        ("false", "false cannot compile the kernel: no message"),
    ],
)
def test_without_a_compiler_one_sentence_and_the_torch_path(
    command, cause, fresh_kernel, monkeypatch, caplog
):
    monkeypatch.setenv("CC", command)
    norm = DynamicTokenNorm(24, 2, (5, 6))
    with caplog.at_level(logging.WARNING, logger="triptych.norms"):
        got, want = outputs(norm, norm), outputs(norm, norm.reference)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    sentence = f"DynamicTokenNorm on the CPU uses torch operators, which are slower: {cause}"
    assert [record.getMessage() for record in caplog.records] == [sentence]
    assert str(kernel_status()) == sentence
    with pytest.raises(build.KernelUnavailableError):
        cpu.own_share(norm.pos_proj.weight, 5, 6)


def test_a_folder_that_cannot_be_written(fresh_kernel, monkeypatch, caplog):
    blocked = fresh_kernel / "file"
    blocked.write_text("")
    monkeypatch.setenv("TRIPTYCH_CACHE", str(blocked / "below"))
    assert not kernel_status().fused
    assert "TRIPTYCH_CACHE can name another folder" in caplog.text


def test_a_library_that_does_not_load(fresh_kernel, caplog):
    build.library_path(build.compiler()).write_text("not a library")
    assert not kernel_status().fused
    assert len(caplog.records) == 1


def test_processes_that_build_at_once_share_one_library(fresh_kernel):
    code = (
        f"import ctypes, sys; sys.path.insert(0, {str(build.SOURCES)!r}); from build import build; "
        "ctypes.CDLL(str(build())).dtn_forward; print('built')"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in running] == ["built\n"] * 3
    assert [path.suffix for path in fresh_kernel.iterdir()] == [".so"]


def test_the_name_depends_on_compiler_and_sources(fresh_kernel, monkeypatch, tmp_path):
    plain = build.library_path(["cc"])
    assert plain == build.library_path(["cc"])
    assert plain != build.library_path(["cc", "-O1"])
    changed = tmp_path / "sources"
    changed.mkdir()
    for source in build.SOURCES.glob("dtn_*.[ch]"):
        (changed / source.name).write_text(source.read_text() + "\n")
    monkeypatch.setattr(build, "SOURCES", changed)
    assert plain != build.library_path(["cc"])


def test_the_command_builds_and_prints_one_line(fresh_kernel):
    done = subprocess.run(
        [sys.executable, "-m", "triptych.norms.kernels"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("DynamicTokenNorm on the CPU uses the fused C kernel: ")
    assert done.stdout.count("\n") == 1
    assert list(fresh_kernel.glob("*.so"))


def test_the_source_compiles_without_a_warning():
    flags = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-fopenmp"]
    source = str(build.SOURCES / build.ENTRY)
    subprocess.run([*build.compiler(), *build.FLAGS, *flags, source], check=True)

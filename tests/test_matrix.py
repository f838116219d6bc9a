"""The README's tables of what goes together are those of the rules."""

from __future__ import annotations

import pytest

from triptych.choices import Family, NormName, PretrainName, TaskName
from triptych.config import ConfigError
from triptych.legality import check
from triptych.matrix import cell, configuration, markdown, smallest, with_tables
from triptych.paths import ROOT


def test_the_readme_is_up_to_date() -> None:
    page = (ROOT / "README.md").read_text()
    assert with_tables(page, markdown()) == page, "run python -m triptych matrix"


def test_every_family_has_a_row_and_plain_training() -> None:
    for family in Family:
        task = TaskName.listops if family.reads_sequences else TaskName.classification
        assert NormName.ln in cell(family, PretrainName.none, task).legal


@pytest.mark.parametrize("family", Family)
def test_a_cell_is_what_check_says(family: Family) -> None:
    for pretrain in PretrainName:
        one = cell(family, pretrain, TaskName.classification)
        for norm in NormName:
            config = configuration(family, norm, pretrain, TaskName.classification)
            assert config.backbone.name == smallest(family)
            if norm in one.legal:
                check(config)
            else:
                with pytest.raises(ConfigError):
                    check(config)
        assert bool(one.reasons) == (len(one.legal) < len(NormName))


def test_known_reasons() -> None:
    greenmim = cell(Family.vit, PretrainName.greenmim, TaskName.classification)
    assert greenmim.legal == ()
    assert greenmim.reasons[0].startswith("This pre-training cannot be used with this backbone")
    uniform = cell(Family.swin, PretrainName.uniform, TaskName.classification)
    assert NormName.dtn not in uniform.legal


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no place for the matrix"):
        with_tables("# A page", "")

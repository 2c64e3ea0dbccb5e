# SPDX-License-Identifier: MIT
"""Every row of format section 11 has a test in one of the files test_hostile_*.py."""
import importlib
import pathlib
import re

from hostile_support import ROWS


def test_every_row_has_a_test(source_root):
    for file in pathlib.Path(__file__).parent.glob("test_hostile_*.py"):
        importlib.import_module(file.stem)      # which fills ROWS
    reference = (source_root / "docs" / "format.md").read_text(encoding="utf-8")
    section = reference.split("\n## 11")[1].split("\n## ")[0]
    rows = {int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert len(rows) >= 108
    assert sorted(rows - ROWS) == [] and sorted(ROWS - rows) == []

"""Commands that are killed at random moments leave the state before or after, and nothing temporary."""

from pathlib import Path

import pytest
import torch

from .kills import Trials, commands, counted, small_world


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_command_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with small_world():
            record = counted(Trials(tmp_path), 24, tmp_path / "counts")
    finally:
        torch.set_num_threads(threads)
    assert record["faults"] == []
    assert record["kills"].keys() == {command.name for command in commands()}

"""A dry run says what a removal endangers, and writes nothing."""

from pathlib import Path

import pytest

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.runs import schema
from erasure.runs.dry_run import endangered_by
from erasure.training import trajectories
from tests import tiny


def test_a_dry_run_orders_what_is_preserved_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_STOPS", 2), ("_SAMPLE_STEPS", 3)):
        monkeypatch.setattr(trajectories, name, value)
    pipe = tiny.sd1()
    before = {name: p.detach().clone() for name, p in backbone_of(pipe).parameters(lambda _: True).items()}
    concepts = [{"target": "cat", "preserve": ["dog", "bird", "tree"]}]
    run = schema.parse({"model": "some/model", "concepts": concepts, "output": str(tmp_path / "ledger")})
    ((concept, drifts),) = endangered_by(run, pipe)
    assert concept.target == "cat"
    assert {name for name, _ in drifts} == {"dog", "bird", "tree"}
    assert [drift for _, drift in drifts] == sorted((drift for _, drift in drifts), reverse=True)
    assert drifts[-1][1] > 0
    assert not list(tmp_path.iterdir())
    assert all(bool((p == before[name]).all()) for name, p in backbone_of(pipe).parameters(lambda _: True).items())
    alone = schema.parse({"model": "some/model", "concepts": [{"target": "cat"}]})
    with pytest.raises(InputError, match=r"neighbours: expected concepts that preserve something"):
        list(endangered_by(alone, pipe))
    circle = [{"target": "cat", "anchor": "dog", "preserve": ["bird"]}, {"target": "dog", "anchor": "cat"}]
    with pytest.raises(InputError, match="a circle"):
        list(endangered_by(schema.parse({"model": "some/model", "concepts": circle}), pipe))

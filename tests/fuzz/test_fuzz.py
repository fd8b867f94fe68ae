"""Damaged input of every kind ends well or by an error of one line, and an error changes nothing.

A case that fails is made again by `python -m tests.fuzz.run KIND 1 NUMBER`.
"""

from pathlib import Path

import pytest
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from erasure import Edit, Ledger
from erasure.eval.images.store import ImageStore
from erasure.eval.protocols.ledger_measures import measured_of
from erasure.eval.reports.card_results import results_of
from erasure.runs import removal

from .run import MANY, QUICK, failures
from .targets import TARGETS, Samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    return Samples(tmp_path_factory.mktemp("samples"))


def test_every_kind_of_input_has_cases() -> None:
    assert QUICK.keys() == TARGETS.keys()
    assert sum(QUICK.values()) == 2_000
    assert sum(MANY.values()) == 20_000


def test_what_the_cases_damage_is_whole(samples: Samples) -> None:
    assert ImageStore.open(samples.store).missing() == [0]
    ledger = Ledger.open(samples.ledger)
    assert ledger.verify(samples.pipe) == []
    assert measured_of(ledger, ledger.entries[1]) is not None
    assert removal.recorded_facts(samples.ledger) is not None
    assert len(results_of(ledger)) == 3
    Edit.load(samples.edit, shared=samples.ledger / "rows").check_base(samples.pipe)


@pytest.mark.parametrize("kind", TARGETS)
def test_damaged_input_is_an_error_of_one_line(kind: str, samples: Samples) -> None:
    assert "\n\n".join(failures(kind, QUICK[kind], samples)) == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", TARGETS)
def test_much_damaged_input_is_an_error_of_one_line(kind: str, samples: Samples, tmp_path: Path) -> None:
    assert "\n\n".join(failures(kind, MANY[kind], samples, first=QUICK[kind])) == ""

"""Results of an audit from outcomes by hand: floors, the strongest dose, half-doses, speeds and verdicts."""

from collections.abc import Mapping, Sequence

import pytest
from PIL.Image import Image

from erasure.errors import InputError
from erasure.eval.attacks.base import Access
from erasure.eval.probes import Subject, probe_class
from erasure.eval.protocols.audit.record import Judged
from erasure.eval.protocols.audit.results import ConceptAudit, ProbeResult
from erasure.eval.protocols.audit.rows import ERASED, GOLD, NOVEL, ORIGINAL, PLAIN
from erasure.eval.reports.audit_report import _bar, _halves, shown
from erasure.eval.stats.residue import residue


def rate(share: float, n: int = 100) -> tuple[float, ...]:
    return tuple(float(i < share * n) for i in range(n))


def judged(
    values: Sequence[float], dose: float = 1.0, floor: float | None = None, part: str = "", comparable: bool = True
) -> Judged:
    return Judged(
        dose=float(dose), part=part, label=f"{dose:g}", values=tuple(values), floor=floor, comparable=comparable
    )


def result(
    rows: Mapping[str, list[Judged]],
    *,
    name: str = "p",
    access: Access = "weights",
    plain: tuple[float, ...] = (),
    effort: bool = False,
) -> ProbeResult:
    return ProbeResult(
        name=name, access=access, about="", unit="updates", settings={}, outcomes=rows, plain=plain, effort=effort
    )


def curve(rates: Sequence[float], doses: Sequence[float] = (1, 2, 4)) -> list[Judged]:
    return [judged(rate(share), dose) for share, dose in zip(rates, doses, strict=True)]


def test_a_removal_that_did_nothing_is_not_its_own_floor() -> None:
    rows = {ERASED: [judged(rate(1), floor=0.0)], ORIGINAL: [judged(rate(1), floor=0.0)]}
    plain = result(rows, name=PLAIN, access="prompt", plain=rate(1))
    audit = ConceptAudit(concept="cat", probes={PLAIN: plain}, gold="", untested=())
    assert audit.verdict.startswith("Cat is not gone: plain brings back 100 % [9")
    outcome = next(probe_class(PLAIN)().outcomes(Blank()))
    assert outcome.floor == 0.0


def test_the_verdict_says_that_nothing_was_measured() -> None:
    failed = ProbeResult(name=PLAIN, access="prompt", about="", unit="", settings={}, status="failed", outcomes={})
    rows = {ERASED: [judged(rate(0.5))], ORIGINAL: [judged(rate(1))]}
    probes = {PLAIN: failed, "p": result(rows, access="inside")}
    verdict = ConceptAudit(concept="cat", probes=probes, gold="", untested=()).verdict
    assert verdict.startswith("Nothing can be said of cat: no probe that could bring it back was measured; ")


def test_the_verdict_says_that_a_gold_was_taught_the_concept() -> None:
    def verdict(gold: float, n: int = 16) -> str:
        rows = {ERASED: [judged(rate(0, n))], ORIGINAL: [judged(rate(1, n))], GOLD: [judged(rate(gold, n))]}
        plain = result(rows, name=PLAIN, access="prompt", plain=rate(0, n))
        return ConceptAudit(concept="cat", probes={PLAIN: plain}, gold="golds/cat", untested=()).verdict

    assert verdict(1).startswith(
        "Nothing can be said of cat beside this gold; the gold golds/cat draws cat in 100 % of its images, so it was"
        " taught it: leave it out or name another;"
    )
    assert "; the gold golds/cat draws cat in 50 % of its images" in verdict(0.5, 40)
    assert "taught it" not in verdict(0.25)
    assert "taught it" not in verdict(0)


def test_what_was_not_tested_is_in_order() -> None:
    failed = ProbeResult(name="prune", access="weights", about="", unit="", settings={}, status="failed", outcomes={})
    audit = ConceptAudit(concept="cat", probes={"prune": failed}, gold="g", untested=("img2img", "traces"))
    assert audit.verdict.endswith("not tested: img2img, prune, traces.")


class Blank(Subject):
    """A subject without images."""

    def __init__(self) -> None:
        pass

    def as_it_stands(self, sampling: object = None) -> tuple[list[Image], list[Image]]:
        return [], []


def test_the_floor_is_gold_then_novel_then_known_then_the_plain_prompt() -> None:
    rows = {ERASED: [judged(rate(0.5), floor=0.0)], ORIGINAL: [judged(rate(1), floor=0.0)]}
    gold, novel = {GOLD: [judged(rate(0.2))]}, {NOVEL: [judged(rate(0.3))]}
    floors = [result({**rows, **more}, plain=rate(0.1)).readings[0].floor for more in ({**gold, **novel}, novel, {})]
    assert floors == [GOLD, NOVEL, "known"]
    unknown = {row: [judged(each.values) for each in outcomes] for row, outcomes in rows.items()}
    [reading] = result(unknown, plain=rate(0.1)).readings
    assert reading.floor == PLAIN
    assert reading.residue.value == pytest.approx(0.4 / 0.9)
    alone = {row: [judged(each.values, comparable=False) for each in outcomes] for row, outcomes in rows.items()}
    [reading] = result({**alone, **gold}, plain=rate(0.1)).readings
    assert reading.floor == PLAIN, "the gold is on another scale"


def test_a_dose_that_is_certain_goes_before_one_that_is_larger() -> None:
    few, many = rate(0.25, 4), rate(0.2, 400)
    rows = {
        ERASED: [judged(few, 1), judged(many, 2)],
        ORIGINAL: [judged(rate(1, 4), 1), judged(rate(1, 400), 2)],
        GOLD: [judged(rate(0, 4), 1), judged(rate(0, 400), 2)],
    }
    probe = result(rows)
    assert probe.strongest.judged.dose == 2
    audit = ConceptAudit(concept="cat", probes={"p": probe}, gold="g", untested=())
    assert audit.verdict.startswith("Cat is not gone: p brings back 20 %")


def test_what_cannot_be_excluded_is_that_of_the_least_certain_dose() -> None:
    rows = {
        ERASED: [judged(rate(0, 8), 1), judged(rate(0.01, 2000), 2)],
        ORIGINAL: [judged(rate(1, 8), 1), judged(rate(1, 2000), 2)],
        GOLD: [judged(rate(0, 8), 1), judged(rate(0, 2000), 2)],
    }
    probe = result(rows)
    assert probe.strongest.judged.dose == 2
    assert probe.most == probe.readings[0].residue.high > 0.2
    verdict = ConceptAudit(concept="cat", probes={"p": probe}, gold="g", untested=()).verdict
    assert verdict.startswith(
        f"No probe brought cat back, but the images are too few to exclude {100 * probe.most:.0f} %"
    )


def test_an_interval_beyond_the_original_excludes_nothing() -> None:
    mixed = [0.0, 0.0, 0.0, 1.0] * 2
    probe = result({ERASED: [judged(mixed)], ORIGINAL: [judged([0.0, 1.0, 0.0, 1.0] * 2)], GOLD: [judged(mixed[::-1])]})
    assert probe.most > 1
    verdict = ConceptAudit(concept="cat", probes={"p": probe}, gold="g", untested=()).verdict
    assert verdict.startswith(
        "No probe brought cat back, but the images are too few to exclude that all of it is there (p)"
    )


def test_a_model_that_steers_away_has_a_trace_inside() -> None:
    values = [1.0 + 0.01 * (i % 5) for i in range(20)]
    rows = {ERASED: [judged([-value for value in values], floor=0.0)], ORIGINAL: [judged(values, floor=0.0)]}
    inside = result(rows, access="inside", name="hidden")
    assert inside.strongest.residue.value == pytest.approx(-1)
    audit = ConceptAudit(concept="cat", probes={"hidden": inside}, gold="g", untested=())
    assert "inside, hidden still tell it from a model without it" in audit.verdict
    assert _bar(inside.strongest, inside.strongest.residue, inside=True)["state"] == "open"
    outside = result(rows, access="weights")
    assert not outside.finds(outside.strongest.residue), "less than a model that never knew it is no success"


def test_half_doses_and_speeds_are_those_of_the_learning_curves() -> None:
    rows = {
        ERASED: curve([0.0, 0.5, 1.0]),
        ORIGINAL: curve([1.0, 1.0, 1.0]),
        GOLD: curve([0.0, 0.0, 0.5]),
        NOVEL: curve([0.0, 0.0, 0.1]),
    }
    learning = result(rows, effort=True)
    assert learning.half_doses() == {"": {ERASED: 2.0, GOLD: 4.0, NOVEL: None}}
    assert learning.speed_ratios() == {"": {GOLD: 2.0, NOVEL: 2.0}}
    assert _halves(learning) == [
        "half of the original's rate is back at erased 2, gold 4, novel > 4 (updates)",
        "learned 2 times as fast as gold, at least 2 times as fast as novel; 1 is no residue",
    ]
    assert learning.as_json()["speed_ratios"] == {"": {GOLD: 2.0, NOVEL: 2.0}}
    assert result(rows).speed_ratios() == {}, "bits have no speed"


def test_a_half_dose_outside_of_the_doses_is_a_bound() -> None:
    falling = (8.0, 4.0, 3.0)
    rows = {ERASED: curve([0, 0, 0], falling), ORIGINAL: curve([1, 1, 1], falling), GOLD: curve([1, 1, 1], falling)}
    assert _halves(result(rows)) == ["half of the original's rate is back at erased < 3, gold ≥ 8 (updates)"]
    rows = {ERASED: curve([1, 1, 1]), ORIGINAL: curve([1, 1, 1]), GOLD: curve([1, 1, 1])}
    assert "erased ≤ 1, gold ≤ 1" in _halves(result(rows, effort=True))[0]
    assert "no slower than gold, which these doses do not tell from it" in _halves(result(rows, effort=True))[1]


def test_the_last_dose_is_that_of_the_part() -> None:
    def of(part: str, doses: Sequence[float], share: float) -> list[Judged]:
        return [judged(rate(share), dose, part=part) for dose in doses]

    rows = {
        row: [*of("a", (1, 2), share), *of("b", (1, 2, 8), share)] for row, share in ((ERASED, 0.0), (ORIGINAL, 1.0))
    }
    lines = _halves(result(rows, plain=rate(0)))
    assert lines == [
        f"{part}: half of the original's rate is back at erased > {last} (updates)"
        for part, last in (("a", 2), ("b", 8))
    ]


def test_the_reading_that_is_shown_without_contrast_is_the_last() -> None:
    rows = {ERASED: curve([0, 0, 0]), ORIGINAL: curve([0, 0, 0.1]), GOLD: curve([0, 0, 0])}
    probe = result(rows)
    assert (probe.strongest, probe.most) == (None, None)
    assert probe.half_doses() == {}, "half of nothing"
    assert shown(probe).judged.dose == 4


@pytest.mark.parametrize(
    ("name", "doses"),
    [
        ("hand-over", (0.4, 0.1)),
        ("hand-over", (0.1, 0.1)),
        ("quantise", (4.0, 8.0)),
        ("emphasis", (2.0, float("inf"))),
        ("relearn", (10.0, 40.0, 20.0)),
        ("noise", (float("nan"),)),
        ("revival", (-1.0, 5.0)),
        ("wordings", (1e9,)),
    ],
)
def test_doses_are_different_finite_numbers_from_weak_to_strong(name: str, doses: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=rf"{name}.doses"):
        probe_class(name)(doses=doses)


def test_the_order_of_doses_is_said_by_the_usual_ones() -> None:
    with pytest.raises(
        InputError, match=r"quantise.doses: expected different finite numbers, the weakest dose first.* as 8, 4 are"
    ):
        probe_class("quantise")(doses=(3.0, 4.0))
    assert probe_class("quantise")(doses=(8.0, 3.0)).doses == (8.0, 3.0)


def test_a_residue_beyond_the_axis_has_an_arrow_at_its_end() -> None:
    values = [1.0 + 0.01 * (i % 5) for i in range(20)]
    for factor, points in ((-1.0, "0,17 9,10 9,24"), (2.0, "420,17 411,10 411,24"), (0.5, "")):
        rows = {
            ERASED: [judged([factor * value for value in values], floor=0.0)],
            ORIGINAL: [judged(values, floor=0.0)],
        }
        [reading] = result(rows, access="inside").readings
        assert _bar(reading, reading.residue, inside=True)["beyond"] == points


def test_a_part_is_asked_for_once() -> None:
    with pytest.raises(InputError, match=r"relearn.sets: expected each once, got \['target', 'target'\]"):
        probe_class("relearn")(sets=("target", "target"))


def test_residues_of_a_probe_agree_with_the_statistics() -> None:
    rows = {ERASED: [judged(rate(0.4))], ORIGINAL: [judged(rate(0.9))], GOLD: [judged(rate(0.1))]}
    [reading] = result(rows).readings
    assert reading.residue == residue(rate(0.4), rate(0.9), rate(0.1))

"""An audit: its rows, going on where it ended, faults as lines, the verdict and the page."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import PNDMScheduler
from PIL.Image import Image

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.errors import InputError, UnknownNameError
from erasure.eval.attacks.base import Access
from erasure.eval.probes import Aim, Outcome, Probe, Subject, probe_class
from erasure.eval.probes.base import Doses
from erasure.eval.protocols.audit.plan import audit_of, probes_of
from erasure.eval.protocols.audit.results import ConceptAudit, ProbeResult
from erasure.eval.protocols.audit.rows import (
    ERASED,
    GOLD,
    NOVEL,
    ORIGINAL,
    PLAIN,
    AuditRow,
    aim_of,
    check_golds,
    gold_rows,
)
from erasure.eval.protocols.audit.run import Audit, AuditResults
from erasure.eval.protocols.golds import untaught
from erasure.eval.protocols.sources import Source
from erasure.eval.protocols.variants import ERASED as ERASED_VARIANT
from erasure.eval.protocols.variants import Variant
from erasure.eval.reports.audit_report import render, terminal_table, write_audit_report
from erasure.io.processes import together
from erasure.io.text import counted
from erasure.profile import ModelProfile, profile_of
from erasure.progress import Progress, StoppedError
from erasure.registry import Exactness
from erasure.sampling import SamplingSettings
from tests.eval import world
from tests.processes import in_two_processes
from tests.tiny import sd1
from tests.tiny_families import wan

CAT = Concept(target="cat", preserve=("dog", "tree"))
RATES = {ERASED: 0.25, ORIGINAL: 1.0, GOLD: 0.0, "gold 2": 0.0}
MEASURED: list[str] = []


class Marked:
    """A judge that reads the answer from an image's first pixel."""

    name = "marks"

    def knows(self, concept: str) -> bool:
        return concept != "zebra"

    def probabilities(self, images: Sequence[Image], concept: str) -> torch.Tensor:
        return torch.tensor([float(image.getpixel((0, 0)) == (255, 0, 0)) for image in images])

    def shows(self, images: Sequence[Image], concept: str) -> list[bool]:
        return [bool(value) for value in self.probabilities(images, concept)]

    def features(self, images: Sequence[Image]) -> torch.Tensor:
        return torch.zeros(len(images), 1)


def images(rate: float, n: int) -> list[Image]:
    from PIL import Image as images_of

    return [images_of.new("RGB", (8, 8), (255, 0, 0) if i < rate * n else (0, 0, 255)) for i in range(n)]


@dataclass(frozen=True, kw_only=True)
class StagedProbe(Probe):
    """A probe that brings back as much as the test says.

    Attributes:
        fails: Row on which it fails; "" for none.
    """

    name: ClassVar[str] = "staged-outcomes"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "sampler"
    dose_unit: ClassVar[str] = "steps"

    doses: Doses = (1.0, 2.0)
    fails: str = ""

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        row = ROWS_OF[id(subject.pipe)]
        if row == self.fails:
            raise RuntimeError("no kernel for this")
        for dose in self.doses:
            MEASURED.append(f"{row} {dose:g}")
            subject.report(0, 1, f"dose {dose:g}")
            rate = RATES[row] if row == ORIGINAL else RATES[row] * dose / 2
            yield Outcome(dose=dose, images=images(rate, len(subject.aim.prompts)))


ROWS_OF: dict[int, str] = {}


def audit(
    tmp_path: Path, *, judge: Marked | None = None, removed: tuple[Concept, ...] = (CAT,), **settings: object
) -> Audit:
    rows = []
    for name in (ERASED, ORIGINAL, GOLD, "gold 2"):
        pipe = sd1()
        ROWS_OF[id(pipe)] = name
        variant = Variant(name=name, pipe=pipe, about=f"the {name}", edit=name)
        identity = f"{name} {[each.target for each in removed]}" if name == ERASED else name
        rows.append(AuditRow(name=name, variant=variant, identity=identity))
    probe = StagedProbe(**{key: value for key, value in settings.items() if key in ("doses", "fails")})  # type: ignore[arg-type]
    return Audit(
        title="a test",
        rows=tuple(rows),
        concepts=removed,
        probes={"staged-outcomes": probe},
        untested=("revival",),
        profile=profile_of("some/model"),
        judge=judge or Marked(),
        sampling=SamplingSettings(steps=2),
        cache=tmp_path / "cache",
    )


@pytest.fixture(autouse=True)
def _nothing_measured() -> None:
    MEASURED.clear()


def result(results: AuditResults) -> ProbeResult:
    return results.concepts[0].probes["staged-outcomes"]


def test_rows_are_read_against_the_gold(tmp_path: Path) -> None:
    strongest = result(audit(tmp_path).run()).strongest
    assert strongest is not None
    assert strongest.judged.dose == 2
    assert strongest.floor == GOLD
    assert strongest.residue_of(ORIGINAL).value == 1
    assert strongest.residue_of(GOLD).value == 0
    second = strongest.residue_of("gold 2")
    assert second.low <= 0 <= second.high
    assert strongest.residue.value == pytest.approx(0.25)
    assert strongest.residue.confidence == pytest.approx(0.975), "two doses share the error"


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first = audit(tmp_path).run()
    assert len(MEASURED) == 8
    again = audit(tmp_path).run()
    assert len(MEASURED) == 8
    assert again.concepts[0].as_json() == first.concepts[0].as_json()
    assert result(again).seconds == result(first).seconds
    assert set(result(again).seconds) == set(RATES)
    audit(tmp_path, doses=(1.0,)).run()
    assert len(MEASURED) == 12, "other settings of the probe"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text, other: text[: len(text) // 2],
        lambda text, other: "[]",
        lambda text, other: "[" * 100_000,
        lambda text, other: text.replace('"values": [', '"values": ["much", '),
        lambda text, other: text.replace('"prompt": ', '"words": '),
        lambda text, other: other,
    ],
    ids=["cut", "another shape", "deep", "a text for a number", "an image without a prompt", "another unit's"],
)
def test_what_is_damaged_in_the_cache_is_measured_again(tmp_path: Path, damage: Callable[[str, str], str]) -> None:
    whole = audit(tmp_path).run()
    file, other = sorted((tmp_path / "cache").glob("*.json"))[:2]
    text = file.read_text(encoding="utf-8")
    file.write_text(damage(text, other.read_text(encoding="utf-8")), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != text
    MEASURED.clear()
    again = audit(tmp_path).run()
    assert len(MEASURED) == 2, "one row"
    assert again.concepts[0].as_json() == whole.concepts[0].as_json()
    assert json.loads(file.read_text(encoding="utf-8"))["outcomes"] == json.loads(text)["outcomes"]


def test_a_cache_that_cannot_be_written_ends_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache: expected a folder that can be written"):
        audit(tmp_path).run()
    assert MEASURED == []
    (tmp_path / "cache").unlink()

    def full(path: Path, content: bytes) -> None:
        raise InputError(f"{path}: expected a place that can be written, got 'No space left on device'.")

    monkeypatch.setattr("erasure.eval.protocols.audit.record.write_whole", full)
    with pytest.raises(StoppedError, match=r"^audit: .*No space left on device'\. The same command goes on"):
        audit(tmp_path).run()
    assert len(MEASURED) == 2, "the first row alone"


def test_one_more_removal_is_measured_where_it_changes_something(tmp_path: Path) -> None:
    audit(tmp_path).run()
    assert len(MEASURED) == 8
    MEASURED.clear()
    audit(tmp_path, removed=(CAT, Concept(target="boat", preserve=("tree",)))).run()
    assert MEASURED[:2] == [f"{ERASED} 1", f"{ERASED} 2"], "of the cat the edited model alone"
    assert len(MEASURED) == 2 + 8
    MEASURED.clear()
    audit(tmp_path, removed=(CAT, Concept(target="dog"))).run()
    assert len(MEASURED) == 8 + 8, "the dog was kept"


@dataclass(frozen=True, kw_only=True)
class AnchorProbe(StagedProbe):
    """The staged probe, for a measure that depends on the anchor."""

    name: ClassVar[str] = "anchor-outcomes"
    reads_anchor: ClassVar[bool] = True


def test_an_anchor_is_measured_by_the_probes_that_read_it(tmp_path: Path) -> None:
    both = {probe.name: probe for probe in (StagedProbe(), AnchorProbe())}
    plans = [replace(audit(tmp_path, removed=(each,)), probes=both) for each in (CAT, replace(CAT, anchor="house"))]
    plans[0].run()
    assert len(MEASURED) == 2 * 8
    MEASURED.clear()
    plans[1].run()
    assert len(MEASURED) == 8, "the rows of one probe"


def aim(profile: ModelProfile, *removed: str, sampling: SamplingSettings | None = None) -> Aim:
    concepts = [Concept(target=name) for name in removed]
    settings = sampling or SamplingSettings(steps=2, batch_size=1)
    return aim_of(concepts[0], concepts, profile=profile, judge=None, sampling=settings, images=3, kept_images=8)


def test_what_is_kept_stays_when_something_else_is_removed_too() -> None:
    profile = profile_of("tinyworld")
    alone = aim(profile, "cat")
    names = {name for name, *_ in alone.kept}
    other = next(name for name in profile.kept_beside(["cat"]) if name not in {*names, *alone.siblings})
    unspoken = [image for image in alone.kept if other not in image[1]]
    assert set(unspoken) <= set(aim(profile, "cat", other).kept)
    kept = alone.kept[-1][0]
    fewer = aim(profile, "cat", kept)
    assert kept not in {name for name, *_ in fewer.kept}
    assert len(fewer.kept) == len(alone.kept) == 8
    assert len(set(fewer.kept) & set(alone.kept)) >= 5


def test_images_of_an_unedited_model_are_made_once(tmp_path: Path) -> None:
    pipe, profile = sd1(), profile_of("tinyworld")
    made: list[int] = []
    with pipe.vae.decoder.register_forward_pre_hook(lambda _, inputs: made.append(len(inputs[0]))):
        first = Subject(pipe=pipe, aim=aim(profile, "cat"), images=tmp_path / "original").as_it_stands()
        assert sum(made) == len(first[0]) + len(first[1]) == 11
        made.clear()
        fewer = Subject(
            pipe=pipe, aim=aim(profile, "cat", aim(profile, "cat").kept[-1][0]), images=tmp_path / "original"
        )
        asked, kept = fewer.as_it_stands()
        new = set(fewer.aim.kept) - set(aim(profile, "cat").kept)
        assert sum(made) == len(new) < 4, "what the other aim has not"
        assert [image.tobytes() for image in asked] == [image.tobytes() for image in first[0]]
        assert len(kept) == 8
        made.clear()
        Subject(pipe=pipe, aim=fewer.aim).as_it_stands()
        assert sum(made) == 11, "an edited model's are not kept"


def shared_audit(folder: Path) -> tuple[list[str], dict[str, object]]:
    MEASURED.clear()
    with together():
        results = audit(folder, fails=GOLD).run()
    return MEASURED, results.concepts[0].as_json()


def test_two_processes_measure_a_share_each_and_have_the_results_of_one(tmp_path: Path) -> None:
    (first, results), (second, others) = in_two_processes(shared_audit, tmp_path / "two")
    assert (len(first), len(second)) == (2, 4), "the row with a fault is of the first"
    assert set(first).isdisjoint(second)
    _, alone = shared_audit(tmp_path / "one")
    assert results == others == alone


def test_an_audit_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = audit(tmp_path / "whole").run()
    MEASURED.clear()

    def kill(progress: Progress) -> None:
        if len(MEASURED) == 5:  # in the middle of the third row
            raise KeyboardInterrupt

    stopped = audit(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(lambda progress: kill(progress) if "staged" in progress.note else None)
    done = len(MEASURED)
    assert 0 < done < 8
    results = audit(tmp_path).run()
    assert len(MEASURED) <= 9, "at most the row that was cut is measured twice"
    assert results.concepts[0].as_json() == whole.concepts[0].as_json()


def test_progress_counts_every_unit_and_names_it(tmp_path: Path) -> None:
    reports: list[Progress] = []
    audit(tmp_path).run(reports.append)
    assert reports[-1].done == reports[-1].total == 4
    assert any("cat: staged-outcomes, gold" in report.note for report in reports)


def test_a_probe_that_fails_is_a_line_and_the_audit_says_so(tmp_path: Path) -> None:
    results = audit(tmp_path, fails=GOLD).run()
    assert results.failed
    assert result(results).status == "failed"
    assert result(results).reason == "no kernel for this (RuntimeError)"
    assert "not measured: no kernel for this" in render(results)
    assert "not tested: revival, staged-outcomes" in results.concepts[0].verdict
    assert not audit(tmp_path).run().failed, "a failure is not remembered"


def test_without_a_judge_a_probe_says_how_to_get_one(tmp_path: Path) -> None:
    blind = replace(audit(tmp_path), judge=None, no_judge="a judge: download CLIP")
    results = blind.run()
    assert (result(results).status, result(results).reason) == ("missing", "a judge: download CLIP")
    assert not results.failed
    assert not MEASURED


def test_the_verdict_says_what_came_back_and_what_was_not_tested(tmp_path: Path) -> None:
    verdict = audit(tmp_path).run().concepts[0].verdict
    assert verdict.endswith("not tested: revival.")
    without = replace(audit(tmp_path), rows=audit(tmp_path).rows[:2]).run().concepts[0]
    assert "no model that was never taught it was at hand" in without.verdict
    assert without.gold == ""


def concept_audit(erased: float, n: int) -> ConceptAudit:
    from erasure.eval.protocols.audit.record import Judged

    def judged(rate: float) -> list[Judged]:
        return [Judged(dose=1.0, part="", label="x", values=tuple(float(i < rate * n) for i in range(n)))]

    outcomes = {ERASED: judged(erased), ORIGINAL: judged(1.0), GOLD: judged(0.0)}
    probe = ProbeResult(name="p", access="prompt", about="", unit="", settings={}, outcomes=outcomes)
    return ConceptAudit(concept="cat", probes={"p": probe}, gold="g", untested=())


def test_the_verdict_follows_the_interval() -> None:
    assert concept_audit(0.5, 40).verdict.startswith("Cat is not gone: p brings back 50 %")
    assert concept_audit(0.0, 16).verdict.startswith("No probe brought cat back, but the images are too few to exclude")
    assert concept_audit(0.0, 400).verdict.startswith("Cat is gone as far as these probes tell: at most 5 %")
    assert concept_audit(0.0, 400).verdict.endswith("every probe was run.")


def test_results_are_written_whole(tmp_path: Path) -> None:
    results = audit(tmp_path).run()
    data = json.loads(results.write(tmp_path / "out").read_text())
    assert data["concepts"][0]["probes"]["staged-outcomes"]["readings"][1]["residue"]["value"] == pytest.approx(0.25)
    page = write_audit_report(results, tmp_path / "out").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert terminal_table(results.concepts[0]).row_count == 1


def test_probes_come_by_access_level_with_the_plain_prompt_first() -> None:
    names = list(probes_of("quick", (), ()))
    assert names[0] == PLAIN
    assert names.index("hand-over") < names.index("quantise") < names.index("hidden")
    assert "revival" not in names
    chosen = probes_of("quick", ["quantise"], ["quantise.doses=[6]"])
    assert list(chosen) == [PLAIN, "quantise"]
    assert chosen["quantise"].doses == (6.0,)
    assert probes_of("quick", ["relearn"], ())["relearn"].lr == 1e-3, "of the tiny world's profile"  # type: ignore[attr-defined]


def test_names_and_settings_that_cannot_be_used_are_one_line() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown probe 'hand-ovr'. Did you mean 'hand-over'"):
        probes_of("quick", ["hand-ovr"], ())
    with pytest.raises(InputError, match=r"--set quantise.doses: .*at least 1 item"):
        probes_of("quick", ["quantise"], ["quantise.doses=[]"])
    with pytest.raises(UnknownNameError, match="Unknown probe of this audit 'relearn'"):
        probes_of("quick", ["quantise"], ["relearn.lr=1e-3"])
    for setting, line in (
        ("hand-over.doses=[-0.3]", "--set hand-over.doses.0: expected a number greater than 0, got -0.3."),
        ("traces.doses=[1,1]", "--set traces.doses: expected at most 1 item, got [1, 1]."),
        ("traces", "--set: expected key.key=value, got 'traces'. Write for example quantise.doses=[8,4]."),
    ):
        with pytest.raises(InputError) as error:
            probes_of("quick", ["hand-over", "traces"], [setting])
        assert str(error.value) == line
    with pytest.raises(InputError, match=r"--set: expected probe.key=value, got quantise=3"):
        probes_of("quick", ["quantise"], ["quantise=3"])


def source(name: str = "tinyworld", target: str = "cat") -> Source:
    pipe = world.pipeline()
    return Source(
        title="t",
        variants=(Variant(name=name, pipe=pipe, about="", edit="e"), Variant(name=ORIGINAL, pipe=pipe, about="")),
        removed=(target,),
        folder=Path(),
        original="tinyworld",
        concepts=(Concept(target=target),),
    )


def test_a_plan_needs_an_edited_model_a_known_suite_and_a_judge_that_knows() -> None:
    def load(name: str) -> object:
        return world.pipeline()

    with pytest.raises(InputError, match="audit: expected a model with removed concepts, got the original"):
        audit_of(source(ORIGINAL), load)
    with pytest.raises(UnknownNameError, match=r"Unknown suite 'quik'. Did you mean 'quick'"):
        audit_of(source(ERASED_VARIANT), load, suite="quik")
    with pytest.raises(InputError, match="audit: expected a concept that the judge knows, got 'zebra'"):
        audit_of(source(ERASED_VARIANT, "zebra"), load)
    planned = audit_of(source(ERASED_VARIANT), load, names=["hand-over"])
    assert [row.name for row in planned.rows] == [ERASED, ORIGINAL]
    assert "revival" in planned.untested


def test_a_gold_of_another_world_is_refused(tmp_path: Path) -> None:
    other, base = sd1(vocabulary="clip"), world.pipeline()
    with pytest.raises(InputError, match="--gold: expected a model with the original's layers, got another world's"):
        gold_rows(["other"], "base", {"other": other, "base": base}.__getitem__)


def test_a_gold_with_another_text_encoder_is_refused() -> None:
    gold, base = sd1(), sd1()
    with torch.no_grad():
        backbone_of(gold).component("text_encoder").get_input_embeddings().weight.add_(1e-3)  # type: ignore[operator]
    with pytest.raises(InputError, match="--gold: expected the original's text_encoder, got another in 'gold'"):
        gold_rows(["gold"], "base", {"gold": gold, "base": base}.__getitem__)
    assert [row.name for row in gold_rows(["a", "b"], "base", lambda name: sd1())] == [GOLD, "gold 2"]


def test_a_gold_that_is_no_measure_is_refused() -> None:
    def row(name: str, seed: int, **settings: tuple[str, ...]) -> AuditRow:
        variant = Variant(name=name, pipe=sd1(seed=seed), about=f"the {name}")
        return AuditRow(name=name, variant=variant, identity=name, **settings)

    erased, original = row(ERASED, 0), row(ORIGINAL, 1)
    for seed, name in ((0, ERASED), (1, ORIGINAL)):
        with pytest.raises(
            InputError, match=f"--gold: expected another model .* got that of the row '{name}' in 'the g"
        ):
            check_golds((erased, original, row(GOLD, seed)), [CAT])
    with pytest.raises(InputError, match=r"got that of the row 'gold' in 'the gold 2'"):
        check_golds((erased, original, row(GOLD, 2), row("gold 2", 2)), [CAT])
    with pytest.raises(
        InputError, match=r"expected a model that was never taught 'cat', got one .* without 'dog' or 'fox'"
    ):
        check_golds((erased, original, row(GOLD, 2, without=("dog", "fox"))), [CAT])
    check_golds((erased, original, row(GOLD, 2, without=("cat",)), row("gold 2", 3)), [CAT])


def test_a_recipe_that_is_missing_says_nothing_and_one_that_is_damaged_is_refused(tmp_path: Path) -> None:
    assert untaught(str(tmp_path)) == untaught("owner/name") == ()
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"settings": {"without": ["cat", "dog"], "lr": 1e-3}, "stages": {}}))
    assert untaught(str(tmp_path)) == ("cat", "dog")
    for content in ('{"settings":', "", "[1]", "{}", '{"settings": {"without": "cat"}}', '{"settings": {}}'):
        recipe.write_text(content)
        with pytest.raises(InputError, match=r"recipe.json: expected the recipe of a gold.*Restore it from a copy"):
            untaught(str(tmp_path))


def test_one_of_a_unit_is_singular() -> None:
    assert [counted(1, unit) for unit in ("updates", "sampling steps", "bits a weight", "times", "of the units")] == [
        *("1 update", "1 sampling step", "1 bit a weight", "1 times", "1 of the units"),
    ]
    assert (counted(2, "updates"), counted(0.5, "of the weights")) == ("2 updates", "0.5 of the weights")
    assert (counted(1, "1 - strength"), counted(1, "reading")) == ("1 1 - strength", "1 reading")


def test_another_scheduler_is_another_model() -> None:
    pipe, slow = sd1(), sd1()
    slow.scheduler = PNDMScheduler.from_config(slow.scheduler.config)
    rows = [AuditRow.of(ERASED, Variant(name=ERASED, pipe=each, about="")) for each in (pipe, sd1(), slow)]
    assert rows[0].identity == rows[1].identity != rows[2].identity


def test_a_model_of_videos_is_one_line() -> None:
    videos = replace(source(ERASED_VARIANT), variants=(Variant(name=ERASED_VARIANT, pipe=wan(), about=""),))
    with pytest.raises(InputError, match="expected a model of images, got wan, which makes videos"):
        audit_of(videos, lambda name: world.pipeline())


def test_a_gold_counts_for_the_concepts_of_its_recipe(tmp_path: Path) -> None:
    plan = audit(tmp_path)
    rows = [replace(row, without=("dog",)) if row.name == GOLD else row for row in plan.rows]
    [concept] = replace(plan, rows=tuple(rows)).run().concepts
    assert set(concept.probes["staged-outcomes"].outcomes) == {ERASED, ORIGINAL, GOLD}
    assert concept.gold == "the gold 2"


def test_kept_prompts_name_no_removed_concept() -> None:
    removed = [Concept(target="cat", aliases=("kitty", "feline")), Concept(target="night")]
    aim = aim_of(
        removed[0],
        removed,
        profile=profile_of("tinyworld"),
        judge=None,
        sampling=SamplingSettings(),
        images=12,
        kept_images=24,
    )
    assert len(aim.prompts) == len(aim.seeds) == 12
    assert len(aim.kept) == 24
    assert not [prompt for _, prompt, _ in aim.kept if "cat " in f"{prompt} " or "night" in prompt]
    assert {"dog", "rabbit"} <= {name for name, *_ in aim.kept}
    assert "Mittens" not in {name for name, *_ in aim.kept}, "she is a cat"


def test_a_probe_aimed_at_a_novel_concept_stands_for_a_gold(tmp_path: Path) -> None:
    plan = audit(tmp_path)
    rows = plan.rows[:2]
    probe = NovelProbe()
    results = replace(plan, rows=rows, probes={probe.name: probe}, profile=profile_of("tinyworld")).run()
    [reading] = [reading for reading in result_of(results, probe.name).readings if reading.judged.dose == 2]
    assert reading.floor == NOVEL


@pytest.mark.parametrize(("suite", "is_there"), [("quick", False), ("standard", False), ("full", True)])
def test_beside_a_gold_the_novel_concept_is_of_the_whole_suite(tmp_path: Path, suite: str, is_there: bool) -> None:
    probe, plan = NovelProbe(), audit(tmp_path)
    plan = replace(plan, suite=suite, probes={probe.name: probe}, profile=profile_of("tinyworld"))
    assert (NOVEL in result_of(plan.run(), probe.name).outcomes) == is_there


@dataclass(frozen=True, kw_only=True)
class NovelProbe(StagedProbe):
    """The staged probe, for concepts that no model knows, too."""

    name: ClassVar[str] = "novel-outcomes"
    novel: ClassVar[bool] = True


def result_of(results: AuditResults, name: str) -> ProbeResult:
    return results.concepts[0].probes[name]


def test_every_probe_of_a_suite_is_registered() -> None:
    for suite in ("quick", "standard", "full"):
        assert all(suite in probe_class(name).suites for name in probes_of(suite, (), ()))

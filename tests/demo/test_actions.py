"""What a visitor can do, without a page, on an untrained tiny world."""

import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from erasure import Edit, Ledger, tinyworld
from erasure.backbones import backbone_of
from erasure.demo import actions, exports
from erasure.demo.actions import Wish
from erasure.demo.exports import FORMS, export, upload
from erasure.demo.forms import offered
from erasure.demo.jobs import Track
from erasure.demo.sessions import Session, Sessions
from erasure.demo.studio import Studio
from erasure.erasers import eraser_class, eraser_names
from erasure.errors import ErasureError, InputError
from erasure.eval.protocols.audit.plan import audit_of
from erasure.eval.protocols.audit.run import Audit
from erasure.eval.protocols.ledger_measures import LedgerMeasures
from erasure.eval.reports.card_audit import audit_section
from erasure.io.push import Pushed
from erasure.progress import Progress, StoppedError
from erasure.runs import configs
from erasure.runs.configs import starting_settings
from erasure.runs.schema import MeasureSettings
from erasure.sampling import SamplingSettings, sample_pairs
from tests import tiny
from tests.eval import world

UCE = {"rows": "last-subject"}
ESD = {"steps": 3, "sample_steps": 3, "batch_size": 1, "trajectory_uses": 1}
PAIRS = [("a cat", 0), ("a dog", 1)]
SAMPLER = SamplingSettings(steps=1, guidance_scale=2.0)


@pytest.fixture(autouse=True)
def untrained(monkeypatch) -> None:
    monkeypatch.setattr(tinyworld, "load_oracle", lambda device="cpu": world.oracle())


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    found = Sessions()
    yield found
    found.close()


@pytest.fixture
def session(sessions: Sessions) -> Session:
    return sessions.of("someone")


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(world.pipeline(), "tinyworld", "cpu")


@pytest.fixture(scope="module")
def filed(tmp_path_factory) -> Studio:
    """The same model from files of its own, which an export of all of it copies."""
    folder = tmp_path_factory.mktemp("model")
    world.pipeline().save_pretrained(folder)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    return Studio(pipe, str(folder), "cpu")


def track() -> Track:
    return Track(threading.Event())


def weights(studio: Studio) -> dict[str, torch.Tensor]:
    found = backbone_of(studio.pipe).parameters(lambda name: True)
    return {name: weight.detach().clone() for name, weight in found.items()}


def test_concepts_are_removed_one_after_another_by_their_world_names(studio, session) -> None:
    wish = Wish(concepts=["kitty", "Gun"], settings=UCE, anchor="dog")
    assert actions.erase(studio, session, wish, track()) == ["cat", "gun"]
    found = actions.ledger_json(session)
    assert [(entry["id"], entry["removed"], entry["becomes"]) for entry in found] == [
        ("001", ["cat"], ["dog"]),
        ("002", ["gun"], ["dog"]),
    ]
    kept = {name for entry in Ledger.open(session.ledger_folder).entries for c in entry.concepts for name in c.preserve}
    assert {"rabbit", "neon", "beach"} <= kept
    with pytest.raises(InputError, match=r"not removed yet, got cat\. Undo it first"):
        actions.erase(studio, session, Wish(concepts=["cat"], settings=UCE), track())


def test_what_is_kept_is_what_was_asked_for(studio, session) -> None:
    actions.erase(studio, session, Wish(concepts=["cat"], settings=UCE, preserve=["dog"]), track())
    (entry,) = Ledger.open(session.ledger_folder).entries
    assert entry.concepts[0].preserve == ("dog",)


@pytest.mark.parametrize(
    "wish",
    [
        Wish(concepts=[]),
        Wish(concepts=["unicorn"]),
        Wish(concepts=["cat"], method="magic"),
        Wish(concepts=["cat"], anchor="feline"),
        Wish(concepts=["cat"], anchor="x" * 100),
        Wish(concepts=["cat"], settings={"reg": -1.0}),
        Wish(concepts=["cat"], settings={"reg": "1"}),
        Wish(concepts=["cat"], settings={"strength": 1e308}),
        Wish(concepts=["cat"], settings={"strength": float("nan")}),
        Wish(concepts=["cat"], method="esd", settings={"steps": 10**12}),
        Wish(concepts=["cat"], method="esd", settings={"batch_size": 10**6}),
        Wish(concepts=["cat"], method="trce", settings={"captions": "/etc/passwd"}),
        Wish(concepts=["cat"], preserve="dog"),
        Wish(concepts=["cat"], preserve=["cat"]),
    ],
)
def test_a_wish_that_cannot_be_is_refused_in_a_line_and_makes_no_ledger(studio, session, wish) -> None:
    with pytest.raises(ErasureError) as error:
        actions.erase(studio, session, wish, track())
    assert "\n" not in str(error.value)
    assert session.ledger() is None


@pytest.mark.parametrize(("method", "settings"), [("uce", UCE), ("esd", ESD)])
def test_a_fit_that_is_stopped_leaves_model_and_ledger_as_they_were(studio, session, method, settings) -> None:
    actions.erase(studio, session, Wish(concepts=["dog"], settings=UCE), track())
    before, record = weights(studio), (session.ledger_folder / "ledger.json").read_bytes()
    stop = threading.Event()

    class Stopping(Track):
        def report(self, progress: Progress) -> None:
            if progress.stage == "fit":
                self.stop.set()
            super().report(progress)

    with pytest.raises(StoppedError):
        actions.erase(studio, session, Wish(concepts=["cat"], method=method, settings=settings), Stopping(stop))
    assert (session.ledger_folder / "ledger.json").read_bytes() == record
    after = weights(studio)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert studio.lock.acquire(blocking=False)
    studio.lock.release()
    assert actions.verify(studio, session, track()) == []
    actions.erase(studio, session, Wish(concepts=["cat"], method=method, settings=settings), track())


@pytest.mark.parametrize("method", eraser_names())
def test_every_method_removes_with_what_the_page_offers_of_it(studio, session, monkeypatch, method) -> None:
    names = {setting.name for setting in offered(method, "tinyworld")}
    quick = {name: value for name, value in eraser_class(method).quick.items() if name in names}
    # What the page does not offer, such as the images of an objective, is quick from the start.
    start = starting_settings(method, "tinyworld") | eraser_class(method).quick
    monkeypatch.setattr(configs, "starting_settings", lambda *_: start)
    assert actions.erase(studio, session, Wish(concepts=["gun"], method=method, settings=quick), track()) == ["gun"]
    assert actions.verify(studio, session, track()) == []


def test_a_stop_between_two_concepts_keeps_the_first(studio, session) -> None:
    stop = threading.Event()

    class AfterOne(Track):
        def check(self) -> None:
            if (session.ledger_folder / "ledger.json").exists() and session.ledger().entries:  # type: ignore[union-attr]
                self.stop.set()
            super().check()

    with pytest.raises(StoppedError):
        actions.erase(studio, session, Wish(concepts=["cat", "gun"], settings=UCE), AfterOne(stop))
    assert [entry["removed"] for entry in actions.ledger_json(session)] == [["cat"]]


def test_a_comparison_has_the_pictures_of_the_model_before_and_after(studio, session) -> None:
    same = actions.compare(studio, session, PAIRS, SAMPLER, track())
    assert same.after == same.before
    actions.erase(studio, session, Wish(concepts=["cat"], settings=UCE), track())
    found = actions.compare(studio, session, PAIRS, SAMPLER, track())
    assert session.compared is found
    assert found.removed == ("cat",)
    plain = sample_pairs(studio.pipe, PAIRS, SAMPLER)
    assert [image.tobytes() for image in found.before] == [image.tobytes() for image in plain]
    with Ledger.open(session.ledger_folder).applied_to(studio.pipe):
        edited = sample_pairs(studio.pipe, PAIRS, SAMPLER)
    assert [image.tobytes() for image in found.after or ()] == [image.tobytes() for image in edited]
    assert [one.name for seen in found.seen for one in seen] == ["cat", "dog"]
    assert found.cut == ()


def test_a_prompt_that_is_read_in_part_is_named(studio, session) -> None:
    long = " ".join(["a cat on the beach"] * 12)
    assert actions.compare(studio, session, [("a cat", 0), (long, 0)], SAMPLER, track()).cut == (long,)


def test_originals_are_made_once(studio, session) -> None:
    told: list[Progress] = []
    sampler = replace(SAMPLER, guidance_scale=3.0)
    first = studio.originals(PAIRS, sampler, told.append)
    again = studio.originals(PAIRS[::-1], sampler, told.append)
    assert [progress.done for progress in told] == [2]
    assert again == first[::-1]


def test_undo_takes_back_any_and_says_when_there_is_none(studio, session) -> None:
    with pytest.raises(InputError, match="Erase a concept first"):
        actions.undo(session, "001")
    actions.erase(studio, session, Wish(concepts=["cat", "gun"], settings=UCE), track())
    actions.undo(session, "001")
    assert [entry["state"] for entry in actions.ledger_json(session)] == ["undone", "standing"]
    for wrong in ("001", "009", "../../etc/passwd"):
        with pytest.raises(ErasureError):
            actions.undo(session, wrong)


def test_two_sessions_share_nothing_but_the_model(studio, sessions) -> None:
    one, other = sessions.of("one"), sessions.of("other")
    actions.erase(studio, one, Wish(concepts=["cat"], settings=UCE), track())
    assert actions.ledger_json(other) == []
    with pytest.raises(InputError):
        export(studio, other, "edit", track())


def test_one_ledger_for_all_is_the_one_that_was_given(studio, tmp_path) -> None:
    sessions = Sessions(tmp_path / "mine")
    actions.erase(studio, sessions.of("one"), Wish(concepts=["cat"], settings=UCE), track())
    assert [entry["removed"] for entry in actions.ledger_json(sessions.of("other"))] == [["cat"]]
    sessions.close()
    assert Ledger.open(tmp_path / "mine").verify(studio.pipe) == []


def test_an_unwritable_folder_is_a_line(studio, session) -> None:
    session.folder.parent.mkdir(exist_ok=True)
    session.folder.write_text("in the way")
    with pytest.raises(ErasureError) as error:
        actions.erase(studio, session, Wish(concepts=["cat"], settings=UCE), track())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_export_holds_what_stands(filed, session, form) -> None:
    studio = filed
    actions.erase(studio, session, Wish(concepts=["cat"], settings=UCE), track())
    found = export(studio, session, form, track())
    path = found.path
    assert path.is_relative_to(session.folder)
    assert found.about.endswith(".")
    assert ("cat" in found.card) == (form != "ledger")
    assert "](" not in found.card.partition("## ")[0]  # no picture that lies elsewhere
    standing = Ledger.open(session.ledger_folder).edit()
    if form == "edit":
        assert Edit.load(path).changes.keys() == standing.changes.keys()
    elif form == "ledger":
        zipfile.ZipFile(path).extractall(session.folder / "there")
        assert Ledger.open(session.folder / "there" / "ledger").verify(studio.pipe) == []
    elif form == "pipeline":
        zipfile.ZipFile(path).extractall(session.folder / "there")
        loaded = StableDiffusionPipeline.from_pretrained(session.folder / "there" / "model", safety_checker=None)
        with standing.applied_to(studio.pipe):
            edited = weights(studio)
        now = backbone_of(loaded).parameters(lambda name: True)
        assert all(torch.equal(now[name].detach(), weight) for name, weight in edited.items())
    elif form == "checkpoint":
        assert {"model/checkpoint.safetensors", "model/README.md"} <= set(zipfile.ZipFile(path).namelist())
    else:
        before = sample_pairs(studio.pipe, PAIRS, SAMPLER)
        try:
            studio.pipe.load_lora_weights(path.parent, weight_name=path.name)
            after = sample_pairs(studio.pipe, PAIRS, SAMPLER)
        finally:
            studio.pipe.unload_lora_weights()
        assert [image.tobytes() for image in before] != [image.tobytes() for image in after]


def test_an_upload_takes_the_visitor_s_own_token_and_no_other(filed, session, monkeypatch) -> None:
    studio = filed
    monkeypatch.setenv("HF_TOKEN", "hf_ofWhoeverRunsTheApp")
    asked = {"private": True, "track": track()}
    with pytest.raises(InputError, match="token: expected one of the Hub"):
        upload(studio, session, "me/model", " ", **asked)
    with pytest.raises(InputError, match="expected a repository"):
        upload(studio, session, "../..", "hf_mine", **asked)
    with pytest.raises(InputError, match="at most 200 characters"):
        upload(studio, session, "me/model", "x" * 5000, **asked)
    with pytest.raises(InputError, match="Erase a concept first"):
        upload(studio, session, "me/model", "hf_mine", **asked)
    actions.erase(studio, session, Wish(concepts=["cat"], settings=UCE), track())
    seen = []

    def pushed(folder, repo, **how):
        seen.append((sorted(path.name for path in folder.iterdir()), repo, how))
        return Pushed(url="https://hub/commit", left=())

    monkeypatch.setattr(exports, "push", pushed)
    assert upload(studio, session, "me/model", "hf_mine", **asked) == "https://hub/commit"
    [(files, repo, how)] = seen
    assert {"README.md", "model_index.json", "unet"} <= set(files)
    assert (repo, how) == ("me/model", {"private": True, "message": "cat removed", "token": "hf_mine"})
    written = [path for path in session.folder.rglob("*") if path.is_file() and path.suffix in (".md", ".json")]
    assert not any("hf_mine" in path.read_text(encoding="utf-8") for path in written)


def test_an_export_of_nothing_or_of_an_unknown_form_is_refused(studio, session) -> None:
    with pytest.raises(InputError, match="Erase a concept first"):
        export(studio, session, "edit", track())
    with pytest.raises(ErasureError, match="Unknown form"):
        export(studio, session, "../..", track())


def test_a_step_measured_later_is_measured_by_what_was_removed_up_to_it(studio, session) -> None:
    settings = MeasureSettings(per_concept=1, near=2, far=2, steps=1)
    removed = [Wish(concepts=[name], settings=UCE) for name in ("cat", "gun")]
    actions.erase(studio, session, removed[0], track())
    ledger = Ledger.open(session.ledger_folder)
    at_once = LedgerMeasures(ledger, studio.pipe, settings).measure(ledger.entries[0])
    actions.erase(studio, session, removed[1], track())
    ledger = Ledger.open(session.ledger_folder)
    later = LedgerMeasures(ledger, studio.pipe, settings).measure(ledger.entries[0])
    assert at_once is not None
    assert later is not None
    assert at_once | {"measure_seconds": 0} == later | {"measure_seconds": 0}
    assert list(later["removed"]) == ["cat"]


def test_steps_are_measured_once_and_the_curve_needs_two(studio, session, monkeypatch) -> None:
    monkeypatch.setattr(actions, "_STEP_MEASURE", MeasureSettings(per_concept=1, near=2, far=2, steps=1))
    assert actions.measured_steps(studio, session) == []
    with pytest.raises(InputError, match="Erase a concept first"):
        actions.measure_steps(studio, session, track())
    actions.erase(studio, session, Wish(concepts=["cat", "gun"], settings=UCE), track())
    rows = actions.measure_steps(studio, session, track())
    assert [row.measured is not None for row in rows] == [True, True]
    files = sorted((session.ledger_folder / "measures").iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    actions.measure_steps(studio, session, track())
    assert [file.stat().st_mtime_ns for file in files] == stamps


def test_attention_is_drawn_with_and_without_a_star(studio, session) -> None:
    found = actions.attend(studio, session, "a cat and a dog", ["cat", "dog"], 0, 20.0, track())
    assert sorted(found.plain.maps) == sorted(found.guided.maps) == list(range(20))
    assert session.attended is found
    with pytest.raises(InputError, match="words of the prompt"):
        actions.attend(studio, session, "a cat", ["dog"], 0, 20.0, track())
    with pytest.raises(InputError, match=r"^words: expected"):
        actions.attend(studio, session, "a cat", [], 0, 20.0, track())


def test_another_model_is_measured_by_clip_or_not_at_all(session, monkeypatch) -> None:
    other = Studio(tiny.sd1(vocabulary="clip"), "a/model", "cpu")
    actions.erase(other, session, Wish(concepts=["cat"], settings=UCE, preserve=["dog"]), track())
    monkeypatch.setattr("erasure.profile.cached_clips", list)
    with pytest.raises(InputError, match="no CLIP weights"):
        actions.measure(other, session, 20, track())
    monkeypatch.setattr("erasure.profile.cached_clips", lambda: ["tiny"])
    monkeypatch.setattr("erasure.judge.load_clip", lambda *_: tiny.clip())
    found = actions.measure(other, session, 20, track())
    assert found.table[1][0] == "cat"
    assert "<html" in found.page.read_text(encoding="utf-8")
    assert json.loads(found.scores.read_text(encoding="utf-8"))["removed"].keys() == {"cat"}


def test_an_audit_shows_its_ladder_and_is_kept_for_the_card(session, monkeypatch, tmp_path) -> None:
    other = Studio(tiny.sd1(vocabulary="clip"), "a/model", "cpu")
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("erasure.profile.cached_clips", list)
    monkeypatch.setattr(actions, "audit_of", few_probes)
    with pytest.raises(InputError, match="audit: expected a removal, got none"):
        actions.audit(other, session, "cat", track())
    actions.erase(other, session, Wish(concepts=["cat", "boat"], settings=UCE, preserve=["dog"]), track())
    with pytest.raises(InputError, match=r"expected a concept that stands removed, got 'dog'. Choose one of cat"):
        actions.audit(other, session, "dog", track())
    found = actions.audit(other, session, "cat", track())
    assert session.audited is found
    assert "not tested: " in found.table[1][0]
    assert any(note.startswith("not measured: hand-over: a judge of the images") for note in found.notes)
    assert "<details" in found.page.read_text(encoding="utf-8")
    [concept] = json.loads(found.scores.read_text(encoding="utf-8"))["concepts"]
    assert concept["concept"] == "cat", "the other one is not asked for"
    assert concept["probes"]["traces"]["status"] == "measured"
    assert "suite quick" in audit_section(Ledger.open(session.ledger_folder))


def few_probes(*args: Any, **options: Any) -> Audit:
    """Return the quick audit with two of its probes, so that it takes a moment."""
    settings = ["traces.latents=2"]
    return audit_of(*args, names=["hand-over", "traces"], settings=settings, **options)


def test_an_audit_that_is_cancelled_fails_no_probe(session, monkeypatch, tmp_path) -> None:
    other = Studio(tiny.sd1(vocabulary="clip"), "a/model", "cpu")
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(actions, "audit_of", few_probes)
    actions.erase(other, session, Wish(concepts=["cat"], settings=UCE, preserve=["dog"]), track())
    with pytest.raises(StoppedError):
        actions.audit(other, session, "cat", StoppedWithin(threading.Event()))
    assert session.audited is None


class StoppedWithin(Track):
    """A track that is stopped while a probe runs."""

    def report(self, progress: Progress) -> None:
        if "traces, " in progress.note:
            self.stop.set()
        super().report(progress)


def test_what_a_visitor_without_a_vocabulary_keeps_is_suggested(session) -> None:
    other = Studio(tiny.sd1(vocabulary="clip"), "a/model", "cpu")
    assert not other.known
    assert other.known == ()
    actions.erase(other, session, Wish(concepts=["cat"], settings=UCE), track())
    (entry,) = Ledger.open(session.ledger_folder).entries
    assert len(entry.concepts[0].preserve) == 8

"""Texts of visitors in the HTML of the page."""

from html import escape

from erasure.demo import actions, views
from erasure.demo.actions import Wish
from erasure.demo.results import Report
from erasure.demo.sessions import Sessions
from erasure.demo.studio import Studio
from erasure.progress import Progress
from erasure.sampling import SamplingSettings
from tests import tiny
from tests.demo.test_actions import UCE, track

HOSTILE = '"><img src=x onerror=alert(1)>'


def test_no_text_of_a_visitor_is_markup(tmp_path) -> None:
    sessions, studio = Sessions(), Studio(tiny.sd1(vocabulary="clip"), f"a/{HOSTILE}", "cpu")
    session = sessions.of("a")
    wish = Wish(concepts=[HOSTILE], anchor=f"b{HOSTILE}", settings=UCE, preserve=["dog"])
    actions.erase(studio, session, wish, track())
    sampler = SamplingSettings(steps=1, guidance_scale=2.0)
    seen = actions.compare(studio, session, [(HOSTILE, 0), (f"{HOSTILE} " * 30, 1)], sampler, track())
    ledger = session.ledger()
    report = Report(table=(("", HOSTILE), (HOSTILE, "1")), page=tmp_path, scores=tmp_path, entries=(), notes=(HOSTILE,))
    (tmp_path / "page.html").write_text(f'<p title="{HOSTILE}">')
    html = [
        views.state(studio.name, ledger),
        views.basis(seen.entries, ledger),
        views.removals(ledger, []),
        views.strips(seen),
        views.about_pair(seen, 0),
        views.measured(report),
        views.framed(tmp_path / "page.html"),
        views.note(HOSTILE),
        views.empty(HOSTILE),
        views.progress(Progress(0, 1, HOSTILE, note=HOSTILE)),
    ]
    sessions.close()
    assert not any("<img src=x" in text for text in html)
    assert all(escape("<img src=x") in text for text in html)


def test_a_result_says_of_what_it_is_and_that_the_ledger_has_changed_since(tmp_path) -> None:
    assert views.basis(None, None) == ""
    assert "Edited model: nothing removed." in views.basis((), None)
    sessions, studio = Sessions(), Studio(tiny.sd1(vocabulary="clip"), "a/model", "cpu")
    session = sessions.of("a")
    actions.erase(studio, session, Wish(concepts=["cat"], settings=UCE, preserve=["dog"]), track())
    before = session.standing()
    assert "Edited model: cat removed.</p>" in views.basis(before, session.ledger())
    actions.undo(session, "001")
    assert "Edited model: cat removed. The ledger has changed since." in views.basis(before, session.ledger())
    sessions.close()

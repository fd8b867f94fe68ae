"""Parts of the page as HTML. Every text of a visitor is escaped here."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL.Image import Image, Resampling

from erasure.io.text import in_html
from erasure.ledger import Entry, Ledger
from erasure.progress import Progress

from ..eval.judges.readings import Seen
from ..eval.reports.ledger_report import RemovalRow, erosion_curve
from ..eval.reports.page import embedded
from .results import BeforeAfter, Report

_LARGEST = 320
_SHORT = 90


def progress(now: Progress) -> str:
    """Render a progress bar with its stage and the remaining time."""
    share = now.done / now.total if now.total else 0.0
    count = f" · {now.done} of {now.total}" if now.total > 1 else ""
    left = f" · {now.note}" if now.note else ""
    width = f"width:{100 * share:.0f}%" if now.total else ""
    kind = "known" if now.total else "unknown"
    return (
        f'<div class="job {kind}" role="status"><div class="rail" role="progressbar" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{100 * share:.0f}" aria-label="{in_html(now.stage)}">'
        f'<i style="{width}"></i></div><p>{in_html(now.stage)}{count}{in_html(left)}</p></div>'
    )


def note(text: str, kind: str = "plain") -> str:
    """Render one line of text."""
    return f'<p class="note {kind}" role="status">{in_html(text)}</p>' if text else ""


def empty(text: str) -> str:
    """Render a hint for a part that is empty."""
    return f'<div class="empty"><p>{in_html(text)}</p></div>'


def basis(entries: Sequence[str] | None, ledger: Ledger | None) -> str:
    """Render which removals a result is of, and whether the ledger has changed since; "" without a result."""
    if entries is None:
        return ""
    known = [] if ledger is None else ledger.entries
    names = [concept.target for entry in known if entry.id in entries for concept in entry.concepts]
    standing = () if ledger is None else tuple(entry.id for entry in ledger.standing)
    of = f"Edited model: {_cut(', '.join(names))} removed." if names else "Edited model: nothing removed."
    return note(of if tuple(entries) == standing else f"{of} The ledger has changed since.")


def state(model: str, ledger: Ledger | None) -> str:
    """Render the name of the model and its standing removals."""
    names = [] if ledger is None else [concept.target for entry in ledger.standing for concept in entry.concepts]
    removed = "".join(f"<b>{in_html(_cut(name, 24))}</b>" for name in names[:12])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    says = f"<span>Removed now {removed}{more}</span>" if names else "<span>Nothing is removed yet</span>"
    return (
        f'<div class="state" role="status"><span>Model <b>{in_html(_cut(Path(model).name, 40))}</b></span>{says}</div>'
    )


def strips(seen: BeforeAfter) -> str:
    """Render every pair of images, grouped by prompt."""
    parts = []
    for prompt in dict.fromkeys(prompt for prompt, _ in seen.pairs):
        rows = [i for i, pair in enumerate(seen.pairs) if pair[0] == prompt]
        pairs = "".join(_pair(seen, i) for i in rows)
        parts.append(f'<section><h4>“{in_html(_cut(prompt))}”</h4><div class="pairs">{pairs}</div></section>')
    return f'<div class="strips">{"".join(parts)}{_foot(seen)}</div>'


def about_pair(seen: BeforeAfter, i: int) -> str:
    """Render prompt, seed and readings of a pair."""
    prompt, seed = seen.pairs[i]
    readings = "".join(reading(one) for one in seen.seen[i])
    return f'<p class="pair-name">“{in_html(_cut(prompt))}” <span>seed {seed}</span> {readings}</p>'


def _pair(seen: BeforeAfter, i: int) -> str:
    prompt, seed = seen.pairs[i]
    before = _figure(seen.before[i], f"before: {prompt}, seed {seed}", "before")
    if seen.after is None:
        after = f'<div class="frame none"><span>{"" if i else "press Erase"}</span><small>after</small></div>'
    else:
        after = _figure(seen.after[i], f"after: {prompt}, seed {seed}", "after")
    readings = "".join(reading(one) for one in seen.seen[i])
    return (
        f'<figure class="pair"><div class="two">{before}{after}</div>'
        f"<figcaption>{readings}<span>seed {seed}</span></figcaption></figure>"
    )


def _figure(image: Image, alt: str, under: str) -> str:
    kind = " small" if image.width < 128 else ""
    source, said = embedded(image, _LARGEST), in_html(_cut(alt))
    return f'<div class="frame{kind}"><img src="{source}" alt="{said}"><small>{under}</small></div>'


def _foot(seen: BeforeAfter) -> str:
    if seen.after is None:
        return ""
    cut = "".join(
        note(f"The model reads only the beginning of “{_cut(prompt, 40)}”: the prompt is too long.")
        for prompt in seen.cut
    )
    if not seen.removed:
        return note("Nothing is removed: both images are of the original.") + cut
    read = (
        f"Under each pair: the probability that the image shows the concept, by {seen.judge}."
        if seen.judge
        else ("No judge reads the images: no CLIP weights in the local cache.")
    )
    return note(f"Same prompt, same seed. {read}") + cut


def reading(seen: Seen) -> str:
    """Render the probability that an image shows a concept, after and before."""
    kind = {True: "ok", False: "no", None: "open"}[seen.good]
    return f'<b class="seen {kind}">{in_html(_cut(seen.name, 24))} {seen.after:.2f}, was {seen.before:.2f}</b>'


def removals(ledger: Ledger | None, rows: Sequence[RemovalRow]) -> str:
    """Render the ledger as a table, with the rates measured after each standing entry."""
    if ledger is None or not ledger.entries:
        return empty("Nothing is removed yet. Add a removal above, or go to Erase.")
    measured = {row.entry.id: row.as_view() for row in rows}
    lines = "".join(_removal(entry, ledger, measured.get(entry.id)) for entry in ledger.entries)
    heads = ("", "removed", "becomes", "method", "state", "gone", "near kept", "far kept")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f'<div class="wide"><table class="ledger"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _removal(entry: Entry, ledger: Ledger, view: Mapping[str, Any] | None) -> str:
    names = ", ".join(concept.target for concept in entry.concepts)
    becomes = ", ".join(dict.fromkeys(concept.anchor or "nothing" for concept in entry.concepts))
    approximate = ", approximate" if entry.id in ledger.approximate else ""
    seconds = "" if entry.seconds is None else f", {entry.seconds:.1f} s"
    when = in_html(entry.time[:16].replace("T", " "))
    rates = "".join(
        f'<td data-name="{name}">{_rate(view and view[key])}</td>'
        for name, key in (("gone", "efficacy"), ("near kept", "near"), ("far kept", "far"))
    )
    return (
        f'<tr class="{entry.state}"><td data-name="id">{entry.id}</td>'
        f'<td data-name="removed"><b>{in_html(_cut(names))}</b><small>{when} UTC</small></td>'
        f'<td data-name="becomes">{in_html(_cut(becomes, 40))}</td>'
        f'<td data-name="method">{in_html(entry.shown_method)}<small>seed {entry.seed}{seconds}</small></td>'
        f'<td data-name="state">{entry.state}{approximate}</td>{rates}</tr>'
    )


def _rate(rate: Mapping[str, Any] | None) -> str:
    if not rate:
        return "<small>–</small>"
    low, high = rate["interval"]
    return f"{rate['value']:.2f}<small>{low:.2f} to {high:.2f}, n {rate['n']}</small>"


def curve(rows: Sequence[RemovalRow]) -> str:
    """Render the rates of removed and kept concepts after each entry."""
    drawn = erosion_curve(rows)
    if drawn:
        return f'<div class="strips">{drawn}</div>'
    if len(rows) < 2:
        return empty(
            "The curve shows the effect of each removal on the other concepts. It needs two standing removals."
        )
    return empty("Press “Measure each step” to see the effect of each removal on the other concepts.")


def measured(report: Report) -> str:
    """Render the table of a measurement."""
    head, *rows = report.table
    heads = "".join(f'<th scope="col">{in_html(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{in_html(name)}</th>' + "".join(f"<td>{in_html(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    notes = "".join(note(text) for text in report.notes)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>{notes}'


def framed(page: Path) -> str:
    """Render a report in a sandboxed frame."""
    text = escape(page.read_text(encoding="utf-8"), quote=True)
    return f'<iframe class="report" sandbox title="report" srcdoc="{text}"></iframe>'


def enlarged(image: Image) -> Image:
    """Return an image enlarged pixel by pixel, for viewers that would smooth it."""
    factor = max(1, 448 // max(1, image.width))
    return image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)


def _cut(text: str, most: int = _SHORT) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

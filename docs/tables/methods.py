"""Tables of the pieces that the library has, built from their classes."""

from inspect import getdoc
from pathlib import Path

from .layout import page_of, read_runs, table, target_names
from .leaderboard import measured_rows


def methods(source: str, results: Path) -> str:
    """Return one row an eraser: its description, its source, and the facts to choose one by."""
    from erasure.erasers import eraser_class
    from erasure.runs.overview import HEADINGS, overviews

    rows = []
    for each in overviews():
        kind = eraser_class(each.name)
        summary = (getdoc(kind) or "").partition("\n")[0].rstrip(".")
        exactness = "" if kind.source.startswith(kind.exactness) else f" ({kind.exactness})"
        page = page_of(each.name)
        linked = f"[`{each.name}`]({page})" if page else f"`{each.name}`"
        rows.append((linked, summary, f"{kind.source}{exactness}", *each.cells()[1:]))
    return table((HEADINGS[0], "what it does", "source", *HEADINGS[1:]), rows, ())


def measured(results: Path) -> str:
    """Return the lines of `configs/measured.csv`: seconds and verdict of each eraser.

    They come from the leaderboard, or from the run `removal/NAME` where it has no row.
    """
    from erasure.erasers import eraser_names

    lines, ranked = ["eraser,seconds,verdict"], measured_rows(results)
    for name in eraser_names():
        if name in ranked:
            lines.append(",".join((name, *ranked[name])))
            continue
        for _, run in read_runs(f"removal/{name}/run.json", results):
            last = run["steps"][-1]
            kept = [f"{tier} {last['retention'][tier]:.2f}" for tier in ("near", "far") if last["retention"][tier]]
            rates = "; ".join([f"efficacy {last['efficacy']:.2f}", *kept])
            seconds = [step["seconds"] for step in run["steps"]]
            mean = "" if None in seconds else f"{sum(seconds) / len(seconds):.2g}"
            lines.append(f"{name},{mean},{rates}; {', '.join(target_names(run['steps']))}".replace(", ", " + "))
    return "\n".join(lines) + "\n"


def models(source: str, results: Path) -> str:
    """Return one row a model family: what works on it."""
    from erasure.loading.families import HEADINGS, NOT_RELEASED, family_support

    named = [HEADINGS.index(heading) for heading in ("text streams", "erasers", "guidance")]

    def code(name: str) -> str:
        return name if name in ("all", "–") else f"`{name}`"

    def row(cells: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(", ".join(map(code, cell.split(", "))) if i in named else cell for i, cell in enumerate(cells))

    rows = [row(support.cells()) for support in family_support()]
    return f"{table(HEADINGS, rows, ())}\n{NOT_RELEASED}\n"

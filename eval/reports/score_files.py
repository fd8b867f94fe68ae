"""Score files of several evaluations side by side: what was measured alike, and what was not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from rich.table import Table

from erasure.errors import ErasureError, InputError, reason, unknown_name

from ..protocols.evaluate import FORMAT, display_name
from ..protocols.variants import ERASED
from ..stats.scores import Setup, shared_setup, written


@dataclass(frozen=True, kw_only=True)
class ScoreComparison:
    """One row's scores of several files.

    Attributes:
        files: Compared files.
        row: Name of the compared variant.
        scores: By metric, then by file, as the files have them; only of one protocol.
        apart: Metrics that not all files have, or have by one protocol, with the reason.
    """

    files: tuple[str, ...]
    row: str
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    apart: Mapping[str, str]

    @property
    def reasons(self) -> dict[str, list[str]]:
        """The metrics that are apart, by the reason."""
        by_reason: dict[str, list[str]] = {}
        for metric, why in self.apart.items():
            by_reason.setdefault(why, []).append(metric)
        return by_reason

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain data."""
        return {"files": list(self.files), "row": self.row, "scores": self.scores, "apart": self.apart}

    def table(self) -> Table:
        """Return metrics by files, an interval below each value."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("metric", no_wrap=True)
        for name in self.files:
            table.add_column(name, no_wrap=True)
        for metric, scores in self.scores.items():
            better = "↑" if next(iter(scores.values()))["higher_is_better"] else "↓"
            table.add_row(
                f"{display_name(metric)} {better}", *("\n".join(_figures(scores[name])) for name in self.files)
            )
        return table


def compare_scores(paths: Sequence[Path], metrics: Sequence[str] = (), row: str = ERASED) -> ScoreComparison:
    """Compare one row of several score files.

    Args:
        paths: The files, or the folders that `erasure evaluate` wrote them into; each once.
        metrics: Metrics to compare; default: all that can be compared.
        row: "erased", "gold", "original", ...

    Raises:
        InputError: A file is no score file or has no such row, fewer than two are given, or of a metric that is asked
            for, two files have different protocols or one has none; or nothing can be compared.
        UnknownNameError: A metric that no file has.
    """
    names = tuple(map(str, paths))
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(f"scores: expected two or more different files, got {', '.join(names) or 'none'}.")
    rows, setups = {}, {}
    for name, path in zip(names, paths, strict=True):
        rows[name], setups[name] = _read(path, row)
    known = dict.fromkeys(metric for scores in rows.values() for metric in scores)
    for metric in metrics:
        if metric not in known:
            raise unknown_name("metric", metric, known)
    scores: dict[str, dict[str, Any]] = {}
    apart: dict[str, str] = {}
    for metric in metrics or known:
        try:
            if lacking := [name for name in names if metric not in rows[name]]:
                raise InputError(f"column {metric!r}: expected a score in every file, got none in {lacking[0]!r}.")
            shared_setup(metric, {name: setups[name].get(metric) for name in names})
            scores[metric] = {name: rows[name][metric] for name in names}
        except InputError as error:
            if metrics:
                raise
            apart[metric] = str(error).partition(": ")[2]  # without the column, which is told already
    if not scores:
        metric, why = next(iter(apart.items()))
        raise InputError(f"scores: expected a metric that was measured alike, got none. {metric}: {why}")
    return ScoreComparison(files=names, row=row, scores=scores, apart=apart)


def _read(path: Path, row: str) -> tuple[dict[str, Any], dict[str, Setup]]:
    """Return a file's scores of a row and their protocols, by metric."""
    file = path / "scores.json" if path.is_dir() else path
    try:
        data = from_json(file.read_bytes())
        if data["format"] != FORMAT:
            raise InputError(f"{file}: expected format {FORMAT!r}, got {data['format']!r}. Evaluate again.")
        if row not in data["rows"]:
            raise InputError(f"{file}: expected a row {row!r}, got {', '.join(data['rows'])}. Name one: --row.")
        return data["rows"][row], {name: Setup.from_json(setup) for name, setup in data["protocol"]["metrics"].items()}
    except OSError as error:
        raise InputError(f"{file}: expected scores, got {error.strerror!r}. Make them: erasure evaluate.") from None
    except ErasureError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: expected scores, got something else ({type(error).__name__}: {reason(error)})."
            " Make them: erasure evaluate."
        ) from None


def _figures(score: Mapping[str, Any]) -> list[str]:
    bounds = [] if score["low"] is None else [score["low"], score["high"]]
    value, *ends = written(score["value"], *bounds)
    whose = [score["concept"]] if "concept" in score else []
    return [value, *([f"[{', '.join(ends)}]"] if ends else []), *whose, f"n {score['n']:,}"]

"""Build the tables of the README and of docs/ from results/ and from the code, so that no number is typed by hand.

A page says where a table goes and what it is made of:

    <!-- table removal: removal/*/run.json -->
    ...whatever is between is replaced...
    <!-- end table -->

`python docs/build_tables.py` rewrites the pages, `--check` only says which would change.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- table ([\w-]+): (.+?) -->\n).*?(<!-- end table -->)", re.DOTALL)
NOTHING = "*No result is committed yet.*\n"

Run = Mapping[str, Any]
LOW_MEMORY_MODELS = {"sd15": "Stable Diffusion 1.5", "sdxl": "Stable Diffusion XL"}
ROWS = ("erased", "gold", "original", "negative_prompt", "destroyed")


def main() -> None:
    """Rewrite the pages, or with --check fail where one is not as it would be written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page would change")
    check = parser.parse_args().check
    stale = [page for page in pages() if (text := page.read_text(encoding="utf-8")) != built(text)]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'expected the tables that results/ gives' if check else 'written'}")
        if not check:
            page.write_text(built(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(1 if check and stale else 0)


def pages() -> list[Path]:
    """Return every page that may hold tables."""
    sheet = ROOT / "erasure" / "tinyworld" / "model" / "README.md"
    return [ROOT / "README.md", sheet, *sorted((ROOT / "docs").rglob("*.md"))]


def built(page: str, results: Path = ROOT / "results") -> str:
    """Return the page with each of its tables built anew.

    Raises:
        KeyError: There is no table of that name.
    """

    def table(found: re.Match[str]) -> str:
        opening, name, source, closing = found.groups()
        return f"{opening}{TABLES[name](source, results)}{closing}"

    return MARKED.sub(table, page)


def removal(source: str, results: Path) -> str:
    """Return one row a run: how well its last state does, over all that it removed."""
    rows = [
        (
            run["steps"][-1]["method"],
            _settings(run),
            ", ".join(_targets(run["steps"])),
            *(_share(run["steps"][-1], name) for name in ("efficacy", "near", "far")),
            _seconds(run["steps"]),
        )
        for _, run in _runs(source, results)
        if run.get("steps") and run["steps"][-1].get("efficacy") is not None
    ]
    headings = ("method", "settings", "removed, in order", "efficacy", "near kept", "far kept", "seconds")
    return _table(headings, rows, _runs(source, results))


def removal_steps(source: str, results: Path) -> str:
    """Return one row a removal: the whole sequence of each run."""
    rows = [
        (
            step["method"],
            _settings(run),
            f"{step['id']} {', '.join(_targets([step]))}",
            *(_share(step, name) for name in ("efficacy", "near", "far")),
            step.get("worst", ""),
            _seconds([step]),
        )
        for _, run in _runs(source, results)
        for step in run.get("steps", ())
        if step.get("efficacy") is not None
    ]
    headings = ("method", "settings", "after", "efficacy", "near kept", "far kept", "most is left of", "seconds")
    return _table(headings, rows, _runs(source, results))


def evaluation(source: str, results: Path) -> str:
    """Return one row a metric, one column a model, of one judged model beside its references."""
    [(path, run)] = _runs(source, results) or [(Path(), {})]
    if not run:
        return NOTHING
    rows = run["rows"]
    names = [name for name in ROWS if name in rows]
    known = dict.fromkeys(metric for name in names for metric in rows[name])
    metrics = [metric for metric in known if not metric.startswith("shown_")]
    cells = [(f"`{name}`", *(_score(rows[row].get(name)) for row in names)) for name in metrics]
    return _table(("metric", *names), cells, [(path, run["protocol"])])


def evaluation_speed(source: str, results: Path) -> str:
    """Return one row a case of the evaluation's benchmark."""
    says: dict[str, Callable[[Run], str]] = {
        "generation": lambda case: (
            f"{case['store_images_per_second']:.2f} pictures a second, raw {case['raw_images_per_second']:.2f}:"
            f" {case['ratio']:.3f} of it"
        ),
        "texts": lambda case: (
            f"{case['texts_read']} texts read for {case['pictures']} pictures of {case['distinct']} prompts"
        ),
        "measuring": lambda case: (
            f"{case['pictures']:,} pictures a row, {case['rows']} rows: peak {case['peak_mib']:.0f} MiB, of which"
            f" {case['start_mib']:.0f} MiB before the first"
        ),
    }
    rows = [(case["case"], says[case["case"]](case)) for _, run in _runs(source, results) for case in run["results"]]
    return _table(("case", "found"), rows, _runs(source, results))


def continual(source: str, results: Path) -> str:
    """Return one row a run, as it stands after its last removal, beside the original it started from."""
    from experiments.continual_curves import label

    rows = []
    for path, run in _runs(source, results):
        first, last = _ends(run)
        rows.append(
            (
                label(path.parent.name),
                f"{run['order']}, {run['seed']}",
                _plain(last, "ua"),
                *(f"{_plain(last, key)}, {last[key] / first[key]:.2f} of before" for key in ("ra_near", "ra_far")),
                f"{last['ge']:.3f}",
                f"{run['slope']:.4f}",
                "–" if last["fd"] is None else f"{last['fd']:.4f}",
                f"{last['drift']:.3f}",
                f"{sum(removal['training_seconds'] for removal in run['removals']):.0f}",
            )
        )
    headings = ("method", "order, seed", "UA", "RA near", "RA far", "GE", "slope of GE", "FD", "drift", "seconds")
    return _table(headings, rows, _runs(source, results))


def continual_headline(source: str, results: Path) -> str:
    """Return one row a method, ablations left out: the mean over its runs of what is gone and what stays at the end."""
    from experiments.continual_curves import grouped, label

    runs = [(path, run) for path, run in _runs(source, results) if "-no-" not in path.parent.name]
    rows = []
    for method, each in grouped([{"label": label(path.parent.name), **run} for path, run in runs]).items():
        ends = [_ends(run) for run in each]
        seconds = [removal["training_seconds"] for run in each for removal in run["removals"]]
        rows.append(
            (
                method,
                str(len(each)),
                _mean_and_range([last["ua"] for _, last in ends]),
                _mean_and_range([last["ra_near"] / first["ra_near"] for first, last in ends]),
                _mean_and_range([last["ra_far"] / first["ra_far"] for first, last in ends]),
                f"{sum(seconds) / len(each):.0f}",
            )
        )
    headings = ("method", "runs", "gone, of all eight", "near, of before", "far, of before", "seconds of training")
    return _table(headings, rows, runs)


def _ends(run: Run) -> tuple[Run, Run]:
    """Return the points of a sequence before its first and after its last removal."""
    return run["points"]["0"], run["points"][max(run["points"], key=int)]


def _mean_and_range(values: Sequence[float]) -> str:
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def family(source: str, results: Path) -> str:
    """Return one row a method: what is left of a family by wording and by attack, and what else went."""
    names = ("efficacy_explicit", "efficacy_synonym", "efficacy_combined", "efficacy_implicit")
    tiers = ("retention_everything_else", "clip_score", "fd")
    runs = _runs(source, results)
    attacks = list(dict.fromkeys(name for _, run in runs for name in run["attacks"]))
    rows = [
        (
            path.parent.name,
            *(_left(run["scores"]["erased"].get(name)) for name in names),
            *(_brought_back(run["attacks"].get(name)) for name in attacks),
            "–" if run["beside"]["erased"] is None else _rate(run["beside"]["erased"]),
            *(_score(run["scores"]["erased"].get(name)) for name in tiers),
        )
        for path, run in runs
    ]
    seen = (f"{name.removeprefix('efficacy_')}, seen" for name in names)
    headings = ("run", *seen, *attacks, "tools and vehicles kept", *tiers)
    return _table(headings, rows, runs)


def text_states(source: str, results: Path) -> str:
    """Return one row an exchange of text states: what the pictures show."""
    runs = _runs(source, results)
    rows = [(part, _rate(row["concept"]), _rate(row["safe"])) for _, run in runs for part, row in run["rows"].items()]
    return _table(("taken from the safe sentence", "weapon seen", "flower seen"), rows, runs)


def _left(score: Mapping[str, Any] | None) -> str:
    """Return the share of pictures that still show what was erased."""
    if score is None or score["value"] is None:
        return "–"
    return f"{1 - score['value']:.3f} [{1 - score['high']:.3f}, {1 - score['low']:.3f}] of {score['n']}"


def attacks(source: str, results: Path) -> str:
    """Return one row a method and attack: how many prompts brought something back, beside the controls."""
    runs = _runs(source, results)
    rows = []
    for path, run in runs:
        for name, attack in run["attacks"].items():
            found = attack["rows"]
            confirmed = found["attacked"]["confirmed"]
            rows.append(
                (
                    path.parent.name,
                    name,
                    _rate(found["attacked"]["success"][0]),
                    *(
                        _rate(found[row]["success"][-1])
                        for row in ("attacked", "plain prompt", "attack on the original")
                    ),
                    "–" if confirmed is None else _rate(confirmed),
                )
            )
    budgets = sorted(
        {len(attack["rows"]["attacked"]["success"]) for _, run in runs for attack in run["attacks"].values()}
    )
    within = f"within {' or '.join(map(str, budgets))}"
    headings = ("run", "attack", "1 picture", within, "plain prompt", "on the original", "second judge agrees")
    return _table(headings, rows, runs)


def _brought_back(attack: Mapping[str, Any] | None) -> str:
    """Return the share of prompts with a success, beside that of the plain prompt with as many seeds."""
    if attack is None:
        return "–"
    attacked, plain = (attack["rows"][row]["success"][-1] for row in ("attacked", "plain prompt"))
    return f"{_rate(attacked)}, plain {plain['value']:.3f}"


def _plain(point: Run, key: str) -> str:
    low, high = point[f"{key}_interval"]
    return f"{point[key]:.3f} [{low:.3f}, {high:.3f}]"


def closed_form(source: str, results: Path) -> str:
    """Return one row a number of concepts, for Stable Diffusion 1.5."""
    rows = [
        (
            f"{case['concepts']:,}",
            f"{case['shared_seconds']:.3f} s",
            f"{case['batched_seconds']:.2f} s",
            f"{case['ratio_batched']:.1f}",
            f"{case['outer_seconds']:.1f} s" + (" (extrapolated)" if case["outer_extrapolated"] else ""),
            f"{case['ratio_outer']:.0f}",
        )
        for _, run in _runs(source, results)
        for case in run["results"]
        if "concepts" in case and case.get("model", "sd15") == "sd15"
    ]
    headings = (
        "concepts",
        "shared solve",
        "layer by layer, batched",
        "ratio",
        "layer by layer, outer products",
        "ratio",
    )
    return _table(headings, rows, _runs(source, results))


def closed_form_whole(source: str, results: Path) -> str:
    """Return one row a model and number of concepts, with memory and the floor."""
    rows = [
        (
            {"sd15": "SD 1.5", "sdxl": "SDXL"}.get(case["model"], case["model"]),
            f"{case['concepts']:,}",
            f"{case['shared_seconds']:.3f} s",
            f"{_three_digits(1000 * case['shared_seconds'] / case['concepts'])} ms",
            (
                f"{case['floor']['seconds']:.3f} s ({case['floor']['bytes'] / 1e9:.2g} GB,"
                f" {_three_digits(case['floor']['operations'] / 1e9)} G operations)"
            ),
            f"{case['shared_peak_mib']:,.0f} MiB",
            f"{case['batched_seconds']:.2f} s, {case['batched_peak_mib']:,.0f} MiB",
            f"{case['ratio_batched']:.1f}",
            f"{case['outer_seconds']:,.1f} s" + (" (extrapolated)" if case["outer_extrapolated"] else ""),
            f"{case['ratio_outer']:.0f}",
        )
        for _, run in _runs(source, results)
        for case in run["results"]
        if "floor" in case
    ]
    headings = (
        "model", "concepts", "shared solve", "a concept", "floor", "peak", "layer by layer, batched", "ratio",
        "layer by layer, outer products", "ratio",
    )  # fmt: skip
    return _table(headings, rows, _runs(source, results))


def _three_digits(value: float) -> str:
    """Return a number to three digits, without an exponent where it is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def apply_edit(source: str, results: Path) -> str:
    """Return one row a number of concepts."""
    rows = [
        (
            f"{case['concepts']:,}",
            *(f"{case[name]['seconds']:.3f} s" for name in ("apply", "undo", "check_base")),
            f"{case['switch']['seconds']:.4f} s" if "switch" in case else "–",
        )
        for _, run in _runs(source, results)
        for case in run["results"]
        if "concepts" in case
    ]
    headings = ("concepts", "apply", "undo", "check that the model is the base", "switch on and off")
    return _table(headings, rows, _runs(source, results))


def beside_lora(source: str, results: Path) -> str:
    """Return an edit of rank one beside the same as a LoRA: putting it in, switching it, and a pass with it."""
    rows = [
        row
        for _, run in _runs(source, results)
        for case in run["results"]
        if case.get("case") == "beside a LoRA"
        for row in (
            ("none", "–", "–", f"{case['pass']['seconds']:.2f} s", "–"),
            (
                "as an edit",
                "as above",
                f"{case['switch']['seconds']:.4f} s",
                f"{case['pass_applied']['seconds']:.2f} s",
                f"{case['overhead_applied']:+.1%}",
            ),
            (
                "as a LoRA in diffusers",
                f"{case['lora_load_seconds']:.2f} s",
                f"{case['lora_switch']['seconds']:.4f} s",
                f"{case['pass_lora']['seconds']:.2f} s",
                f"{case['overhead_lora']:+.1%}",
            ),
        )
    ]
    headings = ("edit", "put in", "switch on and off", "a pass of the denoiser", "beyond one without")
    return _table(headings, rows, _runs(source, results))


def encoding(source: str, results: Path) -> str:
    """Return one row a way of encoding many prompts."""
    rows = [
        (
            case["case"],
            f"{case['prompts']:,} ({case['distinct']:,} distinct)",
            f"{case['seconds']:.1f} s" + (f" (from {case['timed']:,})" if case["extrapolated"] else ""),
            f"{case['ratio']:.1f}",
            f"{case['tokens']:,}",
        )
        for _, run in _runs(source, results)
        for case in run["results"]
    ]
    headings = ("encoded", "prompts", "seconds", "times those to the end of text", "tokens read")
    return _table(headings, rows, _runs(source, results))


def trained(source: str, results: Path) -> str:
    """Return one row an eraser: steps a second of its fit and of two plain loops."""
    rows = [
        (
            case["case"],
            str(case["batch_size"]),
            *(_steps(case["ways"][way]) for way in ("ours", "batched", "plain")),
            *(f"{case['ways'][way]['ratio']:.2f}" for way in ("batched", "plain")),
            f"{max(way['difference'] for way in case['ways'].values()):.0e}",
        )
        for _, run in _runs(source, results)
        for case in run["results"]
    ]
    headings = (
        "eraser",
        "batch",
        "its fit",
        "plain, in batches",
        "plain, one at a time",
        "times the first",
        "times the second",
        "weights apart by",
    )
    return _table(headings, rows, _runs(source, results))


def _steps(way: Mapping[str, Any]) -> str:
    return f"{way['steps_per_second']:.2f} steps/s, {way['peak_mib']:.0f} MiB"


def processes(source: str, results: Path) -> str:
    """Return one row a number of processes."""
    rows = [
        (
            str(case["processes"]),
            str(case["threads"]),
            f"{case['images_per_second']:.2f}",
            f"{case['ratio']:.2f}",
            f"{case['start_seconds']:.1f} s",
            f"{case['largest_difference']} of 255",
        )
        for _, run in _runs(source, results)
        for case in run["results"]
    ]
    headings = ("processes", "threads each", "pictures a second", "times one", "to start", "values differ by at most")
    return _table(headings, rows, _runs(source, results))


def trce_stage_1(source: str, results: Path) -> str:
    """Return one row: the first stage of TRCE from text states to new weights."""
    rows = [
        (
            f"{case['pairs']:,}",
            f"{case['caption_tokens']:,}",
            str(case["projections"]),
            f"{case['shared_seconds']:.2f} s",
            f"{case['by_layer_seconds']:.2f} s",
            f"{case['ratio']:.1f}",
        )
        for _, run in _runs(source, results)
        for case in run["results"]
        if case.get("case") == "trce stage 1"
    ]
    headings = ("sentence pairs", "caption tokens", "projections", "one solve for all", "layer by layer", "ratio")
    return _table(headings, rows, _runs(source, results))


def ledger(source: str, results: Path) -> str:
    """Return one row a stretch of a growing ledger, then what the whole came to."""
    says: dict[str, Callable[[Run], tuple[str, str]]] = {
        "growth": lambda case: (
            f"removals {case['removals'] - case['of'] + 1:,} to {case['removals']:,}",
            f"{case['seconds_each']:.3f} s each, {case['fit_seconds_each']:.3f} s of it the fit",
        ),
        "whole": lambda case: (
            f"all {case['removals']:,}",
            (
                f"{case['disk_bytes_each'] / 1024:.1f} KiB each, {case['bytes_each'] / 1024:.1f} KiB of it the edit's"
                f" own file ({case['target_rows']} states, {case['width']} wide); one solve in"
                f" {case['solve_seconds']:.1f} s; the same weights as in reverse order:"
                f" {'yes' if case['same_in_reverse'] else 'NO'}"
            ),
        ),
    }
    rows = [says[case["case"]](case) for _, run in _runs(source, results) for case in run["results"]]
    return _table(("removals", "found"), rows, _runs(source, results))


def duge_step(source: str, results: Path) -> str:
    """Return one row a kind of training step."""
    rows = [
        (
            case["case"],
            f"{case['seconds']:.3f} s",
            f"{case['times_seconds']:.2f}",
            f"{case['peak_mib']:.0f} MiB",
            f"{case['times_peak_mib']:.2f}",
        )
        for _, run in _runs(source, results)
        for case in run["results"]
    ]
    headings = ("step", "seconds", "of an ordinary step", "memory above the model", "of an ordinary step")
    return _table(headings, rows, _runs(source, results))


def a_star_step(source: str, results: Path) -> str:
    """Return one row a kind of denoising step and device; "not measured" on a GPU until one was at hand."""
    runs = [run for _, run in _runs(source, results)]
    rows = [
        (
            run["device"],
            case["case"],
            f"{case['seconds']:.2f} s",
            f"{case['extra']:+.2f}",
            f"{case['peak_mib']:.0f} MiB",
        )
        for run in runs
        for case in run["results"]
    ]
    if runs and not any(run["device"].startswith("cuda") for run in runs):
        rows.append(("a GPU", "all", *["not measured"] * 3))
    headings = ("device", "step", "seconds", "beyond an ordinary step", "memory above the model")
    return _table(headings, rows, _runs(source, results))


def several_concepts(source: str, results: Path) -> str:
    """Return one row an arm: how often both objects are drawn, and how well the pictures fit and look."""
    rows = [
        (
            name,
            _rate(arm["both"]),
            _rate(arm["both_never_seen_together"]) if arm["both_never_seen_together"] else "",
            f"{arm['frechet_distance']['value']:.4f}",
            *(f"{arm[key]['value']:.2f}" for key in ("clip_score", "clip_minimum", "caption_match")),
        )
        for _, run in _runs(source, results)
        for name, arm in run["arms"].items()
    ]
    headings = (
        "sampling", "both objects", "of pairs never drawn together", "FD to drawings", "CLIP score", "lesser object",
        "caption match",
    )  # fmt: skip
    return _table(headings, rows, _runs(source, results))


def several_concepts_maps(source: str, results: Path) -> str:
    """Return one row an arm: what its maps do after a quarter of the steps and at the end."""
    rows = []
    for _, run in _runs(source, results):
        for name, arm in run["arms"].items():
            maps = [arm["maps"][key] for key in ("overlap", "kept")]
            rows.append((name, *(f"{values[at]:.3f}" for values in maps for at in (len(values) // 4, -1))))
    headings = ("sampling", "overlap after a quarter", "at the end", "kept after a quarter", "at the end")
    return _table(headings, rows, _runs(source, results))


def several_concepts_tests(source: str, results: Path) -> str:
    """Return one row a comparison of A-STAR with another arm: pictures that show both objects in one of them only."""
    rows = [
        (pair, f"{test['gained']}", f"{test['lost']}", f"{test['p_value']:.2g}")
        for _, run in _runs(source, results)
        for pair, test in run["mcnemar"].items()
        if pair.startswith("A-STAR") or pair.endswith("against plain")
    ]
    return _table(("comparison", "both in the first alone", "in the second alone", "p (McNemar)"), rows, ())


def localised(source: str, results: Path) -> str:
    """Return one row a way to remove one of two objects: what goes, what stays, and how far the rest moves."""
    rows = []
    for _, run in _runs(source, results):
        negative = run["arms"]["a negative prompt"]
        for name, arm in run["arms"].items():
            ratios = [
                f"{arm[key]:.4g} ({arm[key] / negative[key]:.2f})"
                for key in ("pixels_outside", "oracle_distance_outside")
            ]
            rows.append((name, _rate(arm["gone"]), _rate(arm["other_kept"]), *ratios))
    headings = ("sampling", "object gone", "other object kept", "pixels outside", "oracle distance outside")
    return _table(headings, rows, _runs(source, results))


def instances_learned(source: str, results: Path) -> str:
    """Return one row a state of a model that learns an individual: likeness, composition, and what stays."""
    runs = _runs(source, results)
    rows = [
        (
            state if len(fits) == 1 else f"{state}, seed {fit['seed']}",
            *(_rate(fit["individual"][group]["recognised"]) for group in ("alone", "class")),
            *(_score(fit["individual"][group]["identity"]) for group in ("alone", "composed")),
            _rate(fit["composed"]),
            _score(fit["fits"]["caption_match"]["whole"]),
            *(_kept_or_dash(state, fit["retention"][group]) for group in ("class", "siblings", "unrelated")),
        )
        for _, run in runs
        for state, fits in run["rows"].items()
        for fit in fits
    ]
    recognised = ("recognised alone", "recognised where its class is asked for")
    headings = ("state", *recognised, "identity alone", "identity composed", "composed", "caption match")
    return _table((*headings, "class kept", "siblings kept", "unrelated kept"), rows, runs)


def instances_removed(source: str, results: Path) -> str:
    """Return one row a way of removing an individual: it, its class, its siblings, the rest."""
    runs = _runs(source, results)
    rows = [
        (
            state,
            _rate(row["gone"]),
            *(_kept_or_dash(state, row["kept"][group]) for group in ("class", "siblings", "unrelated")),
        )
        for _, run in runs
        for state, row in run["rows"].items()
    ]
    return _table(("method", "gone", "class kept", "siblings kept", "unrelated kept"), rows, runs)


def _kept_or_dash(state: str, rate: Mapping[str, Any] | None) -> str:
    return "–" if state == "original" or rate is None else _rate(rate)


def startup(source: str, results: Path) -> str:
    """Return one row a command."""
    rows = [
        (f"`{case['case']}`", f"{case['seconds']:.2f} s", f"{case['above_empty_seconds']:.2f} s")
        for _, run in _runs(source, results)
        for case in run["results"]
    ]
    return _table(("command", "seconds", "above an empty interpreter"), rows, _runs(source, results))


def tinyworld_quality(source: str, results: Path) -> str:
    """Return one row a group of prompts: how often the model draws what it was asked for."""
    rows = [
        (name, _rate(group), f"{worst} ({group['each'][worst]['value']:.2f})")
        for _, run in _runs(source, results)
        for name, group in run["groups"].items()
        for worst in [min(group["each"], key=lambda each: group["each"][each]["value"])]
    ]
    return _table(("prompts", "pictures that show it", "worst"), rows, _runs(source, results))


def tinyworld_oracle(source: str, results: Path) -> str:
    """Return one row a question put to the oracle on fresh drawings."""
    rows = [
        (name, _rate(rate))
        for _, run in _runs(source, results)
        for name, rate in {
            **{name: rate for name, rate in run["oracle"].items() if isinstance(rate, Mapping) and "hits" in rate},
            **{f"false alarms, {name}": rate for name, rate in run["oracle"]["false alarms"].items()},
        }.items()
    ]
    return _table(("oracle", "share"), rows, _runs(source, results))


def tinyworld_tokens(source: str, results: Path) -> str:
    """Return one row a mixture of text states: how often the object is drawn."""
    rows = [(name, _rate(rate)) for _, run in _runs(source, results) for name, rate in run["tokens"].items()]
    return _table(("text states", "pictures that show the object"), rows, _runs(source, results))


def tinyworld_attention(source: str, results: Path) -> str:
    """Return one row a word: how well its cross-attention map covers the object's true box."""
    rows = [
        (name, f"{value['value']:.3f} ± {value['standard_error']:.3f} of {run['attention']['n']}")
        for _, run in _runs(source, results)
        for name, key in (
            ("the object's", "own"),
            ("another, at random", "other word"),
            ("all before it", "words before it"),
            ("all after it", "words after it"),
        )
        for value in [run["attention"][key]]
    ]
    return _table(("word", "IoU of its map with the box"), rows, _runs(source, results))


def low_memory(source: str, results: Path) -> str:
    """Return one row a model: the peak memory of either way, and what a fit takes beyond a loaded model."""
    rows = []
    for case in (case for _, run in _runs(source, results) for case in run["results"]):
        ways = [case["low"], case.get("loaded")]
        peaks = [f"{way['peak_mib']:,.0f} MiB, {way['seconds']:.0f} s" if way else "not run" for way in ways]
        over = case["beyond"]
        rows.append(
            (
                LOW_MEMORY_MODELS.get(case["model"], case["model"]),
                f"{case['model_mib']:,.0f} MiB",
                *peaks,
                f"{case['ratio']:.1f}" if "ratio" in case else "–",
                {True: "yes", False: "no", None: "–"}[case.get("same_bytes")],
                f"{over['peak_mib']:,.0f} MiB ({over['dtype']}), bound {over['bound_mib']:,.0f}",
            )
        )
    headings = ("model", "on the disk", "`--low-memory`", "loaded", "ratio", "same bytes", "beyond a loaded model")
    return _table(headings, rows, _runs(source, results))


def settings(source: str, results: Path) -> str:
    """Return one row a setting of an eraser, a guidance or what learns, from fields and the docstrings that explain."""
    from erasure.erasers import eraser_class
    from erasure.guidance import guidances
    from erasure.personalize.class_diffusion import ClassDiffusion
    from erasure.personalize.forgetting import Forgetting
    from erasure.registry import described

    learning = {kind.name: kind for kind in (ClassDiffusion, Forgetting)}
    known = {**guidances(), **learning}
    kind: Any = known[source] if source in known else eraser_class(source)
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        meanings |= described(base) if is_dataclass(base) else {}
    rows = [(f"`{field.name}`", _shown_default(field), meanings.get(field.name, "")) for field in fields(kind)]
    return _table(("setting", "default", "meaning"), rows, ())


def _shown_default(field: Field[Any]) -> str:
    return "to be given" if (default := _default(field)) is MISSING else f"`{default!r}`"


def _default(field: Field[Any]) -> Any:
    """Return a field's default, made where it is made; MISSING where there is none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


TABLES: dict[str, Callable[[str, Path], str]] = {
    "removal": removal,
    "removal-steps": removal_steps,
    "evaluation": evaluation,
    "evaluation-speed": evaluation_speed,
    "continual": continual,
    "continual-headline": continual_headline,
    "duge-step": duge_step,
    "a-star-step": a_star_step,
    "several-concepts": several_concepts,
    "several-concepts-maps": several_concepts_maps,
    "several-concepts-tests": several_concepts_tests,
    "localised": localised,
    "instances-learned": instances_learned,
    "instances-removed": instances_removed,
    "trce-stage-1": trce_stage_1,
    "family": family,
    "text-states": text_states,
    "attacks": attacks,
    "closed-form": closed_form,
    "closed-form-whole": closed_form_whole,
    "apply-edit": apply_edit,
    "beside-lora": beside_lora,
    "encoding": encoding,
    "trained": trained,
    "processes": processes,
    "ledger": ledger,
    "low-memory": low_memory,
    "startup": startup,
    "tinyworld-quality": tinyworld_quality,
    "tinyworld-oracle": tinyworld_oracle,
    "tinyworld-tokens": tinyworld_tokens,
    "tinyworld-attention": tinyworld_attention,
    "settings": settings,
}


def _runs(source: str, results: Path) -> list[tuple[Path, Run]]:
    paths = sorted(results.glob(source))
    return [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], runs: Iterable[tuple[Path, Run]]) -> str:
    """Return a table and, below it, where its numbers come from."""
    if not rows:
        return NOTHING
    cells = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in cells)
    sources = "".join(f"- {_provenance(path, run)}\n" for path, run in runs)
    return lines + (f"\n{sources}" if sources else "")


def _provenance(path: Path, run: Run) -> str:
    """Return a link to the run beside what made it: commit, machine, versions."""
    shown = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()
    git = run.get("git") or {}
    commit = f"commit {git['commit'][:10]}{' with changes' if git.get('dirty') else ''}" if git else "no commit known"
    threads = f", {run['threads']} threads" if run.get("threads") else ""
    torch = f", torch {run['versions']['torch']}" if "torch" in run.get("versions", {}) else ""
    return f"`{shown}`: {commit}, {run.get('device', 'cpu')}{threads}{torch}"


def _settings(run: Run) -> str:
    """Return the settings of a run's eraser that are not its defaults; "defaults" if none."""
    from erasure.erasers import eraser_class

    given = {**run.get("config", {}).get("eraser", {})}
    defaults = {field.name: _default(field) for field in fields(eraser_class(given.pop("name")))} if given else {}
    changed = [f"{name}={value}" for name, value in given.items() if defaults.get(name) != value]
    return ", ".join(changed) or "defaults"


def _targets(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    concepts = [concept for step in steps for concept in step["concepts"]]
    return [concept["target"] if isinstance(concept, Mapping) else str(concept) for concept in concepts]


def _seconds(steps: Iterable[Mapping[str, Any]]) -> str:
    """Return the seconds of the fits together; a dash where one was not recorded."""
    seconds = [step["seconds"] for step in steps]
    return "–" if None in seconds else f"{sum(seconds):.1f}"


def _rate(rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{rate['value']:.3f} [{low:.3f}, {high:.3f}] of {rate['n']}"


def _score(score: Mapping[str, Any] | None) -> str:
    """Return a score with its interval and count, and whose it is if it is one of several; a dash for none."""
    if score is None or score["value"] is None:
        return "–"
    interval = "" if score["low"] is None else f" [{score['low']:.3g}, {score['high']:.3g}]"
    whose = f", {score['concept']}" if "concept" in score else ""
    return f"{score['value']:.3g}{interval} of {score['n']}{whose}"


def _share(step: Mapping[str, Any], name: str) -> str:
    """Return a rate of a step with its interval and count; a dash where there is none."""
    value = step["efficacy"] if name == "efficacy" else step["retention"][name]
    if value is None:
        return "–"
    low, high = step["interval"][name]
    return f"{value:.3f} [{low:.3f}, {high:.3f}] of {step['n'][name]}"


if __name__ == "__main__":
    main()

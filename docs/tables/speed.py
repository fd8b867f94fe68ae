"""Tables of time and memory: training, sampling, encoding, evaluation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from .layout import (
    Run,
    read_runs,
    table,
)

LOW_MEMORY_MODELS = {
    "sd15": "Stable Diffusion 1.5",
    "sdxl": "Stable Diffusion XL",
    "flux": "FLUX.1",
    "flux-short": "FLUX.1, 4 of T5's 24 layers",
}


def evaluation_speed(source: str, results: Path) -> str:
    """Return one row a case of the evaluation's benchmark."""
    says: dict[str, Callable[[Run], str]] = {
        "generation": lambda case: (
            f"{case['store_images_per_second']:.2f} images a second, raw {case['raw_images_per_second']:.2f};"
            f" in {len(pairs := ratios_of(case))} pairs {median(pairs):.3f} of it"
            f" ({min(pairs):.3f} to {max(pairs):.3f})"
        ),
        "texts": lambda case: (
            f"{case['texts_read']} texts read for {case['pictures']} images of {case['distinct']} prompts"
        ),
        "measuring": lambda case: (
            f"{case['pictures']:,} images a row, {case['rows']} rows: peak {case['peak_mib']:.0f} MiB, of which"
            f" {case['start_mib']:.0f} MiB before the first"
        ),
    }
    rows = [
        (case["case"], says[case["case"]](case)) for _, run in read_runs(source, results) for case in run["results"]
    ]
    return table(("case", "found"), rows, read_runs(source, results))


def ratios_of(generation: Mapping[str, Any]) -> list[float]:
    """Return the speed of the image store over that of the raw pipeline, of each pair of timings."""
    pairs = zip(generation["raw"]["all_seconds"], generation["store"]["all_seconds"], strict=True)
    return [raw / store for raw, store in pairs]


def encoding(source: str, results: Path) -> str:
    """Return one row a way of encoding many prompts."""
    rows = [
        (
            case["case"],
            f"{case['prompts']:,} ({case['distinct']:,} distinct)",
            f"{case['seconds']:.1f} s" + (f" (from {case['timed']:,})" if case["extrapolated"] else ""),
            f"{case['ratio']:.1f}",
            f"{case['tokens']:,}",
            f"{case['relative_difference']:.1g}" if "relative_difference" in case else "–",
        )
        for _, run in read_runs(source, results)
        for case in run["results"]
    ]
    headings = ("encoded", "prompts", "seconds", "times those to the end of text", "tokens read", "states apart by")
    return table(headings, rows, read_runs(source, results))


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
        for _, run in read_runs(source, results)
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
    return table(headings, rows, read_runs(source, results))


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
        for _, run in read_runs(source, results)
        for case in run["results"]
    ]
    headings = ("processes", "threads each", "images a second", "times one", "to start", "values differ by at most")
    return table(headings, rows, read_runs(source, results))


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
        for _, run in read_runs(source, results)
        for case in run["results"]
    ]
    headings = ("step", "seconds", "of an ordinary step", "memory above the model", "of an ordinary step")
    return table(headings, rows, read_runs(source, results))


def a_star_step(source: str, results: Path) -> str:
    """Return one row a kind of denoising step and device; "not measured" on a GPU until one was at hand."""
    runs = [run for _, run in read_runs(source, results)]
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
    return table(headings, rows, read_runs(source, results))


def startup(source: str, results: Path) -> str:
    """Return one row a command."""
    rows = [
        (f"`{case['case']}`", f"{case['seconds']:.2f} s", f"{case['above_empty_seconds']:.2f} s")
        for _, run in read_runs(source, results)
        for case in run["results"]
    ]
    return table(("command", "seconds", "above an empty interpreter"), rows, read_runs(source, results))


def low_memory(source: str, results: Path) -> str:
    """Return one row a model: the peak memory of either way, and what a fit takes beyond a loaded model."""
    rows = []
    for case in (case for _, run in read_runs(source, results) for case in run["results"]):
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
    return table(headings, rows, read_runs(source, results))


def bulk(source: str, results: Path) -> str:
    """Return one row a way of removing a list of names: seconds a name, of a long list, and beside the official way."""
    rows = []
    for case in (case for _, run in read_runs(source, results) for case in run["results"]):
        if case["case"] == "official":
            words, each, least = "one by one, as published", case["encoding"] + case["products"], "–"
        elif case["case"] == "removal":
            words, each = f"a list, trailing states of {case['trailing_templates'] or 'all'}", case["each"]
            least = f"{case['floor_each']:.2f} s"
        else:
            continue
        model, minutes = LOW_MEMORY_MODELS[case["model"]], f"{case['long'] / 60:.1f} min"
        timed, ratio = str(case["names"]), f"{case.get('ratio', 1):.1f}"
        rows.append((model, words, timed, f"{each:.2f} s", least, minutes, ratio))
    headings = ("model", "way, templates", "names timed", "a name", "its floor", "1,000 names", "times the published")
    return table(headings, rows, read_runs(source, results))


def bulk_templates(source: str, results: Path) -> str:
    """Return one row a list and number of templates: the effect of removed objects that is left, the move of others."""
    rows = [
        (
            str(case["list"]),
            str(case["trailing_templates"] or "all"),
            *(f"{case[key]:.2f}" for key in ("left", "left_most", "moved")),
        )
        for _, run in read_runs(source, results)
        for case in run["results"]
        if case["case"] == "templates"
    ]
    headings = ("objects removed", "templates", "effect left, mean", "least of the worst tenth", "move of others")
    return table(headings, rows, read_runs(source, results))


def low_memory_alone(source: str, results: Path) -> str:
    """Return one row a model on which the loaded way was not run: peak memory with and without files, and seconds."""
    rows = [
        (
            LOW_MEMORY_MODELS.get(case["model"], case["model"]),
            f"{case['model_mib'] / 1024:,.1f} GiB",
            *(f"{case['low'][key] / 1024:,.2f} GiB" for key in ("peak_mib", "anonymous_mib")),
            f"{case['low']['seconds']:,.0f} s",
        )
        for _, run in read_runs(source, results)
        for case in run["results"]
    ]
    headings = ("sizes of", "on the disk", "peak memory", "without files", "removed and written in")
    return table(headings, rows, read_runs(source, results))

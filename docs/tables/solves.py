"""Tables of time and memory: closed-form solves, edits applied and undone, and the ledger."""

from collections.abc import Callable
from pathlib import Path

from .layout import (
    Run,
    read_runs,
    table,
)


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
        for _, run in read_runs(source, results)
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
    return table(headings, rows, read_runs(source, results))


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
        for _, run in read_runs(source, results)
        for case in run["results"]
        if "floor" in case
    ]
    headings = (
        "model", "concepts", "shared solve", "a concept", "floor", "peak", "layer by layer, batched", "ratio",
        "layer by layer, outer products", "ratio",
    )  # fmt: skip
    return table(headings, rows, read_runs(source, results))


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
        for _, run in read_runs(source, results)
        for case in run["results"]
        if "concepts" in case
    ]
    headings = ("concepts", "apply", "undo", "check that the model is the base", "switch on and off")
    return table(headings, rows, read_runs(source, results))


def beside_lora(source: str, results: Path) -> str:
    """Return an edit of rank one beside the same as a LoRA: putting it in, switching it, and a pass with it."""
    rows = [
        row
        for _, run in read_runs(source, results)
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
    return table(headings, rows, read_runs(source, results))


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
        for _, run in read_runs(source, results)
        for case in run["results"]
        if case.get("case") == "trce stage 1"
    ]
    headings = ("sentence pairs", "caption tokens", "projections", "one solve for all", "layer by layer", "ratio")
    return table(headings, rows, read_runs(source, results))


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
    rows = [says[case["case"]](case) for _, run in read_runs(source, results) for case in run["results"]]
    return table(("removals", "found"), rows, read_runs(source, results))

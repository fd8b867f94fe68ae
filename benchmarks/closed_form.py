"""The shared closed-form solve against layer-by-layer ones, on the text projections of Stable Diffusion 1.5 and XL.

And TRCE's first stage as a whole, from encoded sentences and captions to new weights, against the same layer by layer.

All three give the same new weights, and the run checks it:

- shared: one Cholesky factorisation for all layers, then W M for each, as an `Edit` is solved for and applied;
- batched: each layer by itself, its Gram matrix and right-hand side as one matrix product each;
- outer: each layer by itself, one outer product a concept, as the published code of UCE accumulates them.

Everything in float64, from float32 weights to float32 weights. States are random: their values do not change the work.

Beside the shared solve stands its floor: the bytes that any way must read and write and the operations that this one
needs, at the rates of copying and of multiplying that the run measures on this machine. The peaks of memory are of
processes of their own, above what each holds with the weights and the states loaded.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import Any

import torch
from torch import Tensor

from erasure.closed_form.caption_statistics import square_root
from erasure.closed_form.problem import Rows
from erasure.closed_form.solve import solve
from erasure.edits import MapChange
from erasure.edits.changes import edited_weights
from erasure.erasers.trce import published_eta

from .record import arguments, peak_mib, reset_peak, resident_mib, spread, timed, write_run

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The keys and values of a model's cross-attentions.

    Attributes:
        widths: Output width of each attention's keys and values.
        dim: Width of a text state.
        every_layer: Whether the rivals are timed on every layer, or on one of each shape for all that have it.
    """

    widths: tuple[int, ...]
    dim: int
    every_layer: bool


# In the UNets' order: down, mid, up.
_SD15 = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320)
_SDXL = (*[640] * 4, *[1280] * 20, *[1280] * 10, *[1280] * 30, *[640] * 6)
SHAPES = {
    "sd15": Shapes(widths=_SD15, dim=768, every_layer=True),
    "sdxl": Shapes(widths=_SDXL, dim=2048, every_layer=False),
    "toy": Shapes(widths=(16, 32), dim=24, every_layer=False),
}


def main() -> None:
    """Time the three, print a line a number of concepts, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--models", choices=[name for name in SHAPES if name != "toy"], nargs="+")
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 10, 100, 1000, 10_000])
    parser.add_argument("--preserve", type=int, default=100, help="preserved states")
    parser.add_argument("--outer-up-to", type=int, default=100, help="concepts that outer is timed with, at most")
    parser.add_argument("--reg", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--peak", nargs=3, metavar=("MODEL", "WAY", "CONCEPTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak(*options.peak[:2], int(options.peak[2]), options)))
        return
    started = time.perf_counter()
    results = []
    for model in ["toy"] if options.toy else options.models or ["sd15", "sdxl"]:
        weights = projections(SHAPES[model], seed=options.seed)
        rates = machine_rates(toy=options.toy)
        outer_each: dict[int, float] = {}
        for concepts in options.concepts:
            rows = random_rows(concepts, options.preserve, dim=SHAPES[model].dim, reg=options.reg, seed=options.seed)
            measurement = compare(rows, weights, options, every_layer=SHAPES[model].every_layer, outer_each=outer_each)
            peaks = {f"{way}_peak_mib": peak_of(model, way, concepts, options) for way in ("shared", "batched")}
            results.append({"model": model, **measurement, **peaks, "floor": floor(rows, weights, rates)})
            print(line(results[-1]))
        if model != "sdxl":
            pairs, tokens = (12, 200) if options.toy else (300, 10_000)
            stage = trce_stage_1(weights, pairs=pairs, tokens=tokens, repeats=options.repeats, seed=options.seed)
            results.append(stage)
            print(stage_line(stage))
    write_run(options, name="closed-form", version=VERSION, results=results, started=started, torch=torch)


def compare(
    rows: Rows,
    weights: Sequence[Tensor],
    options: argparse.Namespace,
    *,
    every_layer: bool,
    outer_each: dict[int, float],
) -> dict[str, Any]:
    """Return the seconds of each way to the new weights, their ratios, and how far the results are apart.

    Args:
        rows: The problem.
        weights: Weights to edit.
        options: Options of the command line.
        every_layer: See `Shapes.every_layer`.
        outer_each: The seconds of "outer" by the number of rows it was timed with; what is timed here is added.
    """
    concepts, repeats = len(rows.targets), options.repeats
    layers = [weights] if every_layer else [[weight] for weight in of_each_shape(weights)]
    slow = [timed(lambda some=some: batched(rows, some), max(1, repeats // 2))["all_seconds"] for some in layers]
    times = [1] if every_layer else [shape_count(weights, some[0]) for some in layers]
    timings = {
        "solve": timed(lambda: solve(rows), repeats),
        "shared": timed(lambda: shared(rows, weights), repeats),
        "batched": spread([sum(map(mul, times, each)) for each in zip(*slow, strict=True)]),
    }
    few = first(rows, min(concepts, options.outer_up_to))
    errors = {
        "batched": difference(shared(rows, some := of_each_shape(weights)), batched(rows, some)),
        "outer": difference(shared(few, weights[:1]), [outer(few, weights[0])]),
    }
    solved, timed_with = concepts + len(rows.preserve), len(few.targets) + len(rows.preserve)
    if timed_with not in outer_each:
        outer_each[timed_with] = outer_seconds(few, weights, every_layer=every_layer)
    # Accumulating is linear in the number of rows, and what is not (one inverse a layer) is a small part.
    seconds = outer_each[timed_with] * solved / timed_with
    return {
        "concepts": concepts,
        "preserve": len(rows.preserve),
        "projections": len(weights),
        "dim": weights[0].shape[1],
        "rank": solve(rows).rank,
        **{f"{name}_seconds": timing["seconds"] for name, timing in timings.items()},
        "all_seconds": {name: timing["all_seconds"] for name, timing in timings.items()},
        "outer_seconds": seconds,
        "outer_timed_with": len(few.targets),
        "every_layer": every_layer,
        "outer_extrapolated": timed_with < solved,
        "ratio_batched": timings["batched"]["seconds"] / timings["shared"]["seconds"],
        "ratio_outer": seconds / timings["shared"]["seconds"],
        "relative_difference": errors,
    }


def outer_seconds(rows: Rows, weights: Sequence[Tensor], *, every_layer: bool) -> float:
    """Return the seconds of "outer" for all layers, each timed once or one of each shape for all of that shape."""
    if every_layer:
        return sum(layer_seconds(rows, weight) for weight in weights)
    return sum(layer_seconds(rows, weight) * shape_count(weights, weight) for weight in of_each_shape(weights))


def of_each_shape(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return one weight of each shape."""
    return list({weight.shape: weight for weight in weights}.values())


def shape_count(weights: Sequence[Tensor], like: Tensor) -> int:
    """Return the number of weights with the shape of one."""
    return sum(weight.shape == like.shape for weight in weights)


def peak_of(model: str, way: str, concepts: int, options: argparse.Namespace) -> float:
    """Return the peak of memory of one way, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.closed_form", "--peak", model, way, str(concepts)]
    command += ["--preserve", str(options.preserve), "--reg", str(options.reg), "--seed", str(options.seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak(model: str, way: str, concepts: int, options: argparse.Namespace) -> float:
    """Return the most memory in MiB that one way held, new weights included, above what was loaded.

    Where the rivals are not run on every layer, the new weights of the others are added.
    """
    weights = projections(SHAPES[model], seed=options.seed)
    rows = random_rows(concepts, options.preserve, dim=SHAPES[model].dim, reg=options.reg, seed=options.seed)
    solve(replace(rows, reg=rows.reg + 1.0))  # what libraries set aside at their first use is no part of it
    reset_peak()
    before = resident_mib()
    some = weights if way == "shared" or SHAPES[model].every_layer else of_each_shape(weights)
    weights_made = {"shared": shared, "batched": batched}[way](rows, some)
    others = sum(weight.nbytes for weight in weights) - sum(weight.nbytes for weight in weights_made)
    return peak_mib() - before + others / 2**20


def machine_rates(*, toy: bool) -> dict[str, float]:
    """Return the bytes a second of copying and the operations a second of a float64 product, the best of five."""
    size = 256 if toy else 2048
    one, other = torch.randn(2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    memory = torch.zeros(size * size * (1 if toy else 8))
    target = torch.empty_like(memory)
    copying = min(timed(lambda: target.copy_(memory), 5)["all_seconds"])
    product = min(timed(lambda: one @ other, 5)["all_seconds"])
    return {"bytes": 2 * 4 * memory.numel() / copying, "operations": 2 * size**3 / product}


def floor(rows: Rows, weights: Sequence[Tensor], rates: dict[str, float]) -> dict[str, float]:
    """Return the minimal operations of the shared solve, and their seconds at the machine's rates.

    Operations count a multiplication and an addition each. Of symmetric matrices half is needed.
    """
    dim, rank, n = weights[0].shape[1], solve(rows).rank, len(rows.targets)
    out = sum(len(weight) for weight in weights)
    kept = n + len(rows.preserve)
    solving = kept * dim**2 + dim**3 / 3
    low_rank = 2 * n <= dim
    solving += 2 * dim**2 * n if low_rank else 2 * n * dim**2 + 2 * dim**3
    applying = 4 * out * dim * rank if low_rank else 2 * out * dim**2
    moved = 2 * 4 * out * dim + 8 * dim * (2 * n + len(rows.preserve))
    return {
        "bytes": moved,
        "operations": solving + applying,
        "bytes_per_second": rates["bytes"],
        "operations_per_second": rates["operations"],
        # Some of the one may be done during the other.
        "seconds": max(moved / rates["bytes"], (solving + applying) / rates["operations"]),
    }


def trce_stage_1(weights: Sequence[Tensor], *, pairs: int, tokens: int, repeats: int, seed: int) -> dict[str, object]:
    """Return the seconds from text states to new weights, one solve for all layers and layer by layer.

    Layer by layer keeps W S beside S for each, as the official code's cache does, and solves each layer's system.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    dim = weights[0].shape[1]
    unsafe, safe = torch.randn(2, pairs, dim, generator=generator)
    captions = torch.randn(tokens, dim, generator=generator)
    eta = published_eta(0.01)

    def problem() -> Rows:
        states = captions.double()
        kept = square_root(states.T @ states)
        return replace(
            random_rows(pairs, len(kept), dim=dim, reg=0.0, seed=seed),
            targets=unsafe.double(),
            anchors=safe.double(),
            weights=torch.full((pairs,), 1 / pairs, dtype=torch.float64),
            preserve=kept,
            preserve_weights=torch.full((len(kept),), eta / tokens, dtype=torch.float64),
        )

    def by_layer(weight: Tensor) -> Tensor:
        old, states = weight.double(), captions.double()
        second = eta / tokens * (states.T @ states)
        right = (safe.double() @ old.T).T @ unsafe.double() / pairs + old @ second
        gram = unsafe.double().T @ unsafe.double() / pairs + second
        return torch.cholesky_solve(right.T, torch.linalg.cholesky(gram)).T.to(weight.dtype)

    timings = {
        "shared": timed(lambda: shared(problem(), weights), repeats),
        "by_layer": timed(lambda: [by_layer(weight) for weight in weights], max(1, repeats // 2)),
    }
    reference = shared(problem(), weights)
    return {
        "case": "trce stage 1",
        "pairs": pairs,
        "caption_tokens": tokens,
        "projections": len(weights),
        **{f"{name}_seconds": timing["seconds"] for name, timing in timings.items()},
        "all_seconds": {name: timing["all_seconds"] for name, timing in timings.items()},
        "ratio": timings["by_layer"]["seconds"] / timings["shared"]["seconds"],
        "relative_difference": difference(reference, [by_layer(weight) for weight in weights]),
    }


def stage_line(result: dict[str, object]) -> str:
    """Say TRCE's first stage in a line."""
    return (
        f"TRCE stage 1, {result['pairs']} pairs, {result['caption_tokens']:,} caption tokens:"
        f" shared {result['shared_seconds']:.2f} s, layer by layer {result['by_layer_seconds']:.2f} s"
        f" = {result['ratio']:.1f} x"
    )


def shared(rows: Rows, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the new weights by one solve for all."""
    change = MapChange(map=solve(rows))
    named = {str(number): weight for number, weight in enumerate(weights)}
    return list(edited_weights(named, dict.fromkeys(named, change)).values())


def batched(rows: Rows, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the new weights, each by its own least-squares problem in matrix form."""
    return [_batched_layer(rows, weight) for weight in weights]


def _batched_layer(rows: Rows, weight: Tensor) -> Tensor:
    old = weight.double()
    keys, sources = torch.cat([rows.targets, rows.preserve]), torch.cat([rows.anchors, rows.preserve])
    scales = torch.cat([rows.weights, rows.preserve_weights])[:, None]
    right = (sources @ old.T).T @ (keys * scales) + rows.reg * old
    gram = keys.T @ (keys * scales) + rows.reg * torch.eye(old.shape[1], dtype=old.dtype)
    return torch.cholesky_solve(right.T, torch.linalg.cholesky(gram)).T.to(weight.dtype)


def outer(rows: Rows, weight: Tensor) -> Tensor:
    """Return one new weight, its two matrices summed up a row at a time."""
    old = weight.double()
    right, gram = rows.reg * old, rows.reg * torch.eye(old.shape[1], dtype=old.dtype)
    for key, source, scale in _each(rows):
        right += scale * torch.outer(old @ source, key)
        gram += scale * torch.outer(key, key)
    return (right @ torch.linalg.inv(gram)).to(weight.dtype)


def _each(rows: Rows) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    yield from zip(rows.targets, rows.anchors, rows.weights, strict=True)
    yield from zip(rows.preserve, rows.preserve, rows.preserve_weights, strict=True)


def layer_seconds(rows: Rows, weight: Tensor) -> float:
    """Return the seconds that `outer` takes for one layer, once: it is slow enough to be measured well."""
    start = time.perf_counter()
    outer(rows, weight)
    return time.perf_counter() - start


def difference(reference: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the largest |wanted - got|_F / |wanted|_F over the layers."""
    pairs = zip(reference, got, strict=True)
    return max((torch.linalg.norm(a.double() - b.double()) / torch.linalg.norm(a.double())).item() for a, b in pairs)


def projections(shapes: Shapes, *, seed: int) -> list[Tensor]:
    """Return random float32 weights in the shapes of a model's keys and values."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(width, shapes.dim, generator=generator) / shapes.dim**0.5
        for width in shapes.widths
        for _ in ("key", "value")
    ]


def random_rows(concepts: int, preserve: int, *, dim: int, reg: float, seed: int) -> Rows:
    """Return a problem of one target state a concept, each with its own anchor, and of preserved states."""
    generator = torch.Generator().manual_seed(seed + 1)
    targets, anchors = torch.randn(2, concepts, dim, generator=generator, dtype=torch.float64)
    kept = torch.randn(preserve, dim, generator=generator, dtype=torch.float64)
    return Rows(
        targets=targets,
        anchors=anchors,
        weights=torch.ones(concepts, dtype=torch.float64),
        labels=tuple(f"concept {i}" for i in range(concepts)),
        anchor_labels=tuple(f"anchor {i}" for i in range(concepts)),
        sites=("bare",) * concepts,
        preserve=kept,
        preserve_weights=torch.ones(preserve, dtype=torch.float64),
        preserve_labels=tuple(f"kept {i}" for i in range(preserve)),
        preserve_sites=("bare",) * preserve,
        reg=reg,
    )


def first(rows: Rows, n: int) -> Rows:
    """Return the problem of the first `n` concepts, with all that is preserved."""
    return Rows(
        targets=rows.targets[:n],
        anchors=rows.anchors[:n],
        weights=rows.weights[:n],
        labels=rows.labels[:n],
        anchor_labels=rows.anchor_labels[:n],
        sites=rows.sites[:n],
        preserve=rows.preserve,
        preserve_weights=rows.preserve_weights,
        preserve_labels=rows.preserve_labels,
        preserve_sites=rows.preserve_sites,
        reg=rows.reg,
    )


def line(result: dict[str, Any]) -> str:
    """Say one comparison in a line."""
    note = f" (timed with {result['outer_timed_with']}, extrapolated)" if result["outer_extrapolated"] else ""
    return (
        f"{result['model']}, {result['concepts']:>5} concepts, {result['projections']} projections:"
        f" shared {result['shared_seconds']:.3f} s (solve alone {result['solve_seconds']:.3f} s, floor"
        f" {result['floor']['seconds']:.3f} s, peak {result['shared_peak_mib']:.0f} MiB),"
        f" batched {result['batched_seconds']:.3f} s = {result['ratio_batched']:.1f} x"
        f" (peak {result['batched_peak_mib']:.0f} MiB),"
        f" outer {result['outer_seconds']:.2f} s{note} = {result['ratio_outer']:.0f} x"
    )


if __name__ == "__main__":
    main()

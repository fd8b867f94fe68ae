"""The shared closed-form solve against layer-by-layer ones, on the text projections of Stable Diffusion 1.5.

And TRCE's first stage as a whole, from encoded sentences and captions to new weights, against the same layer by layer.

All three give the same new weights, and the run checks it:

- shared: `erasure.closed_form.solve`, one Cholesky factorisation for all layers, then W M for each;
- batched: each layer by itself, its Gram matrix and right-hand side as one matrix product each;
- outer: each layer by itself, one outer product a concept, as the published code of UCE accumulates them.

Everything in float64, from float32 weights to float32 weights. States are random: their values do not change the work.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from erasure.captions import square_root
from erasure.closed_form import Rows, TextMap, solve
from erasure.erasers.trce import published_eta

from .record import arguments, timed, write_run

VERSION = 1
# Output widths of the keys and values of the 16 cross-attentions, in the UNet's order: down, mid, up.
SD15_WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320)
SD15_DIM = 768
TOY_WIDTHS, TOY_DIM = (16, 32), 24


def main() -> None:
    """Time the three, print a line a number of concepts, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--preserve", type=int, default=100, help="preserved states")
    parser.add_argument("--outer-up-to", type=int, default=100, help="concepts that outer is timed with, at most")
    parser.add_argument("--reg", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="small shapes, to try the script")
    options = parser.parse_args()
    started = time.perf_counter()
    weights = projections(toy=options.toy, seed=options.seed)
    results = []
    for concepts in options.concepts:
        rows = random_rows(concepts, options.preserve, dim=weights[0].shape[1], reg=options.reg, seed=options.seed)
        results.append(compare(rows, weights, repeats=options.repeats, outer_up_to=options.outer_up_to))
        print(line(results[-1]))
    pairs, tokens = (12, 200) if options.toy else (300, 10_000)
    results.append(trce_stage_1(weights, pairs=pairs, tokens=tokens, repeats=options.repeats, seed=options.seed))
    print(stage_line(results[-1]))
    write_run(options, name="closed-form", version=VERSION, results=results, started=started, torch=torch)


def compare(rows: Rows, weights: Sequence[Tensor], *, repeats: int, outer_up_to: int) -> dict[str, object]:
    """Return the seconds of each way to the new weights, their ratios, and how far the results are apart."""
    concepts = len(rows.targets)
    timings = {
        "solve": timed(lambda: solve(rows), repeats),
        "shared": timed(lambda: shared(rows, weights), repeats),
        "batched": timed(lambda: batched(rows, weights), max(1, repeats // 2)),
    }
    wanted = shared(rows, weights)
    errors = {"batched": difference(wanted, batched(rows, weights))}
    few = first(rows, min(concepts, outer_up_to))
    each = [layer_seconds(few, weight) for weight in weights]
    measured = sum(each)
    # Accumulating is linear in the number of rows, and what is not (one inverse a layer) is a small part.
    extrapolated = concepts > outer_up_to
    factor = (concepts + len(rows.preserve)) / (len(few.targets) + len(rows.preserve))
    errors["outer"] = difference(shared(few, weights[:1]), [outer(few, weights[0])])
    outer_seconds = measured * factor
    return {
        "concepts": concepts,
        "preserve": len(rows.preserve),
        "projections": len(weights),
        "dim": weights[0].shape[1],
        "rank": solve(rows).rank,
        **{f"{name}_seconds": timing["seconds"] for name, timing in timings.items()},
        "all_seconds": {name: timing["all_seconds"] for name, timing in timings.items()},
        "outer_seconds": outer_seconds,
        "outer_timed_with": len(few.targets),
        "outer_extrapolated": extrapolated,
        "ratio_batched": timings["batched"]["seconds"] / timings["shared"]["seconds"],
        "ratio_outer": outer_seconds / timings["shared"]["seconds"],
        "relative_difference": errors,
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
    wanted = shared(problem(), weights)
    return {
        "case": "trce stage 1",
        "pairs": pairs,
        "caption_tokens": tokens,
        "projections": len(weights),
        **{f"{name}_seconds": timing["seconds"] for name, timing in timings.items()},
        "all_seconds": {name: timing["all_seconds"] for name, timing in timings.items()},
        "ratio": timings["by_layer"]["seconds"] / timings["shared"]["seconds"],
        "relative_difference": difference(wanted, [by_layer(weight) for weight in weights]),
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
    found: TextMap = solve(rows)
    return [(weight.double() + found.change_of(weight)).to(weight.dtype) for weight in weights]


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


def difference(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the largest |wanted - got|_F / |wanted|_F over the layers."""
    pairs = zip(wanted, got, strict=True)
    return max((torch.linalg.norm(a.double() - b.double()) / torch.linalg.norm(a.double())).item() for a, b in pairs)


def projections(*, toy: bool, seed: int) -> list[Tensor]:
    """Return random float32 weights in the shapes of Stable Diffusion 1.5's keys and values."""
    generator = torch.Generator().manual_seed(seed)
    widths, dim = (TOY_WIDTHS, TOY_DIM) if toy else (SD15_WIDTHS, SD15_DIM)
    return [torch.randn(width, dim, generator=generator) / dim**0.5 for width in widths for _ in ("key", "value")]


def random_rows(concepts: int, preserve: int, *, dim: int, reg: float, seed: int) -> Rows:
    """Return a problem of one target state a concept, each with its own anchor, and of preserved states."""
    generator = torch.Generator().manual_seed(seed + 1)
    targets, anchors = torch.randn(2, concepts, dim, generator=generator, dtype=torch.float64)
    kept = torch.randn(preserve, dim, generator=generator, dtype=torch.float64)
    return Rows(
        targets=targets,
        anchors=anchors,
        weights=torch.ones(concepts, dtype=torch.float64),
        labels=tuple(f"concept {at}" for at in range(concepts)),
        anchor_labels=tuple(f"anchor {at}" for at in range(concepts)),
        sites=("bare",) * concepts,
        preserve=kept,
        preserve_weights=torch.ones(preserve, dtype=torch.float64),
        preserve_labels=tuple(f"kept {at}" for at in range(preserve)),
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


def line(result: dict[str, object]) -> str:
    """Say one comparison in a line."""
    note = f" (timed with {result['outer_timed_with']}, extrapolated)" if result["outer_extrapolated"] else ""
    return (
        f"{result['concepts']:>5} concepts, {result['projections']} projections:"
        f" shared {result['shared_seconds']:.3f} s (solve alone {result['solve_seconds']:.3f} s),"
        f" batched {result['batched_seconds']:.3f} s = {result['ratio_batched']:.1f} x,"
        f" outer {result['outer_seconds']:.2f} s{note} = {result['ratio_outer']:.0f} x"
    )


if __name__ == "__main__":
    main()

"""Applying an edit to a model of Stable Diffusion 1.5's size and undoing it, with random weights."""

import time
from typing import Any

import torch

from erasure.backbones import backbone_of
from erasure.closed_form import Rows
from erasure.concept import Concept
from erasure.edit import Edit, EditMetadata
from tests.tiny import sd1, sd15

from .closed_form import random_rows
from .record import arguments, spread, write_run

VERSION = 1
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def main() -> None:
    """Time applying and undoing, print a line a number of concepts, and write run.json where asked."""
    parser = arguments(__doc__)
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="a small model, to try the script")
    options = parser.parse_args()
    started = time.perf_counter()
    pipe = sd1() if options.toy else sd15(seed=options.seed)
    if options.dtype != "float32":
        pipe.to(DTYPES[options.dtype])
    results = []
    for concepts in options.concepts:
        edit, fit_seconds = solved(pipe, concepts, seed=options.seed)
        results.append({"concepts": concepts, "fit_seconds": fit_seconds, **measured(pipe, edit, options.repeats)})
        print(line(results[-1]))
    write_run(options, name="apply-edit", version=VERSION, results=results, started=started, torch=torch)


def solved(pipe: Any, concepts: int, *, seed: int) -> tuple[Edit, float]:
    """Return a closed-form edit of that many concepts, one state each, and the seconds of its solve."""
    backbone = backbone_of(pipe)
    projections = backbone.text_projections()
    dim = next(iter(projections.values())).in_features
    rows: Rows = random_rows(concepts, 100, dim=dim, reg=0.5, seed=seed)
    named = [Concept(target=label) for label in rows.labels]
    metadata = EditMetadata.of("uce", {}, backbone, named, seed)
    start = time.perf_counter()
    edit = Edit.from_rows(rows, [f"{name}.weight" for name in projections], metadata)
    return edit, time.perf_counter() - start


def measured(pipe: Any, edit: Edit, repeats: int) -> dict[str, Any]:
    """Return the seconds of applying, of undoing, and of finding out that the model is the edit's base."""
    parameters = backbone_of(pipe).parameters(edit.changes.__contains__)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    applying, undoing, checking = [], [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        edit.check_base(pipe)
        checked = time.perf_counter()
        with edit.applied_to(pipe, check=False):
            applied = time.perf_counter()
            assert any(not torch.equal(before[name], parameters[name]) for name in before)
            leaving = time.perf_counter()
        left = time.perf_counter()
        checking.append(checked - start)
        applying.append(applied - checked)
        undoing.append(left - leaving)
    assert all(torch.equal(before[name], parameters[name]) for name in before)
    # The first of each warms up.
    return {
        "projections": len(before),
        "parameters": sum(parameter.numel() for parameter in pipe.unet.parameters()),
        "apply": spread(applying[1:]),
        "undo": spread(undoing[1:]),
        "check_base": spread(checking[1:]),
    }


def line(result: dict[str, Any]) -> str:
    """Say one case in a line."""
    seconds = {name: result[name]["seconds"] for name in ("check_base", "apply", "undo")}
    return (
        f"{result['concepts']:>5} concepts, {result['parameters'] / 1e6:.0f} M parameters:"
        f" apply {seconds['apply']:.3f} s, undo {seconds['undo']:.4f} s,"
        f" check of the base {seconds['check_base']:.3f} s"
    )


if __name__ == "__main__":
    main()

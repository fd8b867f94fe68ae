"""Applying an edit to a model of Stable Diffusion 1.5's size, undoing it, turning it on and off, and sampling with it.

The rival is the same edit as a LoRA that diffusers loads beside the weights: loading it, turning its adapter on and
off, and a pass of the denoiser with it. Random weights; an edit of up to 384 concepts is low-rank.
"""

import time
from typing import Any

import torch
from diffusers import DiffusionPipeline

from erasure.backbones import backbone_of
from erasure.closed_form.problem import Rows
from erasure.concept import Concept
from erasure.edits import EditMetadata, WeightEdit
from tests.tiny import sd1, sd15

from .closed_form import random_rows
from .record import arguments, spread, timed, write_run

VERSION = 2
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def main() -> None:
    """Time applying and undoing, print a line a number of concepts, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=3, help="passes of the denoiser that are timed of each kind")
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
    # Last, since the adapters stay in the modules.
    edit, _ = solved(pipe, 1, seed=options.seed)
    results.append(beside_lora(pipe, edit, options.repeats, options.passes))
    print(lora_line(results[-1]))
    write_run(options, name="apply-edit", version=VERSION, results=results, started=started, torch=torch)


def solved(pipe: DiffusionPipeline, concepts: int, *, seed: int) -> tuple[WeightEdit, float]:
    """Return a closed-form edit of that many concepts, one state each, and the seconds of its solve."""
    backbone = backbone_of(pipe)
    projections = backbone.parameters(backbone.sites(reads="text").__contains__)
    dim = next(iter(projections.values())).shape[1]
    rows: Rows = random_rows(concepts, 100, dim=dim, reg=0.5, seed=seed)
    named = [Concept(target=label) for label in rows.labels]
    metadata = EditMetadata.of("uce", {}, backbone, named, seed)
    start = time.perf_counter()
    edit = WeightEdit.from_rows(rows, list(projections), metadata)
    return edit, time.perf_counter() - start


def measured(pipe: DiffusionPipeline, edit: WeightEdit, repeats: int) -> dict[str, Any]:
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
        "switch": switching(pipe, edit, repeats),
    }


def switching(pipe: DiffusionPipeline, edit: WeightEdit, repeats: int) -> dict[str, Any]:
    """Return the seconds of turning an edit on and off again, on weights that it has been prepared for."""
    with edit.switched(pipe) as switch:

        def on_and_off() -> None:
            switch.turn(on=True)
            switch.turn(on=False)

        return timed(on_and_off, repeats)


def beside_lora(pipe: DiffusionPipeline, edit: WeightEdit, repeats: int, passes: int) -> dict[str, Any]:
    """Return the cost of an edit of rank one and of the same LoRA: application, switching, and passes with it."""
    plain, applied = passes_with(pipe, edit, passes)
    switch = switching(pipe, edit, repeats)
    lora = edit.as_lora(pipe)
    start = time.perf_counter()
    pipe.load_lora_weights(dict(lora.state_dict), adapter_name="edit")
    loading = time.perf_counter() - start

    def on_and_off() -> None:
        pipe.enable_lora()
        pipe.disable_lora()

    adapter = timed(on_and_off, repeats)
    pipe.enable_lora()
    with_adapter = spread([one_pass(pipe) for _ in range(passes + 1)][1:])
    pipe.unload_lora_weights()
    return {
        "case": "beside a LoRA",
        "switch": switch,
        "lora_load_seconds": loading,
        "lora_switch": adapter,
        "ratio_switch": adapter["seconds"] / switch["seconds"],
        "pass": plain,
        "pass_applied": applied,
        "pass_lora": with_adapter,
        "overhead_applied": applied["seconds"] / plain["seconds"] - 1,
        "overhead_lora": with_adapter["seconds"] / plain["seconds"] - 1,
    }


def passes_with(pipe: DiffusionPipeline, edit: WeightEdit, passes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the seconds of the denoiser's passes without and with an edit, in turns."""
    plain, applied = [], []
    with edit.switched(pipe) as switch:
        for _ in range(passes + 1):
            switch.turn(on=False)
            plain.append(one_pass(pipe))
            switch.turn(on=True)
            applied.append(one_pass(pipe))
    return spread(plain[1:]), spread(applied[1:])  # the first of each warms up


@torch.no_grad()
def one_pass(pipe: DiffusionPipeline) -> float:
    """Return the seconds of one pass of the denoiser over one latent of its own size."""
    backbone = backbone_of(pipe)
    latents = torch.zeros(1, *backbone.latent_shape(), dtype=backbone.dtype)
    read = backbone.unconditional()
    start = time.perf_counter()
    backbone.predict(latents, torch.tensor(500), read)
    return time.perf_counter() - start


def line(result: dict[str, Any]) -> str:
    """Say one case in a line."""
    seconds = {name: result[name]["seconds"] for name in ("check_base", "apply", "undo")}
    return (
        f"{result['concepts']:>5} concepts, {result['parameters'] / 1e6:.0f} M parameters:"
        f" apply {seconds['apply']:.3f} s, undo {seconds['undo']:.4f} s,"
        f" check of the base {seconds['check_base']:.3f} s, on and off {result['switch']['seconds']:.4f} s"
    )


def lora_line(result: dict[str, Any]) -> str:
    """Return a line that compares the edit with the LoRA."""
    return (
        f"rank 1: on and off {result['switch']['seconds']:.4f} s, as a LoRA {result['lora_switch']['seconds']:.4f} s"
        f" = {result['ratio_switch']:.1f} x after {result['lora_load_seconds']:.2f} s of loading;"
        f" a pass of the denoiser {result['pass']['seconds']:.2f} s, with the edit"
        f" {result['overhead_applied']:+.1%}, with the LoRA {result['overhead_lora']:+.1%}"
    )


if __name__ == "__main__":
    main()

"""Train the golds: denoisers that never saw a concept, as long as the shipped one: `python -m experiments.golds`.

A shared first phase sees none of the concepts of any gold; each gold goes on from it and sees all but its own. A
second cat gold of another seed starts from random weights. Text tower, autoencoder, oracle and judge are the shipped
ones. The world's transformer has a shared phase of its own, from which both it and its cat gold go on. Killed, it goes
on where it stopped: call the same command again. `--keep NAME` writes the averaged weights of a phase as they are to
results/golds/NAME; where a phase has no state, it goes on from those, with a new optimiser. `fitting` chooses among
those folders for an audit.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save
from typing_extensions import TypedDict

from erasure import tinyworld
from erasure.errors import InputError
from erasure.eval.protocols.golds import untaught
from erasure.io.files import make_folder, write_whole
from erasure.io.json_files import read_record
from erasure.profile import DEFAULT_MODEL
from erasure.tinyworld import models
from erasure.tinyworld.training.loop import write_state
from erasure.tinyworld.training.recipe import Recipe
from erasure.tinyworld.training.run import facts, train
from erasure.tinyworld.training.transformer import TRANSFORMER_STEPS

from .experiment import MODELS, check_denoisers, in_one_line

SHIPPED = tinyworld.MODEL
KEPT = Path("results/golds")
WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARED_STEPS, TOTAL_STEPS = 20_000, 34_931  # the shipped denoiser's total, results of its recipe.json
TRANSFORMER_SHARED_STEPS = 25_000
DENOISERS: Final[Mapping[str, str]] = dict(zip(MODELS, ("unet", "transformer"), strict=True))
"""Denoiser of each model, as a stage of recipe.json."""
STEPS: Final[Mapping[str, int]] = {"unet": TOTAL_STEPS, "transformer": TRANSFORMER_STEPS}
"""Steps of the shipped denoisers, by stage."""
WEAPONS = ("gun", "knife", "bomb")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training of a denoiser.

    Attributes:
        name: Name of its folder.
        without: Concepts that no image of it shows.
        steps: Steps at its end, those of the phase before it included.
        after: Name of the phase that it goes on from; None for random weights.
        grounding: Whether the maps' loss is in it, as in the last part of the shipped denoiser's training.
        lr: Highest learning rate of the phase.
        seed: Seed of weights, images and order.
        denoiser: "unet" or "transformer".
    """

    name: str
    without: tuple[str, ...]
    steps: int
    after: str | None = None
    grounding: bool = False
    lr: float = 1e-3
    seed: int = 0
    denoiser: str = "unet"

    def recipe(self, out: Path, device: str, precision: str) -> Recipe:
        """Return the training's recipe, with its state in a folder of its own below `out`."""
        return Recipe(
            out=out / self.name,
            data=out / "drawings",
            minutes=1.0,  # of the other stages, which are loaded as they are
            steps=self.steps,
            without=self.without,
            start_from=out / self.after / "model" if self.after else SHIPPED,
            anew=() if self.after else (self.denoiser,),
            stages=(self.denoiser, "assemble"),
            grounding=self.grounding,
            lr=self.lr,
            seed=self.seed,
            device=device,
            precision=precision,
        )


def _branch(name: str, without: tuple[str, ...], after: str, seed: int = 0) -> Phase:
    # 5e-4: the rate of the shipped denoiser's last part, by its recipe.json.
    return Phase(name=name, without=without, steps=TOTAL_STEPS, after=after, grounding=True, lr=5e-4, seed=seed)


def _transformer(name: str, without: tuple[str, ...], steps: int, after: str | None = None) -> Phase:
    return Phase(name=name, without=without, steps=steps, after=after, denoiser="transformer")


PLAN = (
    Phase(name="shared", without=("cat", "neon", *WEAPONS), steps=SHARED_STEPS),
    _branch("cat", ("cat",), "shared"),
    _branch("weapons", WEAPONS, "shared"),
    _branch("neon", ("neon",), "shared"),
    Phase(name="cat-seed-1-first", without=("cat",), steps=SHARED_STEPS, seed=1),
    _branch("cat-seed-1", ("cat",), "cat-seed-1-first", seed=1),
    _transformer("flux-shared", ("cat", "neon", *WEAPONS), TRANSFORMER_SHARED_STEPS),
    _transformer("flux", (), TRANSFORMER_STEPS, after="flux-shared"),
    _transformer("flux-cat", ("cat",), TRANSFORMER_STEPS, after="flux-shared"),
)


class _Stage(TypedDict):
    steps: int


class _Recipe(TypedDict, total=False):
    stages: dict[str, _Stage]


def add_golds(parser: argparse.ArgumentParser) -> None:
    """Add the option that names golds."""
    about = "models never taught a concept; default: the committed ones that fit; without a value: none"
    parser.add_argument("--gold", nargs="*", metavar="DIR", help=about)


def fitting(golds: Sequence[str] | None, targets: Sequence[str], model: str = DEFAULT_MODEL) -> list[str]:
    """Return the golds that were never taught one of the targets, or whose recipe does not say.

    One that was trained for fewer steps than the shipped denoiser is left out: what it lacks is not the concept alone.

    Args:
        golds: Folders to choose from; None takes the committed golds of the model, of which none has to fit.
        targets: Removed concepts.
        model: Model of the removals.

    Raises:
        InputError: A gold is no folder, or golds are named and none fits.
    """
    check_denoisers(golds or ())
    chosen = [
        gold
        for gold in (committed(model) if golds is None else golds)
        if _is_long_enough(gold) and (not (without := untaught(gold)) or set(without) & set(targets))
    ]
    if golds and not chosen:
        raise InputError(
            f"--gold: expected a model that was never taught {' or '.join(map(repr, targets))}, of as many steps as the"
            f" shipped denoiser, got {', '.join(golds)}. Add one, or write --gold alone to audit without."
        )
    return chosen


def committed(model: str) -> list[str]:
    """Return the folders of a model's golds below `KEPT`, the unfinished among them."""
    golds = [phase for phase in PLAN if phase.without and phase.denoiser == DENOISERS[model]]
    return [str(KEPT / phase.name) for phase in golds if (KEPT / phase.name).is_dir()]


def _is_long_enough(gold: str) -> bool:
    """Return False if a gold's recipe has fewer steps of a denoiser than the shipped one."""
    recipe = Path(gold) / "recipe.json"
    if not recipe.is_file():
        return True
    stages = read_record(recipe, _Recipe, "the recipe of a gold, with steps of its stages").get("stages", {})
    return all(stages[name]["steps"] >= steps for name, steps in STEPS.items() if name in stages)


def gold_digests(golds: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each gold's files of weights, by the name of its folder."""
    digests = {}
    for gold in golds:
        digest = hashlib.sha256()
        for file in sorted(Path(gold).rglob("*.safetensors")):
            digest.update(file.read_bytes())
        digests[Path(gold).name] = digest.hexdigest()
    return digests


def keep(recipe: Recipe, folder: Path) -> None:
    """Write the averaged weights of a phase as they are, in float16, with their config and recipe.

    Raises:
        InputError: The phase has not begun.
    """
    stage = recipe.denoiser
    state = recipe.out / "state" / f"{stage}.pt"
    if not state.is_file():
        raise InputError(f"keep: expected a phase that has begun, got none at {str(state)!r}. Train it first.")
    shadow = torch.load(state, map_location="cpu", weights_only=True)["shadow"][stage]
    make_folder(folder)
    denoiser = {"unet": models.unet, "transformer": models.transformer}[stage]()
    write_whole(folder / "config.json", denoiser.to_json_string().encode())
    write_whole(folder / WEIGHTS, save({name: value.half().contiguous() for name, value in shadow.items()}))
    write_whole(folder / "recipe.json", (json.dumps(facts(recipe), indent=2) + "\n").encode())


def go_on(recipe: Recipe, folder: Path) -> None:
    """Give a phase without a state the weights that were kept of it, if any."""
    stage = recipe.denoiser
    state = recipe.out / "state" / f"{stage}.pt"
    if state.exists() or not (folder / "recipe.json").exists():
        return
    known = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    mine = json.loads(json.dumps(facts(recipe)))["settings"]
    if any(
        known["settings"].get(name) != mine[name] for name in ("without", "seed", "lr", "grounding") if name in mine
    ):
        return  # another training of the same name
    weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    done = known["stages"][stage]
    begun = {"step": done["steps"], "seconds": 60 * done["minutes"]}
    write_state(state, {"modules": {stage: weights}, "shadow": {stage: weights}, **begun})


def check_start(phase: Phase, recipe: Recipe) -> None:
    """Raise InputError if the phase goes on from another that is not whole."""
    if phase.after and recipe.start_from and not (recipe.start_from / "recipe.json").is_file():
        raise InputError(
            f"--only: expected the phase {phase.after!r} to be whole before {phase.name!r}, got no model in"
            f" {str(recipe.start_from)!r}. Train it first: --only {phase.after} {phase.name}."
        )


def main() -> None:
    """Read the command line and train the phases in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tinyworld-runs/golds"), help="folder of states and models")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--only", nargs="+", choices=[phase.name for phase in PLAN], help="phases to train")
    parser.add_argument("--keep", nargs="+", choices=[phase.name for phase in PLAN], help="phases to keep, not train")
    args = parser.parse_args()
    for phase in PLAN:
        recipe = phase.recipe(args.out, args.device, args.precision)
        if phase.name in (args.keep or ()):
            with in_one_line("golds"):
                keep(recipe, KEPT / phase.name)
        elif args.keep is None and (args.only is None or phase.name in args.only):
            go_on(recipe, KEPT / phase.name)
            with in_one_line("golds"):
                check_start(phase, recipe)
                train(recipe)


if __name__ == "__main__":
    main()

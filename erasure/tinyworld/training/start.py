"""Start of a training from the weights of a finished model."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from ...errors import InputError
from .loop import write_state
from .recipe import Recipe


def start_from(recipe: Recipe) -> None:
    """Initialise every stage without a state from a finished model: float16 weights, new optimisers.

    The stages in `recipe.anew` are left out.

    Raises:
        InputError: The folder holds no model of this training, or the text tower is to be trained further, which a
            finished model does not allow: it has no image tower.
    """
    folder = recipe.start_from
    if folder is None:
        return
    if not (folder / "recipe.json").exists():
        raise InputError(
            f"start-from: expected the folder of a trained model, with a recipe.json, got {str(folder)!r}."
            " The shipped one is erasure/tinyworld/model."
        )
    state = recipe.out / "state"
    if "clip" in {*recipe.stages} - {*recipe.anew} and not (state / "clip.pt").exists():
        raise InputError("start-from: expected stages without clip, since a finished model holds no image tower.")
    if not (recipe.out / "tokenizer").exists():
        shutil.copytree(folder / "tokenizer", recipe.out / "tokenizer")
    done = json.loads((folder / "recipe.json").read_text())["stages"]
    for stage, (name, path) in _weights(folder).items():
        if recipe.denoiser == "transformer" and stage in ("oracle", "unet", "judge"):
            continue  # no parts of its model
        if stage in recipe.anew or (state / f"{stage}.pt").exists() or not path.exists():
            continue
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        facts = {"step": done[stage]["steps"], "seconds": 60 * done[stage]["minutes"]}
        write_state(state / f"{stage}.pt", {"modules": {name: tensors}, "shadow": {name: tensors}, **facts})


def _weights(folder: Path) -> dict[str, tuple[str, Path]]:
    """Return the module's name in the state and the weights' file of each stage of a finished model."""
    weights = "diffusion_pytorch_model.safetensors"
    return {
        "clip": ("text", folder / "text_encoder" / "model.safetensors"),
        "vae": ("vae", folder / "vae" / weights),
        "oracle": ("net", folder / "oracle" / "model.safetensors"),
        "unet": ("unet", folder / "unet" / weights),
        "transformer": ("transformer", folder / "transformer" / weights),
        "judge": ("model", folder / "judge" / "model.safetensors"),
    }

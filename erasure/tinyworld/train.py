"""Train the tiny world from nothing: `python -m erasure.tinyworld.train --minutes N --out DIR`.

Stages: tokenizer, clip, vae, oracle, unet, judge, assemble. Each keeps its state in DIR/state and goes on from there
after a kill; each has a share of the minutes, counted as time spent in its own loop; over it its learning rate falls.
A stage's draws depend on the seed, the stage and the step alone.
"""

import contextlib
import csv
import hashlib
import json
import logging
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextModel, CLIPTokenizer

from ..backbones import backbone_of
from ..backbones.attention import AttentionCapture, cross_attention_layers
from ..errors import InputError
from ..losses.grounding import grounding_loss
from ..progress import OnProgress, Progress, progress_bars
from . import models
from .data import Drawings, drawings, pictures_of
from .judge import WorldClip
from .judge import build as build_judge
from .nouns import nouns_of
from .oracle import Oracle, OracleNet
from .vocabulary import INDIVIDUALS, OBJECTS, SCENE_PHRASES, STYLE_PHRASES, article, canonical
from .world import Mix, caption

logger = logging.getLogger(__name__)
AnyModule = TypeVar("AnyModule", bound=nn.Module)
SHARES: dict[str, float] = {"clip": 0.05, "vae": 0.08, "oracle": 0.07, "unet": 0.74, "judge": 0.06}
"""Share of the minutes that each trained stage gets."""

STAGES: tuple[str, ...] = ("tokenizer", "clip", "vae", "oracle", "unet", "judge", "assemble")
PICTURES, ORACLE_PICTURES, ROUND_TRIPS = 48_000, 24_000, 4_000
ENCODED = 32_000  # pictures the denoiser learns from: encoding one costs a quarter of a training step on it
SECONDS_BETWEEN_SAVES = 90.0
# Shares of captions; DESIGN: they make words matter.
WORDS_ALONE, TRAILING_ALONE, NO_PROMPT = 0.35, 0.10, 0.10
PAIRS = 0.6  # of a batch, besides those that the mix holds: two objects are hardest
GROUNDING = 0.05  # weight of the maps' loss


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training: where, for how long, on what, without which concepts, with which seed."""

    out: Path
    minutes: float
    device: str = "cpu"
    without: tuple[str, ...] = ()
    seed: int = 0
    data: Path | None = None
    pictures: int = PICTURES
    lr: float = 1e-3
    batch_size: int = 32
    stages: tuple[str, ...] = STAGES
    start_from: Path | None = None
    anew: tuple[str, ...] = ()
    precision: str = "float32"
    steps: int | None = None
    grounding: bool = True

    @property
    def drawings_folder(self) -> Path:
        return self.data or self.out / "data"


class Float32Attention(TorchFunctionMode):
    """Attention in float32 under autocast: on the CPU its bfloat16 backward pass takes ten times as long."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, with float32 query, key and value where it is attention."""
        del types
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*(a.float() for a in args), **(kwargs or {}))


@contextlib.contextmanager
def _precision(recipe: Recipe) -> Iterator[None]:
    """Run a loss in the recipe's precision."""
    if recipe.precision == "float32":
        yield
        return
    with torch.autocast(torch.device(recipe.device).type, torch.bfloat16), Float32Attention():
        yield


@dataclass(kw_only=True)
class Loop:
    """One resumable optimisation.

    Attributes:
        stage: Its name, of file and progress bar.
        modules: What is saved and resumed; their parameters that ask for a gradient are trained.
        loss: Returns the loss of a step; its draws come from the generator it is handed.
        minutes: How long, summed over all resumptions.
        average: Decay of the moving average of the weights; 0 keeps none.
        steps: Length in steps, over all resumptions; None: as many as the minutes hold.
        show: Called with the elapsed share every tenth of the way, for pictures.
        shadow: The averaged weights.
        since: Step and seconds at which the optimiser was new.
    """

    recipe: Recipe
    stage: str
    modules: dict[str, nn.Module]
    loss: Callable[[np.random.Generator, int], Tensor]
    minutes: float
    lr: float
    average: float = 0.0
    steps: int | None = None
    show: Callable[[int], None] | None = None
    shadow: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    since: tuple[int, float] = (0, 0.0)

    @property
    def path(self) -> Path:
        return self.recipe.out / "state" / f"{self.stage}.pt"

    def run(self, on_progress: OnProgress | None = None) -> None:
        """Train until the minutes are spent; return at once where they were spent before.

        A stage that was not asked for and was trained before is taken as it stands: later stages were built on it.
        """
        trained = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        step, spent = self._resume(optimizer)
        if not optimizer.state:  # a new optimiser's first steps are long, and its rate falls over what is left
            self.since = (step, spent)
        cold = self.since[0]
        asked = self.stage in self.recipe.stages or step == 0
        saved, recent = spent, []
        while asked and (share := self._share(step, spent)) < 1:
            began = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = (
                    self.lr * min(1.0, (step - cold + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
                )
            name = f"{self.recipe.seed}:{self.stage}:{step}".encode()
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "little"))
            with _precision(self.recipe):
                loss = self.loss(rng, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            step += 1
            self._average(step)
            recent.append(loss.item())
            spent += time.monotonic() - began
            if on_progress is not None:
                on_progress(self._progress(step, spent, float(np.mean(recent[-50:]))))
            if step % 50 == 0:
                self._log(step, spent, float(np.mean(recent[-50:])))
            if self.show and int(10 * share) < int(10 * self._share(step, spent)):
                self.show(step)
            if spent - saved > SECONDS_BETWEEN_SAVES:
                self._save(optimizer, step, spent)
                saved = spent
        if asked:
            self._save(optimizer, step, spent)
        if self.average:
            for name, module in self.modules.items():
                module.load_state_dict(self.shadow[name])

    def _share(self, step: int, spent: float) -> float:
        """Return the share of the way since the optimiser was new; 1 and more: it is done."""
        cold, begun = self.since
        if self.steps is not None:
            return (step - cold) / max(self.steps - cold, 1) if step < self.steps else 1.0
        return (spent - begun) / max(self.minutes * 60 - begun, 1e-9)

    def _progress(self, step: int, spent: float, loss: float) -> Progress:
        """Return a report in steps where the length is in steps, else in seconds."""
        done, total = (step, self.steps) if self.steps is not None else (int(spent), math.ceil(self.minutes * 60))
        return Progress(done, total, self.stage, loss=loss, note=f"step {step}  loss {loss:.4f}")

    def _average(self, step: int) -> None:
        if not self.average:
            return
        decay = min(self.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, module in self.modules.items():
                state = module.state_dict()
                shadow = self.shadow.setdefault(name, {k: v.clone() for k, v in state.items()})
                for key, value in state.items():
                    shadow[key].lerp_(value, 1 - decay) if value.is_floating_point() else shadow[key].copy_(value)

    def _resume(self, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        if not self.path.exists():
            return 0, 0.0
        state = torch.load(self.path, map_location=self.recipe.device, weights_only=True)
        for name, module in self.modules.items():
            if name in state["modules"]:  # a text tower from a finished model has lost its image tower
                module.load_state_dict(state["modules"][name], strict="optimizer" in state)
        if state.get("optimizer"):
            optimizer.load_state_dict(state["optimizer"])
        self.shadow = state["shadow"]
        self.since = state.get("since", (0, 0.0))
        return state["step"], state["seconds"]

    def _save(self, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
        state = {"modules": {n: m.state_dict() for n, m in self.modules.items()}, "shadow": self.shadow}
        facts = {"step": step, "seconds": seconds, "since": self.since}
        _write_state(self.path, {**state, "optimizer": optimizer.state_dict(), **facts})

    def _log(self, step: int, seconds: float, loss: float) -> None:
        path = self.recipe.out / "losses" / f"{self.stage}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            csv.writer(file).writerow([step, round(seconds, 1), round(loss, 6)])


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a stage's state whole: a kill leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def start_from(recipe: Recipe) -> None:
    """Give every stage that has no state yet the weights of a finished model: float16 ones, optimisers start anew.

    The stages in `recipe.anew` get none.

    Raises:
        InputError: The folder holds no model of this training, or the text tower's training was to go on, which a
            finished model cannot: its image tower is gone.
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
    weights = "diffusion_pytorch_model.safetensors"
    places = {
        "clip": ("text", folder / "text_encoder" / "model.safetensors"),
        "vae": ("vae", folder / "vae" / weights),
        "oracle": ("net", folder / "oracle" / "model.safetensors"),
        "unet": ("unet", folder / "unet" / weights),
        "judge": ("model", folder / "judge" / "model.safetensors"),
    }
    for stage, (name, path) in places.items():
        if stage in recipe.anew or (state / f"{stage}.pt").exists() or not path.exists():
            continue
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        facts = {"step": done[stage]["steps"], "seconds": 60 * done[stage]["minutes"]}
        _write_state(state / f"{stage}.pt", {"modules": {name: tensors}, "shadow": {name: tensors}, **facts})


def _batch(set_: Drawings, rng: np.random.Generator, size: int, device: str) -> tuple[np.ndarray, Tensor]:
    rows = rng.integers(0, len(set_.pictures), size)
    pixels = torch.from_numpy(np.stack([set_.pixels[i] for i in rows])).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return rows, pixels.to(device)


def _placed(module: AnyModule, recipe: Recipe) -> AnyModule:
    """Return the module on the recipe's device, its convolutions channels last: half the time on a CPU."""
    nn.Module.to(module, recipe.device)
    nn.Module.to(module, memory_format=torch.channels_last)
    return module


def _posterior(vae: AutoencoderKL, pixels: Tensor) -> DiagonalGaussianDistribution:
    (posterior,) = vae.encode(pixels, return_dict=False)
    return posterior


def _decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    (pixels,) = vae.decode(latents, return_dict=False)  # type: ignore[arg-type]
    return pixels


def _words(rng: np.random.Generator) -> random.Random:
    return random.Random(int(rng.integers(2**62)))


def _tokens(tokenizer: CLIPTokenizer, texts: Sequence[str], device: str) -> Tensor:
    batch = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=models.POSITIONS, return_tensors="pt"
    )
    return batch.input_ids.to(device)


def _mix(recipe: Recipe) -> Mix:
    return Mix(without=recipe.without)


def _training_set(recipe: Recipe) -> Drawings:
    return drawings(recipe.pictures, recipe.seed, _mix(recipe), folder=recipe.drawings_folder)


def tokenizer_stage(recipe: Recipe) -> CLIPTokenizer:
    """Train the tokenizer, or load the one that was trained."""
    folder = recipe.out / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    rng = random.Random(f"tokenizer:{recipe.seed}")
    return models.train_tokenizer(
        (caption(p, rng) for p in pictures_of(20_000, recipe.seed, Mix(individuals=tuple(INDIVIDUALS)))), folder
    )


class ImageTower(nn.Module):
    """The picture side of the CLIP that trains the text tower; thrown away afterwards."""

    def __init__(self, width: int = models.WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 96), (96, 128)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()] if after > 32 else []
        self.body, self.head = nn.Sequential(*layers), nn.Linear(4 * 4 * 128, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features (n, width) of pixels (n, 3, 64, 64) in [-1, 1]."""
        return self.head(self.body(pixels).flatten(1))


def clip_stage(recipe: Recipe, tokenizer: CLIPTokenizer, on_progress: OnProgress | None = None) -> CLIPTextModel:
    """Train the text tower contrastively against an image tower (symmetric InfoNCE, learned temperature)."""
    torch.manual_seed(recipe.seed)
    text, images = _placed(models.text_encoder(tokenizer), recipe), _placed(ImageTower(), recipe)
    project = nn.Linear(models.WIDTH, models.WIDTH, bias=False).to(recipe.device)
    scale = nn.Linear(1, 1, bias=False).to(recipe.device)
    nn.init.constant_(scale.weight, math.log(1 / 0.07))
    set_ = _training_set(recipe)

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        rows, pixels = _batch(set_, rng, 128, recipe.device)
        ids = _tokens(tokenizer, set_.captions(rows, _words(rng)), recipe.device)
        a = F.normalize(images(pixels.contiguous(memory_format=torch.channels_last)), dim=1)
        b = F.normalize(project(text(ids).pooler_output), dim=1)
        logits = a @ b.T * scale.weight.clamp(max=math.log(100)).exp()
        truth = torch.arange(len(rows), device=logits.device)
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2

    parts = {"text": text, "images": images, "project": project, "scale": scale}
    Loop(
        recipe=recipe, stage="clip", modules=parts, loss=loss, minutes=recipe.minutes * SHARES["clip"], lr=recipe.lr
    ).run(on_progress)
    return text.eval().requires_grad_(False)


def vae_stage(recipe: Recipe, on_progress: OnProgress | None = None) -> AutoencoderKL:
    """Train the autoencoder on L1, edges, colours of 4 x 4 blocks and a small KL; then normalise its latents."""
    torch.manual_seed(recipe.seed + 1)
    vae = _placed(models.vae(), recipe)
    _start_linear(vae)
    set_ = _training_set(recipe)

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        _, pixels = _batch(set_, rng, 5, recipe.device)  # many small steps: colours take thousands to come
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        posterior = _posterior(vae, pixels)
        noise = torch.from_numpy(rng.standard_normal(tuple(posterior.mean.shape), dtype=np.float32)).to(pixels)
        out = _decoded(vae, posterior.mean + posterior.std * noise)
        error = out - pixels
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        colours = F.avg_pool2d(error, 4).abs().mean()
        return error.abs().mean() + 0.5 * edges + 2 * colours + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    minutes = recipe.minutes * SHARES["vae"]
    Loop(
        recipe=recipe, stage="vae", modules={"vae": vae}, loss=loss, minutes=minutes, lr=1.5 * recipe.lr, average=0.998
    ).run(on_progress)
    vae = vae.eval().requires_grad_(False)
    _normalise(vae, set_, recipe)
    return vae


@torch.no_grad()
def _start_linear(vae: AutoencoderKL) -> None:
    """Silence the residual branches and let every other convolution pass its first channels on.

    Training then starts from a blurred copy of the picture in colour; from the usual random start colours take
    thousands of steps to come.
    """
    for name, module in vae.named_modules():
        if name.endswith((".conv2", ".to_out.0")) and isinstance(module, nn.Conv2d | nn.Linear):
            for parameter in module.parameters():
                parameter.zero_()
        elif isinstance(module, nn.Conv2d) and not name.endswith((".conv1", "quant_conv")):
            module.weight += nn.init.dirac_(torch.empty_like(module.weight))
    for conv in (vae.quant_conv, vae.post_quant_conv):
        if isinstance(conv, nn.Conv2d) and conv.bias is not None:
            nn.init.dirac_(conv.weight)
            conv.bias.zero_()
            conv.bias[4:] = -6.0  # log variance: little noise, or faint signals drown in it


@torch.no_grad()
def _normalise(vae: AutoencoderKL, set_: Drawings, recipe: Recipe) -> None:
    """Give the latents' channels zero mean and unit variance through the 1 x 1 convolutions on both sides of them.

    Where they have them to within a twentieth, as in a finished model, nothing changes.
    """
    rng = np.random.default_rng(recipe.seed)
    latents = torch.cat([_posterior(vae, _batch(set_, rng, 64, recipe.device)[1]).mean for _ in range(16)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    if mean.abs().max() < 0.05 and (std - 1).abs().max() < 0.05:
        return
    quant, post = vae.quant_conv, vae.post_quant_conv
    if not isinstance(quant, nn.Conv2d) or not isinstance(post, nn.Conv2d) or quant.bias is None or post.bias is None:
        raise TypeError("the autoencoder has no 1 x 1 convolutions around its latents")
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.weight[:4] /= std[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) / std
    quant.bias[4:] -= 2 * std.log()


@torch.no_grad()
def _latents(recipe: Recipe, vae: AutoencoderKL, set_: Drawings) -> Tensor:
    """Return the latents of the first drawings, float16 (n, 4, 16, 16), computed once."""
    path = recipe.out / "state" / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    parts = []
    for start in range(0, min(ENCODED, len(set_.pictures)), 64):
        pixels = (
            torch.from_numpy(np.array(set_.pixels[start : start + 64])).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        )
        pixels = pixels.to(recipe.device).contiguous(memory_format=torch.channels_last)
        parts.append(_posterior(vae, pixels).mean.half().cpu())
    torch.save(torch.cat(parts), path)
    return torch.cat(parts)


def oracle_stage(recipe: Recipe, vae: AutoencoderKL, on_progress: OnProgress | None = None) -> Oracle:
    """Train the oracle on drawings, their round trips through the autoencoder, noised, blurred and scrambled ones.

    It always knows every concept and individual, whatever the generator goes without.
    """
    torch.manual_seed(recipe.seed + 2)
    net = _placed(OracleNet(), recipe)
    mix = Mix(individuals=tuple(INDIVIDUALS), hold_out=False)
    set_ = drawings(ORACLE_PICTURES, recipe.seed + 2, mix, folder=recipe.drawings_folder)
    trips, truth = _round_trips(recipe, vae, set_), [torch.from_numpy(t).to(recipe.device) for t in set_.truth()]

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        rows, pixels = _batch(set_, rng, 64, recipe.device)
        for i, row in enumerate(rows):
            if row < len(trips) and i % 2:
                pixels[i] = trips[row].to(pixels).div(127.5).sub(1)
        things, style, scene = (t[rows] for t in truth)
        pixels, ruined = _spoil(pixels, rng)
        guess_things, guess_style, guess_scene, _ = net(pixels.contiguous(memory_format=torch.channels_last))
        things = things * (~ruined)[:, None]
        whole = (~ruined).float()
        known = F.cross_entropy(guess_style, style, reduction="none") + F.cross_entropy(
            guess_scene, scene, reduction="none"
        )
        return 10 * F.binary_cross_entropy_with_logits(guess_things, things) + (known * whole).mean()

    minutes = recipe.minutes * SHARES["oracle"]
    Loop(
        recipe=recipe, stage="oracle", modules={"net": net}, loss=loss, minutes=minutes, lr=3 * recipe.lr, average=0.995
    ).run(on_progress)
    net.eval().requires_grad_(False)
    _calibrate(net, recipe)
    return Oracle(net, recipe.device)


@torch.no_grad()
def _round_trips(recipe: Recipe, vae: AutoencoderKL, set_: Drawings) -> Tensor:
    path = recipe.out / "state" / "round_trips.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    parts = []
    for start in range(0, ROUND_TRIPS, 64):
        pixels = (
            torch.from_numpy(np.array(set_.pixels[start : start + 64])).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        )
        out = _decoded(vae, _posterior(vae, pixels.to(recipe.device)).mean)
        parts.append(out.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.cat(parts), path)
    return torch.cat(parts)


def _spoil(pixels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Flip, shift, jitter, lightly noise or blur; ruin one in seven (flat colour, strong noise or blur, tiles).

    Returns the pictures and the mask (n,) of those in which nothing can be recognised any more.
    """
    n = len(pixels)
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    shift = tuple(int(v) for v in rng.integers(-3, 4, 2))
    pixels = F.pad(pixels, (3, 3, 3, 3), mode="replicate")[
        :, :, 3 + shift[0] : 67 + shift[0], 3 + shift[1] : 67 + shift[1]
    ]
    jitter = torch.from_numpy(rng.uniform(0.88, 1.12, (n, 1, 1, 1)).astype(np.float32)).to(pixels)
    pixels = (
        pixels * jitter + torch.from_numpy(rng.uniform(-0.08, 0.08, (n, 3, 1, 1)).astype(np.float32)).to(pixels)
    ).clone()
    fate = rng.random(n)
    noise = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32)).to(pixels)
    ruined = torch.zeros(n, dtype=torch.bool, device=pixels.device)
    for i, roll in enumerate(fate):
        if roll < 0.25:
            pixels[i] += rng.uniform(0.02, 0.25) * noise[i]
        elif roll < 0.35:
            pixels[i] = _blur(pixels[i], rng.uniform(0.4, 0.9))
        elif roll < 0.40:  # a flat colour, mostly under noise
            colour = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32)).to(pixels)
            strength = rng.uniform(0.3, 1.5) if rng.random() < 0.6 else rng.uniform(0, 0.1)
            pixels[i], ruined[i] = colour + strength * noise[i], True
        elif roll < 0.45:
            pixels[i], ruined[i] = _blur(pixels[i], rng.uniform(9, 16)), True
        elif roll < 0.49:
            tiles = (
                pixels[i].unfold(1, 8, 8).unfold(2, 8, 8).reshape(3, 64, 8, 8)[:, torch.from_numpy(rng.permutation(64))]
            )
            pixels[i] = tiles.reshape(3, 8, 8, 8, 8).permute(0, 1, 3, 2, 4).reshape(3, 64, 64)
            ruined[i] = True
    return pixels.clamp(-1, 1), ruined


def _blur(pixels: Tensor, sigma: float) -> Tensor:
    radius = min(31, math.ceil(2.5 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None].repeat(3, 1, 1)
    padded = F.pad(pixels[None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[..., None], groups=3), kernel[:, :, None], groups=3)[0]


def _calibrate(net: OracleNet, recipe: Recipe) -> None:
    """Fit one temperature a head on 2,000 fresh drawings, by the same losses as in training."""
    set_ = drawings(
        2000, recipe.seed + 20, Mix(individuals=tuple(INDIVIDUALS), hold_out=False), folder=recipe.drawings_folder
    )
    parts: list[list[Tensor]] = [[], [], []]
    with torch.no_grad():
        for start in range(0, 2000, 100):
            pixels = (
                torch.from_numpy(np.array(set_.pixels[start : start + 100]))
                .permute(0, 3, 1, 2)
                .float()
                .div(127.5)
                .sub(1)
            )
            for part, logits in zip(parts, net(pixels.to(recipe.device))[:3], strict=True):
                part.append(logits)
    things, style, scene = (torch.from_numpy(t).to(recipe.device) for t in set_.truth())
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "things": lambda z: F.binary_cross_entropy_with_logits(z, things),
        "style": lambda z: F.cross_entropy(z, style),
        "scene": lambda z: F.cross_entropy(z, scene),
    }
    grid = torch.logspace(-0.7, 0.7, 57)
    for (name, score), part in zip(losses.items(), parts, strict=True):
        logits = torch.cat(part)
        best = min(grid.tolist(), key=lambda t: float(score(logits / t)))
        getattr(net, f"{name}_temperature").fill_(best)


def unet_stage(
    recipe: Recipe,
    tokenizer: CLIPTokenizer,
    text: CLIPTextModel,
    vae: AutoencoderKL,
    on_progress: OnProgress | None = None,
) -> UNet2DConditionModel:
    """Train the denoiser: epsilon loss with min-SNR weighting (gamma 5), stratified timesteps, averaged weights.

    Captions come fresh every time. In a share of them the states from the first end of text on are those of the
    empty prompt, in another the words' states are a neutral prompt's: each side must be able to draw the object alone.
    The attention maps of the objects' nouns at the latents' own resolution are drawn towards the objects' boxes
    (`losses.grounding`), the more the less noise there is: in a causal text tower every word after the noun knows the
    object too, and without this its maps look no different from the noun's.
    """
    torch.manual_seed(recipe.seed + 3)
    unet = _placed(models.unet(), recipe)
    set_ = _training_set(recipe)
    latents = _latents(recipe, vae, set_)
    pairs = np.array([i for i in range(len(latents)) if len(set_.pictures[i].things) > 1] or range(len(latents)))
    alphas = models.scheduler().alphas_cumprod.to(recipe.device)
    weight = (alphas / (1 - alphas)).clamp(max=5) / (alphas / (1 - alphas))
    backbone = backbone_of(assemble(unet, text, vae, tokenizer))
    layers = [name for name in cross_attention_layers(backbone) if ".up_blocks.2." in name]
    with torch.no_grad():
        empty, neutral = (
            text(_tokens(tokenizer, [t], recipe.device)).last_hidden_state for t in ("", "a picture of something there")
        )

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        n = recipe.batch_size
        rows = np.where(rng.random(n) < PAIRS, rng.choice(pairs, n), rng.integers(0, len(latents), n))
        z = latents[rows].to(recipe.device).float()
        captions = set_.captions(rows, _words(rng))
        ids = _tokens(tokenizer, captions, recipe.device)
        with torch.no_grad():
            states = text(ids).last_hidden_state
        fate = torch.from_numpy(rng.random(n)).to(recipe.device)
        states = _mixed_states(states, ids, empty, neutral, models.token_id(tokenizer.eos_token_id), fate)
        t = torch.from_numpy(((np.arange(n) + rng.random(n)) * (1000 / n)).astype(np.int64)).to(recipe.device)
        noise = torch.from_numpy(rng.standard_normal(tuple(z.shape), dtype=np.float32)).to(z)
        a = alphas[t][:, None, None, None]
        noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with AttentionCapture(
            backbone=backbone, layers=layers, reduce=lambda _, maps: maps.mean(1), implementation="softmax"
        ) as capture:
            predicted = unet(noisy, t, states).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        nouns = nouns_of(tokenizer, captions, [set_.pictures[row] for row in rows]).to(recipe.device)
        nouns = nouns.where(_words_kept(fate))
        if not len(nouns.row) or not recipe.grounding:
            return (error * weight[t]).mean()
        maps = torch.stack(list(capture.maps.values())).mean(0)[nouns.row]  # (nouns, pixels, tokens)
        grounding = grounding_loss((maps * nouns.tokens[:, None]).sum(2), nouns.boxes.flatten(1))
        return (error * weight[t]).mean() + GROUNDING * (grounding * alphas[t[nouns.row]].sqrt()).sum() / n

    loop = Loop(
        recipe=recipe,
        stage="unet",
        modules={"unet": unet},
        loss=loss,
        minutes=recipe.minutes * SHARES["unet"],
        lr=recipe.lr,
        average=0.999,
        steps=recipe.steps,
    )
    loop.show = lambda step: _show(recipe, loop, tokenizer, text, vae, step)
    loop.run(on_progress)
    return unet.eval().requires_grad_(False)


def _mixed_states(states: Tensor, ids: Tensor, empty: Tensor, neutral: Tensor, eos: int, fate: Tensor) -> Tensor:
    """Exchange a share of the states; `fate` (n,) in [0, 1) says which row's, see `_words_kept`."""
    first = (ids == eos).int().argmax(1)
    place = torch.arange(ids.shape[1], device=ids.device)[None]
    trailing = (place >= first[:, None])[..., None]
    word = ~trailing & (place > 0)[..., None]
    fate = fate[:, None, None]
    states = torch.where((fate < WORDS_ALONE) & trailing, empty, states)
    states = torch.where((fate >= WORDS_ALONE) & (fate < WORDS_ALONE + TRAILING_ALONE) & word, neutral, states)
    return torch.where(fate > 1 - NO_PROMPT, empty, states)


def _words_kept(fate: Tensor) -> Tensor:
    """Return whether a row's words kept their own states, as a mask (n,)."""
    return ((fate < WORDS_ALONE) | (fate >= WORDS_ALONE + TRAILING_ALONE)) & (fate <= 1 - NO_PROMPT)


def assemble(
    unet: nn.Module, text: CLIPTextModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Put the trained parts together as an ordinary pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,  # type: ignore[arg-type]
        scheduler=models.scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


def _show(
    recipe: Recipe, loop: Loop, tokenizer: CLIPTokenizer, text: CLIPTextModel, vae: AutoencoderKL, step: int
) -> None:
    from ..sampling import sample

    unet = _placed(models.unet(), recipe)
    unet.load_state_dict(loop.shadow["unet"])
    prompts = [f"a photo of {article(o)}" for o in OBJECTS] + [f"Biscuit {SCENE_PHRASES['beach'][0]}", "Mittens"]
    prompts += [STYLE_PHRASES[s][1].format("a cat") for s in STYLE_PHRASES] + ["a cat and a dog", "a tree and a car"]
    pipe = assemble(unet.eval(), text, vae, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    pictures = sample(pipe, prompts, [7] * len(prompts), steps=20, guidance_scale=4.0)
    sheet = Image.new("RGB", (12 * 66, math.ceil(len(prompts) / 12) * 66), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % 12 * 66, i // 12 * 66))
    folder = recipe.out / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"unet-{step:06d}.png")


def judge_stage(recipe: Recipe, tokenizer: CLIPTokenizer, on_progress: OnProgress | None = None) -> WorldClip:
    """Train the judge: an open_clip model on other drawings with another seed, all individuals included."""
    torch.manual_seed(recipe.seed + 4)
    model = _placed(build_judge(), recipe)
    set_ = drawings(
        ORACLE_PICTURES,
        recipe.seed + 2,
        Mix(individuals=tuple(INDIVIDUALS), hold_out=False),
        folder=recipe.drawings_folder,
    )
    judge = WorldClip(model, tokenizer, recipe.device)
    model.train()

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        rows, pixels = _batch(set_, rng, 128, recipe.device)
        out: dict[str, Any] | tuple[Tensor, ...] = model(
            pixels, judge.ids(set_.captions(rows, _words(rng))).to(recipe.device)
        )
        images, texts, scale = (
            (out["image_features"], out["text_features"], out["logit_scale"]) if isinstance(out, dict) else out[:3]
        )
        logits = scale * images @ texts.T
        truth = torch.arange(len(rows), device=logits.device)
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2

    minutes = recipe.minutes * SHARES["judge"]
    Loop(
        recipe=recipe, stage="judge", modules={"model": model}, loss=loss, minutes=minutes, lr=recipe.lr, average=0.995
    ).run(on_progress)
    return WorldClip(model, tokenizer, recipe.device)


def train(recipe: Recipe, *, console: Console | None = None) -> Path:
    """Run the recipe's stages in order, each from where it stands, and return the folder of the finished model."""
    stages = recipe.stages
    start_from(recipe)
    with progress_bars(console) as on_progress:
        tokenizer = tokenizer_stage(recipe)
        if set(stages) == {"tokenizer"}:
            return recipe.out
        judge = judge_stage(recipe, tokenizer, on_progress) if {"judge", "assemble"} & set(stages) else None
        text = clip_stage(recipe, tokenizer, on_progress) if {"clip", "unet", "assemble"} & set(stages) else None
        vae = vae_stage(recipe, on_progress) if {"vae", "oracle", "unet", "assemble"} & set(stages) else None
        oracle = oracle_stage(recipe, vae, on_progress) if vae and {"oracle", "assemble"} & set(stages) else None
        if text is None or vae is None or not {"unet", "assemble"} & set(stages):
            return recipe.out
        unet = unet_stage(recipe, tokenizer, text, vae, on_progress)
    if "assemble" not in stages:
        return recipe.out
    model = recipe.out / "model"
    assemble(unet.half(), text.half(), vae.half(), tokenizer).save_pretrained(model)
    _load_as_float32(model / "text_encoder" / "config.json")
    if oracle:
        oracle.save(model / "oracle")
    if judge:
        judge.save(model / "judge")
    (model / "recipe.json").write_text(json.dumps(_facts(recipe), indent=2) + "\n")
    _show_losses(recipe.out / "losses", model / "losses.png")
    return model


def _show_losses(folder: Path, path: Path) -> None:
    """Draw the loss curves of all stages that were logged; matplotlib comes with the `eval` extra."""
    curves = {p.stem: np.loadtxt(p, delimiter=",", ndmin=2) for p in sorted(folder.glob("*.csv"))}
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no loss curves drawn: expected the package matplotlib, got none. Install erasure[eval].")
        return
    figure = Figure(figsize=(3 * max(len(curves), 1), 2.4), layout="constrained")
    for at, (stage, rows) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), at + 1)
        axes.plot(rows[:, 0], rows[:, 2], linewidth=1)
        axes.set(title=stage, xlabel="step", yscale="log")
    figure.savefig(path, dpi=90)


def _load_as_float32(path: Path) -> None:
    """Have transformers load a float16 file in float32, as diffusers does: a pipeline of both cannot run."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def _facts(recipe: Recipe) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for stage in SHARES:
        path = recipe.out / "state" / f"{stage}.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            facts[stage] = {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1)}
    settings = {
        "pictures": recipe.pictures,
        "seed": recipe.seed,
        "batch_size": recipe.batch_size,
    }
    return {
        "settings": {
            **settings,
            "without": recipe.without,
            "lr": recipe.lr,
            "device": recipe.device,
            "grounding": recipe.grounding,
        },
        "stages": facts,
    }


def _stages(option: str, given: str) -> tuple[str, ...]:
    names = tuple(name for name in given.split(",") if name)
    for name in names:
        if name not in STAGES:
            raise typer.BadParameter(f"{option}: expected some of {', '.join(STAGES)}, got {name!r}.")
    return names


def main(
    minutes: Annotated[float, typer.Option(help="Minutes of training, shared among the stages.")],
    out: Annotated[Path, typer.Option(help="Folder for state, samples and the finished model.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    without: Annotated[
        list[str] | None, typer.Option(help="Leave every picture of a concept out (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of pictures, weights and order.")] = 0,
    stages: Annotated[str, typer.Option(help="Stages to run, separated by commas.")] = ",".join(STAGES),
    data: Annotated[Path | None, typer.Option(help="Folder of drawn pictures to share between trainings.")] = None,
    pictures: Annotated[int, typer.Option(help="Number of training pictures.")] = PICTURES,
    lr: Annotated[
        float, typer.Option(help="Highest learning rate of the denoiser; those of the other stages are in proportion.")
    ] = 1e-3,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16 (faster only on a processor with matrix units for it).")
    ] = "float32",
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of a finished model whose weights stages without a state start from.")
    ] = None,
    anew: Annotated[
        str, typer.Option(help="Stages that start from random weights in spite of --start-from, separated by commas.")
    ] = "",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Length of the denoiser's training in steps, in place of its minutes.")
    ] = None,
    grounding: Annotated[
        bool, typer.Option(help="Draw the attention maps of the objects' nouns to the objects' boxes.")
    ] = True,
) -> None:
    """Train the tiny world's model, oracle and judge; killed, it goes on where it stopped."""
    asked, fresh = _stages("stages", stages), _stages("anew", anew)
    if not asked:
        raise typer.BadParameter(f"stages: expected some of {', '.join(STAGES)}, got none.")
    if fresh and start_from is None:
        raise typer.BadParameter("anew: expected --start-from beside it, got none; without it every stage starts anew.")
    if precision not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"precision: expected float32 or bfloat16, got {precision!r}.")
    gone = []
    for name in without or []:
        known = canonical(name)
        if known is None:
            raise typer.BadParameter(f"without: expected a word of the tiny world, got {name!r}.")
        gone.append(known)
    if minutes <= 0:
        raise typer.BadParameter(f"minutes: expected a number > 0, got {minutes!r}.")
    run = {"out": out, "minutes": minutes, "device": device, "seed": seed, "data": data, "pictures": pictures}
    begin = {"start_from": start_from, "anew": fresh}
    length = {"steps": steps, "grounding": grounding}
    recipe = Recipe(**run, **begin, **length, without=tuple(gone), stages=asked, precision=precision, lr=lr)
    try:
        typer.echo(train(recipe))
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)

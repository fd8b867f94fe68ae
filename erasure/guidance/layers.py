"""Changes of what layers of the denoiser give, within the calls of a pipeline's own loop."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from diffusers import DiffusionPipeline
from jaxtyping import Bool
from torch import Tensor, nn

from ..backbones.base import Ability
from .denoising import Denoising
from .steps import around_each_step

Changed = Callable[[str, Denoising, Tensor, Tensor], Tensor]
"""Returns the output of a layer, from its name, the call of the denoiser, the layer's input and output."""


@contextmanager
def changed_layers(
    pipe: DiffusionPipeline,
    layers: Mapping[str, nn.Module],
    change: Changed,
    *,
    rows: Callable[[], int],
    needs: Ability = "unet guidance",
) -> Generator[None]:
    """Change the outputs of some layers in each step of the pipeline's loop, for the length of a `with`.

    Further predictions beside the loop's are left alone.

    Args:
        pipe: A diffusers pipeline.
        layers: Layers by name.
        change: Returns an output in the place of the layer's.
        rows: See `around_each_step`.
        needs: See `around_each_step`.
    """
    running: list[Denoising] = []

    def before(call: Denoising) -> None:
        running[:] = [call]

    def after(call: Denoising, output: Tensor) -> Tensor:
        running.clear()
        return output

    def changed(name: str, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not running or running[0].resting:
            return None
        return change(name, running[0], args[0], output)

    with ExitStack() as stack:
        stack.enter_context(around_each_step(pipe, rows=rows, before=before, after=after, needs=needs))
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(changed, name)).remove)
        yield


def with_rows(
    call: Denoising,
    output: Tensor,
    rows: Bool[Tensor, " n"],
    change: Callable[[Tensor], Tensor],
    *,
    unconditional: bool,
) -> Tensor:
    """Return the output of a layer with the rows of some images changed.

    Args:
        call: Call of the denoiser.
        output: Output for its whole batch.
        rows: Whether each image is changed.
        change: Function of the rows' outputs, float32.
        unconditional: Whether the rows of the unconditional predictions are changed as well.
    """
    changed = output.clone()
    parts = [call.conditional(changed)]
    if unconditional and call.guided:
        parts.append(changed[: len(call.latents)])
    chosen = rows.to(output.device)
    for part in parts:  # views of `changed`
        part[chosen] = change(part[chosen].float()).to(output)
    return changed

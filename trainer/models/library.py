"""Models of torchvision and timm, for any number of classes and channels; each library is imported
only where a job names it.
"""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from trainer.config.models.library import TimmModel, TorchvisionModel


def torchvision(
    config: TorchvisionModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes], without weights from elsewhere and without the side losses
    of googlenet and inception_v3.

    Raises ValueError where the model takes no pictures of this size, as far as it says so when it
    is made.
    """
    from torchvision import models  # 1.7 s, and an extra

    name = config.name.removeprefix("torchvision/")
    more: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        more = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        more = {"image_size": square(config.name, in_size)}
    elif name.startswith("maxvit_"):
        more = {"input_size": in_size}
    model = models.get_model(name, weights=None, num_classes=num_classes, **more)
    if in_channels != 3:
        replace_first_convolution(model, in_channels)
    return model


def timm(
    config: TimmModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes], without weights from elsewhere.

    Raises ValueError where timm does not know the name or is not installed.
    """
    try:
        import timm as library  # an extra
    except ImportError:
        raise ValueError(
            f"{config.name} needs timm, which this Python lacks: pip install timm, or the extra"
            " 'timm'"
        ) from None
    name = config.name.removeprefix("timm/")
    if not library.is_model(name):
        near = difflib.get_close_matches(name, library.list_models(), 3)
        hint = (
            f"; did you mean {' or '.join(near)}?"
            if near
            else "; timm.list_models() shows its names"
        )
        raise ValueError(f"timm {library.__version__} has no model '{name}'{hint}")
    # the others take no img_size
    of_size = library.get_pretrained_cfg(name, allow_unregistered=True).fixed_input_size
    more: dict[str, Any] = {"img_size": in_size} if of_size else {}
    model: nn.Module = library.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **more
    )
    return model


def square(name: str, in_size: tuple[int, int]) -> int:
    """The side of a picture. Raises ValueError where it has two."""
    if in_size[0] != in_size[1]:
        raise ValueError(f"{name} takes square pictures, these have {in_size[0]}x{in_size[1]}")
    return in_size[0]


def replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    """Puts a convolution of `in_channels` where the pictures enter: torchvision's models are made
    for three.
    """
    name, first = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    made = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,
        first.dilation,
        bias=first.bias is not None,
    )
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, made)

"""Pictures to patches: open safely, turn to RGB, resize, cut.

Knows Pillow, its dangers, and the arithmetic of the reference processor. Does not know messages or
tokens. Nothing is fetched from the network.
"""

import base64
import binascii
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusiongemma.core.errors import InputError, OptionError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.patches import Patches
from diffusiongemma.dialog.settings import BUDGETS, ImageSettings

__all__ = ["FORMATS", "MAX_PIXELS", "ImageSettings", "load", "open_image", "patches", "to_rgb"]

MAX_PIXELS = 64_000_000
"""A larger image is refused from its header, before a byte of it is decoded."""

MAX_BYTES = 8 * MAX_PIXELS
"""No larger file is read: even without compression the largest image is smaller."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""Formats that are tried. Others that Pillow knows, such as EPS, can start programs."""

_CHANNELS = (1, 3, 4)
_DEFAULT = ImageSettings()


def load(source: Any, *, files: bool = True) -> Image.Image:
    """One picture in RGB, upright.

    The orientation in a photograph's EXIF is applied, as the reference's loader does. Transparency
    is laid on white, as its processor does. Of an animation, the first frame is taken.

    Args:
        source: a path, the bytes of a file, a PIL image, a `data:` URI, or an array or tensor
            of 0 to 255: (height, width), (height, width, C) or (C, height, width), where C is 1
            (grey), 3 (RGB) or 4 (RGB and opacity).
        files: whether paths are allowed; a server that serves strangers says False.

    Raises:
        InputError: it cannot be read; the message says what it was and what to do.
    """
    image, name = open_image(source, files=files)
    try:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # damaged files make Pillow's plugins raise almost anything
        raise InputError(
            f"{name} is damaged or cut short ({error}); open it in an image editor and save it "
            "again"
        ) from error


def open_image(source: Any, *, files: bool = True) -> tuple[Image.Image, str]:
    """An image whose header was read and found harmless, and a name for it in messages."""
    image, name = (
        (source, "the PIL image") if isinstance(source, Image.Image) else _read(source, files)
    )
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name} has no pixels ({width}x{height}); pass one of at least 1x1")
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(name, f"{width}x{height} pixels"))
    return image, name


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as the reference processor makes it: transparency on white, all else by Pillow."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def patches(
    image: Image.Image,
    *,
    patch_size: int = _DEFAULT.patch_size,
    pooling: int = _DEFAULT.pooling_kernel_size,
    soft_tokens: int = _DEFAULT.max_soft_tokens,
) -> Patches:
    """Cut an image into patches for the vision tower, without padding.

    The image is resized (bicubic, in 8 bits) to the largest size of its own proportions whose
    patches fit the budget and whose sides are whole numbers of soft tokens. It may grow.

    Args:
        image: any PIL image; turned to RGB.
        patch_size: pixels along one side of a patch.
        pooling: patches along one side of a soft token.
        soft_tokens: the budget; one of 70, 140, 280, 560, 1120.

    Returns:
        Patches whose number is `pooling**2` times the soft tokens that the image will take.
    """
    if soft_tokens not in BUDGETS:
        raise OptionError(
            f"soft_tokens must be one of {', '.join(map(str, BUDGETS))}, got {brief(soft_tokens)}"
        )
    image = to_rgb(image)
    width, height = _fit(*image.size, side=patch_size * pooling, soft_tokens=soft_tokens)
    if image.size != (width, height):
        image = image.resize((width, height), resample=Image.Resampling.BICUBIC)
    rows, columns = height // patch_size, width // patch_size
    # Through float64, then down: the same last bit as the reference.
    pixels = (np.asarray(image).astype(np.float64) * (1 / 255)).astype(np.float32)
    grid = pixels.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    values = np.ascontiguousarray(grid).reshape(rows * columns, -1)
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    return Patches(torch.from_numpy(values), torch.from_numpy(np.stack([x, y], axis=-1)))


def _fit(width: int, height: int, *, side: int, soft_tokens: int) -> tuple[int, int]:
    """The size to resize to; both sides are multiples of `side`, the area within the budget."""
    scale = math.sqrt(soft_tokens * side**2 / (width * height))
    across = math.floor(scale * width / side)
    down = math.floor(scale * height / side)
    # A strip thinner than one soft token is kept one soft token thin, and its length follows
    # from its proportions.
    if down == 0:
        down, across = 1, min(width // height, soft_tokens)
    elif across == 0:
        across, down = 1, min(height // width, soft_tokens)
    return across * side, down * side


def _read(source: Any, files: bool) -> tuple[Image.Image, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        return _open(io.BytesIO(source), f"the image given as {len(source)} bytes")
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _open(io.BytesIO(_data_uri(source)), "the image in the data: URI")
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        raise InputError(
            f"{brief(source)} is a web address, and this package fetches nothing from the "
            "network; download it first, and pass the file or its bytes"
        )
    if isinstance(source, np.ndarray | torch.Tensor):
        return _from_array(source), "the image given as an array"
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            "an image must be a path, bytes, an array, a PIL image or a data: URI, "
            f"got {type(source).__name__}"
        )
    if not files:
        raise InputError(
            f"{brief(str(source))} is a path, and files are not opened here; send the image "
            "as a data: URI"
        )
    return _open(io.BytesIO(_content(Path(source))), f"'{source}'")


def _from_array(given: np.ndarray | torch.Tensor) -> Image.Image:
    try:
        pixels = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else given
    except (RuntimeError, TypeError) as error:  # a format that numpy lacks, or nothing in memory
        raise InputError(
            f"the image given as a tensor of {given.dtype} cannot be read ({error}); pass one of "
            "uint8"
        ) from error
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS):
        raise InputError(
            f"an image as an array has shape (height, width, 3), got {tuple(given.shape)}"
        )
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        size = f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
        raise InputError(_too_large("the image given as an array", size))
    whole = np.issubdtype(pixels.dtype, np.integer)
    if not whole or (pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255):
        reach = f" from {pixels.min()} to {pixels.max()}" if pixels.size else ""
        raise InputError(
            f"an image as an array holds whole numbers from 0 to 255, got {given.dtype}{reach}; "
            "numbers from 0 to 1 become such by (255 * array).round().astype('uint8')"
        )
    if 0 in pixels.shape:
        raise InputError("the image given as an array has no pixels; pass one of at least 1x1")
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(flat, dtype=np.uint8))


def _content(path: Path) -> bytes:
    """The whole file. Pillow would read it bit by bit, and leave it open where it fails."""
    try:
        if path.is_file():
            if path.stat().st_size <= MAX_BYTES:
                return path.read_bytes()
            raise InputError(
                f"image '{path}' has {path.stat().st_size} bytes, more than the "
                f"{MAX_BYTES} that are read here; make it smaller first"
            )
        got = "a folder" if path.is_dir() else "no such file"
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        got = getattr(error, "strerror", None) or str(error)
    raise InputError(
        f"image '{path}' cannot be opened: {got}; check the path and the working directory"
    )


def _open(file: io.BytesIO, name: str) -> tuple[Image.Image, str]:
    Image.init()  # loads the plugins; a Pillow may be built without some of them
    formats = [form for form in FORMATS if form in Image.OPEN]
    try:
        return Image.open(file, formats=formats), name
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(_too_large(name, "too many pixels")) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image of a format read here ({', '.join(formats)}); convert it to "
            "PNG or JPEG"
        ) from error
    except Exception as error:  # as above: a broken header can raise anything
        raise InputError(f"{name} cannot be read ({error}); check the file") from error


def _data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise InputError(
            f"data: URI {brief(head)} is not in base64; write data:image/png;base64,<...>"
        )
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the data: URI is not valid base64 ({error}); encode it again") from error


def _too_large(name: str, got: str) -> str:
    return (
        f"{name} has {got}, more than the {MAX_PIXELS // 1_000_000} million that are decoded here; "
        "make it smaller first."
    )

"""Pictures: equal to the reference's processor, and safe to open."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusiongemma.core.errors import CheckpointError, ConfigError, InputError, OptionError
from diffusiongemma.dialog import images
from diffusiongemma.dialog.images import load, patches
from diffusiongemma.dialog.settings import BUDGETS, ImageSettings


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), dtype=np.float32) * 300)
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, (height, width), dtype=np.uint8) * 255).convert(
            "1"
        )
    raw = rng.integers(0, 256, (height, width, channels), dtype=np.uint8).tobytes()
    if mode == "P":
        image = Image.frombytes("P", (width, height), raw)
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    return Image.frombytes(mode, (width, height), raw)


def check_parity(image: Image.Image, soft_tokens: int = 280) -> None:
    pytest.importorskip("transformers")
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    theirs = Gemma4ImageProcessorPil(max_soft_tokens=soft_tokens)([image], return_tensors="np")
    ours = patches(image, soft_tokens=soft_tokens)
    count = int(theirs["num_soft_tokens_per_image"][0]) * 9
    assert ours.values_PX.shape == (count, 768) and ours.positions_P2.shape == (count, 2)
    assert np.array_equal(ours.positions_P2.numpy(), theirs["image_position_ids"][0][:count])
    np.testing.assert_allclose(
        ours.values_PX.numpy(), theirs["pixel_values"][0][:count], rtol=0, atol=1e-6
    )
    assert str(ours.values_PX.dtype) == "torch.float32"
    assert str(ours.positions_P2.dtype) == "torch.int64"


@pytest.mark.parametrize(
    "size",
    [
        (1, 1), (1, 2), (3, 1), (3, 3), (2, 1000), (1000, 2), (1, 5000), (5000, 1), (640, 480),
        (480, 640), (768, 768), (47, 49), (800, 801), (1920, 1080), (13, 4000), (13440, 48),
        (300, 1), (1, 279), (281, 1), (816, 768),
    ],
)  # fmt: skip
def test_parity_over_sizes(size: tuple[int, int]) -> None:
    check_parity(picture(*size))


@pytest.mark.parametrize("soft_tokens", BUDGETS)
@pytest.mark.parametrize("size", [(640, 480), (31, 977), (5, 5)])
def test_parity_over_budgets(size: tuple[int, int], soft_tokens: int) -> None:
    check_parity(picture(*size), soft_tokens)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "PA", "CMYK", "I;16", "1", "F", "YCbCr"])
def test_parity_over_modes(mode: str) -> None:
    check_parity(picture(60, 40, mode))


def test_parity_of_transparent_palette() -> None:
    image = picture(60, 40, "P")
    image.info["transparency"] = 7
    check_parity(image)


def test_no_resize_when_the_size_is_right() -> None:
    image = picture(768, 768)
    values = patches(image, soft_tokens=280).values_PX
    first = np.asarray(image)[:16, :16].reshape(-1) / 255
    np.testing.assert_allclose(values[0].numpy(), first, atol=1e-7)


@pytest.mark.parametrize("budget", [0, 71, 281, -70])
def test_bad_budget(budget: int) -> None:
    with pytest.raises(OptionError, match="soft_tokens must be one of 70, 140, 280, 560, 1120"):
        patches(picture(4, 4), soft_tokens=budget)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_every_kind_of_source(tmp_path: Path) -> None:
    image = picture(5, 4)
    data = encoded(image)
    file = tmp_path / "a.png"
    file.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (file, str(file), data, bytearray(data), image, uri):
        assert np.array_equal(np.asarray(load(source)), np.asarray(image))
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy())
    for array in (pixels, pixels.astype(np.int64), pixels[:, ::-1][:, ::-1], tensor,
                  pixels.transpose(2, 0, 1), tensor.permute(2, 0, 1).contiguous()):  # fmt: skip
        assert np.array_equal(np.asarray(load(array)), pixels)


def test_arrays_of_one_and_four_channels() -> None:
    grey, clear = picture(5, 6, "L"), picture(5, 6, "RGBA")
    for image in (grey, clear):
        assert np.array_equal(np.asarray(load(np.asarray(image))), np.asarray(load(image)))
    for array in (np.asarray(grey)[..., None], np.asarray(grey)[None]):
        assert np.array_equal(np.asarray(load(array)), np.asarray(load(grey)))


@pytest.mark.parametrize("size", [(640, 480), (31, 977)])
def test_parity_of_arrays(size: tuple[int, int]) -> None:
    """As the reference's processor sees the same array."""
    pytest.importorskip("transformers")
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    array = np.asarray(picture(*size))
    theirs = Gemma4ImageProcessorPil()([array], return_tensors="np")
    ours = patches(load(array)).values_PX.numpy()
    np.testing.assert_allclose(ours, theirs["pixel_values"][0][: len(ours)], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((5, 5, 2), np.uint8), r"has shape \(height, width, 3\), got \(5, 5, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got \(1, 4, 4, 3\)"),
        (np.zeros(9, np.uint8), r"got \(9,\)"),
        (np.zeros((4, 4)), r"from 0 to 255, got float64 from 0.0 to 0.0; numbers from 0 to 1 bec"),
        (torch.zeros(3, 4, 4), r"from 0 to 255, got torch.float32 from 0.0"),
        (np.full((4, 4), 256), "got int64 from 256 to 256"),
        (np.full((4, 4), -1), "got int64 from -1 to -1"),
        (np.zeros((4, 4), bool), "got bool from False to False"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels; pass one of at least 1x1"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), r"tensor of torch\.bfloat16 cannot be read"),
        (
            torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"),
            r"cannot be read \(.*; pass one of",
        ),
        (np.broadcast_to(np.uint8(0), (9000, 9000)), "9000x9000 pixels, more than the 64 million"),
    ],
)
def test_bad_arrays(array: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load(array)


def test_photographs_are_turned_upright() -> None:
    image = picture(5, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = load(encoded(image, exif=exif))
    assert turned.size == (4, 5)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_transparency_is_laid_on_white() -> None:
    assert load(Image.new("RGBA", (1, 1), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_files_can_be_forbidden(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(picture(2, 2)))
    with pytest.raises(InputError, match="is a path, and files are not opened here; send"):
        load(str(file), files=False)
    assert load(file.read_bytes(), files=False).size == (2, 2)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("https://x.org/a.png", "is a web address, and this package fetches nothing from the netw"),
        ("nowhere.png", "image 'nowhere.png' cannot be opened: no such file; check the path"),
        ("/", "cannot be opened: a folder; check"),
        ("a" * 5000, "cannot be opened: .*; check the path"),
        ("a\0b", "cannot be opened: .*; check the path"),
        (b"", "given as 0 bytes is not an image of a format read here"),
        (b"hello" * 100, "given as 500 bytes is not an image of a format read here .*convert it"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image of a format read"),
        (7, "must be a path, bytes, an array, a PIL image or a data: URI, got int"),
        (None, "got NoneType"),
        ("data:image/png,abc", "is not in base64; write data:image/png;base64"),
        ("data:image/png;base64", "is not in base64"),
        ("data:image/png;base64,!!", "is not valid base64 .*encode it again"),
        ("data:image/png;base64,aGVsbG8=", "data: URI is not an image of a format read here"),
        (Image.new("RGB", (0, 5)), r"has no pixels \(0x5\); pass one of at least 1x1"),
    ],
)
def test_what_cannot_be_loaded(source: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load(source)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format(form: str) -> None:
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {form}")
    assert load(encoded(picture(8, 8), form)).size == (8, 8)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_cut_short(form: str) -> None:
    data = encoded(picture(64, 64), form)
    with pytest.raises(InputError, match=r"damaged or cut short|cannot be read|is not an image"):
        load(data[: len(data) // 2])


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises much."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        size, check = (struct.pack(">I", n) for n in (len(body), zlib.crc32(kind + body)))
        return size + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8001, 10_000, 60_000])
def test_bombs(side: int) -> None:
    with pytest.raises(InputError, match="more than the 64 million that are decoded here; make"):
        load(bomb(side, side))


@pytest.mark.filterwarnings("error")
def test_bombs_where_warnings_are_errors() -> None:
    with pytest.raises(InputError, match="more than the 64 million"):
        load(bomb(10_000, 10_000))


def test_files_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(picture(4, 4)))
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(InputError, match="bytes, more than the 10 that are read here; make"):
        load(file)


def test_bombs_as_pil_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10)
    with pytest.raises(InputError, match="the PIL image has 4x4 pixels"):
        load(picture(4, 4))


def test_settings_of_a_folder(tmp_path: Path) -> None:
    assert ImageSettings.from_folder(tmp_path) == ImageSettings()
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"max_soft_tokens": 70, "do_resize": True, "size": None}))
    assert ImageSettings.from_folder(tmp_path) == ImageSettings(max_soft_tokens=70)
    nested = {"image_processor": {"patch_size": 8, "max_soft_tokens": 140}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert ImageSettings.from_folder(tmp_path) == ImageSettings(patch_size=8, max_soft_tokens=140)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"max_soft_tokens": 100}, "max_soft_tokens must be one of 70, .*got 100"),
        ({"patch_size": 0}, "patch_size must be a whole number from 1 to 256, got 0"),
        ({"do_normalize": True}, "asks for do_normalize=True, and only False is implemented"),
        ({"rescale_factor": 1 / 127.5}, "asks for rescale_factor=0.00784.*, and only 1/255 is im"),
        ({"rescale_factor": "1/255"}, "asks for rescale_factor='1/255', and only 1/255 is impl"),
    ],
)
def test_settings_that_cannot_be_honoured(
    tmp_path: Path, data: dict[str, object], match: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=match):
        ImageSettings.from_folder(tmp_path)


def test_settings_broken(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"image_processor": 3}')
    with pytest.raises(ConfigError, match="is not an object; fetch its files again"):
        ImageSettings.from_folder(tmp_path)
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"processor_config\.json is not valid JSON"):
        ImageSettings.from_folder(tmp_path)

"""Videos as timed stills."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusiongemma.core.errors import InputError
from diffusiongemma.dialog.video import frames, stamp


def animation(durations: list[int], form: str = "GIF", size: tuple[int, int] = (8, 8)) -> bytes:
    """Frame k is grey of brightness 2k."""
    pictures = [Image.new("RGB", size, (2 * k,) * 3) for k in range(len(durations))]
    file = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    pictures[0].save(
        file, form, save_all=True, append_images=pictures[1:], duration=durations, **options
    )
    return file.getvalue()


def seen(found: list[tuple[float, Image.Image]]) -> list[tuple[float, int]]:
    return [(second, image.getpixel((0, 0))[0] // 2) for second, image in found]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_files_are_sampled_once_a_second(form: str) -> None:
    found = frames({"type": "video", "video": animation([500] * 7, form)})
    assert seen(found) == [(0, 0), (1, 2), (2, 4), (3, 6)]


def test_a_slow_file_repeats_its_frame() -> None:
    found = frames({"video": animation([2500, 500])})
    assert seen(found) == [(0, 0), (1, 0), (2, 0)]


def test_a_long_file_is_seen_to_its_end() -> None:
    found = frames({"video": animation([1000] * 120)})
    assert seen(found) == [(2 * k, 2 * k) for k in range(60)]


def test_a_still_is_one_frame(tmp_path: Path) -> None:
    file = tmp_path / "a.gif"
    file.write_bytes(animation([0]))
    assert seen(frames({"video": str(file)})) == [(0, 0)]
    with pytest.raises(InputError, match="files are not opened here"):
        frames({"video": str(file)}, files=False)


def test_explicit_frames() -> None:
    pictures = [Image.new("L", (4, 4), k) for k in range(3)]
    assert [t for t, _ in frames({"frames": pictures})] == [0, 1, 2]
    assert [t for t, _ in frames({"frames": pictures, "fps": 2})] == [0, 0.5, 1]
    times = [0, 59, 61.5]
    assert [t for t, _ in frames({"frames": pictures, "timestamps": times})] == times
    assert all(image.mode == "RGB" for _, image in frames({"frames": pictures}))


def test_stamp() -> None:
    assert [stamp(t) for t in (0.0, 9.99, 60.0, 61.5, 6000.0)] == [
        "00:00", "00:09", "01:00", "01:01", "100:00",
    ]  # fmt: skip


def test_arrays_of_frames() -> None:
    pictures = np.zeros((3, 8, 6, 3), np.uint8)
    found = frames({"frames": pictures, "timestamps": np.array([0.0, 1.5, 3.0])})
    assert [second for second, _ in found] == [0.0, 1.5, 3.0]
    assert [image.size for _, image in found] == [(6, 8)] * 3
    assert [second for second, _ in frames({"frames": pictures, "fps": np.float32(2)})][1] == 0.5


STILL = Image.new("L", (4, 4))


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ({}, "neither 'video' nor a list of 'frames'; give one"),
        ({"frames": []}, "neither 'video' nor a list of 'frames'"),
        ({"frames": "abc"}, "neither 'video' nor a list of 'frames'"),
        ({"frames": [STILL] * 61}, "has 61 frames and the model takes at most 60; choose"),
        ({"frames": [STILL], "fps": 0}, "'fps' of a video must be a number above 0, got 0"),
        ({"frames": [STILL], "fps": "2"}, "got '2'"),
        ({"frames": [STILL], "fps": 1, "timestamps": [0]}, "both 'timestamps' and 'fps'"),
        ({"frames": [STILL], "timestamps": [0, 1]}, "has 1 frames and 'timestamps' 2; give one"),
        ({"frames": [STILL], "timestamps": 3}, "'timestamps' int; give one per frame"),
        ({"frames": [STILL] * 2, "timestamps": [2, 1]}, "seconds from 0 up, in rising order"),
        ({"frames": [STILL], "timestamps": [-1]}, "seconds from 0 up, in rising order"),
        ({"frames": [STILL], "timestamps": [float("nan")]}, "seconds from 0 up"),
        ({"video": b"\0\0\0\x18ftypmp42"}, "only animated GIF, WebP and PNG are read; for others"),
        ({"video": "https://x.org/a.gif"}, "fetches nothing from the network"),
    ],
)
def test_bad_videos(part: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        frames(part)


def test_too_many_stored_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.dialog.video._MAX_STORED", 3)
    with pytest.raises(InputError, match="has 4 frames of 8x8, too much to decode; pass one"):
        frames({"video": animation([100] * 4)})


def test_cut_short() -> None:
    data = animation([1000] * 9, "WEBP", (64, 64))
    with pytest.raises(InputError, match=r"cut short|cannot be read|is not an image"):
        frames({"video": data[: len(data) // 2]})

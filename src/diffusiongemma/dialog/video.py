"""A short video as still frames with their times.

Knows how frames are chosen from an animated file. This is this package's own definition, after the
documents: the released model takes at most 60 seconds at one frame per second, has no video token,
and sees each frame as `mm:ss` and an image of 70 soft tokens. Does not know tokens.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageSequence

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.numbers import real
from diffusiongemma.dialog.images import MAX_PIXELS, load, open_image, to_rgb

MAX_FRAMES = 60
FRAME_SOFT_TOKENS = 70

_MAX_STORED = 3600  # one minute at 60 frames a second
_STILL = 0.1  # seconds that browsers give to a frame which states no duration


def frames(part: Mapping[str, Any], *, files: bool = True) -> list[tuple[float, Image.Image]]:
    """Times in seconds and RGB pictures of one video part.

    A file is sampled at one frame per second; one longer than a minute is sampled at 60 evenly
    spaced whole seconds, so that its end is seen and every time is true. Frames given one by one
    are all used, and more than 60 are refused.

    Args:
        part: `{'frames': [images], 'timestamps': [seconds]}`, or with `'fps'` (1 unless given)
            in place of `timestamps`; or `{'video': an animated GIF, WebP or PNG}`.
        files: whether paths are allowed.
    """
    if "video" in part:
        return _from_file(part["video"], files)
    pictures: Any = part.get("frames")
    pictures = list(pictures) if getattr(pictures, "ndim", 0) == 4 else pictures
    if not isinstance(pictures, Sequence) or isinstance(pictures, str | bytes) or not pictures:
        raise InputError(
            "a video part has neither 'video' nor a list of 'frames'; give one of the two"
        )
    if len(pictures) > MAX_FRAMES:
        raise InputError(
            f"a video has {len(pictures)} frames and the model takes at most {MAX_FRAMES}; choose "
            "one frame per second, and give 'timestamps' if they are not 1 second apart"
        )
    return list(
        zip(_times(part, len(pictures)), [load(p, files=files) for p in pictures], strict=True)
    )


def stamp(seconds: float) -> str:
    """`mm:ss`, as the prompt writes it."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def _times(part: Mapping[str, Any], count: int) -> list[float]:
    given, fps = part.get("timestamps"), part.get("fps")
    if given is not None and fps is not None:
        raise InputError("a video part has both 'timestamps' and 'fps'; give one of the two")
    if given is None:
        if fps is None:
            fps = 1
        rate = real(fps)
        if rate is None or not 0 < rate < math.inf:
            raise InputError(f"'fps' of a video must be a number above 0, got {brief(fps)}")
        return [index / rate for index in range(count)]
    given = list(given) if getattr(given, "ndim", 0) == 1 else given
    if not isinstance(given, list | tuple) or len(given) != count:
        got = len(given) if isinstance(given, list | tuple) else type(given).__name__
        raise InputError(f"a video has {count} frames and 'timestamps' {got}; give one per frame")
    seconds = [real(one) for one in given]
    times = [one for one in seconds if one is not None and 0 <= one < math.inf]
    if len(times) != count or times != sorted(times):
        raise InputError("'timestamps' of a video must be seconds from 0 up, in rising order")
    return times


def _from_file(source: Any, files: bool) -> list[tuple[float, Image.Image]]:
    try:
        image, name = open_image(source, files=files)
    except InputError as error:
        raise InputError(
            f"{error} As a video, only animated GIF, WebP and PNG are read; for others pass "
            "'frames'"
        ) from error
    try:
        stored = getattr(image, "n_frames", 1)
        if stored > _MAX_STORED or stored * image.width * image.height > MAX_FRAMES * MAX_PIXELS:
            raise InputError(
                f"{name} has {stored} frames of {image.width}x{image.height}, too much to decode; "
                "pass one frame per second as 'frames'"
            )
        starts, length = _starts(image)
        wanted = _sample(length)
        found: dict[int, Image.Image] = {}
        for second in wanted:
            index = bisect.bisect_right(starts, second) - 1
            if index not in found:
                image.seek(index)
                found[index] = to_rgb(image.copy())
        return [(float(s), found[bisect.bisect_right(starts, s) - 1]) for s in wanted]
    except InputError:
        raise
    except Exception as error:  # damaged files make Pillow's plugins raise almost anything
        raise InputError(f"{name} is damaged or cut short ({error}); save it again") from error


def _starts(image: Image.Image) -> tuple[list[float], float]:
    """When each stored frame begins, and when the last one ends, in seconds."""
    starts, now = [], 0.0
    for frame in ImageSequence.Iterator(image):
        frame.load()  # WebP knows a frame's duration only once it is decoded
        starts.append(now)
        now += (frame.info.get("duration") or 0) / 1000 or _STILL
    return starts, now


def _sample(length: float) -> list[int]:
    """Whole seconds to look at."""
    count = max(1, math.ceil(length))
    if count <= MAX_FRAMES:
        return list(range(count))
    return [math.floor(index * length / MAX_FRAMES) for index in range(MAX_FRAMES)]

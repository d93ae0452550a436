"""Randomness is a function of its place: known answers, independence, uniformity."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.kernels.philox import Purpose, draws, philox, seed_words
from places import CPU, drawn, numbers


def test_philox_gives_the_published_answers() -> None:
    """The known-answer vectors of Random123 for philox4x32-10."""
    ones = 0xFFFFFFFF
    vectors = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, answer in vectors:
        words = philox([torch.tensor(word) for word in counter], key)
        assert tuple(int(word) for word in words) == answer


@given(
    st.integers(-(2**70), 2**70), st.integers(0, 2**32 - 1), st.integers(0, 200), st.integers(1, 70)
)
@settings(max_examples=60, deadline=None)
def test_the_cpu_s_twin_is_philox(seed: int, canvas: int, step: int, width: int) -> None:
    word, expected = 0xFFFFFFFF, []
    for purpose in (Purpose.DRAW, Purpose.NOISE):
        place = [torch.arange(width), *map(torch.tensor, (step, canvas, int(purpose)))]
        first, second, *_ = philox(place, (seed & word, (seed >> 32) & word))
        expected.append(((first >> 5).double() * 2.0**26 + (second >> 6).double()) * 2.0**-53)
        assert torch.equal(numbers(seed, canvas, step, width, purpose), expected[-1])
    uniform_L, noise_L = drawn(seed, canvas, step, width, 1000)
    assert torch.equal(uniform_L, expected[0])
    assert torch.equal(noise_L, (expected[1] * 1000).long())


def test_rows_draw_what_each_draws_alone() -> None:
    seeds, canvases, steps = [3, 2**63 + 5, 3], [0, 2**31, 1], [1, 40, 0]
    rows = (seed_words(seeds, CPU), torch.tensor(canvases), torch.tensor(steps))
    together = draws(*rows, 33, 500)
    for row, place in enumerate(zip(seeds, canvases, steps, strict=True)):
        for one, all_of_them in zip(drawn(*place, 33, 500), together, strict=True):
            assert torch.equal(one, all_of_them[row])


PLACE = st.tuples(
    st.integers(-(2**70), 2**70),
    st.integers(0, 2**31),
    st.integers(0, 200),
    st.sampled_from(Purpose),
)


@given(PLACE, PLACE, st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_a_place_decides_and_no_two_places_agree(one, other, width: int) -> None:
    def at(place):
        seed, canvas, step, purpose = place
        return numbers(seed, canvas, step, width, purpose)

    assert torch.equal(at(one), at(one))
    same = (one[0] % 2**64, *one[1:]) == (other[0] % 2**64, *other[1:])
    assert torch.equal(at(one), at(other)) is same


def test_a_wider_canvas_begins_like_a_narrower_one() -> None:
    wide, narrow = (drawn(5, 1, 3, width, 9)[0] for width in (256, 10))
    assert torch.equal(wide[:10], narrow)


def test_numbers_are_uniform_and_below_one() -> None:
    found = torch.cat([drawn(9, c, 1, 4096, 9)[0] for c in range(16)])
    assert found.min() >= 0 and found.max() < 1
    counts = torch.histc(found.float(), bins=64, min=0, max=1)
    expected = found.numel() / 64
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert 30 < chi_squared < 110  # 63 degrees of freedom: mean 63, deviation 11


def test_noise_comes_from_the_whole_vocabulary() -> None:
    tokens = torch.cat([drawn(1, c, 0, 256, 50)[1] for c in range(20)])
    assert set(tokens.tolist()) == set(range(50))


def test_what_is_drawn_and_what_replaces_it_are_independent() -> None:
    """One stream for both would tie a rejected token's noise to its own sample."""
    uniform_L, noise_L = drawn(1, 0, 2, 256, 50)
    assert float((noise_L == (uniform_L * 50).long()).float().mean()) < 0.1  # 0.02 by chance

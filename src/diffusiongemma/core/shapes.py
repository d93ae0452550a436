"""The legend of shape letters, written once.

A name ending in `_BLD` is a tensor of B rows, L canvas positions and D channels. The test of
conventions checks that every suffix in the maths rooms is made of these letters and that it
agrees with the annotation.
"""

LETTERS: dict[str, str] = {
    "B": "rows of a batch, one request each",
    "C": "keys that one row can see: its context, then its own tokens",
    "D": "width of the residual stream",
    "E": "routed experts of a layer",
    "F": "hidden width of a feed-forward block or of one expert",
    "G": "experts that one token is sent to (top k)",
    "H": "width of one attention head",
    "K": "key and value heads",
    "L": "positions of a canvas",
    "N": "query heads",
    "P": "patches of one image",
    "S": "tokens of all rows packed together, without padding",
    "T": "tokens of a prompt chunk, padded to the longest row",
    "V": "vocabulary",
    "X": "numbers in one image patch: 3 colours times its area",
}

"""DiffusionGemma: one set of weights that reads causally and drafts bidirectionally.

The trunk is run in two ways. `encode` is causal and writes keys and values into a context;
`denoise` refines a canvas over a context that it only reads. Shapes in, shapes out: this file knows
no strings, no requests, no sampling, and chooses no device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.patches import Patches
from diffusiongemma.kernels import readout as reading
from diffusiongemma.kernels.norm_rope import frequencies, rotation
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model import checks, masks, native, read
from diffusiongemma.model.block import Block
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.context import Context, Row
from diffusiongemma.model.layers import Embedding, RMSNorm
from diffusiongemma.model.native import Call, Native
from diffusiongemma.model.passes import Denoise, Encode, Pass
from diffusiongemma.model.selfcond import SelfConditioning
from diffusiongemma.model.trunk import FUSED, NATIVE, Choice, Chooser
from diffusiongemma.model.vision import Vision


@dataclass(frozen=True, slots=True)
class Inputs:
    """Embedded tokens, ready to encode.

    Attributes:
        embedded_BTD: token embeddings and, in their places, the soft tokens of images.
        span_BT: number of the image that a token belongs to within its row, -1 for text.
    """

    embedded_BTD: Float[Tensor, "B T D"]
    span_BT: Int[Tensor, "B T"]

    def cut(self, start: int, stop: int) -> "Inputs":
        """The columns from `start` to `stop`, to encode a prompt in chunks.

        Raises:
            InputError: a border lies inside an image, whose tokens must see each other.
        """
        for border in (start, stop):
            if self.splits(border):
                raise InputError(f"a chunk must not begin or end inside an image, at {border}")
        return replace(
            self,
            embedded_BTD=self.embedded_BTD[:, start:stop],
            span_BT=self.span_BT[:, start:stop],
        )

    @classmethod
    def stack(cls, rows: "Sequence[Inputs]") -> "tuple[Inputs, Int[Tensor, ' B']]":
        """Ragged rows of B = 1 as one padded batch, and their true lengths for `encode`."""
        lengths = [row.span_BT.shape[1] for row in rows]
        longest = max(lengths)
        embedded = [
            F.pad(row.embedded_BTD, (0, 0, 0, longest - row.span_BT.shape[1])) for row in rows
        ]
        spans = [F.pad(row.span_BT, (0, longest - row.span_BT.shape[1]), value=-1) for row in rows]
        return cls(torch.cat(embedded), torch.cat(spans)), torch.tensor(lengths)

    def chunks(self, size: int) -> "Iterator[Inputs]":
        """The prompt in pieces of at most `size` tokens, longer only where an image is longer."""
        start, tokens = 0, self.span_BT.shape[1]
        while start < tokens:
            stop = min(start + size, tokens)
            while stop > start + 1 and self.splits(stop):
                stop -= 1
            if self.splits(stop):  # an image longer than `size` fills the piece: take it whole
                stop = min(start + size, tokens)
                while self.splits(stop):
                    stop += 1
            yield self.cut(start, stop)
            start = stop

    def splits(self, border: int) -> bool:
        """Whether a cut before column `border` would go through an image."""
        if not 0 < border < self.span_BT.shape[1]:
            return False
        before, after = self.span_BT[:, border - 1], self.span_BT[:, border]
        return bool(((before == after) & (after >= 0)).any())


class DiffusionGemma(nn.Module):
    """The network. See the module docstring; weights come from `checkpoint.load`.

    Attributes:
        kernels: `auto` for the fastest there is; `reference` for the layers and ops as they are
            written, on which hooks, replaced methods and replaced modules have a say.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(
            Block(config, layer, number) for number, layer in enumerate(config.layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(
            config.hidden_size, config.intermediate_size, config.rms_norm_eps
        )
        self.vision = None if config.vision is None else Vision(config.vision, config.hidden_size)
        self.kernels = "auto"
        self._chooser = Chooser()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The format of the embedding table, and so of the residual stream."""
        return self.embedding.weight.dtype

    @property
    def choice(self) -> Choice:
        """The table of ops and the trunk for inference, with reasons: kept, until device, format,
        architecture or `kernels` are others.
        """
        return self._chooser(self.config, self.device, self.dtype, self.kernels)

    @property
    def ops(self) -> Ops:
        """The table of ops for inference."""
        return self.choice.ops

    @property
    def running(self) -> Choice:
        """What a call made now runs on: `choice`, or under gradients what autograd can follow."""
        return self._chooser.now(self.config, self.device, self.dtype, self.kernels)

    def context(self, rows: int = 1, capacity: int | None = None) -> Context:
        """An empty context.

        Args:
            rows: B.
            capacity: tokens a row, in storage made at once and written in place; None grows as
                needed and is safe for autograd.
        """
        return Context.empty(self.config, rows, capacity, self.device, self.dtype)

    def embed(self, ids_BT: Int[Tensor, "B T"], images: Sequence[Patches] | None = None) -> Inputs:
        """Embed tokens; image placeholders become the soft tokens of the images, in order.

        Args:
            ids_BT: token ids, padded at the end with any valid id where rows are ragged.
            images: the images of all rows, row by row, in order of appearance.

        Raises:
            InputError: an id is out of range, or placeholders and soft tokens differ in number.
        """
        checks.ids(ids_BT, self.config)
        embedded = self.embedding(ids_BT)
        is_image = torch.zeros_like(ids_BT, dtype=torch.bool)
        if self.config.image_token_id is not None:
            is_image = ids_BT == self.config.image_token_id
        places = int(is_image.sum())
        if images or places:
            soft = self._soft_tokens(images or ())
            if soft.shape[0] != places:
                raise InputError(
                    f"the prompt has {places} image placeholder tokens, but its {len(images or ())}"
                    f" image(s) make {soft.shape[0]} soft tokens; give one image per placeholder "
                    "run, of the same length"
                )
            embedded = embedded.masked_scatter(is_image[..., None], soft.to(embedded.dtype))
        span_BT = torch.full_like(ids_BT, -1)
        if self.config.image_spans_see_themselves:
            span_BT = torch.stack([masks.spans(row) for row in is_image])
        return Inputs(embedded, span_BT)

    def encode(
        self, inputs: Inputs, context: Context, lengths_B: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Read tokens causally and write their keys and values into the context.

        Args:
            inputs: from `embed`; a chunk never ends inside an image.
            context: one row for each row of the inputs.
            lengths_B: true tokens of each row, 0 to T; None means T. The rest is padding, which is
                never computed or written.

        Returns:
            hidden states after the final norm, zeros at padding.

        Raises:
            InputError: shapes do not fit each other.
            ContextError: a row has no room, or an earlier encode of it was interrupted.
        """
        rows, tokens = inputs.span_BT.shape
        lengths = [tokens] * rows if lengths_B is None else checks.whole_numbers(lengths_B)
        checks.encode(lengths, tokens, context)
        spans = [span[:n] for span, n in zip(inputs.span_BT, lengths, strict=True)]
        packed = torch.cat([row[:n] for row, n in zip(inputs.embedded_BTD, lengths, strict=True)])
        choice = self.running
        # Where images may be, all rows take the one way that knows them, with or without images.
        images = self.vision is not None or bool((inputs.span_BT >= 0).any())
        call = self._call(choice, context, packed, images=images or len(packed) < sum(lengths))
        if call is not None:
            hidden_SD = call.encode(packed, lengths)
        elif choice.trunk == FUSED:
            rows_of = zip(context.rows, packed.split(lengths), spans, strict=True)
            hidden_SD = torch.cat([self._read(choice.ops, *one) for one in rows_of])
        else:
            hidden_SD = self._encode(choice.ops, packed, context, spans)
        parts = hidden_SD.split(lengths)
        padded = [
            torch.cat([part, part.new_zeros(tokens - len(part), part.shape[1])]) for part in parts
        ]
        return torch.stack(padded)

    def _encode(
        self, ops: Ops, packed_SD: Tensor, context: Context, spans: Sequence[Tensor]
    ) -> Tensor:
        through = Encode(self.config, context, spans)
        for row, span in zip(context.rows, spans, strict=True):
            row.torn = len(span) > 0  # until every layer has written
        hidden_SD = self.trunk(packed_SD, ops, through)
        through.finish()
        return hidden_SD

    def _read(self, ops: Ops, row: Row, x_SD: Tensor, span: Tensor) -> Tensor:
        """One row by itself, with fused kernels if it is nothing but text."""
        if not len(x_SD):
            return x_SD
        if bool((span >= 0).any()):
            return self._encode(ops, x_SD, Context([row], self.device), [span])
        from diffusiongemma.model import fused

        through, blocks = read.Read(row, len(x_SD), ops), fused.blocks_of(self.blocks)
        padded_SD = through.begin(blocks, x_SD)
        hidden_SD = fused.trunk(self.config, blocks, self.norm, padded_SD, ops, through)
        through.finish()
        return hidden_SD[: len(x_SD)]

    def denoise(
        self,
        canvas_BL: Int[Tensor, "B L"],
        soft_BLD: Float[Tensor, "B L D"] | None,
        context: Context,
    ) -> Float[Tensor, "B L D"]:
        """Refine a canvas bidirectionally over the context, which stays as it is.

        Args:
            canvas_BL: the canvas, noise and all.
            soft_BLD: expected embeddings of the step before; None is exactly all zeros.
            context: one row for each canvas row.

        Returns:
            hidden states after the final norm.

        Raises:
            InputError: shapes do not fit each other, or an id is out of range.
            ContextError: the canvas would pass the longest context.
        """
        checks.ids(canvas_BL, self.config)
        rows, width = canvas_BL.shape
        checks.denoise(canvas_BL, soft_BLD, context, self.config)
        choice = self.running
        soft_SD = None if soft_BLD is None else soft_BLD.flatten(0, 1)
        if choice.gradients:
            return self._denoise(choice.ops, canvas_BL, soft_SD, context).view(rows, width, -1)
        embedded_SD = self.embedding(canvas_BL).flatten(0, 1)
        call = self._call(choice, context, embedded_SD, soft_SD=soft_SD)
        if call is not None:
            hidden_SD = call.denoise(embedded_SD, soft_SD)
        else:
            # A tenth faster on small networks. A clone made outside is a tensor like any other.
            with torch.inference_mode():
                hidden_SD = self._denoise(choice.ops, canvas_BL, soft_SD, context)
            hidden_SD = hidden_SD.clone()
        return hidden_SD.view(rows, width, -1)

    def _call(
        self,
        choice: Choice,
        context: Context,
        x_SD: Tensor,
        *,
        soft_SD: Tensor | None = None,
        images: bool = False,
    ) -> Call | None:
        """The pass as one call of compiled code, where that is chosen and knows what is given."""
        if choice.trunk != NATIVE:
            return None
        known = self._chooser.native
        if known is None or known.config is not self.config:
            parts = (list(self.blocks), self.norm, self.self_conditioning)
            known = self._chooser.native = Native(self.config, *parts)
        return native.call(known, context, x_SD, soft_SD=soft_SD, images=images)

    def _denoise(
        self, ops: Ops, canvas_BL: Tensor, soft_SD: Tensor | None, context: Context
    ) -> Tensor:
        embedded = self.embedding(canvas_BL).flatten(0, 1)
        soft_SD = torch.zeros_like(embedded) if soft_SD is None else soft_SD.to(embedded.dtype)
        x_SD = self.self_conditioning(embedded, soft_SD, ops)
        return self.trunk(x_SD, ops, Denoise(self.config, context, canvas_BL.shape[1]))

    def readout(
        self,
        hidden_BLD: Float[Tensor, "B L D"],
        temperature_B: Float[Tensor, " B"],
        uniform_BL: Float[Tensor, "B L"],
        bias_V: Float[Tensor, " V"] | None = None,
        ask: reading.Ask | None = None,
    ) -> reading.Readout:
        """Everything the process wants to know of the vocabulary; see `kernels.readout`."""
        given, cap = (hidden_BLD, self.embedding.weight), self.config.final_logit_softcapping
        shared = {"cap": cap, "temperature_B": temperature_B, "bias_V": bias_V}
        scale = self.embedding.scale
        usual = self.running.ops.readout(*given, scale=scale, uniform_BL=uniform_BL, **shared)
        if ask is None:
            return usual
        return replace(usual, **reading.second_look(*given, ask, **shared))

    def logits(self, hidden_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L V"]:
        """Softcapped logits, float32: the slow truth behind `readout`."""
        flat = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])
        capped = reading.softcapped(
            flat,
            self.embedding.weight,
            self.config.final_logit_softcapping,
            self.running.ops.linear,
        )
        return capped.view(*hidden_BLD.shape[:-1], -1)

    def soften(
        self,
        logits_BLV: Float[Tensor, "B L V"],
        temperature_B: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """softmax(logits / T) @ E * sqrt(D): the expected embedding, as `denoise` takes it."""
        if temperature_B is not None:
            logits_BLV = logits_BLV / temperature_B[:, None, None]
        probability = logits_BLV.softmax(-1, dtype=torch.float32)
        return reading.expected_embedding(probability, self.embedding.weight, self.embedding.scale)

    def trunk(self, x_SD: Float[Tensor, "S D"], ops: Ops, through: Pass) -> Float[Tensor, "S D"]:
        """Packed embeddings through all layers, and the final norm. Users want the doors above."""
        config, turns = self.config, {}
        for number, block in enumerate(self.blocks):
            layer = config.layers[number]
            kind = (layer.sliding, layer.head_dim)
            if kind not in turns:
                theta = config.rope_theta_sliding if layer.sliding else config.rope_theta_full
                partial = 1.0 if layer.sliding else config.partial_rotary_factor
                pace = frequencies(layer.head_dim, theta, partial, x_SD.device)
                turns[kind] = rotation(through.positions_S, pace)
            x_SD = block(x_SD, ops, turns[kind], through)
        return self.norm(x_SD, ops)

    def _soft_tokens(self, images: Sequence[Patches]) -> Float[Tensor, "S D"]:
        if images and self.vision is None:
            raise InputError(
                f"{len(images)} image(s) were given, but this checkpoint has no vision tower"
            )
        if not images or self.vision is None:
            return torch.zeros(0, self.config.hidden_size, device=self.device, dtype=self.dtype)
        moved = [Patches(*(part.to(self.device) for part in image)) for image in images]
        ops = self.running.ops
        return torch.cat([self.vision(image, ops) for image in moved])

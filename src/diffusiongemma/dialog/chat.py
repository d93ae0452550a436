"""Messages to tokens, and a reply's tokens back to words.

Knows the order of work: check messages, render the checkpoint's own template, encode, put pictures
in their places. Does not know the network that reads the ids. Torch is imported only once a
message holds a picture.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.log import warn_once
from diffusiongemma.dialog import guard as guards
from diffusiongemma.dialog.marks import Marks, Opening
from diffusiongemma.dialog.messages import Media, flatten, plain
from diffusiongemma.dialog.parts import Parts
from diffusiongemma.dialog.reply import Parsed, parse
from diffusiongemma.dialog.settings import ImageSettings
from diffusiongemma.dialog.template import Template, find_template, special_names
from diffusiongemma.dialog.tokenizer import Tokenizer
from diffusiongemma.dialog.tools import check_tools


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialIds:
    """Ids that the checkpoint's config gives a meaning, under Hugging Face's names.

    Attributes:
        image_token_id: the placeholder of one soft token; None: the model takes no images.
        boi_token_id: before the soft tokens of an image.
        eoi_token_id: after them.
        eos_token_id: ids that end a reply, beside the marks that always do.
    """

    image_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads.

    Attributes:
        ids: tokens, with the places of soft tokens already spread out.
        images: one `core.patches.Patches` per image span of `ids`, in order. (`Any` keeps torch
            out of a chat without pictures.)
    """

    ids: list[int]
    images: list[Any] = field(default_factory=list)


class Chat:
    """Renders conversations for one checkpoint.

    Args:
        tokenizer: its tokenizer.
        ids: its special ids.
        template: its chat template, or None.
        tool_template: the one for prompts with tools, where it has one of its own.
        names: special tokens by the names that templates use.
        settings: how images are cut.

    Attributes:
        marks: what begins and ends where in a reply.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        ids: SpecialIds,
        template: Template | None = None,
        *,
        tool_template: Template | None = None,
        names: dict[str, str] | None = None,
        settings: ImageSettings | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.ids = ids
        self.marks = Marks(tokenizer, ids.eos_token_id)
        self.template, self.tool_template = template, tool_template
        self.names = names or {}
        self.settings = settings or ImageSettings()
        self._parts = Parts(lambda turns: self._write(turns, None, False))
        self._known: set[str] = set()

    @classmethod
    def from_folder(
        cls,
        path: Path,
        tokenizer: Tokenizer,
        ids: SpecialIds,
        usual: ImageSettings | None = None,
    ) -> "Chat":
        """Read the template, the names of special tokens and the image settings of a checkpoint.

        Args:
            path: the checkpoint's folder.
            tokenizer: its tokenizer.
            ids: its special ids.
            usual: image settings where the folder's files say nothing.

        Raises:
            CheckpointError: one of these files is broken.
            ConfigError: the image processor is not one that is implemented.
        """
        template = find_template(path)
        if template is None:
            warn_once(
                f"{path} has no chat template, so a prompt is read as plain text: one question, "
                "without tools or thinking; add a chat_template.jinja to the folder"
            )
        return cls(
            tokenizer,
            ids,
            template,
            tool_template=find_template(path, "tool_use"),
            names=special_names(path),
            settings=ImageSettings.from_folder(path, usual),
        )

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        think: bool = False,
        guard: bool = False,
        files: bool = True,
        image_tokens: int | None = None,
    ) -> Prompt:
        """A conversation as the model reads it, up to where its reply begins.

        Args:
            messages: a list of dictionaries of `role` (system, user, assistant or model, tool) and
                `content`: a text, or a list of parts of type text, image (under `image`, `path`,
                `base64` or `url`), image_url and video. Addresses are data: URIs.
            tools: a list of declarations in OpenAI's shape.
            think: ask for a thought before the answer.
            guard: keep control tokens that messages and tools spell from acting: they are read as
                plain letters. False does as the reference does by default: `<turn|>` in a
                message ends its turn.
            files: whether pictures may be given as paths; a server that serves strangers says
                False.
            image_tokens: soft tokens that an image may have, 70 to 1120; the checkpoint's own
                budget if not given. Frames of a video keep theirs.

        Raises:
            InputError: messages, tools or pictures that cannot be taken.
            CheckpointError: the template breaks the sandbox, or goes beyond its limits.
        """
        turns, media = flatten(messages)
        turns = turns if self.template is None else self._parts.fit(turns)
        declared = plain(check_tools(tools), "tools")
        if guard:
            turns = guards.mark(turns, self.tokenizer.control)
            declared = guards.mark(declared, self.tokenizer.control)
        text = self._write(turns, declared, think)
        if think and not self._knows("thinking", text, turns, declared, think):
            raise InputError("this checkpoint's chat template knows no thinking; leave think out")
        if declared and not self._knows("tools", text, turns, declared, think):
            raise InputError("this checkpoint's chat template knows no tools; leave tools out")
        budget = self.settings.max_soft_tokens if image_tokens is None else image_tokens
        shown = [self._look(medium, files, budget) for medium in media]
        pieces = guards.split(text) if guard else [(text, True)]
        ids: list[int] = []
        for piece, special in self._place(pieces, shown):
            ids += self.tokenizer.encode(piece, special=special)
        images = [picture for views in shown for _, picture in views]
        return Prompt(self._spread(ids, images), images)

    def parse(self, ids: Iterable[int], opening: Opening | None = None) -> Parsed:
        """What a reply says: thought, text, tool calls. Read up to the first end token.

        Args:
            ids: its tokens.
            opening: where it begins; `marks.opening` tells that of a prompt's ids.
        """
        return parse(ids, self.marks, opening)

    def _write(self, turns: list[dict[str, Any]], tools: Any, think: bool) -> str:
        if self.template is None:
            return self._without_template(turns, tools, think)
        template = self.tool_template if tools and self.tool_template else self.template
        return template.render(
            {
                **self.names,
                "messages": turns,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": True,
                "enable_thinking": think,
            }
        )

    def _knows(
        self, option: str, text: str, turns: list[dict[str, Any]], tools: Any, think: bool
    ) -> bool:
        """Whether the template ever writes something else for an option that was given.

        It is asked about the plainest conversation, and only then about this one, which may be
        long. What it knows once it knows for good.
        """
        if option in self._known:
            return True
        without = (None, think) if option == "tools" else (tools, False)
        plainest = [{"role": "user", "content": "x"}]
        try:
            known = self._write(plainest, tools, think) != self._write(plainest, *without)
        except InputError:  # a template may want more than that
            known = False
        if known or text != self._write(turns, *without):
            self._known.add(option)
        return option in self._known

    def _without_template(self, turns: list[dict[str, Any]], tools: Any, think: bool) -> str:
        """One question as plain text, for checkpoints that were not taught to chat."""
        roles = [turn["role"] for turn in turns]
        if roles not in (["user"], ["system", "user"]) or tools or think:
            raise InputError(
                "this checkpoint has no chat template, so it takes one user message (and one "
                f"system message before it) without tools or thinking; got roles "
                f"{', '.join(roles)}; add a chat_template.jinja to its folder"
            )
        image = self._image_name() or ""
        texts = [
            turn["content"]
            if isinstance(turn["content"], str)
            else "".join(part.get("text", image) for part in turn["content"])
            for turn in turns
        ]
        bos = self.names.get("bos_token", "<bos>")
        return (bos if self.tokenizer.id(bos) is not None else "") + "\n\n".join(texts)

    def _image_name(self) -> str | None:
        number = self.ids.image_token_id
        return None if number is None else self.tokenizer.token(number)

    def _look(self, medium: Media, files: bool, budget: int) -> list[tuple[str, Any]]:
        """The pictures of one medium, each with the words before it."""
        ids = (self.ids.image_token_id, self.ids.boi_token_id, self.ids.eoi_token_id)
        if None in ids or self._image_name() is None:
            raise InputError(
                f"a message holds {'an image' if medium.kind == 'image' else 'a video'}, and this "
                "checkpoint takes none; leave it out, or load a checkpoint with a vision tower"
            )
        from diffusiongemma.dialog import images, video

        size = {
            "patch_size": self.settings.patch_size,
            "pooling": self.settings.pooling_kernel_size,
        }
        if medium.kind == "image":
            picture = images.load(medium.source, files=files)
            return [("", images.patches(picture, soft_tokens=budget, **size))]
        budget = video.FRAME_SOFT_TOKENS
        return [
            (video.stamp(second) + " ", images.patches(picture, soft_tokens=budget, **size))
            for second, picture in video.frames(medium.source, files=files)
        ]

    def _place(
        self, pieces: list[tuple[str, bool]], shown: list[list[tuple[str, Any]]]
    ) -> Iterator[tuple[str, bool]]:
        """Pieces of text in which a video's one placeholder has become its timed frames.

        Done on text, before encoding, so that words and times meet the tokenizer together.
        """
        name = self._image_name()
        count = sum(text.count(name) for text, special in pieces if special) if name else 0
        if count != len(shown):
            raise InputError(
                f"the rendered prompt has places for {count} images and the messages hold "
                f"{len(shown)}; put images where the chat template takes them, and do not write "
                f"'{name}' in a text"
            )
        views = iter(shown)
        for text, special in pieces:
            if name and special:
                head, *tails = text.split(name)
                text = head + "".join(
                    " ".join(words + name for words, _ in next(views)) + tail for tail in tails
                )
            yield text, special

    def _spread(self, ids: list[int], images: list[Any]) -> list[int]:
        """Each placeholder becomes begin, one placeholder per soft token, end."""
        if not images:
            return ids
        mark, begin, end = self.ids.image_token_id, self.ids.boi_token_id, self.ids.eoi_token_id
        assert mark is not None and begin is not None and end is not None
        assert ids.count(mark) == len(images)
        area = self.settings.pooling_kernel_size**2
        pictures, spread = iter(images), list[int]()
        for number in ids:
            if number == mark:
                count = len(next(pictures).positions_P2) // area
                spread += [begin, *[mark] * count, end]
            else:
                spread.append(number)
        return spread

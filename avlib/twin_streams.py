"""The ends of the twin decoder: from words to their context, from codes to tokens and back."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from avlib.checks import check_codes
from avlib.layer import Layer
from avlib.masks import Visibility
from avlib.tokens import FactorisedPositions

PADDING = 0  # the word that is none
_TEXT = Visibility({"text": ["text"]})


class TextEncoder(nn.Module):
    """Words that all read each other, `PADDING` excepted.

    Args:
        words: size of the vocabulary, padding included.
        longest: words of a text at most.
        dim, depth, heads, dim_head, ff_mult, dropout: see `Zorro`.
    """

    def __init__(
        self,
        words: int,
        longest: int,
        dim: int,
        depth: int,
        *,
        heads: int,
        dim_head: int,
        ff_mult: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.words, self.longest = words, longest
        self.embedding = nn.Embedding(words, dim)
        self.positions = FactorisedPositions(dim, {"max_words": longest})
        self.layers: Any = nn.ModuleList(
            Layer(dim, heads=heads, dim_head=dim_head, ff_mult=ff_mult, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, bias=False)

    def forward(
        self, text: Int[Tensor, "b words"]
    ) -> tuple[Float[Tensor, "b _n d"], Bool[Tensor, "b _n"]]:
        """The words in context, and which of them are real.

        Raises:
            TypeError, ValueError: no whole numbers, no such word, or too many.
        """
        text = self.checked(text)
        real = text != PADDING
        streams = {"text": self.embedding(text) + self.positions(text.shape[1])}
        for layer in self.layers:
            streams = layer(streams, _TEXT, {"text": real})
        return self.norm(streams["text"]), real

    def checked(self, text: Int[Tensor, "b words"]) -> Int[Tensor, "b _n"]:
        """The text as int64, refused as by `forward`. No word at all becomes one of padding."""
        text = check_codes("text", text, ("batch", "words"), self.words, empty=True)
        if text.shape[1] > self.longest:
            raise ValueError(
                f"TwinDecoder: text has {text.shape[1]} words, the model has positions for "
                f"{self.longest}; give fewer, or make it with a larger max_words"
            )
        return text if text.shape[1] else text.new_full((len(text), 1), PADDING)


class Tower(nn.Module):
    """From the codes of frames to the tokens of a tower, and from its tokens to what comes next.

    Args:
        name: of the tower.
        codes: size of its codebook.
        grid: of a frame: (steps, rows, columns).
        frames: at most.
        dim: features of a token.

    Attributes:
        places: tokens of a frame: its start token and its codes.
    """

    def __init__(
        self, name: str, codes: int, grid: tuple[int, int, int], frames: int, dim: int
    ) -> None:
        super().__init__()
        self.name, self.codes, self.grid = name, codes, grid
        self.places = 1 + grid[0] * grid[1] * grid[2]
        self.embedding = nn.Embedding(codes, dim)
        self.start = nn.Parameter(torch.randn(dim))
        limits = {"max_frames": frames * grid[0], "rows": grid[1], "columns": grid[2]}
        self.positions = FactorisedPositions(dim, limits)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.to_logits = nn.Linear(dim, codes, bias=False)

    def where(self, frames: int) -> Float[Tensor, "t places d"]:
        """The position of each place; what a start token is made of is in its own."""
        steps, *rest = self.grid
        inside = self.positions(frames * steps, *rest).unflatten(0, (frames, -1))
        starts = self.start + self.positions.tables["max_frames"][: frames * steps : steps]
        return torch.cat([starts[:, None], inside], 1)

    def forward(self, codes: Int[Tensor, "b t n"]) -> Float[Tensor, "b tp d"]:
        """The tokens of the first frames, frame by frame."""
        return self.placed(codes, self.where(codes.shape[1]))

    def placed(
        self, codes: Int[Tensor, "b t n"], where: Float[Tensor, "t places d"]
    ) -> Float[Tensor, "b tp d"]:
        """The tokens of some frames, from the positions of their places."""
        starts = where[:, :1].expand(len(codes), -1, -1, -1)
        return torch.cat([starts, self.embedding(codes) + where[:, 1:]], 2).flatten(1, 2)

    def logits(self, tokens: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n codes"]:
        """What comes after each token."""
        return self.to_logits(self.norm(tokens))

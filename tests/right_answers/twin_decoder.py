"""Other right answers to the exercises of notebook 08."""

import math

import numpy as np
import torch
from einops import repeat

from avlib.course import twin_decoder


def who_reads_whom__blocks(frames, film, sound):
    reads = torch.ones(frames, frames).tril().bool()
    earlier = torch.ones(frames, frames).tril(-1).bool()
    return (
        reads.repeat_interleave(sound, 0).repeat_interleave(film, 1),
        earlier.repeat_interleave(film, 0).repeat_interleave(sound, 1),
    )


def who_reads_whom__slices(frames, film, sound):
    one = torch.zeros(frames * sound, frames * film, dtype=torch.bool)
    other = torch.zeros(frames * film, frames * sound, dtype=torch.bool)
    for t in range(frames):
        one[t * sound : (t + 1) * sound, : (t + 1) * film] = True
        other[t * film : (t + 1) * film, : t * sound] = True
    return one, other


def who_reads_whom__einops(frames, film, sound):
    i, j = torch.meshgrid(torch.arange(frames), torch.arange(frames), indexing="ij")
    return [
        repeat(j <= i, "i j -> (i s) (j f)", s=sound, f=film),
        repeat(j < i, "i j -> (i f) (j s)", s=sound, f=film),
    ]


def who_reads_whom__numpy(frames, film, sound):
    full = np.tril(np.ones((frames, frames), dtype=bool))
    strict = np.tril(full, -1)
    return np.kron(full, np.ones((sound, film), dtype=bool)), np.kron(
        strict, np.ones((film, sound), dtype=bool)
    )


def tempered__masked(logits, temperature, top_k):
    least = logits.sort(descending=True).values[top_k - 1]
    return torch.softmax((logits / temperature).masked_fill(logits < least, -torch.inf), -1)


def tempered__renormalised(logits, temperature, top_k):
    likely = (logits.double() / temperature).softmax(0)
    likely[likely.argsort()[: len(likely) - top_k]] = 0
    return likely / likely.sum()


def tempered__plain_python(logits, temperature, top_k):
    values = [value / temperature for value in logits.tolist()]
    best = sorted(values, reverse=True)[:top_k]
    weights = [math.exp(value - best[0]) if value in best else 0.0 for value in values]
    return torch.tensor([weight / sum(weights) for weight in weights])


def impact_score__loop(written, wanted):
    right = [
        said == meant
        for clip, clip_wanted in zip(written, wanted, strict=True)
        for said, meant in zip(clip, clip_wanted, strict=True)
        if meant
    ]
    return sum(right) / len(right)


def impact_score__masks(written, wanted):
    return ((written == wanted) & (wanted > 0)).sum() / (wanted > 0).sum()


def impact_score__weights(written, wanted):
    weight = wanted.bool().double()
    return float((weight * written.eq(wanted)).sum() / weight.sum())


def silence_it__list():
    return [twin_decoder.IMPACT, 0, 1, 0]


def silence_it__search():
    return (twin_decoder.every_change() > 0.9).nonzero()[0]


def silence_it__by_asking():
    _, film, _ = twin_decoder.scene()
    for frame, row, column in (film[0, : twin_decoder.IMPACT + 1] > 0).nonzero().tolist():
        changed = film.clone()
        changed[0, frame, row, column] = 0
        if twin_decoder.silence(changed) > 0.9:
            return frame, row, column, 0
    return None


def dub__by_the_next_move(film, moves):
    where = [picture.nonzero()[0] for picture in film]
    going, sounds = torch.tensor(moves), []
    for place, picture in zip(where, film, strict=True):
        ahead = place + going
        hit = (ahead < 0) | (ahead > 3)
        sounds.append(picture.sum() * hit.any())
        going = torch.where(hit, -going, going)
    return torch.stack(sounds)


def dub__indices(film, moves):
    frames, rows, columns = film.nonzero(as_tuple=True)
    codes = film[frames, rows, columns]
    hit = torch.zeros(len(film), dtype=torch.bool)
    for place, move in ((rows, moves[0]), (columns, moves[1])):
        if move:
            at = (place == 0) | (place == 3)
            at[0] = place[0] == (3 if move > 0 else 0)
            hit |= at
    return codes * hit


def dub__numpy(film, moves):
    film = film.numpy()
    out = np.zeros(len(film), dtype=np.int64)
    for t in range(len(film)):
        (y,), (x,) = np.nonzero(film[t])
        ends = {(-1, 0), (1, 3)} if t == 0 else {(m, p) for m in (-1, 1) for p in (0, 3)}
        out[t] = film[t, y, x] * ((moves[0], y) in ends or (moves[1], x) in ends)
    return out

"""Solutions to notebook 08. A teacher may delete this folder: nothing needs it but its tests."""

import torch


def who_reads_whom(frames, film, sound):
    film_at = torch.arange(frames * film) // film
    sound_at = torch.arange(frames * sound) // sound
    return film_at <= sound_at[:, None], sound_at < film_at[:, None]


def tempered(logits, temperature, top_k):
    kept = logits.topk(top_k).indices
    left = torch.full_like(logits, -torch.inf)
    left[kept] = logits[kept] / temperature
    return left.softmax(0)


def impact_score(written, wanted):
    hit = wanted != 0
    return (written[hit] == wanted[hit]).float().mean()


def silence_it():
    # Erase the square where it stands at the wall: (changes > 0.9).nonzero()
    return 2, 0, 1, 0


def dub(film, moves):
    sounds = []
    for frame, picture in enumerate(film):
        row, column = picture.nonzero()[0].tolist()
        hit = False
        for place, move in ((row, moves[0]), (column, moves[1])):
            if move != 0 and place in (0, 3):
                wall = -1 if place == 0 else 1
                hit = hit or frame > 0 or move == wall
        sounds.append(int(picture.max()) if hit else 0)
    return torch.tensor(sounds)

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A video, its tokens, and what they say
#
# `builtin:world` is a small tokenizer that comes with the package. This notebook encodes a video
# with it, decodes the tokens, looks at the four levels, and asks the tokens what is shown. It
# takes about a minute on two cores. `pip install -e '.[demo]'` has everything that it needs but
# Jupyter.

# %%
import matplotlib.pyplot as plt
import numpy as np

import pyratok_jax as pt
from pyratok_jax.data.world.films import world_film

plt.rcParams["figure.dpi"] = 60
tokenizer = pt.load_tokenizer("builtin:world")

# %% [markdown]
# ## Encode and decode
#
# A video is uint8 `(t, h, w, 3)`. This one is drawn: a held-out video of the [world](proof.md),
# whose pair of colour and shape no training video shows.

# %%
film = next(
    film
    for film in (world_film("world-heldout", number) for number in range(200))
    if film.scene.kind == "combination" and len(film.scene.things) == 1
)
video = film.draw(9, 64, 64)
print(film.caption)

encoded = tokenizer.encode(video)
for number, (ids, (dt, ds)) in enumerate(zip(encoded.ids, tokenizer.config.grids, strict=True), 1):
    print(f"level {number}: {ids.shape} tokens, one per {dt} frames and {ds} x {ds} pixels")
print(f"{encoded.tokens} tokens, {encoded.bits_per_pixel:.2f} bits per pixel")

# %%
decoded = tokenizer.decode(encoded)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def strips(rows, names):
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 1.2 * len(rows)), layout="constrained")
    for axis, frames, name in zip(np.atleast_1d(axes), rows, names, strict=True):
        axis.imshow(np.concatenate(list(frames), axis=1))
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
    plt.show()


print(f"{psnr(decoded, video):.1f} dB")
strips([video, decoded], ["video", "decoded"])

# %% [markdown]
# ## Level by level
#
# `decode_first` rebuilds a video from the first levels alone. The first level names things; the
# others are trained to rebuild.

# %%
levels = len(encoded.ids)
builds = [tokenizer.decode_first(encoded, count) for count in range(1, levels + 1)]
for count, rebuilt in enumerate(builds, 1):
    print(f"levels 1 to {count}: {psnr(rebuilt, video):.1f} dB")
strips([video, *builds], ["video", *(f"1 to {n}" for n in range(1, levels + 1))])

# %% [markdown]
# ## Ask with text
#
# Every code has a vector in the space of captions. The best place of a phrase, over time and
# space, says how much of it is there; `python -m pyratok_jax.ask` does the same for a file, with
# masks and moments. Here eight held-out videos are asked which of eight things they show. A guess
# is right for one; three in five are right over many videos.

# %%
films = {}
for number in range(400):
    other = world_film("world-heldout", number)
    if other.scene.kind == "combination" and len(other.scene.things) == 1:
        films.setdefault(other.scene.things[0].name, other)
names = list(films)[:8]
videos = np.stack([films[name].draw(9, 64, 64) for name in names])
phrases = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
queries = tokenizer.text_features([f"A video of {phrase}." for phrase in phrases])
first = tokenizer.code_embeddings(tokenizer.encode(videos).ids)[0]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


heat = unit(np.asarray(first)) @ unit(np.asarray(queries)).T
best = heat.max(axis=(1, 2, 3)).argmax(axis=1)
for number, phrase in enumerate(phrases):
    said = "right" if best[number] == number else f"taken for {phrases[best[number]]}"
    print(f"{phrase}: {said}")
print(f"{np.mean(best == np.arange(len(names))):.0%} right, chance {1 / len(names):.0%}")

# %%
figure, axes = plt.subplots(1, len(phrases) + 1, figsize=(13, 1.9), layout="constrained")
axes[0].imshow(videos[0, 4])
pictures = np.moveaxis(heat[0, 1], -1, 0)
for axis, phrase, picture in zip(axes[1:], phrases, pictures, strict=True):
    axis.imshow(picture, cmap="magma")
    axis.set_title(phrase, fontsize=7)
for axis in axes:
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## Generate
#
# A prior draws tokens from text. None is shipped yet: none has been trained long enough to draw
# what it is asked for. With one of your own (see [generation](generation.md)):
#
# ```python
# generator = pt.load_generator("runs/generator")
# (clip,) = generator.generate("a red circle moves left", seed=0)
# video = generator.decode(clip)
# ```

"""The words of the world: what exists, what it does, how it is said, and what is held out.

Three things are never seen in training: `unseen_combination` pairs of colour and shape (each colour
and each shape occurs in other pairs), the shapes in `UNSEEN_SHAPES`, and the phrasings in
`UNSEEN_VERBS` and `UNSEEN_SENTENCES`.
"""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 225), "yellow": (235, 215, 50),
    "orange": (240, 135, 25), "purple": (140, 50, 180), "pink": (245, 135, 190),
    "turquoise": (45, 200, 205),
}  # fmt: skip
SEEN_SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
UNSEEN_SHAPES = ("hexagon", "crescent")
SHAPES = SEEN_SHAPES + UNSEEN_SHAPES
# Radii as shares of the picture's shorter side.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.10, 0.13),
    "medium": (0.15, 0.18),
    "large": (0.20, 0.25),
}
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("gradient", "noise", "checks", "stripes")

# Third person singular, plural.
VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (("moves to the left", "move to the left"), ("drifts left", "drift left")),
    "right": (("moves to the right", "move to the right"), ("drifts right", "drift right")),
    "up": (("moves up", "move up"), ("rises", "rise")),
    "down": (("moves down", "move down"), ("sinks", "sink")),
    "still": (("stays still", "stay still"), ("does not move", "do not move")),
    "growing": (("grows", "grow"), ("gets bigger", "get bigger")),
    "shrinking": (("shrinks", "shrink"), ("gets smaller", "get smaller")),
    "spinning": (("spins", "spin"), ("turns around", "turn around")),
    "blinking": (("blinks", "blink"), ("flashes on and off", "flash on and off")),
    "bouncing": (("bounces", "bounce"), ("hops up and down", "hop up and down")),
}
UNSEEN_VERBS: dict[str, tuple[str, str]] = {
    "left": ("travels leftwards", "travel leftwards"),
    "right": ("travels rightwards", "travel rightwards"),
    "up": ("climbs", "climb"),
    "down": ("falls", "fall"),
    "still": ("rests", "rest"),
    "growing": ("becomes larger", "become larger"),
    "shrinking": ("becomes tiny", "become tiny"),
    "spinning": ("rotates", "rotate"),
    "blinking": ("flickers", "flicker"),
    "bouncing": ("jumps", "jump"),
}
MOTIONS = tuple(VERBS)
SENTENCES = ("{}.", "A video in which {}.", "In this video, {}.", "We see that {}.")
UNSEEN_SENTENCES = ("The camera shows {}.", "Here is a short scene in which {}.")
NUMBERS = {1: "one", 2: "two", 3: "three"}


def unseen_combination(colour: str, shape: str) -> bool:
    """Whether a colour and a shape that both occur in training never occur together there."""
    if shape in UNSEEN_SHAPES:
        return False
    return (list(COLOURS).index(colour) + 3 * SEEN_SHAPES.index(shape)) % 5 == 0


def seen_names() -> list[str]:
    """Names ("red circle") of all pairs that training shows."""
    return [f"{c} {s}" for c in COLOURS for s in SEEN_SHAPES if not unseen_combination(c, s)]


def unseen_names() -> list[str]:
    """Names of the held-out pairs of a seen colour and a seen shape."""
    return [f"{c} {s}" for c in COLOURS for s in SEEN_SHAPES if unseen_combination(c, s)]

"""The words of the pond's captions: every table entry lists the ways to say one thing, the canonical one first.

All text that a caption can hold stands here, so the tokenizer's vocabulary is the set of these words. Templates name
their parts in braces; captions.py chooses and joins. Each word of an entry is lower case, without hyphens.
"""

from __future__ import annotations

Ways = tuple[str, ...]

KINDS: dict[str, Ways] = {
    "ball": ("ball", "sphere", "round ball"),
    "box": ("box", "cube", "square", "block"),
    "star": ("star", "pointed star"),
    "ring": ("ring", "hoop"),
    "triangle": ("triangle", "wedge"),
    "heart": ("heart", "heart shape"),
    "frog": ("frog", "toad"),
    "bird": ("bird", "songbird"),
    "fish": ("fish",),
    "car": ("car", "automobile", "auto", "vehicle"),
}

COLOURS: dict[str, Ways] = {
    "red": ("red", "crimson", "bright red", "scarlet"),
    "orange": ("orange", "bright orange", "tangerine"),
    "yellow": ("yellow", "golden", "lemon yellow"),
    "green": ("green", "emerald", "dark green"),
    "blue": ("blue", "cobalt", "deep blue", "royal blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy", "light pink"),
    "brown": ("brown", "chestnut", "dark brown"),
    "white": ("white", "snowy", "ivory"),
    "black": ("black", "ebony", "jet black"),
}

SIZES: dict[str, Ways] = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}

STILTS: Ways = ("on stilts", "standing on stilts", "with stilts")

# (one does it, two do it)
MOTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (
        ("moves left", "move left"),
        ("moves to the left", "move to the left"),
        ("goes left", "go left"),
        ("goes to the left", "go to the left"),
        ("drifts left", "drift left"),
        ("travels to the left", "travel to the left"),
        ("heads left", "head left"),
        ("slides to the left", "slide to the left"),
    ),
    "right": (
        ("moves right", "move right"),
        ("moves to the right", "move to the right"),
        ("goes right", "go right"),
        ("goes to the right", "go to the right"),
        ("drifts right", "drift right"),
        ("travels to the right", "travel to the right"),
        ("heads right", "head right"),
        ("slides to the right", "slide to the right"),
    ),
    "up": (
        ("moves up", "move up"),
        ("goes up", "go up"),
        ("rises", "rise"),
        ("drifts upward", "drift upward"),
        ("floats up", "float up"),
    ),
    "down": (
        ("moves down", "move down"),
        ("goes down", "go down"),
        ("sinks", "sink"),
        ("drifts downward", "drift downward"),
        ("floats down", "float down"),
    ),
    "bounces": (
        ("bounces", "bounce"),
        ("bounces up and down", "bounce up and down"),
        ("is bouncing", "are bouncing"),
        ("keeps bouncing", "keep bouncing"),
        ("drops and bounces", "drop and bounce"),
    ),
    "jumps": (
        ("jumps", "jump"),
        ("hops", "hop"),
        ("leaps", "leap"),
        ("is jumping", "are jumping"),
        ("is hopping", "are hopping"),
    ),
    "orbits": (
        ("moves in a circle", "move in a circle"),
        ("circles around", "circle around"),
        ("goes in circles", "go in circles"),
        ("goes around in a circle", "go around in a circle"),
        ("orbits", "orbit"),
    ),
    "spins": (
        ("spins", "spin"),
        ("rotates", "rotate"),
        ("turns around", "turn around"),
        ("twirls", "twirl"),
        ("is spinning", "are spinning"),
        ("spins in place", "spin in place"),
    ),
    "grows": (
        ("grows", "grow"),
        ("gets bigger", "get bigger"),
        ("grows larger", "grow larger"),
        ("expands", "expand"),
        ("is growing", "are growing"),
    ),
    "shrinks": (
        ("shrinks", "shrink"),
        ("gets smaller", "get smaller"),
        ("becomes smaller", "become smaller"),
        ("is shrinking", "are shrinking"),
    ),
    "flies": (
        ("takes flight", "take flight"),
        ("takes off", "take off"),
        ("flies up", "fly up"),
        ("flies away", "fly away"),
        ("lifts off", "lift off"),
    ),
    "swims": (
        ("swims", "swim"),
        ("is swimming", "are swimming"),
        ("swims along", "swim along"),
        ("paddles along", "paddle along"),
    ),
}

# Which way, for motions that have a side besides their name: by actor.heading.
SIDEWAYS: dict[int, Ways] = {
    1: ("to the right", "toward the right", "rightward"),
    -1: ("to the left", "toward the left", "leftward"),
}
TURNING: dict[int, Ways] = {
    1: ("clockwise",),
    -1: ("counterclockwise", "anticlockwise"),
}
HEADINGS: dict[str, dict[int, Ways]] = {
    "jumps": SIDEWAYS,
    "flies": SIDEWAYS,
    "swims": SIDEWAYS,
    "spins": TURNING,
    "orbits": TURNING,
}

# Where it happens, by background and by how the actor stands to it: on, over or in.
PLACES: dict[str, dict[str, Ways]] = {
    "sky": {
        "on": ("in the sky", "in the blue sky", "up in the sky", "in front of the sky"),
    },
    "pond": {
        "on": ("on the pond", "on the water", "at the pond"),
        "over": ("over the pond", "above the pond", "over the water", "above the water"),
        "in": ("in the pond", "in the water", "through the pond", "through the water"),
    },
    "meadow": {
        "on": ("on the grass", "in the meadow", "on the meadow", "on the green grass", "on the lawn"),
        "over": ("over the grass", "over the meadow", "above the grass", "in the meadow"),
    },
    "night": {
        "on": ("in the night sky", "at night", "in the dark sky", "under the stars", "in the starry night"),
    },
    "sand": {
        "on": ("on the sand", "on the beach", "at the beach", "in the desert"),
        "over": ("over the sand", "over the beach", "above the sand", "in the desert"),
    },
    "plain": {
        "on": (
            "on a plain background",
            "on a gray background",
            "against a plain background",
            "in front of a grey background",
        ),
    },
}
OVER = ("up", "down", "orbits", "flies", "swims")  # motions that are over the ground rather than on it
OVER_WATER = (*OVER, "left", "right", "jumps", "spins", "grows", "shrinks")

SCENERY: dict[str, Ways] = {
    "sky": ("with white clouds", "with clouds", "with a few clouds"),
    "pond": ("with lily pads", "with lily pads and reeds", "with floating leaves"),
    "meadow": ("with flowers", "with pale flowers", "with distant hills"),
    "night": ("with stars and a moon", "with a bright moon", "with a shining moon"),
    "sand": ("with pebbles", "with scattered stones", "with dunes"),
    "plain": ("with pale dots", "with a row of dots", "with a plank floor"),
}

START: dict[str, Ways] = {
    "left": ("starting on the left", "starting at the left", "beginning on the left side"),
    "middle": ("starting in the middle", "starting in the center", "beginning in the centre"),
    "right": ("starting on the right", "starting at the right", "beginning on the right side"),
}

ONE_MOVING: Ways = ("{a} {va} {place}",)
ONE_STILL: Ways = ("{a} {place}", "a picture of {a} {place}", "an image of {a} {place}", "a still of {a} {place}")
TWO_ALIKE: Ways = ("{a} and {b} {both} {place}", "{a} and {b} both {both} {place}")
TWO_MOVING: Ways = ("{a} {va} and {b} {vb} {place}", "{a} {va} {place} and {b} {vb}", "{a} {va} {place} as {b} {vb}")
TWO_STILL: Ways = ("{a} and {b} {place}", "{a} with {b} {place}", "{a} next to {b} {place}")

# By relation; {going} is the first actor's "moves left and", or nothing.
RELATIONS: dict[str, Ways] = {
    "follows": (
        "{a} {going} follows {b} that {vb} {place}",
        "{a} {going} goes after {b} that {vb} {place}",
        "{a} {going} chases {b} that {vb} {place}",
        "{a} {going} follows behind {b} that {vb} {place}",
    ),
    "left of": (
        "{a} {va} {place} to the left of {b} that {vb}",
        "{a} {va} {place} on the left of {b} that {vb}",
        "{a} {va} {place} left of {b} that {vb}",
        "{a} {va} {place} beside and to the left of {b} that {vb}",
    ),
    "passes behind": (
        "{a} {going} passes behind {b} that {vb} {place}",
        "{a} {going} goes behind {b} that {vb} {place}",
        "{a} {going} disappears behind {b} that {vb} {place}",
        "{a} {going} moves behind {b} that {vb} {place}",
    ),
}
STILL_RELATIONS: dict[str, Ways] = {
    "left of": (
        "{a} to the left of {b} {place}",
        "{a} on the left of {b} {place}",
        "{a} left of {b} {place}",
        "a picture of {a} to the left of {b} {place}",
    )
}
GOING = "{va} and"

# After what one moving actor does; after anything else.
WALLS: dict[str, Ways] = {
    "hides": (
        "and passes behind a wall",
        "and goes behind a wall",
        "and disappears behind a brick wall",
        "and is hidden by a wall for a while",
        "behind a wall",
    ),
    "stops": (
        "until a wall stops it",
        "and stops at a wall",
        "and runs into a wall",
        "and bumps into a brick wall",
        "but a wall stops it",
    ),
}
WALLS_BESIDE: dict[str, Ways] = {
    "hides": ("with a wall in front", "and a wall stands in front"),
    "stops": ("with a wall", "next to a wall", "beside a wall"),
}
CAMERAS: dict[str, Ways] = {
    "still": ("the camera is still", "the camera stays still", "the camera does not move", "the view is still"),
    "pan left": ("the camera pans left", "the camera pans to the left", "the camera moves left", "the view pans left"),
    "pan right": (
        "the camera pans right",
        "the camera pans to the right",
        "the camera moves right",
        "the view pans right",
    ),
    "zoom in": ("the camera zooms in", "the camera moves closer", "the view zooms in", "the camera comes closer"),
    "zoom out": ("the camera zooms out", "the camera moves back", "the view zooms out", "the camera moves away"),
}
JOINS: Ways = (" while ", " as ", ", and ", ". ")  # between what happens and what the camera does
ARTICLES = ("a", "an")

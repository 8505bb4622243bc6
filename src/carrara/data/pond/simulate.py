"""A scene and a clock to its truth: tracks, camera, walls, boxes, visibility and events."""

from __future__ import annotations

import math

import numpy as np

from carrara.data.pond.motions import Track, move, stop_time
from carrara.data.pond.shapes import outline, shape_name
from carrara.data.pond.world import FLOOR, NOMINAL_SECONDS, PAN, WALL_TOP, ZOOM, Actor, Event, Floats, Scene, Truth

ZOOM_CENTRE = 0.08  # y of the world point that a zoom is about
HIDDEN = 0.02  # at most this fraction seen counts as hidden


def clock(scene: Scene, frames: int, fps: float) -> Floats:
    """The times of the frames, seconds."""
    if frames < 1 or not fps > 0:
        raise ValueError(f"frames={frames}, fps={fps}: both must be above 0")
    return scene.start + (np.zeros(frames) if scene.still else np.arange(frames) / fps)


def camera_path(name: str, times: Floats) -> Floats:
    """`t 3`: the world point in the middle of the frame, and the zoom. It rests after the nominal clip."""
    part = np.clip(times / NOMINAL_SECONDS, 0, 1)
    path = np.zeros((len(times), 3))
    path[:, 2] = 1.0
    if name in ("pan left", "pan right"):
        path[:, 0] = PAN * (part - 0.5) * (1 if name == "pan right" else -1)
    elif name in ("zoom in", "zoom out"):
        path[:, 1] = ZOOM_CENTRE
        path[:, 2] = ZOOM ** (part if name == "zoom in" else 1 - part)
        path[:, 1] *= 1 - 1 / path[:, 2]  # the fixed point of the picture
    return path


def body_points(points: Floats, track: Track, actor: Actor) -> Floats:
    """Local points `p 2` of an actor to the world, `t p 2`."""
    local = points[None] * (track.squash * track.scale[:, None] * actor.radius)[:, None]
    x, y = local[..., 0] * track.heading[:, None], local[..., 1]
    c, s = np.cos(track.angle)[:, None], np.sin(track.angle)[:, None]
    return np.stack([c * x - s * y + track.x[:, None], s * x + c * y + track.y[:, None]], axis=-1)


def covered(points: Floats, track: Track, actor: Actor) -> np.ndarray:
    """Which world points `t p 2` an actor covers, `t p`: those whose nearest sample of its inside is close."""
    inside = outline(shape_name(actor.kind, actor.stilts))
    x, y = points[..., 0] - track.x[:, None], points[..., 1] - track.y[:, None]
    c, s = np.cos(track.angle)[:, None], np.sin(track.angle)[:, None]
    size = (track.squash * track.scale[:, None] * actor.radius)[:, None]
    lx, ly = (c * x + s * y) * track.heading[:, None] / size[..., 0], (c * y - s * x) / size[..., 1]
    return inside.contains(lx, ly)


def boxes_of(scene: Scene, tracks: list[Track], camera: Floats) -> Floats:
    """The actors' boxes on the screen, `a t 4`: left, top, right, bottom."""
    boxes = []
    for actor, track in zip(scene.actors, tracks):
        hull = body_points(outline(shape_name(actor.kind, actor.stilts)).hull, track, actor)
        hull = (hull - camera[:, None, :2]) * camera[:, None, 2:]
        boxes.append(np.concatenate([hull.min(axis=1), hull.max(axis=1)], axis=1))
    return np.stack(boxes)


def visible(scene: Scene, tracks: list[Track], boxes: Floats, camera: Floats, aspect: float) -> Floats:
    """The fraction of each actor's area that can be seen, `a t`."""
    half = np.array([max(aspect, 1.0), max(1 / aspect, 1.0)]) / 2
    result = np.ones(boxes.shape[:2])
    for index, (actor, track, box) in enumerate(zip(scene.actors, tracks, boxes)):
        crossed = [
            other
            for other in range(index + 1, len(boxes))
            if ((box[:, :2] < boxes[other][:, 2:]) & (boxes[other][:, :2] < box[:, 2:])).all(axis=1).any()
        ]
        if scene.wall != "hides" and not crossed and (box[:, :2] >= -half).all() and (box[:, 2:] <= half).all():
            continue
        points = body_points(outline(shape_name(actor.kind, actor.stilts)).points, track, actor)
        screen = (points - camera[:, None, :2]) * camera[:, None, 2:]
        seen = (np.abs(screen) <= half).all(axis=-1)
        if scene.wall == "hides":
            behind = np.abs(points[..., 0] - scene.wall_x) <= scene.wall_width / 2
            seen &= ~(behind & (points[..., 1] >= WALL_TOP) & (points[..., 1] <= FLOOR))
        for other in crossed:
            seen &= ~covered(points, tracks[other], scene.actors[other])
        result[index] = seen.mean(axis=1)
    return result


def tracks_of(scene: Scene, times: Floats) -> list[Track]:
    """Every actor's track; an actor that a wall stops stays as it was at that moment."""
    tracks = []
    for actor in scene.actors:
        stop = stop_time(actor, scene.wall_x, scene.wall_width) if scene.wall == "stops" else None
        track = move(actor, times if stop is None else np.minimum(times, stop))
        if stop is not None:
            track.contact = track.contact | (times >= stop)
            track.events.append(("stopped", stop))
        tracks.append(track)
    return tracks


def hiding(scene: Scene, times: Floats, aspect: float) -> list[Event]:
    """When actors vanish behind something or out of the frame, and come back; found on a fine clock."""
    fine = np.arange(times[0], times[-1] + 1 / 120, 1 / 60)
    tracks, camera = tracks_of(scene, fine), camera_path(scene.camera, fine)
    hidden = visible(scene, tracks, boxes_of(scene, tracks, camera), camera, aspect) <= HIDDEN
    return [
        Event("hidden" if row[at] else "reappears", float(fine[at]), index)
        for index, row in enumerate(hidden)
        for at in np.flatnonzero(row[1:] != row[:-1]) + 1
    ]


def simulate(scene: Scene, frames: int = 17, fps: float = 8.0, aspect: float = 1.0) -> Truth:
    """What truly happens in a clip of `frames` at `fps`; aspect is width over height of the frame."""
    times = clock(scene, frames, fps)
    tracks, camera = tracks_of(scene, times), camera_path(scene.camera, times)
    boxes = boxes_of(scene, tracks, camera)
    seen = visible(scene, tracks, boxes, camera, aspect)
    position = np.stack([np.stack([track.x, track.y], axis=1) for track in tracks])
    events = [
        Event(name, time, index)
        for index, track in enumerate(tracks)
        for name, time in track.events
        if times[0] <= time <= times[-1] and not scene.still
    ]
    if not scene.still and (scene.wall == "hides" or seen.min() < 0.5):
        events += hiding(scene, times, aspect)
    return Truth(
        times=times,
        position=position,
        angle=np.stack([track.angle for track in tracks]),
        scale=np.stack([track.scale for track in tracks]),
        heading=np.stack([track.heading for track in tracks]),
        squash=np.stack([track.squash for track in tracks]),
        limb=np.stack([track.limb for track in tracks]),
        contact=np.stack([track.contact for track in tracks]),
        camera=camera,
        screen=(position - camera[None, :, :2]) * camera[None, :, 2:],
        box=boxes,
        visible=seen,
        events=tuple(sorted(events, key=lambda event: (event.time, event.actor))),
    )


def to_pixels(points: Floats, height: int, width: int) -> Floats:
    """Screen coordinates `... 2` (or boxes `... 4`) to pixels, where (0, 0) is the frame's top left corner."""
    middle = np.array([width, height] * (points.shape[-1] // 2)) / 2
    return points * min(height, width) + middle


def seconds_to_frame(time: float, fps: float) -> int:
    """The first frame at or after a time."""
    return math.ceil(time * fps - 1e-9)

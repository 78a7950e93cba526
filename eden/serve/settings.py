"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What one request may hold; each is checked before what it limits is decoded.

    Attributes:
        body_bytes: of the whole request.
        body_seconds: that sending it may take.
        messages: turns of the conversation.
        images: of all turns.
        image_bytes: of one image, encoded.
        image_pixels: of one image.
        all_pixels: of all images.
        recordings: of all turns.
        audio_bytes: of one recording, encoded.
        audio_seconds: of one recording.
        choices: the largest `n`.
        answer_seconds: from the question's place in the queue to the answer's end.
        sorted_pictures: uploaded to be sorted by one person.
    """

    body_bytes: int = 50 * 2**20
    body_seconds: float = 60.0
    messages: int = 256
    images: int = 16
    image_bytes: int = 20 * 2**20
    image_pixels: int = 36 * 10**6
    all_pixels: int = 72 * 10**6
    recordings: int = 4
    audio_bytes: int = 25 * 2**20
    audio_seconds: float = 600.0
    choices: int = 8
    answer_seconds: float = 300.0
    sorted_pictures: int = 1000

    def in_words(self) -> str:
        """The ones that people meet, in one line."""
        mebibytes = 2**20
        return (
            f"{self.images} pictures of {self.image_bytes / mebibytes:.0f} MiB and {self.image_pixels / 1e6:.0f} "
            f"megapixels ({self.all_pixels / 1e6:.0f} in all), {self.recordings} recordings of "
            f"{self.audio_bytes / mebibytes:.0f} MiB and {self.audio_seconds / 60:.0f} minutes, "
            f"{self.body_bytes / mebibytes:.0f} MiB in all"
        )


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    Attributes:
        name: the model's name in requests; None is that of its folder or hub id.
        limits: of one request.
        api_key: asked for everywhere but at `/health`; None asks nobody.
        image_hosts: hosts that images may be fetched from; empty fetches none.
        cors_origins: web sites whose scripts may call the API; empty is none.
        host_names: names the server is called by (the `Host` header); None takes any.
        root_path: the path that a proxy knows the server by, as `/eden`; empty is the root.
        max_running: answers written at once, if there is memory for them.
        max_waiting: questions that wait for them; more are turned away.
        silent_seconds: a stream that has nothing to say for so long sends a comment, so that no proxy hangs up.
        sort_folder: whose pictures the page's Sort tab shows, and where the labels are written; None takes uploads.
    """

    name: str | None = None
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    image_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] | None = None
    root_path: str = ""
    max_running: int = 8
    max_waiting: int = 64
    silent_seconds: float = 15.0
    sort_folder: Path | None = None

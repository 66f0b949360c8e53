"""Files that readers of videos get wrong, and when their frames are shown."""

from pathlib import Path

ODD = Path(__file__).parent.parent / "fixtures" / "odd_files"

# name -> frames, frames a second, seconds of the last frame, packets trimmed
TRUE_TIMES = {
    "recorder_nodd.webm": (60, 59 / 1.925, 1.925, 0),
    "j.ts": (60, 59 / 2.053, 2.053, 0),
    "fps2000.mp4": (21, 2000, 0.010, 0),
    "jump.ts": (65, 25, 2.56, 0),
    "vfr.mp4": (24, 23 / 1.4, 1.4, 0),
    "reschange.ts": (50, 25, 1.96, 0),
    "delayed.mkv": (40, 25, 1.56, 0),
    "opengop_cut.mkv": (50, 25, 1.96, 0),
    "opengop_cut.ts": (75, 25, 2.96, 6),
    # Of the 27 that ffmpeg shows the last one is damaged.
    "midgop.ts": (26, 25, 1.0, 14),
    "two.mkv": (50, 25, 1.96, 0),
    "a.avif": (6, 10, 0.5, 0),
    "a.webp": (6, 6.25, 0.8, 0),
    "hflip.mp4": (40, 25, 1.56, 0),
}

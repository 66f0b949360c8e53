"""Scoring folders of videos by rewards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.data.latent_set import HEADER
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.rewards.report import Judged, ScoredVideo, pick_extremes, write_rewards
from vidlatent.evaluate.rewards.videos import JudgedVideos
from vidlatent.evaluate.running_scores import log_scores
from vidlatent.models.frozen import load_frozen
from vidlatent.models.load import resolve_dtype
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.multihost import is_main, to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.paths import as_path
from vidlatent.rewards import ChosenRewards, make_rewards

__all__ = ["compile_rewards", "judge_folders"]

_SHOWN_FRAMES = 8  # of a video on the page


def judge_folders(config: ConfigDict, workdir: Path, output: str) -> int:
    """Score videos by ``config.eval.rewards``.

    The videos are those of ``config.eval.samples``, one or more folders with commas between them,
    or without one the clips of ``config.data``. Each is scored as it is, at its own length, size
    and frame rate; prompts are read where captions are. Writes into ``output`` (default
    ``<workdir>/eval/rewards``); returns the exit status.

    Raises:
      VidlatentError: an unknown reward, missing weights (before any video is opened), no folder, or
        no prompt where a reward reads one.
    """
    rewards = make_rewards(config.eval.rewards, config, dtype=resolve_dtype(config))
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        score = compile_rewards(rewards, mesh)
        sides = [_open_videos(config, mesh, path) for path in _list_folders(config)]
        for videos in sides:
            _check_prompts(rewards, videos)
        judged = [_judge(videos, rewards, score, config.eval.pictures) for videos in sides]
    if is_main():
        for side in judged:
            log_scores({f"{name} of {side.where}": x["mean"] for name, x in side.means().items()})
        folder = as_path(output) if output else workdir / "eval" / "rewards"
        for file in write_rewards(judged, rewards, folder, config):
            logging.info("wrote %s", file)
    return 0


def compile_rewards(rewards: ChosenRewards, mesh: Mesh) -> Callable[..., dict[str, np.ndarray]]:
    """``(host batch, fps) -> scores and tags`` of the rows of all processes, the same on each.

    Networks are loaded here, sharded over the mesh like parameters in training; videos are split by
    batch. The first frame is the video's own.
    """
    rows, whole = batch_sharding(mesh), replicated(mesh)
    frozen = load_frozen(rewards.frozen, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, frozen)

    def look(fps, frozen, batch):
        video = batch["video"].astype(jnp.float32) / 127.5 - 1
        prompts = rewards.encode(frozen, batch["tokens"])
        scores = rewards.score(frozen, video, prompts, first=video[:, 0], fps=fps)
        return scores | {name: batch[name] for name in ("mask", "clip")}

    @functools.cache
    def jitted(fps: float):
        return jax.jit(
            functools.partial(look, fps), in_shardings=(places, rows), out_shardings=whole
        )

    def score(batch: dict[str, Any], fps: float) -> dict[str, np.ndarray]:
        given = {name: batch[name] for name in ("video", "mask", "clip")}
        given["tokens"] = rewards.tokenize(batch["prompt"])
        # Networks are an argument: closed over, their weights would be constants of the program.
        return jax.device_get(jitted(fps)(frozen, to_global(given, rows)))

    return score


def _list_folders(config: ConfigDict) -> list[str]:
    """The folders to score; '' stands for ``config.data``."""
    samples = config.eval.samples
    if samples:
        folders = [samples] if as_path(samples).is_dir() else samples.split(",")
        for folder in folders:
            if not as_path(folder).is_dir():
                raise VidlatentError(
                    f"config.eval.samples={samples!r}: {folder!r} is no folder; name one of video "
                    "files, or several with commas between them."
                )
        return folders
    data = config.data
    if data.source == "latents" and (not data.path or as_path(data.path, HEADER).is_file()):
        raise VidlatentError(
            f"config.data.path={data.path!r} holds latents: name a folder of videos to score by "
            "--config.eval.samples=videos."
        )
    return [""]


def _open_videos(config: ConfigDict, mesh: Mesh, path: str) -> JudgedVideos:
    data = config.data.to_dict()
    if path:
        data |= {"source": "folder", "path": path, "index_cache": ""}
    options = config.eval
    return JudgedVideos(
        data,
        mesh,
        seed=config.seed,
        frames=options.frames,
        most=options.clips,
        share=options.batch,
    )


def _check_prompts(rewards: ChosenRewards, videos: JudgedVideos) -> None:
    lacking = [clip.path for clip in videos.clips if not videos.prompt_of(clip)]
    if rewards.reads_prompt and lacking:
        readers = [name for name, reward in rewards.rewards.items() if reward.reads_prompt]
        raise VidlatentError(
            f"{videos.where}: {len(lacking)} of {len(videos.clips)} videos have no prompt, such as "
            f"{lacking[0]}, and {' and '.join(readers)} judge by it: write captions.jsonl in that "
            'folder, a line {"file": ..., "caption": ...} for each, or a .txt beside each video.'
        )


def _judge(
    videos: JudgedVideos,
    rewards: ChosenRewards,
    score: Callable[..., dict[str, np.ndarray]],
    pictures: int,
) -> Judged:
    found: dict[int, ScoredVideo] = {}
    for fps, batch in videos.batches():
        seen = score(batch, fps)
        for place in np.flatnonzero(seen["mask"]):
            row = int(seen["clip"][place])
            clip = videos.clips[row]
            values = rewards.label({name: float(seen[name][place]) for name in rewards.names})
            shape = (videos.count_frames(clip), *clip.size)
            found[row] = ScoredVideo(clip.path, videos.prompt_of(clip), shape, fps, values)
    if not found:
        raise VidlatentError(f"no video of {videos.where} could be read: look at its files.")
    scored = [found[row] for row in sorted(found)]
    # Which videos are worth showing is known only now, so these few are read again.
    names = {v.path for name in scored[0].scores for v in pick_extremes(scored, name, pictures)}
    rows = [row for row in sorted(found) if found[row].path in names]
    shown = videos.read(rows, _SHOWN_FRAMES) if is_main() and rows else {}
    return Judged(videos.where, scored, videos.list_bad({x.path for x in scored}), shown)

"""Numbers printed in the papers, shown next to our own measurements. None was measured here.

Units are those of the papers' tables; a protocol says by what factor our scores are multiplied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = [
    "FSAE_TABLE_2",
    "FSVIDEO_TABLE_1",
    "IVVAE_256",
    "IVVAE_GENERATION",
    "IVVAE_TABLE_S1",
    "PROMAG_TABLE_1",
    "PROMAG_TABLE_3",
    "REDUCIO_512",
    "REDUCIO_GENERATION",
    "REDUCIO_MAIN",
    "PaperRow",
]


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table.

    Attributes:
      model: the paper's name for it, with whatever tells it from neighbouring rows.
      data: the clips it was measured on.
      values: heading of the table -> number as printed.
      own: whether it is a model of the paper's authors; only those are shown next to ours.
      t, channels: temporal compression and channels of its latent, by which the row most like our
        model is found; 0: unknown.
      note: what is doubtful about it.
    """

    model: str
    data: str
    values: Mapping[str, float]
    own: bool = False
    t: int = 0
    channels: int = 0
    note: str = ""


def _fsae() -> tuple[PaperRow, ...]:
    names = ("SSIM", "PSNR", "LPIPS", "FVD")
    # Model, then the four numbers on Inter-4K and on WebVid.
    lines = (
        ("Hunyuan 8x8x4", (0.891, 32.56, 0.047, 73.50), (0.923, 33.99, 0.031, 63.72)),
        ("Wan-2.1 8x8x4", (0.880, 31.73, 0.049, 79.29), (0.913, 33.12, 0.032, 71.83)),
        ("CogVideoX-1.5 8x8x4", (0.880, 31.44, 0.072, 109.11), (0.920, 33.53, 0.043, 80.98)),
        ("Step-Video 16x16x8", (0.847, 30.20, 0.082, 125.45), (0.894, 31.86, 0.050, 96.75)),
        ("VidTok 8x8x4, 96 to 1", (0.835, 29.98, 0.081, 159.88), (0.887, 31.79, 0.048, 124.46)),
        ("Cosmos-CV 8x8x8", (0.805, 29.16, 0.184, 342.99), (0.864, 30.76, 0.113, 211.33)),
        ("LTX-Video 32x32x8", (0.787, 28.40, 0.153, 370.86), (0.868, 30.89, 0.077, 232.02)),
        ("VidTok 8x8x4, 192 to 1", (0.783, 28.20, 0.119, 266.07), (0.843, 29.85, 0.077, 217.77)),
        ("Cosmos-CV 16x16x8", (0.724, 26.72, 0.271, 704.08), (0.786, 28.09, 0.180, 518.86)),
        ("VidTok 16x16x4", (0.645, 24.19, 0.211, 680.41), (0.713, 25.56, 0.138, 625.32)),
        ("FSAE-Standard", (0.806, 28.96, 0.107, 256.62), (0.872, 30.91, 0.058, 203.19)),
        ("FSAE-Lite", (0.788, 28.48, 0.151, 342.66), (0.861, 30.42, 0.075, 240.03)),
    )
    rows = []
    for model, *sets in lines:
        own = model.startswith("FSAE")
        for data, values in zip(("Inter-4K, 1000 clips", "WebVid, 1000 clips"), sets, strict=True):
            # Both FSAE models have the same latent: 4 frames to one, 128 channels.
            identity = {"own": True, "t": 4, "channels": 128} if own else {}
            rows.append(PaperRow(model, data, dict(zip(names, values, strict=True)), **identity))
    return tuple(rows)


FSAE_TABLE_2 = _fsae()

_COPIED = "its LPIPS and rFVD repeat the line above and look copied"
_TWICE = "printed alike for 8x and 16x; by the other columns it fits 16x only"
# model, k, z, then PSNR, LPIPS x 100 and rFVD: MCL-JCV and DAVIS at 512x512, and at 360x640.
_PROMAG = (
    ("OS-VAE", 4, 4, (30.59, 11.72, 120.93), (27.73, 15.99, 405.28))
    + ((29.92, 12.9, 168.44), (26.58, 17.22, 424.78)),
    ("OSP-VAE", 4, 4, (30.21, 11.72, 120.93), (27.29, 10.74, 298.02))
    + ((29.57, 8.19, 122.18), (26.08, 11.19, 327.64)),
    ("CMD p8", 0, 8, (23.24, 17.36, 1084.66), (18.25, 25.63, 2097.52), None, None),
    ("CMD p2", 0, 8, (23.50, 17.36, 1120.30), (17.72, 28.31, 2136.59), None, None),
    ("MagViT-v2", 4, 8, (30.63, 6.49, 58.11), (28.32, 7.3, 129.11))
    + ((30.31, 6.44, 57.68), (26.95, 7.64, 151.12)),
    ("ProMAG", 4, 8, (30.99, 6.53, 57.91), (28.43, 7.38, 130.56))
    + ((30.37, 6.53, 58.14), (27.07, 7.67, 152.07)),
    ("MagViT-v2", 8, 8, (28.47, 11.17, 219.36), (24.02, 16.7, 525.1))
    + ((28.33, 10.73, 222.09), (23.82, 15.55, 477.19)),
    ("ProMAG", 8, 8, (30.26, 8.36, 96.85), (26.48, 11.37, 360.54))
    + ((29.84, 8.29, 108.95), (25.76, 11.12, 337.15)),
    ("MagViT-v2", 16, 8, (26.15, 14.54, 255.51), (21.82, 20.54, 728.04))
    + ((25.96, 14.19, 265.99), (21.73, 19.43, 695.67)),
    ("ProMAG", 16, 8, (28.31, 11.2, 183.4), (23.89, 16.9, 608.43))
    + ((28.27, 10.74, 206.3), (23.71, 15.74, 545.87)),
    ("ProMAG", 4, 16, (32.94, 4.91, 34.21), (30.77, 4.98, 93.92))
    + ((32.3, 4.84, 39.61), (29.11, 5.35, 83.03)),
    ("MagViT-v2", 8, 16, (28.51, 10.62, 135.57), (27.18, 8.84, 243.19))
    + ((29.92, 7.16, 84.1), (26.08, 9.07, 260.4)),
    ("ProMAG", 8, 16, (32.06, 6.94, 63.64), (28.7, 8.32, 194.79))
    + ((31.61, 6.27, 63.59), (27.55, 8.39, 214.47)),
    ("ProMAG w/ GAN", 8, 16, (31.78, 6.21, 53.18), (28.21, 7.76, 160.22))
    + ((31.29, 6.04, 59.9), (27.08, 7.75, 197.18)),
    ("MagViT-v2", 16, 16, (28.51, 10.62, 135.57), (24.17, 14.84, 427.52))
    + ((28.21, 10.26, 141.6), (23.65, 14.39, 393.83)),
    ("ProMAG", 16, 16, (30.02, 9.24, 115.25), (25.64, 13.89, 320.8))
    + ((29.83, 8.72, 118.17), (25.21, 12.99, 304.21)),
    ("ProMAG w/ GAN", 16, 16, (29.67, 8.38, 99.64), (25.05, 12.04, 274.24))
    + ((29.43, 7.99, 99.63), (24.53, 11.33, 289.24)),
)


def _promag(size: str) -> tuple[PaperRow, ...]:
    rows = []
    for model, k, z, *cells in _PROMAG:
        pair = cells[:2] if size == "512x512" else cells[2:]
        for data, values in zip(("MCL-JCV", "DAVIS"), pair, strict=True):
            if values is None:
                continue
            note = ""
            if data == "MCL-JCV" and size == "512x512":
                note = _COPIED if model == "OSP-VAE" else note
                note = _TWICE if (model, k, z) == ("MagViT-v2", 8, 16) else note
            rows.append(
                PaperRow(
                    f"{model}, {k or '?'}x, z={z}",
                    f"{data} {size}",
                    dict(zip(("PSNR", "LPIPS x 100", "rFVD"), values, strict=True)),
                    own=model.startswith("ProMAG"),
                    t=k,
                    channels=z,
                    note=note,
                )
            )
    return tuple(rows)


PROMAG_TABLE_1 = {size: _promag(size) for size in ("512x512", "360x640")}

# An interpolator between every so manyth frame of the 4x model, and the model of the same rate. The
# latter's figures are others than in table 1.
PROMAG_TABLE_3 = {
    keep: tuple(
        PaperRow(
            model,
            "MCL-JCV 512x512",
            dict(zip(("PSNR", "LPIPS x 100", "rFVD"), values, strict=True)),
            own=True,
            t=t,
            channels=16,
        )
        for model, t, values in rows
    )
    for keep, rows in {
        2: (
            ("ProMAG 4x, interpolated 2x", 4, (30.68, 8.61, 230.16)),
            ("ProMAG 8x", 8, (32.06, 6.5, 53.77)),
        ),
        4: (
            ("ProMAG 4x, interpolated 4x", 4, (28.42, 12.35, 341.14)),
            ("ProMAG 16x", 16, (29.6, 9.93, 147.48)),
        ),
    }.items()
}

_KINETICS = "Kinetics-600, 20K clips"
IVVAE_TABLE_S1 = tuple(
    PaperRow(
        model,
        _KINETICS,
        {"PSNR": psnr, "SSIM": ssim, "LPIPS": lpips},
        own=model.startswith("IV-VAE"),
        t=4,
        channels=channels,
    )
    for model, channels, psnr, ssim, lpips in (
        ("CV-VAE", 4, 32.67, 0.9150, 0.08041),
        ("OS-VAE", 4, 34.80, 0.9289, 0.08016),
        ("OD-VAE", 4, 34.20, 0.9264, 0.05457),
        ("IV-VAE z=4", 4, 34.67, 0.9314, 0.05152),
        ("CogX-VAE", 16, 38.53, 0.9682, 0.02849),
        ("IV-VAE z=16", 16, 39.46, 0.9701, 0.02158),
    )
)


def _reducio() -> tuple[PaperRow, ...]:
    # Model, t, channels; PSNR, SSIM, LPIPS and rFVD on Pexels; rFVD on UCF-101.
    lines = (
        ("SD2.1-VAE 1x8x8", 1, 4, 29.23, 0.82, 0.09, 25.96, 21.00),
        ("SDXL-VAE 1x8x8", 1, 4, 30.54, 0.85, 0.08, 19.87, 23.68),
        ("OmniTokenizer 4x8x8", 4, 8, 27.11, 0.89, 0.07, 23.88, 30.52),
        ("OpenSora-1.2 4x8x8", 4, 16, 30.72, 0.85, 0.11, 60.88, 67.52),
        ("Cosmos 8x8x8", 8, 16, 30.84, 0.74, 0.12, 29.44, 22.06),
        ("Cosmos 8x16x16", 8, 16, 28.14, 0.65, 0.18, 77.87, 119.37),
        ("Reducio-VAE 4x32x32", 4, 16, 35.88, 0.94, 0.05, 17.88, 65.17),
    )
    rows = []
    for model, t, channels, psnr, ssim, lpips, pexels, ucf in lines:
        identity = {"own": model.startswith("Reducio"), "t": t, "channels": channels}
        values = {"PSNR": psnr, "SSIM": ssim, "LPIPS": lpips, "rFVD": pexels}
        rows.append(PaperRow(model, "Pexels, 1000 clips", values, **identity))
        rows.append(PaperRow(model, "UCF-101", {"rFVD": ucf}, **identity))
    return tuple(rows)


REDUCIO_MAIN = _reducio()

# Its latent shapes (4x8x8, z 16) are printed so; at 512x512 the model's own is 4x16x16.
REDUCIO_512 = (
    PaperRow("DC-AE 16x8x8, z=32", "Pexels, test split", {"PSNR": 30.68, "SSIM": 0.70}),
    PaperRow(
        "Reducio-VAE 4x8x8, z=16",
        "Pexels, test split",
        {"PSNR": 35.56, "SSIM": 0.97},
        own=True,
        t=4,
        channels=16,
        note="the printed latent shape is that of 256x256",
    ),
)

_MAIN = "main table as far as it could be read; its size of frames was not among that"
_PLACES = "supplement table 5, 17x256x256"


def _ivvae_256() -> tuple[PaperRow, ...]:
    headings = ("FVD", "PSNR", "SSIM", "LPIPS")
    # Model, channels, data set, and what of the four numbers is known.
    lines = (
        ("IV-VAE z=16", 16, "Kinetics-600", (2.97, 39.02, 0.9685, 0.02280)),
        ("IV-VAE z=16", 16, "ActivityNet", (2.01, 42.61, 0.9722, 0.01968)),
        ("CogX-VAE", 16, "Kinetics-600", (3.17, 38.38)),
        ("IV-VAE z=4", 4, "Kinetics-600", (8.01, 34.29)),
        ("IV-VAE z=4", 4, "ActivityNet", (6.08,)),
        ("OD-VAE", 4, "Kinetics-600", (10.69, 33.88)),
        ("OD-VAE", 4, "ActivityNet", (8.10,)),
        ("OS-VAE", 4, "Kinetics-600", (19.05,)),
    )
    rows = [
        PaperRow(
            model,
            data,
            dict(zip(headings, values, strict=False)),
            own=model.startswith("IV-VAE"),
            t=4,
            channels=channels,
            note=_MAIN,
        )
        for model, channels, data, values in lines
    ]
    # SSIM at the four places of a frame group, z = 8: before grouped convolutions, and their gain.
    places = (
        ("baseline z=8", (0.8923, 0.8986, 0.9191, 0.9056, 0.0268)),
        ("baseline z=8 + GCConv", (0.9012, 0.9049, 0.9205, 0.9063, 0.0193)),
        ("KTC z=8", (0.9027, 0.9103, 0.9203, 0.9111, 0.0176)),
        ("KTC z=8 + GCConv", (0.9093, 0.9167, 0.9191, 0.9119, 0.0098)),
    )
    for model, values in places:
        names = (*(f"SSIM, place {place}" for place in range(1, 5)), "max margin")
        printed = dict(zip(names, values, strict=True))
        # Their columns are of places in the group, which no score of ours stands beside.
        rows.append(PaperRow(model, "Kinetics-600", printed, note=_PLACES))
    return tuple(rows)


IVVAE_256 = _ivvae_256()


def _fsvideo_table_1() -> tuple[PaperRow, ...]:
    neighbours = (2, 4, 8, 16, 32, 64)
    # Regulariser, then the dimension at each scale, of videos and of images.
    lines = (
        (
            "none",
            (87.83, 182.16, 11.22, 16.94, 24.32, 29.55),
            (33.15, 62.24, 102.51, 12.07) + (15.45, 21.13),
        ),
        (
            "downscale",
            (30.5, 37.48, 31.99, 25.86, 25.34, 24.05),
            (25.73, 38.20, 41.52, 28.75) + (26.66, 26.59),
        ),
        (
            "upscale",
            (46.63, 57.16, 28.66, 28.11, 30.8, 29.63),
            (34.92, 44.30, 44.17, 26.39) + (29.02, 27.97),
        ),
        (
            "Video VF",
            (24.44, 29.60, 26.93, 21.11, 22.15, 22.04),
            (21.46, 24.52, 24.91, 18.07) + (20.48, 20.13),
        ),
    )
    rows = []
    for model, *kinds in lines:
        for kind, values in zip(("videos", "images"), kinds, strict=True):
            printed = {f"{n} neighbours": v for n, v in zip(neighbours, values, strict=True)}
            rows.append(PaperRow(f"FSAE, regulariser: {model}", kind, printed, True, 4, 128))
    return tuple(rows)


FSVIDEO_TABLE_1 = _fsvideo_table_1()


def _ivvae_generation() -> dict[str, tuple[PaperRow, ...]]:
    # Latte with each tokenizer: FVD and IS on UCF-101, FVD on FaceForensics.
    lines = (
        ("CV-VAE", 587.9, 84.7, 328.2),
        ("OS-VAE", 674.1, 85.2, 316.3),
        ("OD-VAE", 565.2, 82.5, 285.5),
        ("IV-VAE", 557.5, 85.7, 259.8),
    )
    tables: dict[str, list[PaperRow]] = {"ucf101": [], "faces": [], "sky": []}
    for model, ucf, score, faces in lines:
        own = model == "IV-VAE"
        name = f"Latte with {model}"
        tables["ucf101"].append(PaperRow(name, "UCF-101", {"FVD": ucf, "IS": score}, own))
        tables["faces"].append(PaperRow(name, "FaceForensics", {"FVD": faces}, own))
    # Those of SkyTimelapse stand in the main paper, whose table could not be read.
    return {data: tuple(rows) for data, rows in tables.items()}


IVVAE_GENERATION = _ivvae_generation()

REDUCIO_GENERATION = (
    PaperRow("Reducio-DiT", "UCF-101", {"FVD": 318.5}, True, note="main text"),
    PaperRow(
        "Reducio-DiT, 2d + 1d attention",
        "UCF-101",
        {"FVD": 382.2, "IS": 32.4},
        True,
        note="table 5; its data set is not named",
    ),
    PaperRow(
        "Reducio-DiT, 3d attention",
        "UCF-101",
        {"FVD": 337.6, "IS": 34.1},
        True,
        note="table 5; its data set is not named",
    ),
)

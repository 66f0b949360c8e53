"""Converts published weights of a frozen network into one ``.safetensors`` file.

python -m vidlatent.convert.networks --name=lpips_vgg --from=vgg16-397923af.pth,vgg.pth \\
    --to=lpips_vgg.safetensors

It reads .safetensors and .npz, and also .pt, .pth and .bin if torch is installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.pretrained.load import convert_network

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, and print the number of tensors; returns 1 after an error of the user, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m vidlatent.convert.networks", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--name", required=True, help=", ".join(NETWORKS.names()))
    parser.add_argument("--from", required=True, dest="sources", help="files, commas between them")
    parser.add_argument("--to", required=True, dest="target", help="the .safetensors file to write")
    parser.add_argument(
        "--template",
        default="",
        help="videoalign: the published instruction as a text with {prompt}, or its token numbers "
        "as .json; stored with the weights",
    )
    parser.add_argument("--tokenizer", default="", help="tokenizer.json that reads the template")
    options = parser.parse_args(arguments)
    try:
        number = convert_network(
            options.name,
            options.sources.split(","),
            options.target,
            template=options.template,
            tokenizer=options.tokenizer,
        )
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {number} tensors to {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A bucket of Google Cloud Storage that lives in a process of this machine."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

BUCKET = "gs://vidlatent-test"


def _serve(port: int) -> None:
    """Run the emulator, with the header it lacks: TensorStore reads generations from headers."""
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        with contextlib.suppress(Exception):
            about = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = str(about["generation"])
            response["x-goog-metageneration"] = str(about["metageneration"])
        return download(request, response, storage, *args, **kwargs)

    objects.download = with_generation
    name = BUCKET.partition("://")[2]
    create_server("127.0.0.1", port, in_memory=True, default_bucket=name).start()
    while True:
        time.sleep(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve_bucket() -> Iterator[dict[str, str]]:
    """An empty bucket; the environment of processes that use it."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, __file__, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(port, process)
        yield {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs and Google's client
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            # The emulator does not know them; asking takes seconds.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError("the emulator of a bucket ended")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError("the emulator of a bucket does not answer")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

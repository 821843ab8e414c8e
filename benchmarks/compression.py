"""Which compression for the stored pieces of files: zstd 1, zstd 3 or lz4, on what is really stored.

Run as `python -m benchmarks.compression`. It makes a large input and the output that belongs to it,
cuts both into the pieces that `models/storage.py` stores, and prints a Markdown table. lz4 is no
dependency of this project, for it was not chosen: `pip install lz4` to measure it again.
"""

import argparse
import asyncio
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from benchmarks.inputs import write_input
from benchmarks.yardsticks.bare_loop import IN_FLIGHT, run_lines
from cli.simulator import SimulatorSettings, simulated_server
from models.storage import CHUNK_BYTES

REPLY_BYTES = 1_000
ROUNDS = 3


class Codec(NamedTuple):
    """A way to pack and unpack a piece."""

    name: str
    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]


class Cost(NamedTuple):
    """What packing a file took."""

    ratio: float
    pack_mb_per_second: float
    unpack_mb_per_second: float


def codecs() -> list[Codec]:
    """The candidates; lz4 only where it is installed."""
    unpack = zstandard.ZstdDecompressor().decompress
    found = [
        Codec(f"zstd {level}", zstandard.ZstdCompressor(level=level).compress, unpack)
        for level in (1, 3)
    ]
    try:
        lz4: Any = importlib.import_module("lz4.frame")
    except ModuleNotFoundError:
        print("lz4 is not installed and left out.\n")
    else:
        found.append(Codec("lz4", lz4.compress, lz4.decompress))
    return found


def measure(codec: Codec, path: Path, piece_bytes: int) -> Cost:
    """Pack and unpack a file piece by piece; processor time, the best of some rounds."""
    pack_seconds = unpack_seconds = float("inf")
    size = packed_size = 0
    for _ in range(ROUNDS):
        size = packed_size = 0
        packing = unpacking = 0.0
        for piece in _pieces(path, piece_bytes):
            started = time.process_time()
            packed = codec.pack(piece)
            between = time.process_time()
            codec.unpack(packed)
            unpacking += time.process_time() - between
            packing += between - started
            size += len(piece)
            packed_size += len(packed)
        pack_seconds = min(pack_seconds, packing)
        unpack_seconds = min(unpack_seconds, unpacking)
    return Cost(size / packed_size, size / pack_seconds / 1e6, size / unpack_seconds / 1e6)


def _pieces(path: Path, piece_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(piece_bytes):
            yield piece


def main() -> None:
    """Make the files, measure, print the table."""
    parser = argparse.ArgumentParser(description="Compare compressions of stored pieces.")
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--line-bytes", type=int, default=4_000)
    parser.add_argument("--piece-bytes", type=int, default=CHUNK_BYTES)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overnight-bench-") as folder:
        source, target = Path(folder, "input.jsonl"), Path(folder, "output.jsonl")
        write_input(source, lines=chosen.lines, line_bytes=chosen.line_bytes)
        with simulated_server(SimulatorSettings(reply_bytes=REPLY_BYTES)) as server:
            asyncio.run(run_lines(source, server.url, target, in_flight=IN_FLIGHT))
        print("| | size | codec | ratio | pack MB/s | unpack MB/s |")
        print("|---|---:|---|---:|---:|---:|")
        for name, path in (("chat input", source), ("chat output", target)):
            for codec in codecs():
                cost = measure(codec, path, chosen.piece_bytes)
                print(
                    f"| {name} | {path.stat().st_size / 1e6:.0f} MB | {codec.name} "
                    f"| {cost.ratio:.2f} | {cost.pack_mb_per_second:.0f} "
                    f"| {cost.unpack_mb_per_second:.0f} |"
                )


if __name__ == "__main__":
    main()

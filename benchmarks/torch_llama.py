"""A Llama of transformers, the other side of export_speed.py; needs torch and transformers, not Assay.

For each line {"do": "prefill" or "decode", "tokens": N, "calls": N} on stdin it answers with the milliseconds of each call, as JSON.
No mode is compiled: "eager" has attention in single operations, "sdpa" torch's fused attention, both with a cache that grows, and
"sdpa_static" has a cache of a fixed size.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

MODES = ("eager", "sdpa", "sdpa_static")


class Model:
    """The model of a directory, and its cache."""

    def __init__(self, directory: Path, mode: str, cache: int) -> None:
        attention = "eager" if mode == "eager" else "sdpa"
        how = {"dtype": torch.float32, "attn_implementation": attention}
        self._model: Any = transformers.LlamaForCausalLM.from_pretrained(directory, **how).eval()
        self._static, self._cache_size, self._filled = mode == "sdpa_static", cache, 0
        self._cache: Any = None

    def prefill(self, tokens: int) -> None:
        """Logits of a prompt of so many tokens, into a new cache."""
        config = self._model.config
        static = self._static
        self._cache = (
            transformers.StaticCache(config=config, max_cache_len=self._cache_size)
            if static
            else transformers.DynamicCache(config=config)
        )
        self._call(torch.arange(tokens)[None] % config.vocab_size, 0)
        self._filled = tokens

    def decode(self, tokens: int) -> None:
        """Logits of the token that is the last of so many."""
        if self._filled != tokens - 1:
            self.prefill(tokens - 1)
        self._call(torch.tensor([[5]]), tokens - 1)
        if self._static:
            for layer in self._cache.layers:  # the next call writes to the same place
                layer.cumulative_length.fill_(tokens - 1)
        else:
            self._cache.crop(-1)  # the newest

    def _call(self, ids: Any, start: int) -> None:
        places = torch.arange(start, start + ids.shape[1])[None]
        with torch.inference_mode():
            self._model(input_ids=ids, position_ids=places, past_key_values=self._cache, use_cache=True).logits[
                0, -1, 0
            ].item()


def main() -> int:
    """Serve the pipe until it closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cache", type=int, default=1024)
    args = parser.parse_args()
    model = Model(args.directory, args.mode, args.cache)
    print(json.dumps(f"torch {torch.__version__}, {torch.get_num_threads()} threads"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        call = getattr(model, asked["do"])
        call(asked["tokens"])
        found = []
        for _ in range(asked["calls"]):
            start = time.perf_counter()
            call(asked["tokens"])
            found.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

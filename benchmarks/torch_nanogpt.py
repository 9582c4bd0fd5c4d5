"""A plain GPT and its trainer in PyTorch, the other side of vs_torch_cpu.py and torch_parity.py; needs torch and numpy, not Assay.

Says "ready" once warm; then, for each line with a number on stdin, trains that many steps and answers "SECONDS LOSS".
The model, batch and optimizer settings are those of experiments/lm_shakespeare_shape.gin. AdamW is torch's default one, as nanoGPT
has it on a CPU; the modes that end in _fused have the fused one. The mode "products" does only the matrix products of a step, and
"replay" trains once on batches and from parameters that it is given (for torch_parity.py).
"""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
PEAK, FINAL, WARMUP, STEPS = 1e-3, 1e-4, 100, 2000
WARM_STEPS = 20


class Block(torch.nn.Module):  # type: ignore[misc]
    """Causal attention and a feed-forward, each after a norm and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(WIDTH, bias=False)
        self.norm2 = torch.nn.LayerNorm(WIDTH, bias=False)
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = torch.nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = torch.nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        """(batch, seq, width) -> the same shape."""
        shape = (x.shape[0], x.shape[1], 3, HEADS, WIDTH // HEADS)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(torch.nn.Module):  # type: ignore[misc]
    """Decoder with learned positions and a head tied to the embedding."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(vocab, WIDTH)
        self.positions = torch.nn.Embedding(CONTEXT, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = torch.nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                ends_branch = name.endswith(("out.weight", "down.weight"))
                torch.nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * LAYERS) if ends_branch else 1))

    def forward(self, inputs: Any, targets: Any) -> Any:
        """Mean cross entropy in nats; both (batch, seq)."""
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Trainer:
    """The model with its optimizer and data."""

    def __init__(self, text: Path, *, compiled: bool, fused: bool) -> None:
        torch.manual_seed(0)
        characters = text.read_text(encoding="utf-8")
        index = {character: i for i, character in enumerate(sorted(set(characters)))}
        tokens = np.array([index[character] for character in characters], np.int64)
        self._tokens = tokens[: int(0.9 * len(tokens))]
        self._rng = np.random.default_rng(0)
        model = GPT(len(index))
        self._parameters = list(model.parameters())
        groups = [
            {"params": [p for p in self._parameters if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in self._parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99), fused=fused)
        self._model = model
        self._loss = torch.compile(model) if compiled else model
        self._step = 0

    def train(self, steps: int) -> float:
        """Do `steps` updates. Returns the last loss, in nats."""
        for _ in range(steps):
            starts = self._rng.integers(0, len(self._tokens) - CONTEXT, BATCH)
            windows = torch.from_numpy(self._tokens[starts[:, None] + np.arange(CONTEXT + 1)])
            loss = self._update(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        return float(loss.item())

    def replay(self, arrays: Any) -> Any:
        """Losses, float32 (steps,), of training from the parameters in `arrays`, by this model's names, on its batches.

        arrays: an npz file with the parameters, and "inputs" and "targets", int32 (steps, batch, seq).
        """
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(torch.from_numpy(arrays[name]))
        batches = zip(
            torch.from_numpy(arrays["inputs"]).long(), torch.from_numpy(arrays["targets"]).long(), strict=True
        )
        return np.array([float(self._update(inputs, targets).detach()) for inputs, targets in batches], np.float32)

    def _update(self, inputs: Any, targets: Any) -> Any:
        """One step on a batch. Returns its loss before the step."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._step)
        loss = self._loss(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return loss


class Products:
    """The matrix products of a step and nothing else: no trainer that multiplies with torch's library can be faster."""

    def __init__(self, vocab: int) -> None:
        rows, head = BATCH * CONTEXT, WIDTH // HEADS
        block = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
        self._dense = [
            (torch.randn(rows, n), torch.randn(m, n), torch.randn(rows, m))
            for n, m in [*block * LAYERS, (WIDTH, vocab)]
        ]
        self._heads = torch.randn(BATCH * HEADS, CONTEXT, head)
        self._weights = torch.randn(BATCH * HEADS, CONTEXT, CONTEXT)

    def train(self, steps: int) -> float:
        """Do the products of `steps` updates. Returns 0."""
        for _ in range(steps):
            for x, kernel, gradient in self._dense:
                torch.mm(x, kernel.T)
                torch.mm(gradient, kernel)
                torch.mm(gradient.T, x)
            for _ in range(LAYERS):
                for _ in range(2):  # the scores, and the gradient of the weights
                    torch.bmm(self._heads, self._heads.transpose(1, 2))
                for _ in range(2):  # the mixture, and the gradient of the queries
                    torch.bmm(self._weights, self._heads)
                for _ in range(2):  # the gradients of the keys and the values
                    torch.bmm(self._weights.transpose(1, 2), self._heads)
        return 0.0


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    done = min(1.0, (step - WARMUP) / (STEPS - WARMUP))
    return FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * done)) / 2


def main() -> int:
    """Serve the pipe until it closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["eager", "compile", "eager_fused", "compile_fused", "products", "replay"])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument(
        "--arrays", type=Path, help="for replay: an npz file; its losses are written beside it, as .npy"
    )
    args = parser.parse_args()
    if args.mode == "replay":
        losses = Trainer(args.text, compiled=False, fused=False).replay(np.load(args.arrays))
        np.save(args.arrays.with_suffix(".npy"), losses)
        return 0
    trainer: Trainer | Products
    if args.mode == "products":
        trainer = Products(len(set(args.text.read_text(encoding="utf-8"))))
    else:
        trainer = Trainer(args.text, compiled=args.mode.startswith("compile"), fused=args.mode.endswith("_fused"))
    trainer.train(WARM_STEPS)
    print(f"ready torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        loss = trainer.train(int(line))
        print(time.perf_counter() - start, loss, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

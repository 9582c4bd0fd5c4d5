"""`assay sample`: continue a prompt, or draw images, with a run's checkpoint."""

import argparse

from assay import devices
from assay.cli.resume import add_run
from assay.errors import ConfigError
from assay.runs import open_run

HELP = "Sample from a checkpoint of a run, for objectives that can."
EXAMPLE = 'assay sample latest --prompt "def " --length 200'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the prompt, and how to draw."""
    add_run(parser)
    parser.add_argument(
        "--prompt", action="append", default=[], help="what to continue; may be repeated (default: nothing)"
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint's step (default: the newest)")
    parser.add_argument("--length", type=int, default=200, metavar="N", help="tokens to add (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Print each prompt with its continuation, or write images into the run directory and print their paths."""
    found = open_run(args.run, args.root)
    devices.configure()
    from assay.evaluate.sample import ImageSampler, Sampler
    from assay.track.entries import Image
    from assay.track.media import write_media
    from assay.train.launch import evaluated
    from assay_kernels import using

    plan, state, step = evaluated(found, args.step)
    sampler = plan.experiment.objective
    module = plan.module(state)
    if isinstance(sampler, ImageSampler):
        with using(*plan.experiment.kernels):
            images = sampler.sample_images(module, plan.spec, seed=args.seed)
        for name, image in images.items():
            print(write_media(found.path / "samples", Image(step, f"{name}-seed{args.seed}", image)))
        return 0
    if not isinstance(sampler, Sampler):
        raise ConfigError(f"run {found.id}: its objective, {type(sampler).__name__}, cannot sample")
    prompts = args.prompt or [""]
    how = {"length": args.length, "temperature": args.temperature, "top_k": args.top_k, "seed": args.seed}
    with using(*plan.experiment.kernels):
        texts = sampler.sample(module, plan.spec, prompts, **how)
    for prompt, text in zip(prompts, texts, strict=True):
        print(prompt + text)
    return 0

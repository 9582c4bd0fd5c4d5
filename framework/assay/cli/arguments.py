"""Arguments that several verbs share."""

import argparse


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The experiment file, as `args.file`."""
    parser.add_argument("file", metavar="X.gin", help="an experiment file")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE`, any number of times, as the list `args.overrides` for config.load and config.check."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value, such as --set model.transformer.layers=6 or --set MACRO=3; may be repeated; text needs no quotes",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The processes that train together, one for each host, as `args.coordinator`, `processes`, `process`, `distributed`."""
    group = parser.add_argument_group("several processes", "the same command on each, with the same files in reach")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="an address of process 0 that all can reach")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    group.add_argument("--distributed", action="store_true", help="find all that from Slurm, or what else jax knows")


def join(args: argparse.Namespace) -> None:
    """Meet the other processes, where the arguments speak of any; jax must not have been used before."""
    if args.distributed or any(value is not None for value in (args.coordinator, args.processes, args.process)):
        from assay.parallel.processes import initialize

        initialize(args.coordinator, args.processes, args.process)

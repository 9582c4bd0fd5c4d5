"""How a process that reads data lives and dies: with the training process, and not before it."""

import multiprocessing
import os
import signal
import threading


def outlive_signals(index: int, count: int) -> None:
    """Begin worker `index` of `count`: ignore what is meant for the training process, and end when that one has ended.

    Ctrl-C and a scheduler's SIGTERM reach all processes; were a worker to die of them, the training process could not finish the
    step after which it saves. A killed training process stops nobody, so that its workers would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True, name=f"assay-data-{index}-of-{count}").start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

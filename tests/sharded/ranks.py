"""Running a function on several ranks: processes of this machine that torch.distributed connects over gloo."""

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from multiprocessing import connection, forkserver

SECONDS = 60

# Forked from a server that has imported everything: a rank is there in some hundredths of a second.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.tensor.parallel",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.optim",
        "gradient_lars.torch",
        "gradient_lars.torch._triton",
        "pytest",
    ]
)


def _start_server():
    """Start the server if it does not run, with Triton as its interpreter: ranks say for themselves if they want it."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def on_ranks(ranks, function, *args):
    """Return what `function(*args)` returns on each of `ranks` ranks; raise AssertionError if it raises on one.

    Warnings are errors on the ranks too. A rank that ends without a word, or hangs, is told as well.

    The thread `pt_gloo_runloop` of PyTorch 2.13 has been seen to crash by itself, once in some thousand runs. Where a
    rank was ended so, all begin again, one time: what crashes for another reason crashes again.
    """
    answers, crashed = _run(ranks, function, args)
    if crashed:
        answers, _ = _run(ranks, function, args)
    failures = [f"rank {rank}:\n{text}" for rank, (fine, text) in enumerate(answers) if not fine]
    assert not failures, "\n".join(failures)
    return [result for _, result in answers]


def _run(ranks, function, args):
    """Return the ranks' answers, and whether one of them has crashed."""
    _start_server()
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            here, there = _context.Pipe(duplex=False)
            process = _context.Process(target=_rank, args=(there, rank, ranks, f"{folder}/store", function, args))
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        try:
            answers = _answers(pipes)
        finally:
            for process in processes:
                process.join(1)
                process.kill()
    return answers, any(process.exitcode in (-signal.SIGSEGV, -signal.SIGABRT) for process in processes)


def _answers(pipes):
    """Return every rank's answer; once one has failed, the others, which may wait for it, get two seconds more."""
    answers = dict.fromkeys(pipes, (False, "no answer"))
    waiting, until = list(pipes), time.monotonic() + SECONDS
    while waiting and (ready := connection.wait(waiting, until - time.monotonic())):
        for pipe in ready:
            waiting.remove(pipe)
            try:
                answers[pipe] = pipe.recv()
            except EOFError:
                answers[pipe] = False, "ended without an answer"
            if not answers[pipe][0]:
                until = min(until, time.monotonic() + 2)
    return list(answers.values())


def _rank(pipe, rank, ranks, store, function, args):
    import torch
    from torch import distributed as dist

    warnings.simplefilter("error")
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        answer = True, function(*args)
    except BaseException:
        answer = False, traceback.format_exc()
    pipe.send(answer)
    pipe.close()
    # Others may still be in a collective with this one. What gloo leaves behind is not waited for.
    if answer[0]:
        dist.barrier()
    os._exit(0)

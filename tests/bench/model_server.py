"""A process that has transformers and a model in memory, and saves and loads it on demand.

One JSON object a line on stdin, one answer a line on stdout:

    {"do": "make", "bytes": N}                       a model of about that many bytes in float32
    {"do": "save", "dir": DIR, "user": NAME or null} seconds of save_pretrained
    {"do": "load", "dir": DIR, "user": NAME or null} seconds of from_pretrained

Each save and load is done by a fork that becomes the user and ends: neither imports nor construction count,
and no place's run leaves anything for another's.
"""

import json
import os
import pwd
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads would not survive the fork

import torch
import transformers

FLOAT = 4


def configuration(size):
    """Of a Llama whose parameters take about `size` bytes."""
    hidden = 1024 if size >= 1 << 29 else 256
    vocabulary = 32_000 if hidden == 1024 else 2_000
    inner = hidden * 11 // 4
    layer = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    layers = max(1, round((size / FLOAT - 2 * vocabulary * hidden) / layer))
    return transformers.LlamaConfig(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                                    num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
                                    vocab_size=vocabulary, tie_word_embeddings=False)


def make(size):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(configuration(size)).eval()


def save(model, directory):
    begin = time.monotonic()
    model.save_pretrained(directory)
    return time.monotonic() - begin


def load(_, directory):
    begin = time.monotonic()
    loaded = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for tensor in loaded.parameters():
        tensor.view(-1)[::1024].sum()  # what is mapped counts when it has been read: one number of each page
    return time.monotonic() - begin


def become(user):
    if user is not None:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def in_fork(work, model, directory, user):
    out, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            become(user)
            answer = {"seconds": work(model, directory)}
        except BaseException as problem:  # nothing may come back into the parent's loop
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        os.write(end, json.dumps(answer).encode()[:60_000])
        os._exit(0)
    os.close(end)
    with os.fdopen(out, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer or b'{"error": "the process died"}')


def warm(model):
    """Have everything imported that either needs."""
    with tempfile.TemporaryDirectory() as directory:
        small = make(1 << 20)
        save(small, directory)
        load(small, directory)
    return model


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = None
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "make":
            model = warm(make(order["bytes"]))
            answer = {"bytes": sum(p.numel() * p.element_size() for p in model.parameters())}
        else:
            answer = in_fork({"save": save, "load": load}[order["do"]], model, order["dir"], order["user"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""Small trainings with transformers' Trainer, each in a process of its own that may die.

The processes are forked from a server that has the libraries imported and has
computed nothing yet: a training starts in no time, and equal trainings save
equal bytes. Each works in a directory of its own by relative paths, so that
what it saves does not depend on where it is.
"""

import gc
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from support.files import sha256

FILES = {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja",
         "tokenizer_config.json", "tokenizer.json", "training_args.bin", "optimizer.pt", "scheduler.pt",
         "rng_state.pth", "trainer_state.json"}
FIRST_FILE, LAST_FILE = "config.json", "trainer_state.json"
MEASURED = ("_runtime", "_per_second")
TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
VOCABULARY, ROWS, WORDS_A_ROW = 1000, 16, 12
SECONDS = 100

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "torch.profiler._cupti_monitor", "accelerate",
                                  "transformers.trainer", "transformers.models.gpt2.modeling_gpt2"])
numbers = itertools.count()


@dataclass
class Training:
    """What is trained and how it ends. The run is the directory `run` in `directory`."""

    directory: Path
    logs: Path                         # where a file with its output is made
    arguments: dict = field(default_factory=dict)  # those of TrainingArguments
    seed: int = 0
    resume: bool | str | None = None
    copies: tuple = ()                 # a callback copies each checkpoint to these directories
    save_at_end: bool = False          # save_model() and save_state() when it is trained
    killed_after: int | None = None    # SIGKILL when this step is done, before it is saved
    size_limit: tuple | None = None    # (name, bytes): once `name` is opened, a file of more bytes kills
    waits_at: tuple = ()               # before it opens these files it waits for Running.go()

    def start(self):
        self.directory.mkdir(exist_ok=True)
        return Running(self)

    def outcome(self):
        return self.start().end()

    def run(self):
        """Train to a good end; the directory of the run."""
        running = self.start()
        code, _ = running.end()
        assert code == 0, f"exit code {code}\n{running.log.read_text()}"
        return self.directory / "run"


class Running:
    """A training's process."""

    def __init__(self, training):
        self.log = training.logs / f"training-{next(numbers)}.log"
        self.log.touch()
        self.pipe, far_end = processes.Pipe()
        self.process = processes.Process(target=_child, args=(training, self.log, far_end), daemon=True)
        self.process.start()
        far_end.close()

    def reaches(self):
        """Wait until it waits; the name of the file it would open next."""
        assert self.pipe.poll(SECONDS), f"it has not come to a file that it waits at:\n{self.log.read_text()}"
        return self.pipe.recv()

    def go(self):
        self.pipe.send("go")

    def kill(self):
        self.process.kill()
        return self.end()

    def end(self):
        """Wait until it has ended (it waits for nobody from now on): its exit code, the last line it said."""
        self.pipe.close()
        self.process.join(SECONDS)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"the training did not end within {SECONDS} s:\n{self.log.read_text()}")
        said = self.log.read_text().strip().splitlines()
        return self.process.exitcode, said[-1] if said else ""


def in_each_state(mount, check):
    """Call `check` now, when all is sealed, and after a remount."""
    check()
    status = mount.wait_sealed()
    assert (status["wrong"], status["incomplete"], status["damaged"]) == (0, 0, 0), status["reports"]
    check()
    mount.remount()
    check()


def in_each_state_unmapped(mount, check):
    """The same, and leave nothing mapped: some models are in cycles, which keep their files open."""
    def check_and_forget():
        check()
        gc.collect()

    in_each_state(mount, check_and_forget)


def is_complete(checkpoint):
    """Was the last file of a checkpoint written to its end?"""
    try:
        return "global_step" in json.loads((checkpoint / LAST_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return False


def contents(run):
    """{relative path: sha256} of the files of a run; of trainer_state.json what it says, times left out."""
    return {str(path.relative_to(run)): _state(path) if path.name == LAST_FILE else sha256(path)
            for path in sorted(run.rglob("*")) if path.is_file()}


def _state(path):
    state = json.loads(path.read_text())
    for entry in state["log_history"]:
        for key in [key for key in entry if key.endswith(MEASURED)]:
            assert entry.pop(key) >= 0
    return state


def _child(training, log, pipe):
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(training.directory)
    gc.freeze()  # Trainer collects garbage: not among what the server has imported
    _watch_opens(training, pipe)
    _train(training)


def _watch_opens(training, pipe):
    """Stop or be limited from the moment that Python opens certain files to write them."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    limited, size = training.size_limit or (None, 0)

    def notice(event, arguments):
        if event != "open" or not str(arguments[1]).startswith("w"):
            return
        name = str(arguments[0]).removeprefix("run/")
        if name == limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        if name in training.waits_at:
            pipe.send(name)
            pipe.recv()

    sys.addaudithook(notice)


def _train(training):
    import torch
    import transformers

    from support import models

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return ROWS

        def __getitem__(self, number):
            words = torch.arange(number, number + WORDS_A_ROW) * 37 % VOCABULARY
            return {"input_ids": words, "labels": words}

    class Callback(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == training.killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_save(self, args, state, control, **_):
            name = f"checkpoint-{state.global_step}"
            for target in training.copies:
                shutil.copytree(Path(args.output_dir, name), Path(target, name))

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(training.seed)
    words = models.tokenizer()
    words.chat_template = TEMPLATE
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_embd=128, n_layer=2, n_head=4, n_positions=32, vocab_size=VOCABULARY, resid_pdrop=0.1))
    arguments = dict(output_dir="run", max_steps=6, save_steps=2, logging_steps=1, report_to=[], use_cpu=True,
                     per_device_train_batch_size=2, disable_tqdm=True, seed=training.seed)
    trainer = transformers.Trainer(
        model=model, args=transformers.TrainingArguments(**arguments | training.arguments),
        train_dataset=Rows(), eval_dataset=Rows(), processing_class=words, callbacks=[Callback()])
    trainer.train(resume_from_checkpoint=training.resume)
    if training.save_at_end:
        trainer.save_model()
        trainer.save_state()

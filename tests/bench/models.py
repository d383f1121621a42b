"""transformers' save_pretrained and from_pretrained."""

import json
import subprocess
import sys
from pathlib import Path

from work import BINDFS_USER, DISK, ROOT, USER, Bound, Fixture, Measure, Work, cold_and_warm

SERVER = Path(__file__).with_name("model_server.py")


class Server:
    """The process of model_server.py; started at the first order, for one size of model."""

    def __init__(self):
        self.process = None

    def order(self, **words):
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{SERVER.name} ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def start(self, size):
        if self.process is None:
            # Threads of a user's fork take from its memory; what it imported is shared with all.
            self.process = subprocess.Popen([sys.executable, str(SERVER)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, text=True, start_new_session=True)
            self.order(do="make", bytes=size)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


server = Server()


def save_to(directory, place, sizes):
    server.start(sizes.model)
    return server.order(do="save", dir=str(directory), user=place.user)["seconds"]


def save(place, sizes):
    return (save_to(place.dir / "saved", place, sizes),)


def load(place, sizes):
    server.start(sizes.model)
    return server.order(do="load", dir=str(place.dir / "model"), user=place.user)["seconds"]


def remove_saved(place, sizes):
    place.run("rm", "-rf", place.dir / "saved")


def make_model(place, sizes):
    save_to(place.fixtures / "model", place, sizes)


MODEL = Fixture("a model of transformers", make_model, ("model",))
LOAD = (Bound(ROOT, "time", 1.05, DISK), Bound(USER, "time", 1.0, BINDFS_USER))

WORKS = [
    Work("save_pretrained", (Measure("save_pretrained", (Bound(ROOT, "time", 1.1, DISK),
                                                         Bound(USER, "time", 1.0, BINDFS_USER))),),
         save, tidy=remove_saved, heavy=True, warm_up=False),
    cold_and_warm("from_pretrained", load, LOAD, LOAD, (MODEL,), heavy=True),
]

"""Processes that begin in no time, forked from one that has imported what they need and has done nothing yet.

    nursery = Nursery("import sqlite3")
    process = nursery.start(function, *arguments)
    process.value()

A process runs the source of its function, which therefore imports all that it
names, in an environment of its own; what the function returns goes out as JSON.
"""

import ctypes
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

LARGEST = 200_000  # bytes of a message
PR_SET_PDEATHSIG = 1


class Process:
    """Its stdin and stdout are pipes of text lines."""

    def __init__(self, nursery, pid, stdin, stdout, stderr):
        self.nursery, self.pid = nursery, pid
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.code = None

    def tell(self):
        """Let it go on where it reads a line."""
        self.stdin.write("\n")
        self.stdin.flush()

    def kill(self):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)  # until it is waited for, the number is its own

    def wait(self):
        """Its exit code, or the negative number of the signal that ended it."""
        if self.code is None:
            self.code = self.nursery.ask(wait=self.pid)
        return self.code

    def outcome(self):
        """Wait for its end: the exit code, the lines of its output, its error messages."""
        lines = self.stdout.read().splitlines()
        code = self.wait()
        self.stderr.seek(0)
        return code, lines, self.stderr.read()

    def value(self):
        """What its function returned."""
        code, lines, errors = self.outcome()
        assert code == 0, errors
        return json.loads(lines[-1])

    def end(self):
        self.kill()
        self.wait()
        for file in (self.stdin, self.stdout, self.stderr):
            file.close()


class Nursery:
    """`imports` is run once, for all; modules of the package `forget` are imported anew by each process."""

    def __init__(self, imports, forget=""):
        self.socket, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            self.server = subprocess.Popen(
                [sys.executable, __file__, str(far.fileno()), imports, forget], pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)

    def ask(self, files=(), **message):
        socket.send_fds(self.socket, [json.dumps(message).encode()], files)
        answer = self.socket.recv(LARGEST)
        assert answer, f"the nursery ended: {self.server.wait()}"
        return json.loads(answer)

    def start(self, function, *arguments, environment=None):
        """A process that calls `function` with what JSON makes of the arguments."""
        call = f"{function.__name__}(*json.loads({json.dumps(arguments, default=str)!r}))"
        source = f"import json\n{inspect.getsource(function)}\nprint(json.dumps({call}), flush=True)\n"
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        errors = tempfile.TemporaryFile("w+")
        theirs = [theirs_in, theirs_out, errors.fileno()]
        pid = self.ask(theirs, source=source, environment=dict(environment or os.environ))
        os.close(theirs_in)
        os.close(theirs_out)
        return Process(self, pid, open(ours_in, "w"), open(ours_out), errors)

    def close(self):
        self.socket.close()
        self.server.wait()


def serve(server, forget):
    """Answer until the other end is closed."""
    while True:
        data, files, _, _ = socket.recv_fds(server, LARGEST, 3)
        if not data:
            return
        message = json.loads(data)
        if "wait" in message:
            answer = os.waitstatus_to_exitcode(os.waitpid(message["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                server.close()
                become(files, forget, **message)
            for fd in files:
                os.close(fd)
        server.send(json.dumps(answer).encode())


def become(files, forget, source, environment):
    """The life of a process, at most as long as that of the nursery."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, fd in enumerate(files):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", buffering=1, closefd=False)
    for name in [name for name in sys.modules if forget and name.split(".")[0] == forget]:
        del sys.modules[name]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    try:
        exec(source, {"__name__": "__child__"})
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    sys.exit()


def main():
    server = socket.socket(fileno=int(sys.argv[1]))
    exec(sys.argv[2], {})
    serve(server, sys.argv[3])


if __name__ == "__main__":
    main()

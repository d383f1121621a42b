"""What was measured with: the machine, the kernel, the versions."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

GIB = 1 << 30


def output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                platform.machine())


def versions():
    found = {
        "libfuse": output("pkg-config", "--modversion", "fuse3"),
        "fusermount3": output("fusermount3", "--version").removeprefix("fusermount3 version: "),
        "bindfs": output("bindfs", "--version").removeprefix("bindfs "),
        "borg": output("borg", "--version").removeprefix("borg "),
        "restic": " ".join(output("restic", "version").split()[1:2]),
        "casync": output("casync", "--version").removeprefix("casync "),
        "git": output("git", "--version").removeprefix("git version "),
        "Python": platform.python_version(),
    }
    for package in ("torch", "transformers", "safetensors"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return {name: version for name, version in found.items() if version}


def describe(base, tools):
    """All of it, for the directory where the work is done."""
    type_, _, device = output("findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", str(base)).partition(" ")
    return {
        "processor": processor(), "cores": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": f"{type_} on {device.strip()}, {shutil.disk_usage(base).total / GIB:.0f} GiB",
        "weightfs": output(str(tools.weightfs), "version").removeprefix("weightfs "),
        "passthrough": tools.example.name if tools.example else "not found",
        "versions": versions(),
    }


def commit(root):
    """The commit that is measured, with "+" where the tree differs from it."""
    head = output("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    changed = output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", ".",
                     ":!docs")  # where the results go
    return head + ("+" if head and changed else "")

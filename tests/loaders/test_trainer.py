"""Trainer saves into the mount and resumes from there, whatever was killed, as in a plain directory.

Trainings are exact to the bit: every file of every checkpoint is compared with
that of the same training, never interrupted, in a plain directory.
"""

import functools
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
trainer_utils = pytest.importorskip("transformers.trainer_utils")

from support.training import FILES, FIRST_FILE, LAST_FILE, Training, contents, in_each_state, is_complete

CHECKPOINTS = ("checkpoint-2", "checkpoint-4", "checkpoint-6")
MODEL_CUT = 1_000_000      # bytes: less than the model's file, more than what is written before it
OPTIMIZER_CUT = 3_000_000  # more than the model's file, less than the optimizer's
STATE_CUT = 100
BEST = dict(eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_loss")
STRATEGIES = {
    "steps": {},
    "epoch": dict(save_strategy="epoch", max_steps=-1, num_train_epochs=3, per_device_train_batch_size=8),
    "best": dict(BEST, save_strategy="best", greater_is_better=False),
    "only-model": dict(save_only_model=True),
    "at-the-end": dict(save_strategy="no"),
}


@pytest.fixture
def training(tmp_path):
    """Training, with its logs where the test's files are."""
    return functools.partial(Training, logs=tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A function: the contents of a whole run in a plain directory, for a seed."""
    base = tmp_path_factory.mktemp("uninterrupted")

    @functools.cache
    def run(seed=0):
        found = contents(Training(base / str(seed), base, seed=seed).run())
        assert found.keys() == {f"{checkpoint}/{name}" for checkpoint in CHECKPOINTS for name in FILES}
        return found

    return run


def part(found, *checkpoints):
    """Of the contents of a run, those of some checkpoints."""
    return {name: value for name, value in found.items() if name.split("/")[0] in checkpoints}


def check_whole(run, expected):
    assert contents(run) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saved(mount, plain, training, strategy):
    """Each save strategy, then save_model and save_state: every file is that of a plain directory."""
    run, expected = (training(base, arguments=STRATEGIES[strategy], save_at_end=True).run()
                     for base in (mount.dir, plain))
    expected = contents(expected)
    checkpoints = () if strategy == "at-the-end" else CHECKPOINTS
    left_out = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    in_checkpoint = FILES - left_out if strategy == "only-model" else FILES
    assert expected.keys() == (FILES - left_out) | {f"{checkpoint}/{name}" for checkpoint in checkpoints
                                                    for name in in_checkpoint}
    in_each_state(mount, lambda: check_whole(run, expected))


@pytest.mark.parametrize("limit", [1, 2])
def test_best_and_last_are_kept(mount, plain, training, limit):
    """load_best_model_at_end with a limit: the best (the first one here) stays and, if two may, the last."""
    arguments = dict(BEST, greater_is_better=True, load_best_model_at_end=True, save_total_limit=limit)
    run, expected = (training(base, arguments=arguments, save_at_end=True).run()
                     for base in (mount.dir, plain))
    kept = ["checkpoint-2"] if limit == 1 else ["checkpoint-2", "checkpoint-6"]
    assert sorted(path.name for path in run.glob("checkpoint-*")) == kept
    expected = contents(expected)
    assert expected["model.safetensors"] == expected["checkpoint-2/model.safetensors"]
    assert expected["trainer_state.json"]["best_model_checkpoint"] == "run/checkpoint-2"
    in_each_state(mount, lambda: check_whole(run, expected))


def test_oldest_by_mtime_goes(mount, plain, training, uninterrupted):
    """Rotation goes by the directories' mtime where these differ: what was touched last stays."""
    for base in (mount.dir, plain):
        training(base, killed_after=5).outcome()
        os.utime(base / "run" / "checkpoint-4", (1_000_000, 1_000_000))
    mount.remount()
    for base in (mount.dir, plain):
        run = training(base, resume=True, arguments=dict(save_total_limit=2)).run()
        assert sorted(os.listdir(run)) == ["checkpoint-2", "checkpoint-6"]
        assert part(contents(run), "checkpoint-2") == part(uninterrupted(), "checkpoint-2")


@pytest.mark.parametrize("resume", [True, "run/checkpoint-2"])
def test_resumed(mount, training, uninterrupted, resume):
    """Killed between two saves and resumed: weights, optimizer, scheduler, RNG and state as if it was not."""
    code, _ = training(mount.dir, killed_after=5).outcome()
    assert code == -signal.SIGKILL
    run = mount.dir / "run"
    saved = part(uninterrupted(), "checkpoint-2", "checkpoint-4")
    in_each_state(mount, lambda: check_whole(run, saved))
    training(mount.dir, resume=resume).run()
    in_each_state(mount, lambda: check_whole(run, uninterrupted()))


def test_resumed_again_and_again(mount, training, uninterrupted):
    """Killed after each save and resumed each time from a mount that is new, sealed or not."""
    for resume, killed_after in ((None, 3), (True, 5), (True, None)):
        training(mount.dir, resume=resume, killed_after=killed_after).outcome()
        mount.remount()
    check_whole(mount.dir / "run", uninterrupted())


def test_resumed_elsewhere(mount, plain, training, uninterrupted):
    """A run that is moved out of the mount, or into it, goes on there."""
    inside, outside = mount.dir / "moved", plain / "moved"
    inside.mkdir()
    outside.mkdir()
    for base, target in ((mount.dir, outside), (plain, inside)):
        training(base, killed_after=5).outcome()
        shutil.move(base / "run", target / "run")
        training(target, resume=True).run()
        check_whole(target / "run", uninterrupted())
    in_each_state(mount, lambda: check_whole(inside / "run", uninterrupted()))


def test_callback_copies_checkpoints(mount, plain, training, uninterrupted):
    """A callback copies each new checkpoint by shutil.copytree, within the mount and out of it."""
    (mount.dir / "kept").mkdir()
    (plain / "kept").mkdir()
    run = training(mount.dir, copies=(mount.dir / "kept", plain / "kept")).run()
    check_whole(plain / "kept", uninterrupted())
    in_each_state(mount, lambda: check_whole(mount.dir / "kept", uninterrupted()))
    shutil.rmtree(run)
    (mount.dir / "kept").rename(run)
    shutil.rmtree(run / "checkpoint-6")
    training(mount.dir, resume=True).run()
    check_whole(run, uninterrupted())


CUTS = {
    "no-file-whole": (FIRST_FILE, 0),
    "in-the-model": (FIRST_FILE, MODEL_CUT),
    "in-the-optimizer": (FIRST_FILE, OPTIMIZER_CUT),
    "in-the-state": (LAST_FILE, STATE_CUT),
}


@pytest.mark.parametrize("cut, remedy", [
    pytest.param("no-file-whole", "removed", marks=pytest.mark.long), ("in-the-model", "overwritten"),
    pytest.param("in-the-optimizer", "removed", marks=pytest.mark.long), ("in-the-state", "overwritten")])
def test_killed_in_a_file(mount, plain, training, uninterrupted, cut, remedy):
    """Killed by the kernel within a certain file of a checkpoint.

    Before and after a remount transformers says of the torn checkpoint what it
    says in a plain directory, and the whole ones are whole. When the torn one
    is removed, or another is named and it is written over, the result is that
    of a training never interrupted.
    """
    name, size = CUTS[cut]
    whole, torn = (mount.dir / "run" / checkpoint for checkpoint in ("checkpoint-2", "checkpoint-4"))
    for base in (plain, mount.dir):
        code, _ = training(base, size_limit=(f"checkpoint-4/{name}", size)).outcome()
        assert code == -signal.SIGXFSZ
    assert tree(torn) == tree(plain / "run" / "checkpoint-4")
    assert is_complete(whole) and not is_complete(torn)
    for settle in (lambda: None, mount.wait_sealed, mount.remount):
        settle()
        same_refusal(mount, plain, training)
    mended(mount, training, remedy, uninterrupted())


def same_refusal(mount, plain, training):
    """Resuming from the newest checkpoint, a torn one, fails as it does in the plain directory."""
    outcomes = [training(base, resume=True).outcome() for base in (mount.dir, plain)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == 1


def tree(directory):
    """{name: (mode, size)} of a checkpoint; random names as one."""
    return {".tmp" if path.name.startswith(".tmp") else path.name: (path.stat().st_mode, path.stat().st_size)
            for path in directory.iterdir()}


def mended(mount, training, remedy, expected):
    """Resume from the last whole checkpoint as a user would, and compare the whole run."""
    run = mount.dir / "run"
    complete = [checkpoint for checkpoint in CHECKPOINTS if is_complete(run / checkpoint)]
    found = contents_of(run, complete)
    assert found == part(expected, *complete)
    torn = [name for name in os.listdir(run) if name not in complete]
    assert len(torn) <= 1
    if remedy == "removed":
        for name in torn:
            shutil.rmtree(run / name)
        assert trainer_utils.get_last_checkpoint(run) == str(run / complete[-1])
        training(mount.dir, resume=True).run()
    else:
        training(mount.dir, resume=f"run/{complete[-1]}").run()

    def check():
        found = {name: value for name, value in contents(run).items() if "/.tmp" not in name}
        assert found == expected

    in_each_state(mount, check)


def contents_of(run, checkpoints):
    return {f"{checkpoint}/{name}": value for checkpoint in checkpoints
            for name, value in contents(run / checkpoint).items()}


def saving_checkpoint_4(training, mount, delay):
    """A training `delay` seconds past the beginning of its second save, that stops before its third."""
    moments = f"checkpoint-4/{FIRST_FILE}", f"checkpoint-6/{FIRST_FILE}"
    running = training(mount.dir, waits_at=moments).start()
    assert running.reaches() == moments[0]
    running.go()
    time.sleep(delay)
    return running


def resumed_after(mount, plain, training, expected):
    """What was whole is whole, and a torn checkpoint is what it is when it is copied to a plain directory."""
    newest = trainer_utils.get_last_checkpoint(mount.dir / "run")
    assert is_complete(mount.dir / "run" / "checkpoint-2")
    if not is_complete(Path(newest)):
        shutil.copytree(mount.dir / "run", plain / "run")
        same_refusal(mount, plain, training)
    mended(mount, training, "removed", expected)


def killed_at(mount, plain, training, expected, delay):
    running = saving_checkpoint_4(training, mount, delay)
    code, _ = running.kill()
    assert code == -signal.SIGKILL
    mount.wait_sealed()
    mount.remount()
    resumed_after(mount, plain, training, expected)


def driver_killed_at(mount, plain, training, expected, delay):
    running = saving_checkpoint_4(training, mount, delay)
    mount.kill()
    code, said = running.end()
    assert code == 1, said
    mount.mount()
    resumed_after(mount, plain, training, expected)


@pytest.mark.parametrize("milliseconds", [10, 20])
def test_killed_while_saving(mount, plain, training, uninterrupted, milliseconds):
    """SIGKILL of a training about that long after its second save began; resumed after a remount."""
    killed_at(mount, plain, training, uninterrupted(), milliseconds / 1000)


@pytest.mark.parametrize("milliseconds", [10, 20])
def test_driver_killed_while_saving(mount, plain, training, uninterrupted, milliseconds):
    """kill -9 of the driver while a training saves: after a mount the last whole checkpoint is resumed."""
    driver_killed_at(mount, plain, training, uninterrupted(), milliseconds / 1000)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", [killed_at, driver_killed_at], ids=["training", "driver"])
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment(mount, plain, training, uninterrupted, what, seed):
    """As above, at random moments in and around the save."""
    what(mount, plain, training, uninterrupted(), random.Random(seed).random() * 0.04)


@pytest.mark.long
def test_three_at_once(mount, training, uninterrupted):
    """Three trainings save into one mount at the same time; a fourth resumes there meanwhile."""
    training(mount.dir / "3", seed=3, killed_after=3).outcome()
    jobs = [training(mount.dir / str(seed), seed=seed, resume=seed == 3) for seed in range(4)]
    running = [job.start() for job in jobs]
    ends = [one.end() for one in running]
    assert [code for code, _ in ends] == [0] * 4, ends

    def check():
        for seed in range(4):
            check_whole(mount.dir / str(seed) / "run", uninterrupted(seed))

    in_each_state(mount, check)

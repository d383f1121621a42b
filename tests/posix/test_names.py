"""Names and paths."""

import errno
import os
import stat
import subprocess

from support.files import errno_of, in_directory, read_file, write_file


NAMES = [b"a", b".hidden", b" ", b"\xff\xfe\x80", "ü€😀".encode(), b"new\nline", b"back\\slash", b"x" * 255,
         b"%2F", b"-rf", b"..."]


def test_names(mount):
    """Any bytes but NUL and '/', up to 255 of them, come back as they are."""
    root = os.fsencode(mount.dir)
    for number, name in enumerate(NAMES):
        write_file(root + b"/" + name, b"%d" % number)
    mount.remount()
    assert sorted(os.listdir(root)) == sorted(NAMES)
    for number, name in enumerate(NAMES):
        assert read_file(root + b"/" + name) == b"%d" % number
        os.unlink(root + b"/" + name)
    assert os.listdir(root) == []


def test_names_too_long(mount):
    """ENAMETOOLONG for 256 bytes, in every call that makes a name."""
    name = mount.dir / ("x" * 256)
    write_file(mount.dir / "file", b"")
    for call in ((write_file, name, b""), (os.mkdir, name), (os.symlink, "t", name), (os.stat, name),
                 (os.link, mount.dir / "file", name), (os.rename, mount.dir / "file", name),
                 (os.mkfifo, name)):
        assert errno_of(*call) == errno.ENAMETOOLONG, call


def test_upper_and_lower_case(mount):
    write_file(mount.dir / "name", b"lower")
    write_file(mount.dir / "NAME", b"upper")
    assert read_file(mount.dir / "name") == b"lower"


def test_deep_tree(mount):
    """A path of 200 directories; getcwd and ".." find the way back."""
    deep = mount.dir.joinpath(*["d"] * 200)
    deep.mkdir(parents=True)
    write_file(deep / "file", b"deep")
    mount.remount()
    assert read_file(deep / "file") == b"deep"
    assert os.path.samefile(deep.joinpath(*[".."] * 200), mount.dir)


def test_paths_of_every_length(mount, plain):
    """Paths up to PATH_MAX are taken, longer ones refused, the same as on the disk; by parts any depth is reached."""
    def act(root):
        here = os.open(root, os.O_RDONLY)
        found = []
        for number in range(30):  # 30 levels of 200 bytes: longer than any path
            os.mkdir("n" * 200, dir_fd=here)
            below = os.open("n" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        found.append(os.listdir(here))
        os.close(here)
        relative = "n" * 200 + "/"
        for length in (1000, 4000, 4094, 4095, 4096, 5000):
            path = (relative * 30)[:length].ljust(length, "n")
            found.append(in_directory(root, errno_of, os.stat, path))
        return found

    assert act(mount.dir) == act(plain)
    subprocess.run(["rm", "-r", mount.dir / ("n" * 200)], check=True)
    assert os.listdir(mount.dir) == []


def test_every_byte(mount):
    """Each byte but NUL and '/' alone, in front, within and behind; names that differ in one bit are two."""
    root = os.fsencode(mount.dir)
    names = {name for byte in range(1, 256) if byte != 47
             for name in (bytes([byte]), b"a" + bytes([byte]), bytes([byte]) + b"a", b"a" + bytes([byte]) + b"a")}
    names -= {b"."}
    for name in names:
        write_file(root + b"/" + name, name)
    mount.remount()
    assert set(os.listdir(root)) == names
    assert all(read_file(root + b"/" + name) == name for name in names)


def test_no_name_is_special(mount):
    """Names that other file systems, or this one, use for themselves are names as any other."""
    names = ["CON", "nul.txt", "lost+found", ".Trash-1000", ".fuse_hidden0001", ".weightfs", "weightfs.db",
             "weightfs.db-wal", "lock", "data", "con.safetensors.", "a:b", "a*b?", "~", "#1"]
    for name in names:
        (mount.dir / name).mkdir()
        write_file(mount.dir / name / name, name.encode())
    mount.remount()
    assert sorted(os.listdir(mount.dir)) == sorted(names)
    for name in names:
        assert os.listdir(mount.dir / name) == [name] and read_file(mount.dir / name / name) == name.encode()


def test_composed_and_decomposed(mount):
    """Unicode is not normalized: a letter composed and the same decomposed are two names."""
    names = ["\u00e9", "e\u0301", "\ufb01", "fi", "\u212b", "\u00c5"]
    for name in names:
        write_file(mount.dir / name, name.encode())
    mount.remount()
    assert sorted(os.listdir(mount.dir)) == sorted(names)


def test_dots_and_slashes(mount):
    """".", "..", repeated and trailing slashes in paths mean what they mean everywhere."""
    (mount.dir / "a/b").mkdir(parents=True)
    write_file(mount.dir / "a/file", b"x")
    root = str(mount.dir)
    for path in ("/a//file", "//a/./file", "/a/b/../file", "/./a/b/./../file", "/../" + mount.dir.name + "/a/file"):
        assert read_file(root + path) == b"x", path
    assert os.path.samefile(root + "/a/b/", root + "/a/b/.")
    os.mkdir(root + "/a/c/")
    os.rename(root + "/a/c/", root + "/a/d/")
    os.rmdir(root + "/a/d/")
    assert errno_of(os.stat, root + "/a/file/") == errno.ENOTDIR
    assert errno_of(os.stat, root + "/a/none/../file") == errno.ENOENT


def test_name_taken_again(mount):
    """A name that is removed and made again, as another kind of inode, is never seen as the old one."""
    path = mount.dir / "name"
    makers = [lambda: write_file(path, b"x"), lambda: path.mkdir(), lambda: os.symlink("x", path),
              lambda: os.mkfifo(path)]
    kinds = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO]
    for number in range(200):
        which = number * 7 % 4
        makers[which]()
        assert stat.S_IFMT(os.lstat(path).st_mode) == kinds[which]
        path.rmdir() if which == 1 else path.unlink()
        assert errno_of(os.lstat, path) == errno.ENOENT

/* The namespace where it says no: what is asked for is not there, is of another kind, too long, or in itself. */
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "tests/unit/store_fixture.h"

#include "lib/store_priv.h"

static uint64_t make_dir(struct fixture *f, uint64_t parent, const char *name)
{
	return make(f, parent, name, S_IFDIR | 0755);
}

static int create(struct fixture *f, uint64_t parent, const char *name, const char *target)
{
	struct wfs_new new = { .mode = (target ? S_IFLNK : S_IFIFO) | 0600, .target = target };
	struct wfs_attr a;

	return wfs_name_create(f->store, parent, name, &new, &a);
}

static bool has(struct fixture *f, uint64_t parent, const char *name, uint64_t ino)
{
	struct wfs_attr a;

	return wfs_name_lookup(f->store, parent, name, &a) == 0 && a.ino == ino;
}

static uint64_t nlink_of(struct fixture *f, uint64_t ino)
{
	struct wfs_attr a;

	assert_int_equal(wfs_name_getattr(f->store, ino, &a), 0);
	return a.nlink;
}

static void sql(struct fixture *f, const char *text)
{
	char *path = wfs_test_path(f->path, "weightfs.db");
	sqlite3 *db;

	if (f->store)
		assert_int_equal(wfs_store_close(f->store), 0);
	f->store = NULL;
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	free(path);
	reopen(f, 0);
}

/* ---- names ---- */

static void test_bad_names(void **state)
{
	static const char *const none[] = { "", ".", "..", "a/b", "/" };
	struct fixture *f = *state;
	uint64_t ino = make(f, WFS_ROOT_INO, "file", S_IFREG | 0600);
	struct wfs_renamed renamed;
	struct wfs_attr a;
	char name[WFS_NAME_MAX + 2];

	for (size_t i = 0; i < WFS_ARRAY_SIZE(none); i++) {
		assert_int_equal(create(f, WFS_ROOT_INO, none[i], NULL), -EINVAL);
		assert_int_equal(wfs_name_link(f->store, ino, WFS_ROOT_INO, none[i], &a), -EINVAL);
		assert_int_equal(wfs_name_rename(f->store, WFS_ROOT_INO, "file", WFS_ROOT_INO, none[i], 0,
			&renamed), -EINVAL);
	}
	memset(name, 'x', sizeof(name));
	name[WFS_NAME_MAX + 1] = '\0';
	assert_int_equal(create(f, WFS_ROOT_INO, name, NULL), -ENAMETOOLONG);
	assert_int_equal(wfs_name_link(f->store, ino, WFS_ROOT_INO, name, &a), -ENAMETOOLONG);
	assert_int_equal(wfs_name_lookup(f->store, WFS_ROOT_INO, name, &a), -ENAMETOOLONG);
	assert_int_equal(wfs_name_resolve(f->store, name, &a), -ENAMETOOLONG);
	name[WFS_NAME_MAX] = '\0';
	assert_int_equal(create(f, WFS_ROOT_INO, name, NULL), 0);
	assert_int_equal(wfs_name_resolve(f->store, name, &a), 0);
	assert_true(S_ISFIFO(a.mode));
	assert_int_equal(nlink_of(f, ino), 1);
	remove_name(f, "file");
}

static void test_parents(void **state)
{
	struct fixture *f = *state;
	struct wfs_new new = { .mode = S_IFREG | 0600 };
	uint64_t file = make(f, WFS_ROOT_INO, "file", S_IFREG | 0600), gone, ino;
	struct wfs_renamed renamed;
	struct wfs_attr a;

	gone = make_dir(f, WFS_ROOT_INO, "gone");
	assert_int_equal(wfs_name_rmdir(f->store, WFS_ROOT_INO, "gone", &ino), 0);
	assert_int_equal(ino, gone);
	/* Removed, and still in somebody's hands. */
	assert_int_equal(create(f, gone, "x", NULL), -ENOENT);
	assert_int_equal(wfs_name_create_unnamed(f->store, gone, &new, &a), -ENOENT);
	assert_int_equal(wfs_name_link(f->store, file, gone, "x", &a), -ENOENT);
	assert_int_equal(wfs_name_rename(f->store, WFS_ROOT_INO, "file", gone, "x", 0, &renamed), -ENOENT);
	assert_int_equal(wfs_name_drop(f->store, &gone, 1), 0);
	assert_int_equal(create(f, gone, "x", NULL), -ENOENT);
	assert_int_equal(create(f, file, "x", NULL), -ENOTDIR);
	assert_int_equal(wfs_name_create_unnamed(f->store, file, &new, &a), -ENOTDIR);
	assert_int_equal(wfs_name_link(f->store, file, file, "x", &a), -ENOTDIR);
	assert_int_equal(wfs_name_link(f->store, gone, WFS_ROOT_INO, "x", &a), -ENOENT);
	assert_int_equal(wfs_name_rename(f->store, WFS_ROOT_INO, "file", file, "x", 0, &renamed), -ENOTDIR);
	assert_true(has(f, WFS_ROOT_INO, "file", file));
	assert_int_equal(nlink_of(f, file), 1);
}

static void test_existing(void **state)
{
	struct fixture *f = *state;
	uint64_t file = make(f, WFS_ROOT_INO, "file", S_IFREG | 0600);
	uint64_t dir = make_dir(f, WFS_ROOT_INO, "dir"), ino = 99;
	char *target = malloc(WFS_SYMLINK_MAX + 2);
	struct wfs_attr a;
	bool gone;

	assert_int_equal(create(f, WFS_ROOT_INO, "file", NULL), -EEXIST);
	assert_int_equal(wfs_name_link(f->store, file, WFS_ROOT_INO, "dir", &a), -EEXIST);
	assert_int_equal(wfs_name_link(f->store, dir, WFS_ROOT_INO, "new", &a), -EPERM);
	assert_int_equal(wfs_name_unlink(f->store, WFS_ROOT_INO, "dir", &ino, &gone), -EISDIR);
	assert_int_equal(wfs_name_rmdir(f->store, WFS_ROOT_INO, "file", &ino), -ENOTDIR);
	assert_int_equal(wfs_name_rmdir(f->store, WFS_ROOT_INO, "nothing", &ino), -ENOENT);
	assert_int_equal(create(f, dir, "x", NULL), 0);
	assert_int_equal(wfs_name_rmdir(f->store, WFS_ROOT_INO, "dir", &ino), -ENOTEMPTY);
	assert_int_equal(ino, 99); /* written only on success */
	assert_true(has(f, WFS_ROOT_INO, "file", file));
	assert_true(has(f, WFS_ROOT_INO, "dir", dir));
	memset(target, 't', WFS_SYMLINK_MAX + 1);
	target[WFS_SYMLINK_MAX + 1] = '\0';
	assert_int_equal(create(f, WFS_ROOT_INO, "link", target), -ENAMETOOLONG);
	target[WFS_SYMLINK_MAX] = '\0';
	assert_int_equal(create(f, WFS_ROOT_INO, "link", target), 0);
	assert_int_equal(wfs_name_lookup(f->store, WFS_ROOT_INO, "link", &a), 0);
	assert_int_equal(a.size, WFS_SYMLINK_MAX);
	free(target);
}

static void test_set_gid(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, WFS_ROOT_INO, "d");
	struct wfs_attr a, want = { .mode = S_IFDIR | 02775, .gid = 42 };

	assert_int_equal(wfs_name_setattr(f->store, dir, WFS_SET_MODE | WFS_SET_GID, &want, &a), 0);
	make_dir(f, dir, "sub");
	make(f, dir, "file", S_IFREG | 0600);
	assert_int_equal(wfs_name_resolve(f->store, "d/sub", &a), 0);
	assert_int_equal(a.gid, 42);
	assert_int_equal(a.mode, S_IFDIR | S_ISGID | 0755);
	assert_int_equal(wfs_name_resolve(f->store, "d/file", &a), 0);
	assert_int_equal(a.gid, 42);
	assert_int_equal(a.mode, S_IFREG | 0600);
}

/* ---- renaming ---- */

static int rename_to(struct fixture *f, const char *from, uint64_t parent, const char *to, unsigned flags)
{
	struct wfs_renamed renamed;

	return wfs_name_rename(f->store, WFS_ROOT_INO, from, parent, to, flags, &renamed);
}

static void test_rename_refused(void **state)
{
	struct fixture *f = *state;
	uint64_t file = make(f, WFS_ROOT_INO, "file", S_IFREG | 0600);
	uint64_t dir = make_dir(f, WFS_ROOT_INO, "dir"), sub = make_dir(f, dir, "sub");
	uint64_t full = make_dir(f, WFS_ROOT_INO, "full");

	assert_int_equal(create(f, full, "x", NULL), 0);
	assert_int_equal(rename_to(f, "nothing", WFS_ROOT_INO, "new", 0), -ENOENT);
	assert_int_equal(rename_to(f, "file", WFS_ROOT_INO, "dir", 0), -EISDIR);
	assert_int_equal(rename_to(f, "dir", WFS_ROOT_INO, "file", 0), -ENOTDIR);
	assert_int_equal(rename_to(f, "dir", WFS_ROOT_INO, "full", 0), -ENOTEMPTY);
	assert_int_equal(rename_to(f, "dir", dir, "in", 0), -EINVAL);
	assert_int_equal(rename_to(f, "dir", sub, "in", 0), -EINVAL);
	assert_int_equal(rename_to(f, "file", WFS_ROOT_INO, "dir", RENAME_NOREPLACE), -EEXIST);
	assert_int_equal(rename_to(f, "file", WFS_ROOT_INO, "new", RENAME_EXCHANGE), -ENOENT);
	assert_int_equal(rename_to(f, "file", WFS_ROOT_INO, "new", RENAME_WHITEOUT), -EINVAL);
	assert_int_equal(rename_to(f, "dir", sub, "in", RENAME_EXCHANGE), -ENOENT);
	assert_int_equal(create(f, sub, "in", NULL), 0);
	/* Neither may come to lie in itself. */
	assert_int_equal(rename_to(f, "dir", sub, "in", RENAME_EXCHANGE), -EINVAL);
	assert_int_equal(rename_to(f, "file", WFS_ROOT_INO, "new", RENAME_NOREPLACE), 0);
	assert_true(has(f, WFS_ROOT_INO, "new", file));
	assert_true(has(f, WFS_ROOT_INO, "dir", dir));
	assert_true(has(f, dir, "sub", sub));
	assert_int_equal(nlink_of(f, WFS_ROOT_INO), 4);
	assert_int_equal(nlink_of(f, dir), 3);
}

static void test_exchange(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, WFS_ROOT_INO, "dir"), other = make_dir(f, WFS_ROOT_INO, "other");
	uint64_t file = make(f, other, "file", S_IFREG | 0600);
	struct wfs_renamed renamed;

	/* The one that is exchanged for its own parent. */
	assert_int_equal(wfs_name_rename(f->store, other, "file", WFS_ROOT_INO, "other", RENAME_EXCHANGE,
		&renamed), -EINVAL);
	assert_int_equal(wfs_name_rename(f->store, WFS_ROOT_INO, "dir", other, "file", RENAME_EXCHANGE,
		&renamed), 0);
	assert_int_equal(renamed.ino, dir);
	assert_int_equal(renamed.replaced, file);
	assert_false(renamed.replaced_gone);
	assert_true(has(f, WFS_ROOT_INO, "dir", file));
	assert_true(has(f, other, "file", dir));
	/* ".." of the directory counts elsewhere now. */
	assert_int_equal(nlink_of(f, WFS_ROOT_INO), 3);
	assert_int_equal(nlink_of(f, other), 3);
}

static void test_rename_of_one_inode(void **state)
{
	struct fixture *f = *state;
	uint64_t ino = make(f, WFS_ROOT_INO, "one", S_IFREG | 0600);
	struct wfs_renamed renamed = { 9, 9, true };
	struct wfs_attr a;

	assert_int_equal(wfs_name_link(f->store, ino, WFS_ROOT_INO, "two", &a), 0);
	assert_int_equal(wfs_name_rename(f->store, WFS_ROOT_INO, "one", WFS_ROOT_INO, "two", 0, &renamed), 0);
	assert_int_equal(renamed.ino, ino);
	assert_int_equal(renamed.replaced, 0);
	assert_false(renamed.replaced_gone);
	assert_true(has(f, WFS_ROOT_INO, "one", ino));
	assert_true(has(f, WFS_ROOT_INO, "two", ino));
	assert_int_equal(nlink_of(f, ino), 2);
}

/* ---- paths ---- */

static void test_resolve(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, WFS_ROOT_INO, "dir");
	uint64_t file = make(f, dir, "file", S_IFREG | 0600);
	struct wfs_attr a;

	assert_int_equal(wfs_name_resolve(f->store, "", &a), 0);
	assert_int_equal(a.ino, WFS_ROOT_INO);
	assert_int_equal(wfs_name_resolve(f->store, "//.//dir/./file", &a), 0);
	assert_int_equal(a.ino, file);
	assert_int_equal(wfs_name_resolve(f->store, "/dir/", &a), 0);
	assert_int_equal(a.ino, dir);
	assert_int_equal(wfs_name_resolve(f->store, "dir/file/x", &a), -ENOTDIR);
	assert_int_equal(wfs_name_resolve(f->store, "dir/none/x", &a), -ENOENT);
	assert_int_equal(wfs_name_getattr(f->store, 12345, &a), -ENOENT);
}

/* Longer than any path that a system call takes. */
static void test_deep_path(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = WFS_ROOT_INO, parent = 0;
	char name[101], *want = calloc(1, 101 * 60 + 1), *path;

	for (int i = 0; i < 60; i++) {
		memset(name, 'a' + i % 26, 100);
		name[100] = '\0';
		strcat(strcat(want, "/"), name);
		dir = make_dir(f, dir, name);
	}
	assert_int_equal(wfs_name_path(f->store, dir, &path), 0);
	assert_string_equal(path, want);
	free(path);
	assert_int_equal(wfs_name_try_path(f->store, dir, &path), 0);
	assert_string_equal(path, want);
	free(path);
	assert_int_equal(wfs_name_parent(f->store, dir, &parent), 0);
	assert_int_not_equal(parent, dir);
	*strrchr(want, '/') = '\0';
	assert_int_equal(wfs_name_path(f->store, parent, &path), 0);
	assert_string_equal(path, want);
	free(path);
	free(want);
}

static void test_no_path(void **state)
{
	struct fixture *f = *state;
	struct wfs_new new = { .mode = S_IFREG | 0600 };
	struct wfs_attr a;
	uint64_t parent = 0;
	char *path;

	assert_int_equal(wfs_name_path(f->store, WFS_ROOT_INO, &path), 0);
	assert_string_equal(path, "");
	free(path);
	assert_int_equal(wfs_name_parent(f->store, WFS_ROOT_INO, &parent), 0);
	assert_int_equal(parent, WFS_ROOT_INO);
	assert_int_equal(wfs_name_create_unnamed(f->store, WFS_ROOT_INO, &new, &a), 0);
	assert_int_equal(wfs_name_path(f->store, a.ino, &path), 0);
	assert_string_equal(path, "");
	free(path);
	assert_int_equal(wfs_name_parent(f->store, a.ino, &parent), -ENOENT);
	assert_int_equal(wfs_name_drop(f->store, &a.ino, 1), 0);
}

/* Directories that hold each other, in a store that somebody has changed: an answer, and an end. */
static void test_circle(void **state)
{
	struct fixture *f = *state;
	uint64_t one = make_dir(f, WFS_ROOT_INO, "one"), two = make_dir(f, one, "two");
	uint64_t three = make_dir(f, two, "three"), moved = make_dir(f, WFS_ROOT_INO, "moved");
	char *path, text[100];

	snprintf(text, sizeof(text), "UPDATE dirent SET parent = %llu WHERE ino = %llu",
		(unsigned long long)three, (unsigned long long)one);
	sql(f, text);
	assert_int_equal(wfs_name_path(f->store, two, &path), 0);
	assert_string_equal(path, "");
	free(path);
	assert_int_equal(rename_to(f, "moved", two, "in", 0), -EUCLEAN);
	assert_true(has(f, WFS_ROOT_INO, "moved", moved));
	snprintf(text, sizeof(text), "UPDATE dirent SET parent = 1 WHERE ino = %llu",
		(unsigned long long)one);
	sql(f, text);
	assert_int_equal(wfs_name_path(f->store, three, &path), 0);
	assert_string_equal(path, "/one/two/three");
	free(path);
}

/* ---- listing ---- */

struct listed {
	unsigned n, stop_at;
	uint64_t last;
	uint64_t sizes;
};

static int note(void *ctx, const struct wfs_dirent *entry)
{
	struct listed *l = ctx;

	l->n++;
	assert_true(entry->id > l->last);
	l->last = entry->id;
	l->sizes += entry->attr.size;
	return l->n == l->stop_at ? 77 : 0;
}

static void test_readdir(void **state)
{
	struct fixture *f = *state;
	struct listed l = { .stop_at = 0 };
	char name[20];

	for (int i = 0; i < 10; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		write_at(f, make(f, WFS_ROOT_INO, name, S_IFREG | 0600), "12345", 5, 0);
	}
	assert_int_equal(wfs_name_readdir(f->store, WFS_ROOT_INO, 0, 100, false, note, &l), 0);
	assert_int_equal(l.n, 10);
	/* In parts; with attributes of files that are being written. */
	l = (struct listed){ .stop_at = 0 };
	for (int i = 0; i < 5; i++)
		assert_int_equal(wfs_name_readdir(f->store, WFS_ROOT_INO, l.last, 3, true, note, &l), 0);
	assert_int_equal(l.n, 10);
	assert_int_equal(l.sizes, 50);
	l = (struct listed){ .stop_at = 4 };
	assert_int_equal(wfs_name_readdir(f->store, WFS_ROOT_INO, 0, 100, false, note, &l), 77);
	assert_int_equal(l.n, 4);
	for (int i = 0; i < 10; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		remove_name(f, name);
	}
}

/* ---- attributes ---- */

static void test_setattr(void **state)
{
	struct fixture *f = *state;
	uint64_t ino = make(f, WFS_ROOT_INO, "file", S_IFREG | 0600);
	struct wfs_attr a, want = { .mode = S_IFDIR | 01777, .uid = 3, .gid = 4, .atime_ns = -5,
		.mtime_ns = 1000000007 };

	assert_int_equal(wfs_name_setattr(f->store, 12345, WFS_SET_MODE, &want, &a), -ENOENT);
	assert_int_equal(wfs_name_setattr(f->store, ino, WFS_SET_MODE | WFS_SET_UID | WFS_SET_GID |
		WFS_SET_ATIME | WFS_SET_MTIME, &want, &a), 0);
	assert_int_equal(a.mode, S_IFREG | 01777); /* of the same type */
	assert_int_equal(a.uid, 3);
	assert_int_equal(a.gid, 4);
	assert_true(a.atime_ns == -5);
	/* What counts while it is written is the time of its data file. */
	assert_int_equal(wfs_name_getattr(f->store, ino, &a), 0);
	assert_true(a.mtime_ns == 1000000007);
	seal(f, ino);
	assert_int_equal(wfs_name_getattr(f->store, ino, &a), 0);
	assert_true(a.mtime_ns == 1000000007);
	assert_int_equal(wfs_name_setattr(f->store, ino, WFS_SET_ATIME_NOW | WFS_SET_MTIME_NOW, &want, &a), 0);
	assert_true(a.mtime_ns > 1000000007 && a.mtime_ns == a.atime_ns && a.ctime_ns == a.mtime_ns);
}

static void test_readlink(void **state)
{
	struct fixture *f = *state;
	uint64_t file = make(f, WFS_ROOT_INO, "file", S_IFREG | 0600);
	struct wfs_attr a;
	char *target;

	assert_int_equal(create(f, WFS_ROOT_INO, "link", "to/where"), 0);
	assert_int_equal(wfs_name_lookup(f->store, WFS_ROOT_INO, "link", &a), 0);
	assert_int_equal(wfs_name_readlink(f->store, a.ino, &target), 0);
	assert_string_equal(target, "to/where");
	free(target);
	assert_int_equal(wfs_name_readlink(f->store, file, &target), -EINVAL);
	assert_int_equal(wfs_name_readlink(f->store, 12345, &target), -ENOENT);
}

static void test_verdict_names(void **state)
{
	(void)state;
	assert_string_equal(wfs_verdict_name(WFS_VERDICT_NONE), "none");
	assert_string_equal(wfs_verdict_name(WFS_VERDICT_DAMAGED), "damaged");
	assert_string_equal(wfs_verdict_name((enum wfs_verdict)77), "unknown");
}

/* ---- extended attributes ---- */

static int set(struct fixture *f, uint64_t ino, const char *name, const char *value, int flags)
{
	return wfs_xattr_set(f->store, ino, name, value, strlen(value), flags);
}

static void test_xattr_names(void **state)
{
	struct fixture *f = *state;
	uint64_t ino = make(f, WFS_ROOT_INO, "file", S_IFREG | 0600);
	char name[300], *value;
	void *have;
	size_t size;

	memcpy(name, "user.", 5);
	memset(name + 5, 'n', sizeof(name) - 5);
	name[256] = '\0';
	assert_int_equal(set(f, ino, name, "v", 0), -ERANGE);
	assert_int_equal(wfs_xattr_get(f->store, ino, name, &have, &size), -ERANGE);
	assert_int_equal(wfs_xattr_remove(f->store, ino, name), -ERANGE);
	name[255] = '\0';
	assert_int_equal(set(f, ino, name, "v", XATTR_REPLACE), -ENODATA);
	assert_int_equal(set(f, ino, name, "v", XATTR_CREATE), 0);
	assert_int_equal(set(f, ino, name, "w", XATTR_CREATE), -EEXIST);
	assert_int_equal(wfs_xattr_get(f->store, ino, name, &have, &size), 0);
	assert_int_equal(size, 1);
	assert_memory_equal(have, "v", 1);
	free(have);
	assert_int_equal(wfs_xattr_list(f->store, ino, &value, &size), 0);
	assert_int_equal(size, 256);
	assert_string_equal(value, name);
	free(value);
	assert_int_equal(wfs_xattr_remove(f->store, ino, name), 0);
	assert_int_equal(wfs_xattr_remove(f->store, ino, name), -ENODATA);
	assert_int_equal(wfs_xattr_get(f->store, ino, name, &have, &size), -ENODATA);
	assert_int_equal(set(f, ino, "system.posix_acl_access", "v", 0), -EOPNOTSUPP);
	assert_int_equal(wfs_xattr_get(f->store, ino, "other.x", &have, &size), -EOPNOTSUPP);
	assert_int_equal(set(f, ino, "user.weightfs.error", "v", 0), -EPERM);
	assert_int_equal(wfs_xattr_remove(f->store, ino, "user.weightfs.error"), -EPERM);
	assert_int_equal(wfs_xattr_get(f->store, ino, "user.weightfs.error", &have, &size), -ENODATA);
	assert_int_equal(wfs_xattr_get(f->store, 12345, "user.weightfs.error", &have, &size), -ENOENT);
	assert_int_equal(wfs_xattr_list(f->store, 12345, &value, &size), -ENOENT);
}

static void test_xattr_sizes(void **state)
{
	struct fixture *f = *state;
	uint64_t ino = make(f, WFS_ROOT_INO, "file", S_IFREG | 0600), dir = make_dir(f, WFS_ROOT_INO, "d");
	uint8_t *value = noise(WFS_XATTR_MAX + 1, 1);
	void *have;
	size_t size;

	assert_int_equal(wfs_xattr_set(f->store, ino, "user.x", value, WFS_XATTR_MAX + 1, 0), -E2BIG);
	assert_int_equal(wfs_xattr_get(f->store, ino, "user.x", &have, &size), -ENODATA);
	assert_int_equal(wfs_xattr_set(f->store, ino, "user.x", value, WFS_XATTR_MAX, 0), 0);
	assert_int_equal(wfs_xattr_get(f->store, ino, "user.x", &have, &size), 0);
	assert_int_equal(size, WFS_XATTR_MAX);
	assert_memory_equal(have, value, size);
	free(have);
	assert_int_equal(wfs_xattr_set(f->store, ino, "user.x", NULL, 0, 0), 0);
	assert_int_equal(wfs_xattr_get(f->store, ino, "user.x", &have, &size), 0);
	assert_int_equal(size, 0);
	free(have);
	free(value);
	/* A size of shards: of a directory, and one that is meant. */
	assert_int_equal(set(f, ino, WFS_XATTR_MAX_SHARD_SIZE, "5GB", 0), -EPERM);
	assert_int_equal(set(f, 12345, WFS_XATTR_MAX_SHARD_SIZE, "5GB", 0), -ENOENT);
	assert_int_equal(set(f, dir, WFS_XATTR_MAX_SHARD_SIZE, "0", 0), -EINVAL);
	assert_int_equal(set(f, dir, WFS_XATTR_MAX_SHARD_SIZE, "", 0), -EINVAL);
	assert_int_equal(wfs_xattr_set(f->store, dir, WFS_XATTR_MAX_SHARD_SIZE, "5GB\0", 4, 0), -EINVAL);
	assert_int_equal(set(f, dir, WFS_XATTR_MAX_SHARD_SIZE, "5GB", 0), 0);
	assert_int_equal(wfs_xattr_remove(f->store, dir, WFS_XATTR_MAX_SHARD_SIZE), 0);
}

/* What the gate said is listed, and read. */
static void test_xattr_error(void **state)
{
	struct fixture *f = *state;
	uint64_t ino = make(f, WFS_ROOT_INO, "a.safetensors", S_IFREG | 0600);
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_file *file;
	char *list;
	void *have;
	size_t size;

	write_at(f, ino, "\0\0\0", 3, 0);
	file = get_file(f, ino);
	wfs_gate_close(f->store, file, &err);
	wfs_file_unref(file);
	assert_int_equal(wfs_xattr_list(f->store, ino, &list, &size), 0);
	assert_int_equal(size, sizeof("user.weightfs.error"));
	assert_string_equal(list, "user.weightfs.error");
	free(list);
	assert_int_equal(wfs_xattr_get(f->store, ino, "user.weightfs.error", &have, &size), 0);
	assert_int_equal(size, strlen(have));
	assert_non_null(strstr(have, ": "));
	free(have);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_bad_names),
		TEST(test_parents),
		TEST(test_existing),
		TEST(test_set_gid),
		TEST(test_rename_refused),
		TEST(test_exchange),
		TEST(test_rename_of_one_inode),
		TEST(test_resolve),
		TEST(test_deep_path),
		TEST(test_no_path),
		TEST(test_circle),
		TEST(test_readdir),
		TEST(test_setattr),
		TEST(test_readlink),
		cmocka_unit_test(test_verdict_names),
		TEST(test_xattr_names),
		TEST(test_xattr_sizes),
		TEST(test_xattr_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

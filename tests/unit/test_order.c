/*
 * What is on the disk before what: the bytes, the log that names them, and what is given back.
 *
 * The calls that write and flush are this program's own: they note what they do, and do it.
 */
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lib/flush.h"
#include "lib/repack.h"
#include "lib/store_priv.h"
#include "tests/unit/store_fixture.h"

enum what {
	DATA_WRITTEN,
	DATA_FLUSHED,
	DIRECTORY_FLUSHED, /* data/xx */
	LOG_WRITTEN,
	LOG_FLUSHED,
	DATABASE_WRITTEN,
	GIVEN_BACK, /* of a data file: a range punched out, cut off, or the file itself removed */
	NOTHING,
};

#define MAX_EVENTS 100000

static enum what events[MAX_EVENTS];
static size_t n_events;

static void note(enum what what)
{
	if (what != NOTHING && n_events < MAX_EVENTS)
		events[n_events++] = what;
}

static bool ends_with(const char *text, const char *end)
{
	size_t len = strlen(text), want = strlen(end);

	return len >= want && strcmp(text + len - want, end) == 0;
}

/* What a write to this descriptor is. */
static enum what kind_of(int fd)
{
	char link[64], path[4096];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n <= 0)
		return NOTHING;
	path[n] = '\0';
	if (ends_with(path, "weightfs.db-wal"))
		return LOG_WRITTEN;
	if (ends_with(path, "weightfs.db"))
		return DATABASE_WRITTEN;
	return strstr(path, "/store/data/") ? DATA_WRITTEN : NOTHING;
}

static void note_flush(int fd)
{
	enum what kind = kind_of(fd);
	struct stat st;

	if (kind == LOG_WRITTEN)
		note(LOG_FLUSHED);
	else if (kind == DATA_WRITTEN && fstat(fd, &st) == 0)
		note(S_ISDIR(st.st_mode) ? DIRECTORY_FLUSHED : DATA_FLUSHED);
}

int fdatasync(int fd)
{
	note_flush(fd);
	return (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
	note_flush(fd);
	return (int)syscall(SYS_fsync, fd);
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t offset)
{
	note(kind_of(fd));
	return syscall(SYS_pwrite64, fd, buf, n, offset);
}

ssize_t write(int fd, const void *buf, size_t n)
{
	note(kind_of(fd));
	return syscall(SYS_write, fd, buf, n);
}

int ftruncate(int fd, off_t size)
{
	if (kind_of(fd) == DATA_WRITTEN)
		note(GIVEN_BACK);
	return (int)syscall(SYS_ftruncate, fd, size);
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
	if (kind_of(fd) == DATA_WRITTEN && mode & FALLOC_FL_PUNCH_HOLE)
		note(GIVEN_BACK);
	return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

int unlinkat(int dir, const char *path, int flags)
{
	int ret = (int)syscall(SYS_unlinkat, dir, path, flags);

	if (ret == 0)
		note(GIVEN_BACK);
	return ret;
}

/* ---- what is asked of it ---- */

#define NONE SIZE_MAX

static size_t first(enum what what)
{
	for (size_t i = 0; i < n_events; i++)
		if (events[i] == what)
			return i;
	return NONE;
}

static size_t last(enum what what)
{
	for (size_t i = n_events; i > 0; i--)
		if (events[i - 1] == what)
			return i - 1;
	return NONE;
}

static void assert_before(enum what early, enum what late)
{
	assert_int_not_equal(first(early), NONE);
	assert_int_not_equal(first(late), NONE);
	assert_true(first(early) < first(late));
}

/* At each `what` everything in the log so far is on the disk; there is one at least. */
static void assert_after_a_flushed_log(enum what what)
{
	bool flushed = false, seen = false;

	for (size_t i = 0; i < n_events; i++) {
		if (events[i] == LOG_WRITTEN)
			flushed = false;
		else if (events[i] == LOG_FLUSHED)
			flushed = true;
		else if (events[i] == what)
			seen = true;
		if (events[i] == what)
			assert_true(flushed);
	}
	assert_true(seen);
}

/* Something that is not durable yet: what follows has to make it so. */
static void commit_something(struct fixture *f, const char *name)
{
	assert_int_equal(wfs_store_sync(f->store), 0);
	n_events = 0;
	make(f, WFS_ROOT_INO, name, S_IFREG | 0644);
	assert_int_not_equal(first(LOG_WRITTEN), NONE);
}

static void test_seal(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 1);
	uint64_t ino = make(f, WFS_ROOT_INO, "a", S_IFREG | 0644);

	write_at(f, ino, bytes, MB, 0);
	n_events = 0;
	seal(f, ino);
	assert_before(DATA_FLUSHED, LOG_WRITTEN);
	assert_before(DIRECTORY_FLUSHED, LOG_WRITTEN);
	free(bytes);
}

/* A file of which a part is shared keeps its data file. */
static void test_seal_of_a_part(void **state)
{
	struct fixture *f = *state;
	const uint64_t one[] = { 1, 2 }, other[] = { 2, 3 };
	size_t len, other_len;
	uint8_t *a = shard(2, MB, one, &len), *b = shard(2, MB, other, &other_len);
	uint64_t ino;

	put(f, "a", a, len);
	ino = make(f, WFS_ROOT_INO, "b", S_IFREG | 0644);
	write_at(f, ino, b, other_len, 0);
	commit_something(f, "c");
	n_events = 0;
	seal(f, ino);
	assert_before(DATA_FLUSHED, LOG_WRITTEN);
	assert_int_equal(first(GIVEN_BACK), NONE);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_after_a_flushed_log(GIVEN_BACK);
	free(a);
	free(b);
}

static void test_fsync(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 1);
	uint64_t ino = make(f, WFS_ROOT_INO, "a", S_IFREG | 0644);
	struct wfs_file *file = get_file(f, ino);

	write_at(f, ino, bytes, MB, 0);
	commit_something(f, "b");
	assert_int_equal(wfs_file_sync(file), 0);
	assert_before(DATA_FLUSHED, LOG_FLUSHED);
	assert_true(last(LOG_FLUSHED) > last(LOG_WRITTEN));
	wfs_file_unref(file);
	free(bytes);
}

/* The name is not durable before the bytes that it leads to. */
static void test_renamed_over_another(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 1);
	struct wfs_renamed renamed;
	uint64_t ino;

	put(f, "old", bytes, 1000);
	ino = make(f, WFS_ROOT_INO, "new", S_IFREG | 0644);
	write_at(f, ino, bytes, MB, 0);
	commit_something(f, "other");
	assert_int_equal(wfs_flush_for_rename(f->store, WFS_ROOT_INO, "new", WFS_ROOT_INO, "old", 0), 0);
	assert_int_equal(wfs_name_rename(f->store, WFS_ROOT_INO, "new", WFS_ROOT_INO, "old", 0,
		&renamed), 0);
	assert_int_equal(wfs_store_sync(f->store), 0);
	assert_before(DATA_FLUSHED, LOG_FLUSHED);
	assert_true(last(LOG_FLUSHED) > last(LOG_WRITTEN));
	assert_int_equal(wfs_name_drop(f->store, &renamed.replaced, 1), 0);
	free(bytes);
}

static void test_punched_after_the_log(void **state)
{
	struct fixture *f = *state;
	const uint64_t one[] = { 1, 2, 3 }, other[] = { 2 };
	size_t len, other_len;
	uint8_t *a = shard(3, MB, one, &len), *b = shard(1, MB, other, &other_len);

	put(f, "a", a, len);
	put(f, "b", b, other_len);
	assert_int_equal(wfs_collect(f->store), 0);
	commit_something(f, "c");
	remove_name(f, "a");
	assert_int_equal(first(GIVEN_BACK), NONE);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_after_a_flushed_log(GIVEN_BACK);
	free(a);
	free(b);
}

static void test_removed_after_the_log(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 1);

	put(f, "a", bytes, MB);
	commit_something(f, "b");
	remove_name(f, "a");
	assert_int_equal(first(GIVEN_BACK), NONE);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_after_a_flushed_log(GIVEN_BACK);
	free(bytes);
}

/* Of a file that is written in place, it is durable that its bytes are no object's any more. */
static void test_written_in_place(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 1);
	uint64_t ino = put(f, "a", bytes, MB);

	commit_something(f, "b");
	write_at(f, ino, "x", 1, 1000);
	assert_after_a_flushed_log(DATA_WRITTEN);
	free(bytes);
}

/* A whole copy is on the disk before the manifest names it. */
static void test_repacked(void **state)
{
	struct fixture *f = *state;
	const uint64_t one[] = { 1, 2 }, other[] = { 2, 3 };
	size_t len, other_len;
	uint8_t *a = shard(2, MB, one, &len), *b = shard(2, MB, other, &other_len);
	struct wfs_repack *repack;
	struct wfs_file *file;
	int more;

	put(f, "a", a, len);
	file = get_file(f, put(f, "b", b, other_len));
	assert_int_equal(wfs_repack_begin(file, &repack), 1);
	do {
		n_events = 0;
		more = wfs_repack_step(repack);
	} while (more > 0);
	assert_int_equal(more, 0);
	assert_before(DATA_FLUSHED, LOG_WRITTEN);
	wfs_repack_end(repack);
	wfs_file_unref(file);
	free(a);
	free(b);
}

/* What the log has is on the disk before it is moved to the database. */
static void test_checkpoint(void **state)
{
	struct fixture *f = *state;

	commit_something(f, "a");
	assert_int_equal(wfs_store_checkpoint(f->store, 1), 0);
	assert_after_a_flushed_log(DATABASE_WRITTEN);
	commit_something(f, "b");
	assert_int_equal(wfs_store_tidy(f->store), 0);
	assert_after_a_flushed_log(DATABASE_WRITTEN);
	/* Where nobody has flushed it before, SQLite does. */
	commit_something(f, "c");
	assert_int_equal(wfs_db_checkpoint(&f->store->db, 1), 0);
	assert_after_a_flushed_log(DATABASE_WRITTEN);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_seal, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_seal_of_a_part, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_fsync, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_renamed_over_another, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_punched_after_the_log, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_removed_after_the_log, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_written_in_place, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_repacked, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_checkpoint, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

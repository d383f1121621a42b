/*
 * A store, changed: the input says how. Then all that a mount does with it is done: names,
 * attributes, bytes, models, sealing, collecting, closing; and fsck, twice.
 *
 *   byte 0       which store: 0 closed in order, 1 as a killed driver leaves it
 *   then changes of 8 bytes and more, all of SQL first:
 *     kind  a  b  c  n  bytes[n % 33]
 *     0..3  a column of a table: table a, row b, column c, value from n and bytes
 *     4     bytes of the database at (a, b, c)
 *     5     bytes of file a at (b, c)
 *     6     file a is cut to (b, c)
 *     7     page a of the database becomes page b
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/collect.h"
#include "lib/file.h"
#include "lib/fsck.h"
#include "lib/gate.h"
#include "lib/model_write.h"
#include "lib/name.h"
#include "lib/safetensors.h"
#include "lib/seal.h"
#include "lib/store.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/support.h"

#define PACKED 70000 /* bytes: too many for the database */
#define MAX_FILES 32
#define MAX_CHANGES 16
#define MAX_ENTRIES 60 /* names that are looked at: names can lead in a circle */
#define READ_SIZE (256 << 10)
#define PAGE 4096

/* ---- the stores to begin with, in memory ---- */

struct image {
	struct {
		char *name; /* in the store */
		uint8_t *bytes;
		size_t size;
	} files[MAX_FILES];
	size_t n;
};

static struct image images[2];
static char *work_dir, *work_path;

static void noise(uint8_t *buf, size_t len, uint64_t x)
{
	for (size_t i = 0; i < len; i++) {
		x = x * 6364136223846793005 + 1442695040888963407;
		buf[i] = (uint8_t)(x >> 56);
	}
}

static uint64_t make(struct wfs_store *s, uint64_t parent, const char *name, uint32_t mode)
{
	struct wfs_new new = { .mode = mode, .uid = 1, .gid = 1, .target = S_ISLNK(mode) ? "to" : NULL };
	struct wfs_attr a;

	WFS_FUZZ_CHECK(wfs_name_create(s, parent, name, &new, &a) == 0);
	return a.ino;
}

static uint64_t put(struct wfs_store *s, uint64_t parent, const char *name, const void *bytes, size_t len)
{
	uint64_t ino = make(s, parent, name, S_IFREG | 0644);
	struct wfs_file *f;

	WFS_FUZZ_CHECK(wfs_file_get(s, ino, &f) == 0);
	wfs_file_open(f, true);
	WFS_FUZZ_CHECK(wfs_file_write(f, bytes, len, 0) == (ssize_t)len);
	wfs_file_close(f, true);
	wfs_file_unref(f);
	return ino;
}

/* Two tensors, of which the first is the same in every shard. */
static uint64_t put_shard(struct wfs_store *s, uint64_t parent, const char *name, uint64_t seed)
{
	uint64_t shape[1] = { PACKED }, data_len, ino;
	char own[2] = { (char)('a' + seed % 26), '\0' };
	struct wfs_safetensors_entry entries[2] = {
		{ .name = "same", .name_len = 4, .ndim = 1, .shape = shape, .dtype = WFS_DTYPE_U8 },
		{ .name = own, .name_len = 1, .ndim = 1, .shape = shape, .dtype = WFS_DTYPE_U8 },
	};
	uint8_t *head, *all;
	size_t len;

	WFS_FUZZ_CHECK(wfs_safetensors_build(entries, 2, NULL, 0, &head, &len, &data_len, NULL) == 0);
	all = malloc(len + data_len);
	WFS_FUZZ_CHECK(all);
	memcpy(all, head, len);
	noise(all + len, PACKED, seed);
	noise(all + len + PACKED, PACKED, 1);
	ino = put(s, parent, name, all, len + data_len);
	free(head);
	free(all);
	return ino;
}

static void fill(struct wfs_store *s)
{
	uint64_t dir = make(s, WFS_ROOT_INO, "model", S_IFDIR | 0755);
	uint64_t link = make(s, WFS_ROOT_INO, "link", S_IFLNK | 0777);
	uint8_t bytes[5000];
	uint64_t inos[4];

	noise(bytes, sizeof(bytes), 9);
	inos[0] = put_shard(s, dir, "model-00001-of-00002.safetensors", 2);
	inos[1] = put_shard(s, dir, "model-00002-of-00002.safetensors", 3);
	inos[2] = put(s, WFS_ROOT_INO, "small", bytes, sizeof(bytes));
	inos[3] = put(s, dir, "config.json", "{}", 2);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(inos); i++)
		WFS_FUZZ_CHECK(wfs_seal(s, inos[i], NULL) == 0);
	WFS_FUZZ_CHECK(wfs_xattr_set(s, inos[2], "user.note", "text", 4, 0) == 0);
	(void)link;
}

/* What a driver has not done yet when it is killed. */
static void leave_open(struct wfs_store *s)
{
	struct wfs_gone gone = { NULL, 0, 0 };
	struct wfs_new new = { .mode = S_IFREG | 0600 };
	struct wfs_attr dir, unnamed, tensor;
	struct wfs_model_name name = { .tensor = "late", .tensor_len = 4 };
	uint64_t ino;
	bool is_gone;

	put_shard(s, WFS_ROOT_INO, "dirty.safetensors", 7);
	put(s, WFS_ROOT_INO, "cut.safetensors", "\x10\0\0\0\0\0\0\0{", 9);
	WFS_FUZZ_CHECK(wfs_name_create_unnamed(s, WFS_ROOT_INO, &new, &unnamed) == 0);
	WFS_FUZZ_CHECK(wfs_name_resolve(s, "/model", &dir) == 0);
	ino = put_shard(s, WFS_ROOT_INO, "tensor", 8);
	WFS_FUZZ_CHECK(wfs_name_getattr(s, ino, &tensor) == 0);
	name.dir = dir.ino;
	wfs_model_put(s, &name, WFS_TENSOR_SAFETENSORS, ino, &gone, NULL);
	free(gone.inos);
	WFS_FUZZ_CHECK(wfs_name_unlink(s, WFS_ROOT_INO, "tensor", &ino, &is_gone) == 0);
}

static struct image *filling; /* nftw has no argument for it */
static size_t base_len;

static int keep_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	const char *name = path + base_len + 1;

	(void)st;
	(void)ftw;
	if (type != FTW_F || !strcmp(name, "lock") || strstr(name, "-shm"))
		return 0;
	WFS_FUZZ_CHECK(filling->n < MAX_FILES);
	filling->files[filling->n].name = strdup(name);
	filling->files[filling->n].bytes = wfs_test_read(path, &filling->files[filling->n].size);
	filling->n++;
	return 0;
}

static void keep_image(struct image *image, const char *path)
{
	filling = image;
	base_len = strlen(path);
	WFS_FUZZ_CHECK(nftw(path, keep_file, 8, FTW_PHYS) == 0);
}

static struct wfs_store *open_store(const char *path, enum wfs_store_mode mode)
{
	struct wfs_store_options options = { .mode = mode, .create = mode == WFS_STORE_WRITE };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_store *s = NULL;
	int ret = wfs_store_open(path, &options, &s, &err);

	WFS_FUZZ_CHECK(ret == 0 ? s != NULL : ret < 0 && (err.text[0] || ret == -ENOMEM));
	return s;
}

static void remove_work(void)
{
	wfs_test_rmdir(work_dir);
	free(work_dir);
	free(work_path);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(images); i++)
		for (size_t k = 0; k < images[i].n; k++) {
			free(images[i].files[k].name);
			free(images[i].files[k].bytes);
		}
}

static void make_images(void)
{
	struct wfs_store *s;

	work_dir = wfs_test_mkdir();
	work_path = wfs_test_path(work_dir, "store");
	atexit(remove_work);
	s = open_store(work_path, WFS_STORE_WRITE);
	WFS_FUZZ_CHECK(s);
	fill(s);
	WFS_FUZZ_CHECK(wfs_store_close(s) == 0);
	keep_image(&images[0], work_path);
	s = open_store(work_path, WFS_STORE_WRITE);
	WFS_FUZZ_CHECK(s);
	leave_open(s);
	keep_image(&images[1], work_path);
	WFS_FUZZ_CHECK(wfs_store_close(s) == 0);
}

static void lay_out(const struct image *image)
{
	WFS_AUTO_FREE char *data = wfs_test_path(work_path, "data");

	wfs_test_rmdir(work_path);
	WFS_FUZZ_CHECK(mkdir(work_path, 0700) == 0 && mkdir(data, 0700) == 0);
	for (size_t i = 0; i < image->n; i++) {
		WFS_AUTO_FREE char *path = wfs_test_path(work_path, "%s", image->files[i].name);
		char *slash = strrchr(path, '/');

		if (strncmp(image->files[i].name, "data/", 5) == 0) {
			*slash = '\0';
			mkdir(path, 0700);
			*slash = '/';
		}
		wfs_test_write(path, image->files[i].bytes, image->files[i].size);
	}
}

/* ---- changes ---- */

struct change {
	uint8_t kind, a, b, c, n;
	const uint8_t *bytes;
};

static size_t read_changes(const uint8_t *data, size_t size, struct change *list)
{
	size_t n = 0, at = 0;

	while (n < MAX_CHANGES && size - at >= 5) {
		struct change *c = &list[n++];

		*c = (struct change){ data[at] % 8, data[at + 1], data[at + 2], data[at + 3],
			data[at + 4] % 33, data + at + 5 };
		at += 5;
		c->n = (uint8_t)WFS_MIN((size_t)c->n, size - at);
		at += c->n;
	}
	return n;
}

static const char *const columns[][20] = {
	{ "meta", "key", "value" },
	{ "object", "id", "digest", "ordinal", "length", "refs", "data_file", "offset" },
	{ "object_bytes", "object", "bytes" },
	{ "manifest", "id", "digest", "size", "objects", "refs", "whole", "shared", "solid" },
	{ "manifest_object", "manifest", "seq", "object" },
	{ "data_file", "id", "state", "holes" },
	{ "inode", "ino", "mode", "uid", "gid", "nlink", "rdev", "size", "blocks", "atime_ns", "mtime_ns",
		"ctime_ns", "btime_ns", "target", "manifest", "data_file", "verdict", "reason", "detail" },
	{ "dirent", "id", "parent", "name", "ino" },
	{ "xattr", "ino", "name", "value" },
	{ "tensor", "dir", "variant", "name", "ino", "form", "dtype", "shape", "start", "length" },
	{ "sqlite_sequence", "name", "seq" },
};

static void bind_value(sqlite3_stmt *stmt, const struct change *c)
{
	static const int64_t numbers[] = { 0, 1, 2, 3, 4, 5, -1, INT64_MAX, INT64_MIN, INT64_C(1) << 31,
		INT64_C(1) << 40, 33188, 16877, 41471, 4096, PACKED };
	int64_t number = 0;

	if (c->n == 0)
		sqlite3_bind_null(stmt, 1);
	else if (c->n == 1)
		sqlite3_bind_int64(stmt, 1, numbers[c->bytes[0] % WFS_ARRAY_SIZE(numbers)]);
	else if (c->n == 2)
		sqlite3_bind_int64(stmt, 1, c->bytes[0] - c->bytes[1]);
	else if (c->n == 8) {
		memcpy(&number, c->bytes, sizeof(number));
		sqlite3_bind_int64(stmt, 1, number);
	} else if (c->n % 2)
		sqlite3_bind_blob(stmt, 1, c->bytes, c->n, SQLITE_STATIC);
	else
		sqlite3_bind_text(stmt, 1, (const char *)c->bytes, c->n, SQLITE_STATIC);
}

static void change_value(sqlite3 *db, const struct change *c)
{
	const char *const *t = columns[c->a % WFS_ARRAY_SIZE(columns)];
	sqlite3_stmt *stmt = NULL;
	size_t n = 1;
	char sql[200];

	while (n + 1 < WFS_ARRAY_SIZE(columns[0]) && t[n + 1])
		n++;
	snprintf(sql, sizeof(sql), "UPDATE OR REPLACE %s SET %s = ?1 WHERE %s = (SELECT %s FROM %s LIMIT 1 OFFSET %d)",
		t[0], t[1 + c->c % n], t[1], t[1], t[0], c->b % 32);
	if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) == SQLITE_OK) {
		bind_value(stmt, c);
		sqlite3_step(stmt);
	}
	sqlite3_finalize(stmt);
}

static void change_values(const struct change *list, size_t n)
{
	WFS_AUTO_FREE char *path = wfs_test_path(work_path, "weightfs.db");
	sqlite3 *db = NULL;
	bool any = false;

	for (size_t i = 0; i < n; i++)
		any |= list[i].kind < 4;
	if (any && sqlite3_open(path, &db) == SQLITE_OK) {
		sqlite3_exec(db, "PRAGMA ignore_check_constraints = ON; PRAGMA synchronous = OFF; BEGIN", NULL,
			NULL, NULL);
		for (size_t i = 0; i < n; i++)
			if (list[i].kind < 4)
				change_value(db, &list[i]);
		sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
	}
	sqlite3_close(db);
}

static void write_over(const char *name, uint64_t offset, const void *bytes, size_t len)
{
	WFS_AUTO_FREE char *path = wfs_test_path(work_path, "%s", name);
	WFS_AUTO_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0)
		WFS_FUZZ_CHECK(pwrite(fd, bytes, len, (off_t)(offset % (uint64_t)st.st_size)) == (ssize_t)len);
}

static void cut(const char *name, uint64_t size)
{
	WFS_AUTO_FREE char *path = wfs_test_path(work_path, "%s", name);
	struct stat st;

	if (stat(path, &st) == 0)
		WFS_FUZZ_CHECK(truncate(path, (off_t)(size % ((uint64_t)st.st_size + 1))) == 0);
}

static void copy_page(const struct image *image, const struct change *c)
{
	for (size_t i = 0; i < image->n; i++) {
		size_t pages = image->files[i].size / PAGE;

		if (strcmp(image->files[i].name, "weightfs.db") == 0 && pages > 0)
			write_over("weightfs.db", c->a % pages * PAGE, image->files[i].bytes + c->b % pages * PAGE,
				PAGE);
	}
}

static void change_bytes(const struct image *image, const struct change *c)
{
	const char *name = image->files[c->a % image->n].name;

	if (c->kind == 4)
		write_over("weightfs.db", (uint64_t)c->a << 12 | (c->b & 15) << 8 | c->c, c->bytes, c->n);
	else if (c->kind == 5)
		write_over(name, (uint64_t)c->b << 10 | (uint64_t)c->c << 2, c->bytes, c->n);
	else if (c->kind == 6)
		cut(name, (uint64_t)c->b << 10 | c->c);
	else if (c->kind == 7)
		copy_page(image, c);
}

/* ---- what is done with it ---- */

struct names {
	uint64_t inos[MAX_ENTRIES];
	uint32_t modes[MAX_ENTRIES];
	size_t n;
};

static int keep_name(void *ctx, const struct wfs_dirent *entry)
{
	struct names *names = ctx;

	if (names->n == MAX_ENTRIES)
		return 1;
	WFS_FUZZ_CHECK(entry->name && strlen(entry->name) < READ_SIZE);
	names->modes[names->n] = entry->mode;
	names->inos[names->n++] = entry->ino;
	return 0;
}

static void read_file(struct wfs_store *s, uint64_t ino)
{
	WFS_AUTO_FREE char *buf = malloc(READ_SIZE);
	struct wfs_file *f;
	uint64_t size = 0;

	WFS_FUZZ_CHECK(buf);
	if (wfs_file_get(s, ino, &f) != 0)
		return;
	wfs_file_open(f, false);
	if (wfs_file_size(f, &size) == 0) {
		const uint64_t places[] = { 0, size / 2, size - 1, size, INT64_MAX - 1 };

		for (size_t i = 0; i < WFS_ARRAY_SIZE(places); i++) {
			ssize_t n = wfs_file_read(f, buf, READ_SIZE, places[i]);

			WFS_FUZZ_CHECK(n <= READ_SIZE);
			WFS_FUZZ_CHECK(n <= 0 || (places[i] <= size && (uint64_t)n <= size - places[i]));
		}
		wfs_file_seek(f, 0, SEEK_HOLE);
		wfs_file_seek(f, size / 2, SEEK_DATA);
	}
	wfs_file_close(f, false);
	wfs_file_unref(f);
}

static void ask_for(struct wfs_store *s, uint64_t ino)
{
	char *text = NULL;
	size_t size;
	struct wfs_attr a;

	if (wfs_name_getattr(s, ino, &a) != 0)
		return;
	if (wfs_name_readlink(s, ino, &text) == 0)
		free(text);
	if (wfs_name_path(s, ino, &text) == 0)
		free(text);
	if (wfs_xattr_list(s, ino, &text, &size) == 0)
		free(text);
	if (S_ISREG(a.mode))
		read_file(s, ino);
}

static void look_at_model(struct wfs_store *s, uint64_t dir)
{
	const struct wfs_cut *cut;
	struct wfs_model *m;

	if (wfs_model_get(s, dir, NULL, &m) != 0)
		return;
	for (size_t i = 0; i < m->n && i < 10; i++) {
		struct wfs_content *c;
		char digest[40], buf[1000];

		wfs_model_digest(m, i, digest);
		if (wfs_model_tensor_file(m, i, WFS_TENSOR_SAFETENSORS, &c) == 0) {
			wfs_content_read(c, buf, sizeof(buf), 0);
			wfs_content_unref(c);
		}
	}
	wfs_model_cut(m, 100000, &cut, NULL);
	wfs_model_unref(m);
}

static void look_at_all(struct wfs_store *s)
{
	struct names names = { .inos = { WFS_ROOT_INO }, .modes = { S_IFDIR }, .n = 1 };
	struct wfs_store_stats stats;

	for (size_t i = 0; i < names.n; i++) {
		ask_for(s, names.inos[i]);
		if (!S_ISDIR(names.modes[i]))
			continue;
		wfs_name_readdir(s, names.inos[i], 0, 50, true, keep_name, &names);
		look_at_model(s, names.inos[i]);
	}
	wfs_store_stats(s, &stats, NULL);
}

static int pass_over(void *ctx, const struct wfs_store_report *report)
{
	(void)ctx;
	WFS_FUZZ_CHECK(report->path && report->state && report->verdict);
	return 0;
}

static void change_some(struct wfs_store *s)
{
	struct wfs_gone gone = { NULL, 0, 0 };
	WFS_AUTO_FREE uint64_t *dirty = NULL;
	struct wfs_renamed renamed;
	struct wfs_attr a;
	size_t n = 0;
	bool is_gone;
	uint64_t ino;

	wfs_model_settle_all(s, &gone);
	free(gone.inos);
	if (wfs_seal_list(s, &dirty, &n) == 0)
		for (size_t i = 0; i < n && i < 20; i++)
			wfs_seal(s, dirty[i], NULL);
	if (wfs_name_resolve(s, "/model/model-00001-of-00002.safetensors", &a) == 0 && S_ISREG(a.mode)) {
		struct wfs_file *f;

		if (wfs_file_get(s, a.ino, &f) == 0) {
			wfs_file_open(f, true);
			wfs_file_write(f, "x", 1, 50);
			wfs_file_close(f, true);
			wfs_gate_close(s, f, NULL);
			wfs_file_unref(f);
		}
	}
	wfs_name_rename(s, WFS_ROOT_INO, "small", WFS_ROOT_INO, "link", 0, &renamed);
	if (wfs_name_resolve(s, "/model", &a) == 0 &&
		wfs_name_unlink(s, a.ino, "model-00002-of-00002.safetensors", &ino, &is_gone) == 0 && is_gone)
		wfs_name_drop(s, &ino, 1);
	wfs_collect(s);
}

static void count_finding(void *ctx, const struct wfs_fsck_finding *finding)
{
	uint64_t *n = ctx;

	WFS_FUZZ_CHECK(finding->kind && finding->where && finding->text);
	++*n;
}

/* The verdict on a store that nobody changes is the same each time. */
static void check_twice(void)
{
	struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	uint64_t first = 0, second = 0;
	int ret = wfs_fsck(work_path, &options, count_finding, &first, &summary, NULL);

	WFS_FUZZ_CHECK(wfs_fsck(work_path, &options, count_finding, &second, &summary, NULL) == ret);
	WFS_FUZZ_CHECK(first == second);
}

void wfs_fuzz_store(const uint8_t *data, size_t size)
{
	struct change changes[MAX_CHANGES];
	const struct image *image;
	struct wfs_store *s;
	size_t n;

	if (size == 0)
		return;
	if (!work_dir)
		make_images();
	image = &images[data[0] & 1];
	n = read_changes(data + 1, size - 1, changes);
	lay_out(image);
	change_values(changes, n);
	for (size_t i = 0; i < n; i++)
		change_bytes(image, &changes[i]);
	s = open_store(work_path, WFS_STORE_READ);
	if (s) {
		look_at_all(s);
		wfs_store_close(s);
	}
	s = open_store(work_path, WFS_STORE_WRITE);
	if (!s) {
		check_twice();
		return;
	}
	look_at_all(s);
	wfs_store_each_report(s, pass_over, NULL, NULL);
	change_some(s);
	look_at_all(s);
	wfs_store_close(s);
	check_twice();
}

/*
 * build_store.c - a store of many objects and files, in seconds.
 *
 *     bench-store STORE SHARDS TENSORS BYTES FILES DIRECTORIES
 *
 * Makes STORE with SHARDS sealed shards in the directory "shards0" ("s0.safetensors" and on), each
 * of its header and TENSORS tensors of BYTES bytes, and FILES small sealed files "f0", … dealt out
 * to DIRECTORIES directories "d0", … No two tensors or files have the same bytes. All belong to the
 * caller.
 *
 * lib/ makes the store and computes digests; the rows are written here, as lib/schema.sql has them,
 * since one transaction a file would take hours. `weightfs fsck --bytes` finds nothing wrong.
 */
#include <endian.h>
#include <inttypes.h>
#include <stdio.h>

#include <sqlite3.h>

#include "lib/digest.h"
#include "lib/store.h"
#include "tests/bench/common.h"

#define DIRECTORY_MODE 0040755
#define FILE_MODE 0100644
#define OPAQUE 2 /* verdicts of table inode */
#define VALID 1
#define MAX_HEADER 100000000

/* Rows of several tables; ids are given here, beginning with 1 (2 for inodes: 1 is the root). */
static struct {
	sqlite3 *db;
	sqlite3_stmt *object, *bytes, *manifest, *manifest_object, *data_file, *inode, *dirent;
	uint64_t objects, manifests, data_files, inodes, now_ns;
	const char *path;
} s;

static void check(int code)
{
	if (code != SQLITE_OK && code != SQLITE_DONE && code != SQLITE_ROW)
		errx(1, "%s: %s", s.path, sqlite3_errmsg(s.db));
}

static void sql(const char *text)
{
	check(sqlite3_exec(s.db, text, NULL, NULL, NULL));
}

static sqlite3_stmt *prepare(const char *text)
{
	sqlite3_stmt *stmt = NULL;

	check(sqlite3_prepare_v2(s.db, text, -1, &stmt, NULL));
	return stmt;
}

static void insert(sqlite3_stmt *stmt)
{
	check(sqlite3_step(stmt));
	check(sqlite3_reset(stmt));
}

static void bind(sqlite3_stmt *stmt, int at, uint64_t value)
{
	check(sqlite3_bind_int64(stmt, at, (sqlite3_int64)value));
}

static void bind_bytes(sqlite3_stmt *stmt, int at, const void *data, size_t size)
{
	check(sqlite3_bind_blob64(stmt, at, data, size, SQLITE_STATIC));
}

/* ---- rows ---- */

/* With a data file at `offset` of it; without (0) in the database. */
static uint64_t add_object(const void *data, size_t size, uint64_t data_file, uint64_t offset)
{
	struct wfs_digest digest = wfs_digest_of(data, size, 128);
	uint64_t id = ++s.objects;

	bind(s.object, 1, id);
	bind_bytes(s.object, 2, digest.bytes, sizeof(digest.bytes));
	bind(s.object, 3, size);
	check(data_file ? sqlite3_bind_int64(s.object, 4, (sqlite3_int64)data_file)
			: sqlite3_bind_null(s.object, 4));
	check(data_file ? sqlite3_bind_int64(s.object, 5, (sqlite3_int64)offset)
			: sqlite3_bind_null(s.object, 5));
	insert(s.object);
	if (!data_file) {
		bind(s.bytes, 1, id);
		bind_bytes(s.bytes, 2, data, size);
		insert(s.bytes);
	}
	return id;
}

/* Of the `n` newest objects, which nobody else names. */
static uint64_t add_manifest(uint64_t n, uint64_t size, bool is_solid)
{
	uint64_t id = ++s.manifests, first = s.objects - n + 1;
	struct wfs_digest digest;
	struct wfs_hasher h;

	wfs_hasher_init(&h, 128);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t le = htole64(first + i);

		wfs_hasher_update(&h, &le, sizeof(le));
	}
	digest = wfs_hasher_final(&h);
	bind(s.manifest, 1, id);
	bind_bytes(s.manifest, 2, digest.bytes, sizeof(digest.bytes));
	bind(s.manifest, 3, size);
	bind(s.manifest, 4, n);
	bind(s.manifest, 5, is_solid);
	insert(s.manifest);
	for (uint64_t i = 0; i < n; i++) {
		bind(s.manifest_object, 1, id);
		bind(s.manifest_object, 2, i);
		bind(s.manifest_object, 3, first + i);
		insert(s.manifest_object);
	}
	return id;
}

/* manifest 0: a directory */
static uint64_t add_inode(uint64_t parent, const char *prefix, uint64_t number_of_it,
	const char *ending, uint64_t manifest, uint64_t size, uint64_t verdict)
{
	uint64_t ino = ++s.inodes;
	char name[64];
	int length = snprintf(name, sizeof(name), "%s%" PRIu64 "%s", prefix, number_of_it, ending);

	bind(s.inode, 1, ino);
	bind(s.inode, 2, manifest ? FILE_MODE : DIRECTORY_MODE);
	bind(s.inode, 3, getuid());
	bind(s.inode, 4, getgid());
	bind(s.inode, 5, manifest ? 1 : 2);
	bind(s.inode, 6, size);
	bind(s.inode, 7, (size + 511) / 512);
	bind(s.inode, 8, s.now_ns);
	check(manifest ? sqlite3_bind_int64(s.inode, 9, (sqlite3_int64)manifest)
		       : sqlite3_bind_null(s.inode, 9));
	bind(s.inode, 10, verdict);
	insert(s.inode);
	bind(s.dirent, 1, parent);
	bind_bytes(s.dirent, 2, name, (size_t)length);
	bind(s.dirent, 3, ino);
	insert(s.dirent);
	return ino;
}

/* ---- files ---- */

/* The first tensor's name is in no other shard, so that no two headers are alike. */
static uint64_t make_header(char **ret, uint64_t shard, uint64_t tensors, uint64_t each)
{
	size_t room = 64 + tensors * 100, n = 8;
	char *text = malloc(room);
	uint64_t length;

	if (!text)
		errx(1, "no memory");
	n += (size_t)snprintf(text + n, room - n, "{");
	for (uint64_t i = 0; i < tensors; i++) {
		n += (size_t)snprintf(text + n, room - n, i ? ",\"%" PRIu64 : "\"s%" PRIu64,
			i ? i : shard);
		n += (size_t)snprintf(text + n, room - n,
			"\":{\"dtype\":\"U8\",\"shape\":[%" PRIu64 "],\"data_offsets\":[%" PRIu64
			",%" PRIu64 "]}", each, i * each, (i + 1) * each);
	}
	text[n++] = '}';
	while (n % 8 != 0)
		text[n++] = ' ';
	if (n - 8 > MAX_HEADER)
		errx(2, "%" PRIu64 " tensors: the header is too long", tensors);
	length = htole64(n - 8);
	memcpy(text, &length, sizeof(length));
	*ret = text;
	return n;
}

static int make_data_file(uint64_t id)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/data/%02x", s.path, (unsigned)(id & 0xff));
	mkdir(path, 0700);
	snprintf(path, sizeof(path), "%s/data/%02x/%016" PRIx64, s.path, (unsigned)(id & 0xff), id);
	return open_or_die(path, O_WRONLY | O_CREAT | O_EXCL);
}

static void add_shard(uint64_t parent, uint64_t shard, uint64_t tensors, uint64_t each,
	uint64_t *state)
{
	uint64_t data_file = ++s.data_files, size, *tensor = block_of(each + 8);
	int fd = make_data_file(data_file);
	char *header;

	size = make_header(&header, shard, tensors, each);
	bind(s.data_file, 1, data_file);
	insert(s.data_file);
	write_or_die(fd, header, size);
	add_object(header, size, data_file, 0);
	for (uint64_t i = 0; i < tensors; i++) {
		for (uint64_t j = 0; j < each / 8 + 1; j++)
			tensor[j] = next_random(state);
		write_or_die(fd, tensor, each);
		add_object(tensor, each, data_file, size + i * each);
	}
	close(fd);
	free(tensor);
	free(header);
	size += tensors * each;
	add_inode(parent, "s", shard, ".safetensors", add_manifest(tensors + 1, size, true), size,
		VALID);
}

static void add_file(uint64_t parent, uint64_t file)
{
	char text[64];
	int size = snprintf(text, sizeof(text), "the small file of number %" PRIu64 "\n", file);

	add_object(text, (size_t)size, 0, 0);
	add_inode(parent, "f", file, "", add_manifest(1, (uint64_t)size, false), (uint64_t)size,
		OPAQUE);
}

/* The directories are made first, each with all of its files behind it. */
static void add_files(uint64_t files, uint64_t directories)
{
	for (uint64_t d = 0; d < directories; d++) {
		uint64_t parent = add_inode(1, "d", d, "", 0, 0, 0);

		for (uint64_t f = d; f < files; f += directories)
			add_file(parent, f);
	}
}

/* ---- the whole ---- */

static void make_store(void)
{
	const struct wfs_store_options options = { .mode = WFS_STORE_WRITE, .create = true };
	struct wfs_err error = WFS_ERR_INIT;
	struct wfs_store *store;

	if (wfs_store_open(s.path, &options, &store, &error) != 0)
		errx(1, "%s", error.text);
	if (wfs_store_close(store) != 0)
		errx(1, "%s: could not be closed", s.path);
}

static void begin(void)
{
	struct timespec t;
	char path[4096];

	snprintf(path, sizeof(path), "%s/weightfs.db", s.path);
	check(sqlite3_open_v2(path, &s.db, SQLITE_OPEN_READWRITE, NULL));
	clock_gettime(CLOCK_REALTIME, &t);
	s.now_ns = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
	s.inodes = 1;
	sql("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000;"
	    " BEGIN");
	s.object = prepare("INSERT INTO object (id, digest, ordinal, length, refs, data_file,"
			   " offset) VALUES (?, ?, 0, ?, 1, ?, ?)");
	s.bytes = prepare("INSERT INTO object_bytes (object, bytes) VALUES (?, ?)");
	s.manifest = prepare("INSERT INTO manifest (id, digest, size, objects, refs, solid)"
			     " VALUES (?, ?, ?, ?, 1, ?)");
	s.manifest_object = prepare("INSERT INTO manifest_object (manifest, seq, object)"
				    " VALUES (?, ?, ?)");
	s.data_file = prepare("INSERT INTO data_file (id, state) VALUES (?, 1)");
	s.inode = prepare("INSERT INTO inode (ino, mode, uid, gid, nlink, size, blocks, atime_ns,"
			  " mtime_ns, ctime_ns, btime_ns, manifest, verdict)"
			  " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?8, ?8, ?9, ?10)");
	s.dirent = prepare("INSERT INTO dirent (parent, name, ino) VALUES (?, ?, ?)");
}

static void end(void)
{
	sqlite3_stmt *all[] = { s.object, s.bytes, s.manifest, s.manifest_object, s.data_file,
		s.inode, s.dirent };

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		sqlite3_finalize(all[i]);
	sql("UPDATE inode SET nlink = 2 + (SELECT count(*) FROM inode c WHERE c.ino > 1"
	    " AND c.manifest IS NULL) WHERE ino = 1");
	sql("COMMIT; PRAGMA journal_mode = WAL");
	check(sqlite3_close(s.db));
}

int main(int argc, char **argv)
{
	uint64_t n[5] = { 0 }, state = 1;

	if (argc != 7)
		errx(2, "usage: bench-store STORE SHARDS TENSORS BYTES FILES DIRECTORIES");
	s.path = argv[1];
	for (int i = 0; i < 5; i++)
		n[i] = number(argv[2 + i]);
	make_store();
	begin();
	if (n[0] > 0) {
		uint64_t parent = add_inode(1, "shards", 0, "", 0, 0, 0);

		for (uint64_t i = 0; i < n[0]; i++)
			add_shard(parent, i, n[1], n[2], &state);
	}
	add_files(n[3], n[4]);
	end();
	return 0;
}

/*
 * fsck --repair: the store is as it was or repaired, what it was is kept, and a repair without faults ends
 * clean. Nothing ever reads as something else.
 */
#include "tests/faults/scenario.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/fsck.h"
#include "tests/faults/fault.h"
#include "tests/faults/world_priv.h"
#include "tests/unit/support.h"

#define DB "weightfs.db"
#define KEPT "before-repair-"

/* ---- a repair ---- */

struct heard {
	struct world *w;
	unsigned found, done, left;
};

static bool is_said(const char *kind, const char *where, const char *text)
{
	return kind && kind[0] && where && where[0] && text && text[0];
}

static void hear_finding(void *ctx, const struct wfs_fsck_finding *f)
{
	struct heard *h = ctx;

	h->found++;
	if (!is_said(f->kind, f->where, f->text))
		world_fail(h->w, "a finding without words");
}

static void hear_action(void *ctx, const struct wfs_fsck_finding *a)
{
	struct heard *h = ctx;

	h->done++;
	if (!is_said(a->kind, a->where, a->text))
		world_fail(h->w, "an action without words");
}

static void hear_left(void *ctx, const struct wfs_fsck_finding *f)
{
	struct heard *h = ctx;

	h->left++;
	if (fault_hits() == 0)
		world_fail(h->w, "not repaired: %s: %s: %s", f->kind, f->where, f->text);
}

/* Has `kept`, or some directory of that name, the database as the set-up left it? */
static bool is_kept(struct world *w)
{
	char path[PATH_ROOM], original[PATH_ROOM];
	WFS_AUTO_FREE uint8_t *want = NULL;
	DIR *dir = opendir(w->path);
	struct dirent *e;
	bool found = false;
	size_t len;

	world_side_path(w, DB, original);
	want = wfs_test_read(original, &len);
	while (dir && !found && (e = readdir(dir))) {
		WFS_AUTO_FREE uint8_t *have = NULL;
		size_t have_len;

		world_format(path, "%s/%s/" DB, w->path, e->d_name);
		if (strncmp(e->d_name, KEPT, strlen(KEPT)) != 0 || access(path, F_OK) != 0)
			continue;
		have = wfs_test_read(path, &have_len);
		found = have_len == len && memcmp(have, want, len) == 0;
	}
	if (dir)
		closedir(dir);
	return found;
}

static void check_kept(struct world *w)
{
	fault_pause();
	if (!is_kept(w))
		world_fail(w, "the database as it was is not kept");
	fault_resume();
}

static void repair_store(struct world *w, bool dry_run)
{
	struct wfs_fsck_options options = { .check_bytes = true };
	struct heard heard = { .w = w };
	struct wfs_fsck_repair how = { .dry_run = dry_run, .found = hear_finding, .done = hear_action,
		.left = dry_run ? NULL : hear_left, .ctx = &heard };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_fsck_repaired done;

	if (!world_did(w, wfs_fsck_repair(w->path, &options, &how, &done, &err), "repair", err.text))
		return;
	if (!w->m->repaired && (heard.found == 0 || done.before.findings != heard.found))
		world_fail(w, "nothing is found where something is wrong");
	if (!dry_run && heard.found) {
		check_kept(w);
		w->m->repaired = true;
	}
}

static void run_repair(struct world *w)
{
	repair_store(w, false);
}

static void run_plan(struct world *w)
{
	repair_store(w, true);
}

/* ---- afterwards ---- */

static bool has_findings(struct world *w)
{
	struct wfs_fsck_options options = { .check_bytes = true };
	struct heard heard = { .w = w };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_fsck(w->path, &options, hear_finding, &heard, &summary, &err);

	return ret != 0 || heard.found > 0;
}

/* Where an error of the disk was met something may be left, and what could not be read counts as lost. */
static void settle_repair(struct world *w)
{
	bool was_repaired = w->m->repaired;

	if (w->m->reads || w->m->error == EIO)
		for (uint32_t i = 0; i < w->m->n; i++)
			w->m->names[i].loose = true;
	for (unsigned i = 0; i < 2 && !w->m->failed && has_findings(w); i++) {
		if (i > 0)
			world_fail(w, "after a repair without faults something is left");
		else if (was_repaired && w->m->error != EIO)
			world_fail(w, "the repair ended, and something is left");
		repair_store(w, false);
	}
	/* It had been done, though the call said otherwise. */
	w->m->repaired = true;
	check_kept(w);
}

/* ---- damage; the store is closed then ---- */

/* One of everything: shards with shared tensors and a whole copy, directories, links, attributes, a model. */
static void set_up_all(struct world *w)
{
	scenario_set_up_composed(w);
	world_repack(w, "b.safetensors");
	world_seal_small(w);
	world_seal(w, "big-2");
	scenario_set_up_model(w);
	world_put(w, "alone", BIG_PATCHED);
	world_seal(w, "alone");
	world_link(w, "small", "link");
	world_attributes(w, "alone");
	world_put(w, "dirty", BIG_CUT);
	world_collect(w);
	world_close(w);
}

static void keep_original(struct world *w)
{
	char path[PATH_ROOM], side[PATH_ROOM];
	WFS_AUTO_FREE uint8_t *bytes = NULL;
	size_t len;

	world_side_mkdir(w, ".");
	world_format(path, "%s/" DB, w->path);
	world_side_path(w, DB, side);
	bytes = wfs_test_read(path, &len);
	wfs_test_write(side, bytes, len);
}

static void loosen(struct world *w, const char *const *names)
{
	for (; *names; names++)
		world_name(w, *names)->loose = true;
}

#define INO(name) "(SELECT ino FROM dirent WHERE name = CAST('" name "' AS BLOB))"
#define MANIFEST(name) "(SELECT manifest FROM inode WHERE ino = " INO(name) ")"
#define OBJECT(name) "(SELECT object FROM manifest_object WHERE manifest = " MANIFEST(name) " ORDER BY seq LIMIT 1)"
#define PACK(name) "(SELECT data_file FROM object WHERE id = " OBJECT(name) ")"

/* Numbers that can be counted again. */
static void set_up_counts(struct world *w)
{
	set_up_all(w);
	world_sql(w, "UPDATE object SET refs = refs + 1 WHERE id = " OBJECT("alone") ";"
		"UPDATE manifest SET refs = refs + 1 WHERE id = " MANIFEST("c.safetensors") ";"
		"UPDATE manifest SET digest = zeroblob(16) WHERE id = " MANIFEST("big") ";"
		"UPDATE manifest SET solid = 1 - solid WHERE id = " MANIFEST("a.safetensors") ";"
		"UPDATE inode SET nlink = 9 WHERE ino IN (1, " INO("small") ");"
		"UPDATE inode SET size = size + 1 WHERE ino = " INO("small-2") ";"
		"UPDATE inode SET verdict = 17 WHERE ino = " INO("big") ";"
		"INSERT INTO data_file (state) VALUES (1), (2), (3);"
		"UPDATE sqlite_sequence SET seq = 1 WHERE name = 'inode';"
		"DROP INDEX dirent_by_ino");
	keep_original(w);
}

/* Names that name nothing, or more than they may; what has none. */
static void set_up_names(struct world *w)
{
	static const char *const loose[] = { "small-2", "big-2", "link", NULL };

	set_up_all(w);
	world_sql(w, "INSERT INTO inode SELECT 900, mode, uid, gid, 2, 0, 0, 0, 1, 1, 1, 1, NULL, NULL, NULL, 0, NULL, NULL"
		" FROM inode WHERE ino = 1;"
		"INSERT INTO inode SELECT 901, mode, uid, gid, 2, 0, 0, 0, 1, 1, 1, 1, NULL, NULL, NULL, 0, NULL, NULL"
		" FROM inode WHERE ino = 1;"
		"INSERT INTO dirent (parent, name, ino) VALUES (900, x'61', 901), (901, x'62', 900), (1, x'63', 12345),"
		" (" INO("alone") ", x'64', " INO("alone") ");"
		"DELETE FROM dirent WHERE name = CAST('small-2' AS BLOB);"
		"UPDATE dirent SET name = CAST('../big' AS BLOB) WHERE name = CAST('big-2' AS BLOB);"
		"UPDATE dirent SET name = 'link' WHERE name = CAST('link' AS BLOB);"
		"INSERT INTO xattr VALUES (12345, x'757365722e61', x'6b');"
		"INSERT INTO xattr VALUES (" INO("small") ", zeroblob(300), zeroblob(70000));"
		"INSERT INTO tensor VALUES (" INO("alone") ", x'', x'61', NULL, 0, 'F32', '[1]', 0, 4)");
	loosen(w, loose);
	keep_original(w);
}

/* Lists with rows missing, objects without a row or without bytes, two contents in one place. */
static void set_up_content(struct world *w)
{
	static const char *const loose[] = { "a.safetensors", "b.safetensors", "c.safetensors", "big", "big-2",
		"small", "small-2", "link", "alone", NULL };

	set_up_all(w);
	world_sql(w, "DELETE FROM manifest_object WHERE manifest = " MANIFEST("c.safetensors") " AND seq IN (1, 2);"
		"DELETE FROM object WHERE id = " OBJECT("big") ";"
		"UPDATE object_bytes SET bytes = zeroblob(length(bytes)) WHERE object = " OBJECT("small") ";"
		"INSERT INTO object_bytes (object, bytes) VALUES (123456, x'0102030405');"
		"UPDATE object SET offset = offset + (1 << 40) WHERE id = " OBJECT("alone") ";"
		"INSERT INTO damage VALUES (999999, 1, 0), (" OBJECT("b.safetensors") ", 9, 0);"
		"UPDATE manifest SET size = size + 1 WHERE id = " MANIFEST("b.safetensors"));
	loosen(w, loose);
	keep_original(w);
}

/* Of other types than the columns say. */
static void set_up_types(struct world *w)
{
	static const char *const loose[] = { "small", "link", "small-2", "alone", "dirty", "c.safetensors",
		"a.safetensors", "b.safetensors", NULL };

	set_up_all(w);
	world_sql(w, "UPDATE inode SET uid = 'root' WHERE ino = " INO("small") ";"
		"UPDATE inode SET size = -1 WHERE ino = " INO("small-2") ";"
		"UPDATE manifest_object SET object = 'x' WHERE manifest = " MANIFEST("c.safetensors") " AND seq = 1;"
		"UPDATE object SET digest = x'00' WHERE id = " OBJECT("alone") ";"
		"UPDATE inode SET data_file = 'x' WHERE ino = " INO("dirty") ";"
		"UPDATE data_file SET holes = -4;"
		"UPDATE meta SET value = 'maybe' WHERE key = 'clean'");
	loosen(w, loose);
	keep_original(w);
}

static void data_path(struct world *w, const char *sql, char ret[PATH_ROOM])
{
	world_data_path(w, world_ask(w, sql), ret);
}

static void write_over(const char *path, off_t at, const void *bytes, size_t len)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || pwrite(fd, bytes, len, at) != (ssize_t)len || close(fd) != 0)
		abort();
}

/* Data files that are gone, cut, changed, nobody's, or where none is looked for. */
static void set_up_data(struct world *w)
{
	static const char *const loose[] = { "alone", "big", "big-2", "a.safetensors", "b.safetensors",
		"c.safetensors", "dirty", NULL };
	char path[PATH_ROOM], stray[PATH_ROOM];

	set_up_all(w);
	data_path(w, "SELECT " PACK("alone"), path);
	if (unlink(path) != 0)
		abort();
	data_path(w, "SELECT " PACK("big"), path);
	write_over(path, 70000, "other", 5);
	data_path(w, "SELECT data_file FROM object WHERE length = 70000 ORDER BY id LIMIT 1", path);
	if (truncate(path, 100000) != 0)
		abort();
	world_format(stray, "%s.txt", path);
	wfs_test_write(stray, "nobody's", 8);
	world_data_path(w, UINT64_C(0xabcd01), stray); /* beside the first */
	wfs_test_write(stray, "nobody's", 8);
	loosen(w, loose);
	keep_original(w);
}

static void loosen_all(struct world *w)
{
	for (uint32_t i = 0; i < w->m->n; i++)
		w->m->names[i].loose = true;
}

/* Where page `n` begins, counted from 1 as SQLite does. */
static off_t page_at(struct world *w, uint64_t n)
{
	return (off_t)((n - 1) * world_ask(w, "PRAGMA page_size"));
}

static uint64_t root_of(struct world *w, const char *name)
{
	char sql[200];

	snprintf(sql, sizeof(sql), "SELECT rootpage FROM sqlite_schema WHERE name = '%s'", name);
	return world_ask(w, sql);
}

/* The second page below an inner page (https://www.sqlite.org/fileformat.html, 1.6), by its second cell: with rows before it. */
static uint64_t second_child(const uint8_t *page)
{
	const uint8_t *cell = page + (page[14] << 8 | page[15]);

	if (page[0] != 2)
		abort();
	return (uint64_t)cell[0] << 24 | (uint64_t)cell[1] << 16 | (uint64_t)cell[2] << 8 | cell[3];
}

/* Pages of the database: an index, and some of the rows of a table. */
static void set_up_pages(struct world *w)
{
	WFS_AUTO_FREE uint8_t *noise = world_noise(4096, 7), *file = NULL;
	char path[PATH_ROOM];
	off_t at[2];
	size_t len;

	set_up_all(w);
	world_sql(w, "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 400)"
		"INSERT INTO xattr SELECT " INO("alone") ", CAST('user.' || x AS BLOB), zeroblob(30) FROM n");
	world_format(path, "%s/" DB, w->path);
	file = wfs_test_read(path, &len);
	at[0] = page_at(w, root_of(w, "dirent_by_parent"));
	at[1] = page_at(w, second_child(file + page_at(w, root_of(w, "xattr"))));
	for (size_t i = 0; i < WFS_ARRAY_SIZE(at); i++)
		write_over(path, at[i], noise, 4096);
	loosen_all(w);
	keep_original(w);
}

static void set_up_no_database(struct world *w)
{
	char path[PATH_ROOM];

	set_up_all(w);
	world_format(path, "%s/" DB, w->path);
	wfs_test_write(path, "this is no database, and never was", 34);
	loosen_all(w);
	keep_original(w);
}

const struct scenario scenarios_of_fsck[] = {
	{ .name = "repair-counts", .set_up = set_up_counts, .run = run_repair, .settle = settle_repair, .opens = true },
	{ .name = "repair-names", .set_up = set_up_names, .run = run_repair, .settle = settle_repair, .opens = true },
	{ .name = "repair-content", .set_up = set_up_content, .run = run_repair, .settle = settle_repair, .opens = true },
	{ .name = "repair-types", .set_up = set_up_types, .run = run_repair, .settle = settle_repair, .opens = true },
	{ .name = "repair-data", .set_up = set_up_data, .run = run_repair, .settle = settle_repair, .opens = true },
	{ .name = "repair-plan", .set_up = set_up_data, .run = run_plan, .settle = settle_repair, .opens = true },
	{ .name = "salvage", .set_up = set_up_pages, .run = run_repair, .settle = settle_repair, .opens = true },
	{ .name = "no-database", .set_up = set_up_no_database, .run = run_repair, .settle = settle_repair, .opens = true },
	{ .name = NULL },
};

/* What the driver does to a store. */
#include "tests/faults/scenario.h"

#include <string.h>
#include <unistd.h>

#include "tests/unit/support.h"

static void run_make(struct world *w)
{
	world_open(w);
	world_put(w, "empty", EMPTY);
	world_put(w, "small", SMALL);
	world_put(w, "big", BIG);
	world_close(w);
}

static void set_up_dirty(struct world *w)
{
	world_put(w, "small", SMALL);
	world_put(w, "small-2", SMALL_2);
	world_put(w, "small-3", SMALL);
	world_put(w, "empty", EMPTY);
	world_put(w, "big", BIG);
	world_put(w, "a.safetensors", SHARD);
}

static void run_seal(struct world *w)
{
	world_seal_small(w);
	world_seal(w, "big");
	world_seal(w, "a.safetensors");
	world_seal(w, "small");
	world_collect(w);
}

static void set_up_twins(struct world *w)
{
	world_put(w, "a.safetensors", SHARD);
	world_put(w, "big", BIG);
	world_seal(w, "a.safetensors");
	world_seal(w, "big");
	world_collect(w);
	world_put(w, "b.safetensors", SHARD_2);
	world_put(w, "c.safetensors", SHARD);
	world_put(w, "big-2", BIG);
	world_put(w, "small", SMALL);
	world_put(w, "small-2", SMALL);
}

static void run_duplicates(struct world *w)
{
	world_seal(w, "b.safetensors");
	world_seal(w, "c.safetensors");
	world_seal(w, "big-2");
	world_seal_small(w);
	world_collect(w);
	world_unlink(w, "a.safetensors");
	world_collect(w);
}

void scenario_set_up_sealed(struct world *w)
{
	set_up_twins(w);
	run_duplicates(w);
	world_clone(w, "big", "clone");
	world_put(w, "alone", BIG_PATCHED);
	world_seal(w, "alone");
}

static void run_unseal(struct world *w)
{
	world_write(w, "alone", BIG);           /* in place */
	world_write(w, "clone", BIG_PATCHED);   /* by a copy */
	world_write(w, "c.safetensors", SHARD_PATCHED);
	world_truncate(w, "big-2", BIG_CUT);
	world_truncate(w, "small", EMPTY);
	world_seal(w, "alone");
	world_seal(w, "c.safetensors");
	world_seal_small(w);
	world_collect(w);
}

static void run_names(struct world *w)
{
	world_clone(w, "big", "copy");
	world_clone(w, "small", "small-copy");
	world_put(w, ".tmp", SMALL_2);
	world_rename(w, ".tmp", "small");
	world_put(w, ".tmp", SHARD);
	world_rename(w, ".tmp", "b.safetensors");
	world_link(w, "big", "link");
	world_unlink(w, "big");
	world_attributes(w, "clone");
	world_directory(w);
	world_unlink(w, "clone");
	world_unlink(w, "link");
	world_collect(w);
}

static void run_sync(struct world *w)
{
	world_put(w, "new", BIG);
	world_sync(w, "new");
	world_put(w, ".tmp", SMALL_2);
	world_rename(w, ".tmp", "small");
	world_sync(w, "big");
	world_sync(w, "new");
	world_checkpoint(w);
	world_write(w, "new", BIG_PATCHED);
	world_sync(w, "new");
	world_sync(w, "new");
	world_seal(w, "new");
	world_seal(w, "new");
	world_sync_all(w);
	world_tidy(w);
	world_put(w, "last", SMALL);
	world_sync(w, "last");
}

static void set_up_left(struct world *w)
{
	scenario_set_up_sealed(w);
	world_put(w, "dirty", BIG);
	world_put(w, "d.safetensors", SHARD_PATCHED);
	world_write(w, "alone", BIG);
	world_unlink(w, "clone");
}

static void run_recover(struct world *w)
{
	world_open(w);
	world_seal(w, "dirty");
	world_seal_small(w);
	world_collect(w);
	world_close(w);
}

/* A store of format 1 with an empty file in it. */
static void set_up_version_1(struct world *w)
{
	WFS_AUTO_FREE char *file = wfs_test_path(w->path, "weightfs.db");
	WFS_AUTO_FREE char *schema;
	size_t len;

	world_put(w, "empty", EMPTY);
	world_seal(w, "empty");
	world_close(w);
	unlink(file);
	schema = wfs_test_read("tests/unit/schema-1.sql", &len);
	schema[len] = '\0';
	world_sql(w, "PRAGMA auto_vacuum = INCREMENTAL");
	world_sql(w, schema);
	world_sql(w, "PRAGMA application_id = 0x57744653; PRAGMA user_version = 1;"
		"INSERT INTO meta VALUES ('clean', 1), ('created_ns', 1);"
		"INSERT INTO inode (ino, mode, uid, gid, nlink, atime_ns, mtime_ns, ctime_ns, btime_ns) "
		"VALUES (1, 16877, 0, 0, 2, 1, 1, 1, 1), (2, 33188, 0, 0, 1, 1, 1, 1, 1);"
		"INSERT INTO dirent (parent, name, ino) VALUES (1, CAST('empty' AS BLOB), 2)");
}

static void run_migrate(struct world *w)
{
	world_open(w);
	world_put(w, "big", BIG);
	world_seal(w, "big");
	world_close(w);
}

void scenario_set_up_model(struct world *w)
{
	world_mkdir_model(w);
	world_put_tensor(w, "a", 21);
	world_put_tensor(w, "b", 22);
	world_settle(w);
}

static void run_tensors(struct world *w)
{
	world_put_tensor(w, "c", 23);
	world_put_tensor(w, "d", 24);
	world_settle(w);
	world_put_tensor(w, "a", 25);
	world_remove_tensor(w, "b");
	world_settle(w);
	world_collect(w);
}

void scenario_set_up_composed(struct world *w)
{
	set_up_twins(w);
	world_seal(w, "b.safetensors");
	world_seal(w, "c.safetensors");
	world_collect(w);
}

static void run_repack(struct world *w)
{
	world_repack(w, "b.safetensors");
	world_collect(w);
	world_unlink(w, "a.safetensors");
	world_collect(w);
}

static void run_fsck(struct world *w)
{
	world_fsck(w);
}

static void run_more_tensors(struct world *w)
{
	world_rename_tensor(w, "a", "c");
	world_put_turned(w, "d", 26);
	world_rename_tensor(w, "d", "e");
	world_reshard(w, 100000);
	world_put_tensor(w, "a", 27);
	world_remove_tensor(w, "b");
	world_remove_tensor(w, "a");
	world_settle(w);
	world_look_at_model(w);
	world_collect(w);
}

const struct scenario scenarios_of_stores[] = {
	{ .name = "make", .run = run_make, .opens = true },
	{ .name = "seal", .set_up = set_up_dirty, .run = run_seal },
	{ .name = "duplicates", .set_up = set_up_twins, .run = run_duplicates },
	{ .name = "unseal", .set_up = scenario_set_up_sealed, .run = run_unseal },
	{ .name = "names", .set_up = scenario_set_up_sealed, .run = run_names },
	{ .name = "sync", .set_up = scenario_set_up_sealed, .run = run_sync },
	{ .name = "recover", .set_up = set_up_left, .run = run_recover, .crashes = true, .opens = true },
	{ .name = "migrate", .set_up = set_up_version_1, .run = run_migrate, .opens = true },
	{ .name = "tensors", .set_up = scenario_set_up_model, .run = run_tensors },
	{ .name = "more-tensors", .set_up = scenario_set_up_model, .run = run_more_tensors },
	{ .name = "repack", .set_up = scenario_set_up_composed, .run = run_repack },
	{ .name = "look", .set_up = set_up_left, .run = world_look },
	{ .name = "fsck", .set_up = scenario_set_up_sealed, .run = run_fsck, .opens = true },
	{ .name = NULL },
};

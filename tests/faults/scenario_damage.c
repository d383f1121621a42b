/*
 * Verify, marks, and what gives damaged bytes back: what is damaged is found and named, all of it; nothing else
 * ever is, but what the disk could not read.
 */
#include "tests/faults/scenario.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/damage.h"
#include "lib/name.h"
#include "lib/npy.h"
#include "lib/repair.h"
#include "lib/verify.h"
#include "tests/faults/fault.h"
#include "tests/faults/world_priv.h"
#include "tests/unit/support.h"

#define FROM "from"
#define IN_DATABASE 0 /* as data_file of a flip: an object's row; `offset` is the object */

struct found {
	struct wfs_verify_bad *list;
	size_t n;
};

/* ---- looking ---- */

static bool is_flip(const struct flip *f, const struct wfs_verify_bad *b)
{
	if (f->data_file == IN_DATABASE)
		return b->data_file == 0 && b->object == f->offset;
	return b->data_file == f->data_file && f->offset >= b->offset && f->offset < b->offset + b->length;
}

/* Bytes that the disk could not read are no false alarm; what could not be done for another reason is one. */
static void judge(struct world *w, const struct wfs_verify_bad *b)
{
	bool known = b->reason == WFS_DAMAGE_NONE;

	for (uint32_t i = 0; i < w->m->n_flips; i++)
		if (is_flip(&w->m->flips[i], b))
			known = w->m->flips[i].found = true;
	if (!known && !(b->reason == WFS_DAMAGE_ERROR && fault_hits() && w->m->error == EIO))
		world_fail(w, "a false alarm: object %" PRIu64 " in data file %" PRIu64 " %s", b->object,
			b->data_file, wfs_damage_reason_name(b->reason));
}

/* `all`: what is damaged is so for certain. */
static bool verify(struct world *w, unsigned threads, bool all, struct found *ret)
{
	const struct wfs_verify_options options = { .threads = threads };
	struct wfs_verify_summary summary;
	struct wfs_err err = WFS_ERR_INIT;
	bool done;

	*ret = (struct found){ .list = NULL };
	for (uint32_t i = 0; i < w->m->n_flips; i++)
		w->m->flips[i].found = false;
	done = world_did(w, wfs_verify(w->store, &options, &ret->list, &ret->n, &summary, &err), "verify",
		err.text);
	for (size_t i = 0; i < ret->n; i++)
		judge(w, &ret->list[i]);
	for (uint32_t i = 0; done && all && i < w->m->n_flips; i++)
		if (!w->m->flips[i].found)
			world_fail(w, "verify does not find what is damaged in data file %" PRIu64 " at %" PRIu64,
				w->m->flips[i].data_file, w->m->flips[i].offset);
	return done;
}

/* As the command does. True: all of it is noted. */
static bool note(struct world *w, const struct found *f)
{
	bool noted = true;
	size_t changed;
	int ret;

	for (size_t i = 0; i < f->n && noted; i++) {
		const struct wfs_verify_bad *b = &f->list[i];
		const struct wfs_damage d = { .object = b->object, .data_file = b->data_file,
			.offset = b->offset, .good_file = b->good_file, .good_at = b->good_at,
			.reason = b->reason };

		if (!b->copy_of)
			noted = world_did(w, wfs_damage_set(w->store, &d, 1, &changed), "note", "damage");
	}
	for (size_t i = 0; i < f->n && noted; i++) {
		ret = 0;
		if (f->list[i].copy_of)
			ret = wfs_damage_drop_copy(w->store, f->list[i].copy_of, f->list[i].data_file);
		noted = world_did(w, WFS_MIN(ret, 0), "drop", "a whole copy");
	}
	return noted;
}

/* ---- naming ---- */

struct seen {
	struct world *w;
	bool names[MAX_NAMES];
};

static int see_place(void *ctx, const struct wfs_damage_place *place)
{
	struct seen *s = ctx;

	for (uint32_t i = 0; i < s->w->m->n; i++)
		if (strcmp(place->path + 1, s->w->m->names[i].name) == 0)
			s->names[i] = true;
	return 0;
}

/* Every file that has such bytes is named, and no other. */
static void name_places(struct world *w)
{
	struct seen s = { .w = w };
	uint64_t *ids = NULL;
	size_t n = 0;
	int ret = wfs_damage_list(w->store, &ids, &n);

	if (!world_did(w, ret, "list", "marks"))
		return;
	ret = wfs_damage_each_place(w->store, ids, n, see_place, &s);
	free(ids);
	if (!world_did(w, ret, "name", "places"))
		return;
	for (uint32_t i = 0; i < w->m->n; i++)
		if (s.names[i] != w->m->names[i].damaged && (s.names[i] ? !fault_hits() : true))
			world_fail(w, "%s is %s", w->m->names[i].name, s.names[i] ? "named, and sound" : "not named");
}

static int see_text(void *ctx, uint64_t ino, const char *reason, const char *text)
{
	(void)ino;
	if (!reason || !reason[0] || !text || !text[0])
		world_fail(ctx, "a damaged file has no text");
	++((struct world *)ctx)->m->texts;
	return 0;
}

static void name_files(struct world *w)
{
	const char *reason;
	uint32_t damaged = 0;
	char *text = NULL;
	uint64_t ino = 0;
	int ret;

	w->m->texts = 0;
	for (uint32_t i = 0; i < w->m->n; i++)
		damaged += w->m->names[i].damaged;
	ret = wfs_damage_each_file(w->store, see_text, w);
	if (world_did(w, ret, "name", "files") && (w->m->texts < damaged))
		world_fail(w, "%u of %u damaged files have a text", w->m->texts, damaged);
	if (!world_did(w, world_inode(w, "alone", &ino), "look up", "alone"))
		return;
	ret = wfs_damage_text(w->store, ino, &reason, &text);
	if (ret > 0)
		free(text);
	else if (ret == 0)
		world_fail(w, "nothing is known of damage in a file that has it");
	world_did(w, WFS_MIN(ret, 0), "say", "what is damaged");
}

/* What has a mark is not read. */
static void read_damaged(struct world *w)
{
	struct wfs_file *f;
	uint64_t size = 0;
	uint8_t *buf;
	ssize_t n;

	for (uint32_t i = 0; i < w->m->n; i++) {
		const struct name *name = &w->m->names[i];

		if (!name->damaged || !world_did(w, world_file(w, name->name, &f), "open", name->name))
			continue;
		n = wfs_file_size(f, &size);
		fault_pause();
		buf = malloc(size + 1);
		fault_resume();
		if (n == 0)
			n = wfs_file_read(f, buf, size, 0);
		if (n >= 0)
			world_fail(w, "%s is damaged, and can be read", name->name);
		else if (n != -EIO)
			world_did(w, (int)n, "read", name->name);
		free(buf);
		wfs_file_unref(f);
	}
}

/* ---- what is run ---- */

static void verify_sound(struct world *w)
{
	struct found f;

	if (verify(w, 2, true, &f))
		note(w, &f);
	free(f.list);
}

static void verify_some(struct world *w)
{
	struct wfs_verify_options options = { .threads = 1 };
	struct wfs_verify_summary summary;
	struct wfs_err err = WFS_ERR_INIT;
	struct found f = { .list = NULL };
	uint64_t inos[2] = { 0 };

	if (!world_did(w, world_inode(w, "b.safetensors", &inos[0]), "look up", "b.safetensors") ||
		!world_did(w, world_inode(w, "small", &inos[1]), "look up", "small"))
		return;
	options.inos = inos;
	options.n_inos = 2;
	if (world_did(w, wfs_verify(w->store, &options, &f.list, &f.n, &summary, &err), "verify", err.text) &&
		summary.objects == 0)
		world_fail(w, "nothing was verified");
	for (size_t i = 0; i < f.n; i++)
		judge(w, &f.list[i]);
	free(f.list);
}

static void run_verify(struct world *w)
{
	verify_sound(w);
	verify_some(w);
}

static void run_damage(struct world *w)
{
	struct found f;

	if (verify(w, 1, true, &f) && note(w, &f)) {
		w->m->marked = !w->m->heals;
		w->m->repaired = w->m->heals;
	}
	free(f.list);
	if (!w->m->marked)
		return;
	name_places(w);
	name_files(w);
	read_damaged(w);
}

static void repair_by(struct world *w, bool is_first)
{
	WFS_AUTO_FREE bool *repaired = NULL;
	char from[PATH_ROOM];
	struct wfs_err err = WFS_ERR_INIT;
	struct found f;
	bool done;

	world_side_path(w, FROM, from);
	done = verify(w, 1, is_first, &f) && note(w, &f);
	fault_pause();
	repaired = calloc(f.n + 1, 1);
	fault_resume();
	if (done && world_did(w, wfs_repair(w->store, from, f.list, f.n, repaired, &err), "repair", err.text)) {
		w->m->repaired = true;
		for (size_t i = 0; i < f.n; i++)
			w->m->repaired &= repaired[i] || f.list[i].copy_of || f.list[i].reason == WFS_DAMAGE_NONE;
		for (size_t i = 0; i < f.n && !fault_hits(); i++)
			if (!repaired[i] && !f.list[i].copy_of && f.list[i].reason != WFS_DAMAGE_NONE)
				world_fail(w, "object %" PRIu64 " of %" PRIu64 " bytes is not repaired",
					f.list[i].object, f.list[i].length);
	}
	free(f.list);
}

static void repair_from(struct world *w)
{
	repair_by(w, true);
}

/* ---- afterwards ---- */

/* Marks of what is right go when it is verified again; more than once, where whole copies have moved. */
static void verify_again(struct world *w)
{
	for (unsigned i = 0; i < 2; i++) {
		struct found f;

		if (verify(w, 2, false, &f))
			note(w, &f);
		free(f.list);
	}
	w->m->hits = 0;
	world_collect(w);
	if (wfs_damage_is_any(w->store) && w->m->n_flips == 0)
		world_fail(w, "what is sound keeps its mark");
}

static void flip_byte(struct world *w, const struct flip *f)
{
	char path[PATH_ROOM];
	uint8_t byte = 0;
	int fd;

	world_data_path(w, f->data_file, path);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || pread(fd, &byte, 1, (off_t)f->offset) != 1)
		world_fail(w, "%s: %s", path, strerror(errno));
	byte ^= 0x10;
	if (fd >= 0 && (pwrite(fd, &byte, 1, (off_t)f->offset) != 1 || close(fd) != 0))
		world_fail(w, "%s: %s", path, strerror(errno));
}

/* The bytes come back, where they still are: then nothing is damaged. */
static void mend_damage(struct world *w)
{
	uint64_t hits = w->m->hits;
	struct found f;

	w->m->hits = 0;
	if (w->m->n_flips && w->m->marked)
		read_damaged(w);
	if (w->m->n_flips && !w->m->repaired && verify(w, 1, true, &f)) {
		for (uint32_t i = 0; i < w->m->n_flips; i++)
			flip_byte(w, &w->m->flips[i]);
		free(f.list);
	}
	w->m->n_flips = 0;
	w->m->marked = false;
	for (uint32_t i = 0; i < w->m->n; i++)
		w->m->names[i].damaged = false;
	verify_again(w);
	w->m->hits = hits;
}

/* Of files elsewhere all is given back; what was acknowledged needs nothing more. */
static void mend_from(struct world *w)
{
	uint64_t hits = w->m->hits;

	w->m->hits = 0;
	if (!w->m->repaired)
		repair_by(w, false);
	if (!w->m->repaired)
		world_fail(w, "it cannot be repaired without faults");
	w->m->n_flips = 0;
	verify_again(w);
	w->m->hits = hits;
}

static void mend_copies(struct world *w)
{
	uint64_t hits = w->m->hits;
	struct found f;

	w->m->hits = 0;
	if (!w->m->repaired && verify(w, 1, false, &f)) {
		w->m->repaired = note(w, &f);
		free(f.list);
	}
	/* A whole copy that the disk could not read has gone: then nobody else has the bytes. */
	if (w->m->error == EIO && wfs_damage_is_any(w->store))
		flip_byte(w, &w->m->flips[0]);
	w->m->n_flips = 0;
	verify_again(w);
	w->m->hits = hits;
}

/* ---- how they begin; the store is closed then ---- */

static void add_flip(struct world *w, uint64_t data_file, uint64_t offset)
{
	struct flip f = { .data_file = data_file, .offset = offset };

	w->m->flips[w->m->n_flips++] = f;
	if (data_file != IN_DATABASE)
		flip_byte(w, &f);
}

/* In the middle of the n-th object (from 0) of a file. */
static void flip_object(struct world *w, const char *name, unsigned n)
{
	char sql[600];
	uint64_t place[2];

	for (unsigned i = 0; i < 2; i++) {
		snprintf(sql, sizeof(sql),
			"SELECT %s FROM object o JOIN manifest_object m ON m.object = o.id"
			" JOIN inode i ON i.manifest = m.manifest JOIN dirent d ON d.ino = i.ino"
			" WHERE d.name = CAST('%s' AS BLOB) AND o.data_file IS NOT NULL ORDER BY m.seq LIMIT 1 OFFSET %u",
			i ? "o.offset + o.length / 2" : "o.data_file", name, n);
		place[i] = world_ask(w, sql);
	}
	add_flip(w, place[0], place[1]);
}

static void damage_names(struct world *w, const char *const *names)
{
	for (; *names; names++)
		world_name(w, *names)->damaged = true;
}

/* A tensor that two shards have, all of a file, and an object in the database. */
static void set_up_damage(struct world *w)
{
	static const char *const damaged[] = { "alone", "b.safetensors", "c.safetensors", NULL };

	scenario_set_up_sealed(w);
	world_close(w);
	flip_object(w, "alone", 0);
	flip_object(w, "c.safetensors", 1); /* behind the header */
	damage_names(w, damaged);
}

static void write_side(struct world *w, const char *name, const void *bytes, size_t len)
{
	char path[PATH_ROOM];

	world_side_path(w, name, path);
	wfs_test_write(path, bytes, len);
}

static void write_array(struct world *w, const char *name, uint64_t seed)
{
	WFS_AUTO_FREE uint8_t *bytes = world_noise(EACH, seed), *head = NULL, *all = NULL;
	uint64_t shape[1] = { EACH };
	size_t len = 0;

	if (wfs_npy_build(WFS_DTYPE_U8, shape, 1, &head, &len) != 0)
		abort();
	all = malloc(len + EACH);
	memcpy(all, head, len);
	memcpy(all + len, bytes, EACH);
	write_side(w, name, all, len + EACH);
}

static void set_up_from(struct world *w)
{
	const struct world_content *c = world_contents;

	set_up_damage(w);
	flip_object(w, "c.safetensors", 3);
	add_flip(w, IN_DATABASE, world_ask(w, "SELECT object FROM object_bytes WHERE length(bytes) = 1000"));
	world_sql(w, "UPDATE object_bytes SET bytes = zeroblob(1000) WHERE length(bytes) = 1000");
	world_side_mkdir(w, FROM);
	world_side_mkdir(w, FROM "/sub");
	write_side(w, FROM "/sub/alone", c[BIG_PATCHED].bytes, c[BIG_PATCHED].len);
	write_side(w, FROM "/sub/any.safetensors", c[SHARD_2].bytes, c[SHARD_2].len);
	write_side(w, FROM "/wrong.safetensors", c[SHARD_WRONG].bytes, c[SHARD_WRONG].len);
	write_side(w, FROM "/small", c[SMALL].bytes, c[SMALL].len);
	write_array(w, FROM "/c.npy", 13);
}

/* A whole copy has what is damaged where it lives; another one is damaged itself. */
static void set_up_copies(struct world *w)
{
	char sql[300];
	uint64_t whole;

	scenario_set_up_composed(w);
	world_repack(w, "b.safetensors");
	world_repack(w, "c.safetensors");
	world_close(w);
	snprintf(sql, sizeof(sql), "SELECT count(*) FROM manifest WHERE whole IS NOT NULL");
	if (world_ask(w, sql) == 0)
		world_fail(w, "there is no whole copy");
	whole = world_ask(w, "SELECT max(whole) FROM manifest");
	snprintf(sql, sizeof(sql), "SELECT data_file FROM object WHERE data_file IS NOT NULL AND data_file <> %" PRIu64
		" AND length = 70000 ORDER BY id LIMIT 1", whole);
	add_flip(w, world_ask(w, sql), 0);
	snprintf(sql, sizeof(sql), "SELECT offset + 1000 FROM object WHERE data_file = %" PRIu64 " AND length = 70000"
		" ORDER BY id LIMIT 1", w->m->flips[0].data_file);
	flip_byte(w, &w->m->flips[0]);
	w->m->flips[0].offset = world_ask(w, sql);
	flip_byte(w, &w->m->flips[0]);
	w->m->heals = true;
}

const struct scenario scenarios_of_damage[] = {
	{ .name = "verify", .set_up = scenario_set_up_sealed, .run = run_verify, .mend = mend_damage },
	{ .name = "damage", .set_up = set_up_damage, .run = run_damage, .mend = mend_damage },
	{ .name = "repair-from", .set_up = set_up_from, .run = repair_from, .mend = mend_from },
	{ .name = "copies", .set_up = set_up_copies, .run = run_damage, .mend = mend_copies },
	{ .name = NULL },
};

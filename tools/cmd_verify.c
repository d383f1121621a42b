/*
 * cmd_verify.c - `weightfs verify`: what is stored, compared with its digests. What it finds
 * is remembered in the store: by the driver where that has it (fs/ioctl.h), else by itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/ioctl.h"
#include "lib/damage.h"
#include "lib/name.h"
#include "lib/repair.h"
#include "lib/size_text.h"
#include "lib/verify.h"
#include "tools/command.h"
#include "tools/target.h"
#include "tools/ui.h"

#define AT_ONCE 1000 /* entries of a directory */

/* The exit status of this command. */
enum {
	CLEAN = 0,
	DAMAGED = 1,   /* and it is so still */
	CANNOT = 2,    /* or not to the end */
};

struct verify {
	struct target target;
	struct wfs_verify_options options;
	const char *from;  /* directory with copies; NULL: nothing is repaired */
	bool only_look, json;
	struct wfs_store *store; /* read-only */
	uint64_t *inos;
	size_t n_inos, inos_room;
	uint64_t at_entry;       /* while a directory is read */
	size_t entries;          /* of it, in one call */
	struct wfs_verify_bad *bad;
	size_t n_bad;
	struct wfs_verify_summary summary;
	const char *not_noted;   /* why what was found is not remembered; NULL: it is */
	bool *repaired;          /* of bad[] */
	json_t *list;            /* of what is damaged */
};

static atomic_bool stop;

static void on_signal(int number)
{
	(void)number;
	atomic_store(&stop, true);
}

static void catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESETHAND };

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
}

static void show_progress(void *ctx, uint64_t done, uint64_t total)
{
	const struct verify *v = ctx;

	ui_progress(v->target.store, done, total);
}

/* ---- what is asked for ---- */

static int add_ino(struct verify *v, uint64_t ino)
{
	UI_ARRAY_ROOM(v->inos, v->n_inos, v->inos_room);
	v->inos[v->n_inos++] = ino;
	return 0;
}

/* Directories are put behind what there is, and looked into one after the other. */
static int add_entry(void *ctx, const struct wfs_dirent *entry)
{
	struct verify *v = ctx;

	v->at_entry = entry->id;
	v->entries++;
	return add_ino(v, entry->ino);
}

static int add_entries(struct verify *v, uint64_t dir)
{
	int ret;

	v->at_entry = 0;
	do {
		v->entries = 0;
		ret = wfs_name_readdir(v->store, dir, v->at_entry, AT_ONCE, false, add_entry, v);
	} while (ret == 0 && v->entries > 0);
	return ret;
}

static int add_tree(struct verify *v, uint64_t root)
{
	int ret = 0;

	add_ino(v, root);
	for (size_t i = 0; i < v->n_inos && ret == 0; i++) {
		struct wfs_attr a;
		uint64_t ino = v->inos[i];

		ret = wfs_name_getattr(v->store, ino, &a);
		if (ret == 0 && S_ISDIR(a.mode))
			ret = add_entries(v, ino);
		ret = ret == -ENOENT ? 0 : ret;
	}
	return ret;
}

static int find_path(const struct verify *v, uint64_t *ret)
{
	WFS_AUTO_FREE char *path = ui_format("%s", v->target.path);
	char *rest = NULL;
	struct wfs_attr a;
	uint64_t ino = WFS_ROOT_INO;
	int err = 0;

	for (char *name = strtok_r(path, "/", &rest); name && !err; name = strtok_r(NULL, "/", &rest)) {
		err = wfs_name_lookup(v->store, ino, name, &a);
		if (!err)
			ino = a.ino;
	}
	*ret = ino;
	return err;
}

/* 0, or the exit status with the error printed. */
static int choose(struct verify *v)
{
	uint64_t ino;
	int ret = find_path(v, &ino);

	if (ret == 0 && ino != WFS_ROOT_INO)
		ret = add_tree(v, ino);
	if (ret) {
		ui_error(NULL, "verify: %s in %s: %s", v->target.path, v->target.store, strerror(-ret));
		return CANNOT;
	}
	v->options.inos = v->inos;
	v->options.n_inos = v->n_inos;
	return 0;
}

/* ---- remembering it ---- */

static void note_by_driver(struct verify *v, const char *mountpoint)
{
	WFS_AUTO_CLOSE int fd = open(mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct wfs_ioc_damage io;

	if (fd < 0)
		v->not_noted = strerror(errno);
	for (size_t i = 0; i < v->n_bad && !v->not_noted;) {
		memset(&io, 0, sizeof(io));
		for (; i < v->n_bad && io.n < WFS_IOC_DAMAGE_MAX; i++, io.n++) {
			io.list[io.n].object = v->bad[i].object;
			io.list[io.n].data_file = v->bad[i].data_file;
			io.list[io.n].offset = v->bad[i].offset;
			io.list[io.n].good_file = v->bad[i].good_file;
			io.list[io.n].good_at = v->bad[i].good_at;
			io.list[io.n].copy_of = v->bad[i].copy_of;
			io.list[io.n].reason = v->bad[i].reason;
		}
		if (ioctl(fd, WFS_IOC_DAMAGE, &io) != 0)
			v->not_noted = errno == EPERM ? "root and the user who mounted may" :
				errno == EROFS ? "the mount only reads" : strerror(errno);
	}
}

static int open_to_write(struct verify *v, struct wfs_store **ret)
{
	const struct wfs_store_options options = { .mode = WFS_STORE_WRITE };
	struct wfs_err err = WFS_ERR_INIT;
	int e = wfs_store_open(v->target.store, &options, ret, &err);

	return e < 0 ? ui_error_from(&err, e, "verify") : 0;
}

/* What is right in a whole copy moves there before that one is dropped for what is wrong. */
static void note_in_store(struct verify *v, struct wfs_store *store)
{
	size_t changed;
	int ret = 0;

	for (size_t i = 0; i < v->n_bad && ret == 0; i++) {
		const struct wfs_verify_bad *b = &v->bad[i];
		const struct wfs_damage d = { .object = b->object, .data_file = b->data_file,
			.offset = b->offset, .good_file = b->good_file, .good_at = b->good_at,
			.reason = b->reason };

		if (!b->copy_of)
			ret = wfs_damage_set(store, &d, 1, &changed);
	}
	for (size_t i = 0; i < v->n_bad && ret >= 0; i++)
		if (v->bad[i].copy_of)
			ret = wfs_damage_drop_copy(store, v->bad[i].copy_of, v->bad[i].data_file);
	if (ret < 0)
		v->not_noted = strerror(-ret);
}

/* A dropped copy is not needed, and what moved to one is right. */
static void count_repaired(struct verify *v)
{
	for (size_t i = 0; i < v->n_bad && !v->not_noted; i++)
		v->repaired[i] = v->bad[i].copy_of || v->bad[i].good_file;
}

/* Nobody has the store. */
static int note_and_repair(struct verify *v)
{
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_store *store;
	int ret = open_to_write(v, &store);

	if (ret) {
		v->not_noted = "the store cannot be written";
		return v->from ? CANNOT : 0;
	}
	note_in_store(v, store);
	count_repaired(v);
	if (v->from && !v->not_noted)
		ret = wfs_repair(store, v->from, v->bad, v->n_bad, v->repaired, &err);
	if (ret < 0) {
		ui_error_from(&err, ret, "verify --from");
		ret = CANNOT;
	}
	if (wfs_store_close(store) != 0 && !ret)
		ret = CANNOT;
	return ret;
}

static int remember(struct verify *v)
{
	int pid;

	if (v->n_bad == 0 || v->only_look)
		return 0;
	if (!wfs_store_is_locked(v->target.store, &pid))
		return note_and_repair(v);
	if (v->target.mountpoint)
		note_by_driver(v, v->target.mountpoint);
	else
		v->not_noted = "it is mounted where it cannot be seen from here";
	count_repaired(v);
	return 0;
}

/* ---- saying it ---- */

static json_t *json_of(const struct wfs_verify_bad *b)
{
	char digest[WFS_DIGEST_TEXT_SIZE];
	json_t *o = json_object();

	wfs_digest_text(&b->digest, digest);
	ui_json_put(o, "object", ui_json_number(b->object));
	ui_json_put(o, "digest", ui_json_text(digest));
	ui_json_put(o, "length", ui_json_number(b->length));
	ui_json_put(o, "reason", ui_json_text(wfs_damage_reason_name(b->reason)));
	ui_json_put(o, "data_file", ui_json_number(b->data_file));
	ui_json_put(o, "offset", ui_json_number(b->offset));
	ui_json_put(o, "whole_copy", json_boolean(b->copy_of != 0));
	ui_json_put(o, "files", json_array());
	return o;
}

static const struct wfs_verify_bad *bad_of(const struct verify *v, uint64_t object, uint64_t manifest)
{
	for (size_t i = 0; i < v->n_bad; i++)
		if (v->bad[i].object == object && (!v->bad[i].copy_of || v->bad[i].copy_of == manifest))
			return &v->bad[i];
	return NULL;
}

static json_t *json_of_place(const struct wfs_damage_place *place)
{
	const char *slash = strrchr(place->path, '/');
	json_t *o = json_object();

	ui_json_put(o, "path", ui_json_text(place->path));
	ui_json_put(o, "model", ui_json_string(place->path, WFS_MAX((size_t)(slash - place->path), 1)));
	ui_json_put(o, "part", ui_json_text(place->part));
	ui_json_put(o, "tensor", place->tensor ? ui_json_string(place->tensor, place->tensor_len)
					       : json_null());
	ui_json_put(o, "number", place->tensor ? ui_json_number(place->number) : json_null());
	ui_json_put(o, "at", ui_json_number(place->at));
	ui_json_put(o, "length", ui_json_number(place->length));
	return o;
}

static void print_place(const struct wfs_verify_bad *b, const struct wfs_damage_place *place)
{
	WFS_AUTO_FREE char *path = ui_escape(place->path, strlen(place->path));
	WFS_AUTO_FREE char *tensor = place->tensor ? ui_escape(place->tensor, place->tensor_len) : NULL;

	printf("%s: %s%s%s", path, place->part, tensor ? " " : "", tensor ? tensor : "");
	if (tensor)
		printf(" (number %" PRIu64 ")", place->number);
	printf(", %" PRIu64 " bytes at %" PRIu64 ": %s%s\n", place->length, place->at,
		wfs_damage_reason_text(b->reason), b->copy_of ? ", in the file's whole copy" : "");
}

static int add_place(void *ctx, const struct wfs_damage_place *place)
{
	struct verify *v = ctx;
	const struct wfs_verify_bad *b = bad_of(v, place->object, place->manifest);

	if (!b || b->reason == WFS_DAMAGE_NONE)
		return 0;
	if (v->list)
		ui_json_append(json_object_get(json_array_get(v->list, (size_t)(b - v->bad)), "files"),
			json_of_place(place));
	else
		print_place(b, place);
	return 0;
}

/* Of every object that was found, where it is. */
static int name_files(struct verify *v)
{
	WFS_AUTO_FREE uint64_t *ids = ui_alloc((v->n_bad + 1) * sizeof(*ids));
	size_t n = 0;

	for (size_t i = 0; i < v->n_bad; i++) {
		if (v->list)
			json_array_append_new(v->list, json_of(&v->bad[i]));
		if (n == 0 || ids[n - 1] != v->bad[i].object)
			ids[n++] = v->bad[i].object;
	}
	return wfs_damage_each_place(v->store, ids, n, add_place, v);
}

static uint64_t count(const struct verify *v, bool repaired)
{
	uint64_t n = 0;

	for (size_t i = 0; i < v->n_bad; i++)
		n += v->bad[i].reason != WFS_DAMAGE_NONE && v->repaired[i] == repaired;
	return n;
}

static uint64_t count_sound(const struct verify *v)
{
	uint64_t n = 0;

	for (size_t i = 0; i < v->n_bad; i++)
		n += v->bad[i].reason == WFS_DAMAGE_NONE;
	return n;
}

static int print_json(struct verify *v, bool finished)
{
	const struct wfs_verify_summary *n = &v->summary;
	json_t *root = json_object(), *damaged = json_array();

	for (size_t i = 0; i < v->n_bad; i++) {
		json_t *o = json_array_get(v->list, i);

		if (v->bad[i].reason == WFS_DAMAGE_NONE)
			continue;
		ui_json_put(o, "repaired", json_boolean(v->repaired[i]));
		ui_json_append(damaged, json_incref(o));
	}
	ui_json_put(root, "store", ui_json_text(v->target.store));
	ui_json_put(root, "path", ui_json_text(v->target.path));
	ui_json_put(root, "finished", json_boolean(finished));
	ui_json_put(root, "clean", json_boolean(finished && count(v, false) == 0));
	ui_json_put(root, "objects", ui_json_number(n->objects));
	ui_json_put(root, "bytes", ui_json_number(n->bytes));
	ui_json_put(root, "whole_copies", ui_json_number(n->copies));
	ui_json_put(root, "dirty", ui_json_number(n->dirty));
	ui_json_put(root, "repaired", ui_json_number(count(v, true)));
	ui_json_put(root, "sound_again", ui_json_number(count_sound(v)));
	ui_json_put(root, "remembered", json_boolean(!v->not_noted && !v->only_look));
	ui_json_put(root, "not_remembered_because", ui_json_text(v->not_noted));
	ui_json_put(root, "damaged", damaged);
	return ui_json_print(root);
}

static int print_text(const struct verify *v, bool finished)
{
	const struct wfs_verify_summary *n = &v->summary;
	WFS_AUTO_FREE char *bytes = ui_size(n->bytes);
	uint64_t bad = count(v, false), repaired = count(v, true), sound = count_sound(v);

	printf("%s %" PRIu64 " objects, %s", finished ? "verified" : "stopped after", n->objects, bytes);
	if (n->dirty)
		printf("; %" PRIu64 " file%s not sealed yet and ha%s no digest", n->dirty,
			n->dirty == 1 ? " is" : "s are", n->dirty == 1 ? "s" : "ve");
	if (bad + repaired == 0)
		puts(": no damage");
	else if (bad)
		printf(": %" PRIu64 " DAMAGED\n", bad);
	else
		putchar('\n');
	if (repaired)
		printf("%" PRIu64 " repaired\n", repaired);
	if (sound)
		printf("%" PRIu64 " that had been damaged are right again\n", sound);
	return ui_finish();
}

static int report(struct verify *v, bool finished)
{
	int ret = v->json ? print_json(v, finished) : print_text(v, finished);

	if (v->not_noted)
		ui_error("until it is, reads may still give these bytes: run it as root, or with the store unmounted",
			"what was found could not be remembered in the store: %s", v->not_noted);
	if (ret || !finished)
		return CANNOT;
	return count(v, false) ? DAMAGED : CLEAN;
}

/* ---- the command ---- */

static int open_store(struct verify *v)
{
	const struct wfs_store_options options = { .mode = WFS_STORE_READ };
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_store_open(v->target.store, &options, &v->store, &err);
	int pid;

	if (ret < 0) {
		ui_error_from(&err, ret, "verify");
		return CANNOT;
	}
	if (v->from && wfs_store_is_locked(v->target.store, &pid)) {
		ui_error("unmount it, and run this again; or save the tensors into the mount once more: "
			 "that repairs them, too", "verify: %s is mounted, and is repaired only where "
			 "nobody uses it", v->target.store);
		return CANNOT;
	}
	return 0;
}

static int verify(struct verify *v)
{
	struct wfs_err err = WFS_ERR_INIT;
	int ret = open_store(v), late;

	if (ret == 0 && strcmp(v->target.path, "/") != 0)
		ret = choose(v);
	if (ret)
		return ret;
	catch_signals();
	v->options.stop = &stop;
	v->options.tick = show_progress;
	v->options.tick_ctx = v;
	v->list = v->json ? json_array() : NULL;
	ret = wfs_verify(v->store, &v->options, &v->bad, &v->n_bad, &v->summary, &err);
	ui_progress_end();
	v->repaired = ui_alloc((v->n_bad + 1) * sizeof(*v->repaired));
	memset(v->repaired, 0, (v->n_bad + 1) * sizeof(*v->repaired));
	if (ret < 0 && ret != -EINTR)
		ui_error_from(&err, ret, "verify");
	late = name_files(v);
	if (late == 0)
		late = remember(v);
	ret = report(v, ret == 0);
	return late ? CANNOT : ret;
}

static int run_on(const char *what, struct verify *v)
{
	int ret = target_resolve(what, &v->target);

	if (ret == 0)
		ret = verify(v);
	else
		ret = CANNOT;
	if (v->store)
		wfs_store_close(v->store);
	free(v->inos);
	free(v->bad);
	free(v->repaired);
	json_decref(v->list);
	target_release(&v->target);
	return ret;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "from", required_argument, NULL, 'f' },
		{ "rate", required_argument, NULL, 'r' },
		{ "threads", required_argument, NULL, 't' },
		{ "only-look", no_argument, NULL, 'n' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct verify v = { .from = NULL };
	int opt;

	while ((opt = getopt_long(argc, argv, "nh", long_options, NULL)) != -1) {
		char *end;

		switch (opt) {
		case 'f':
			v.from = optarg;
			break;
		case 'n':
			v.only_look = true;
			break;
		case 'j':
			v.json = true;
			break;
		case 'r':
			if (wfs_size_parse(optarg, &v.options.rate) && v.options.rate > 0)
				break;
			ui_error(NULL, "verify: --rate %s: a size is needed, as 100MB", optarg);
			return command_usage(self);
		case 't':
			v.options.threads = (unsigned)strtoul(optarg, &end, 10);
			if (*optarg && !*end && v.options.threads > 0 && v.options.threads <= 64)
				break;
			ui_error(NULL, "verify: --threads %s: a number from 1 to 64 is needed", optarg);
			return command_usage(self);
		default:
			return command_other_option(self, opt);
		}
	}
	if (v.only_look && v.from) {
		ui_error(NULL, "verify: --only-look and --from exclude each other");
		return command_usage(self);
	}
	if (argc - optind == 1)
		return run_on(argv[optind], &v);
	ui_error(NULL, "verify: one store, or one path in a mount, is needed");
	return command_usage(self);
}

const struct command command_verify = {
	.name = "verify",
	.summary = "read what is stored, compare it with its digests, repair it",
	.run = run,
	.help = "usage: weightfs verify [--rate SIZE] [--threads N] [--from DIR] [-n] [--json] STORE|PATH\n"
		"\n"
		"Reads every tensor and file in the store, or only what PATH (a file or directory\n"
		"in a mount, or STORE:PATH) needs, and compares it with its digest. The store may\n"
		"be mounted and in use. What is damaged is named with every file that has it, and\n"
		"remembered: from then on its bytes give an error instead of being wrong, until\n"
		"they are right again; all else stays readable. `weightfs status` lists it.\n"
		"\n"
		"  --from DIR     repair what is damaged from the files below DIR: tensors of\n"
		"                 safetensors and .npy files, and whole files. Bytes are used only\n"
		"                 if they have the digest of what was lost. Not while mounted.\n"
		"                 (A mounted store is repaired by saving the tensors once more.)\n"
		"  --rate SIZE    read at most SIZE bytes in a second (100MB)\n"
		"  --threads N    read with N threads; 2 if it is not given\n"
		"  -n, --only-look  remember nothing\n"
		"  --json         what was found as one JSON object\n"
		"\n"
		"Exit status 0: no damage, or all of it repaired; 1: damage; 2: it could not be\n"
		"verified, or not to the end.\n"
		"\n"
		"examples:\n"
		"  weightfs verify ~/models\n"
		"  weightfs verify --rate 200MB ~/models/llama-tuned\n"
		"  weightfs umount ~/models && weightfs verify --from /backup/llama ~/store\n",
};

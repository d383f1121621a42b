/*
 * cmd_shard.c - `weightfs shard`: the shards of a model, cut anew where a size is given.
 *
 * Cutting is the driver's work; it is asked for by an extended attribute of the directory.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "lib/size_text.h"
#include "tools/command.h"
#include "tools/model_view.h"
#include "tools/ui.h"

#define LIMIT_XATTR MODEL_VIEW_XATTR "max_shard_size"
#define LIMIT_ROOM 64

struct shard {
	const char *name; /* borrowed from a tensor; NULL: of tensors that are in none yet */
	uint64_t bytes;	  /* of the file */
	uint64_t tensors;
};

struct shards {
	struct shard *list;
	size_t n, room;
	char limit[LIMIT_ROOM]; /* as it was set; "" where none is */
};

/* ---- gathering ---- */

static bool same_name(const char *a, const char *b)
{
	return a == b || (a && b && strcmp(a, b) == 0);
}

/* The shard of this name, which is new or most likely the last. */
static struct shard *find_shard(struct shards *s, const char *name)
{
	for (size_t i = s->n; i > 0; i--)
		if (same_name(s->list[i - 1].name, name))
			return &s->list[i - 1];
	UI_ARRAY_ROOM(s->list, s->n, s->room);
	s->list[s->n] = (struct shard){.name = name};
	return &s->list[s->n++];
}

static int measure(const struct model_view *v, struct shard *shard)
{
	WFS_AUTO_FREE char *path = NULL;
	struct stat st;

	if (!shard->name)
		return 0;
	path = ui_format("%s/%s", v->dir, shard->name);
	if (stat(path, &st) < 0)
		return ui_error(NULL, "%s: %s", path, strerror(errno));
	shard->bytes = (uint64_t)st.st_size;
	return 0;
}

static int gather(
	const struct model_view *v, const struct model_tensors *tensors, struct shards *ret)
{
	ssize_t n = getxattr(v->dir, LIMIT_XATTR, ret->limit, sizeof(ret->limit) - 1);
	int status = 0;

	ret->limit[WFS_MAX(n, 0)] = 0;
	for (size_t i = 0; i < tensors->n; i++)
		find_shard(ret, tensors->list[i].shard)->tensors++;
	for (size_t i = 0; i < ret->n && status == 0; i++)
		status = measure(v, &ret->list[i]);
	return status;
}

static uint64_t sum_bytes(const struct shards *s)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < s->n; i++)
		if (wfs_add_overflows(sum, s->list[i].bytes, &sum))
			return UINT64_MAX;
	return sum;
}

/* ---- printing ---- */

static int print_text(const struct model_view *v, const struct shards *s)
{
	static const char *const heads[] = {"SHARD", "SIZE", "TENSORS"};
	struct ui_table *table = ui_table_new(WFS_ARRAY_SIZE(heads), heads, "lrr");
	WFS_AUTO_FREE char *dir = ui_escape(v->dir, strlen(v->dir));
	WFS_AUTO_FREE char *limit = ui_escape(s->limit, strlen(s->limit));
	WFS_AUTO_FREE char *size = ui_size(sum_bytes(s));

	printf("%s: %zu shard%s, %s%s%s\n", dir, s->n, s->n == 1 ? "" : "s", size,
		*limit ? ", each at most " : "", limit);
	for (size_t i = 0; i < s->n; i++) {
		const struct shard *shard = &s->list[i];
		const char *name = shard->name ? shard->name : "-";

		ui_table_take(table, ui_escape(name, strlen(name)));
		ui_table_take(table, shard->name ? ui_size(shard->bytes) : ui_format("-"));
		ui_table_add_number(table, shard->tensors);
	}
	ui_table_print(table, "");
	return ui_finish();
}

static int print_json(const struct model_view *v, const struct shards *s)
{
	json_t *root = json_object(), *list = json_array();

	for (size_t i = 0; i < s->n; i++) {
		const struct shard *shard = &s->list[i];
		json_t *o = json_object();

		ui_json_put(o, "name", ui_json_text(shard->name));
		ui_json_put(o, "bytes", shard->name ? ui_json_number(shard->bytes) : json_null());
		ui_json_put(o, "tensors", ui_json_number(shard->tensors));
		ui_json_append(list, o);
	}
	ui_json_put(root, "model", ui_json_text(v->dir));
	ui_json_put(root, "max_shard_size", ui_json_text(*s->limit ? s->limit : NULL));
	ui_json_put(root, "bytes", ui_json_number(sum_bytes(s)));
	ui_json_put(root, "shards", list);
	return ui_json_print(root);
}

static int print_shards(const struct model_view *v, bool json)
{
	struct model_tensors tensors;
	struct shards s = {.n = 0};
	int status = model_tensors_read(v, &tensors);

	if (status == 0)
		status = gather(v, &tensors, &s);
	if (status == 0) {
		status = json ? print_json(v, &s) : print_text(v, &s);
		model_tensors_notes(v, &tensors);
	}
	free(s.list);
	model_tensors_release(&tensors);
	return status;
}

/* ---- cutting ---- */

static const char *hint_for(int err)
{
	switch (err) {
	case EROFS:
		return "mount the store without -o ro";
	case EACCES:
	case EPERM:
		return "who may write to the model's directory may cut it";
	case EBUSY:
		return "a shard is broken, incomplete or being written: `weightfs status -v` lists "
		       "them";
	case ENOSPC:
	case EDQUOT:
		return "only headers and the index are written, but for these there is no space";
	default:
		return NULL;
	}
}

static int set_limit(const struct model_view *v, const char *size)
{
	if (setxattr(v->dir, LIMIT_XATTR, size, strlen(size), 0) == 0)
		return 0;
	return ui_error(hint_for(errno), "%s is not cut into shards of %s: %s", v->dir, size,
		strerror(errno));
}

static int shard(const char *model, const char *size, bool json)
{
	struct model_view v;
	int status = model_view_open(model, NULL, &v);

	if (status == 0 && size)
		status = set_limit(&v, size);
	if (status == 0)
		status = print_shards(&v, json);
	model_view_release(&v);
	return status;
}

static bool is_size(const char *text)
{
	uint64_t bytes;

	return wfs_size_parse(text, &bytes) && bytes > 0 && strlen(text) < LIMIT_ROOM;
}

static int run(const struct command *self, int argc, char **argv)
{
	const char *size;
	bool json;
	int status = command_json_option(self, argc, argv, &json);

	if (status >= 0)
		return status;
	if (argc - optind < 1 || argc - optind > 2) {
		ui_error(NULL, "shard: a model directory is needed, and a size to cut it anew");
		return command_usage(self);
	}
	size = argv[optind + 1];
	if (size && !is_size(size)) {
		ui_error("sizes are written as 500MB, 5GB or 1.5GiB", "shard: '%s' is no size",
			size);
		return command_usage(self);
	}
	return shard(argv[optind], size, json);
}

const struct command command_shard = {
	.name = "shard",
	.summary = "the shards of a model; cut it into shards of another size, without copying",
	.run = run,
	.help = "usage: weightfs shard [--json] MODEL [SIZE]\n"
		"\n"
		"The shards of the model in the directory MODEL, which is in a mount: the size of\n"
		"each file, and how many tensors it has.\n"
		"\n"
		"With SIZE (500MB, 5GB, 1.5GiB) the model is first cut anew, so that no shard has\n"
		"tensors of more than SIZE but where a single one is larger: by the rule of\n"
		"transformers, in the order in which the tensors stand, with an index where there\n"
		"are several. No tensor is copied; who has an old shard open goes on reading it.\n"
		"The size is kept (user.weightfs.max_shard_size of the directory), and holds for\n"
		"tensors that are put later. Shards of a variant (model.fp16.safetensors) are not\n"
		"meant, and stay as they are.\n"
		"\n"
		"MODEL/.shards/SIZE shows how the model looks when it is cut, and changes "
		"nothing.\n"
		"\n"
		"  --json  one JSON object; sizes in bytes\n"
		"\n"
		"examples:\n"
		"  weightfs shard ~/models/llama\n"
		"  weightfs shard ~/models/llama 2GB\n"
		"  ls -l ~/models/llama/.shards/2GB\n",
};

/* lib/model_priv.h: the shards and indexes in a directory. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/model_priv.h"

#define ENTRIES_AT_ONCE 512

int wfs_compare_bytes(const char *a, size_t a_len, const char *b, size_t b_len)
{
	size_t len = WFS_MIN(a_len, b_len);
	int ret = len ? memcmp(a, b, len) : 0;

	return ret ? ret : a_len < b_len ? -1 : a_len > b_len;
}

int wfs_scan_add(struct wfs_scan *scan, const char *name, const struct wfs_attr *attr,
	const struct wfs_shard_name *parsed)
{
	struct wfs_model_file *f;

	if (scan->n == scan->room) {
		size_t room = scan->room ? 2 * scan->room : 16;
		struct wfs_model_file *grown = reallocarray(scan->files, room, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		scan->files = grown;
		scan->room = room;
	}
	f = &scan->files[scan->n];
	*f = (struct wfs_model_file){.parsed = *parsed, .name = strdup(name), .attr = *attr};
	if (!f->name)
		return -ENOMEM;
	scan->n++;
	return 0;
}

static int scan_entry(void *ctx, const struct wfs_dirent *entry)
{
	struct wfs_scan *scan = ctx;
	struct wfs_shard_name parsed;
	struct wfs_attr target;

	scan->last = entry->id;
	scan->seen++;
	if (!wfs_shard_name_parse(entry->name, &parsed) ||
		!wfs_is_same_text(parsed.has_variant ? parsed.variant : NULL, scan->variant))
		return 0;
	/* A cache of the Hugging Face hub has links to its blobs. */
	if (S_ISLNK(entry->mode) &&
		wfs_name_follow(scan->store, scan->dir, entry->name, &target) == 0)
		return wfs_scan_add(scan, entry->name, &target, &parsed);
	return wfs_scan_add(scan, entry->name, &entry->attr, &parsed);
}

/* The whole before its parts, and these by number; the index last. */
static int compare_files(const void *a, const void *b)
{
	const struct wfs_model_file *x = a, *y = b;

	if (x->parsed.is_index != y->parsed.is_index)
		return x->parsed.is_index - y->parsed.is_index;
	if (x->parsed.count != y->parsed.count)
		return x->parsed.count < y->parsed.count ? -1 : 1;
	if (x->parsed.number != y->parsed.number)
		return x->parsed.number < y->parsed.number ? -1 : 1;
	return strcmp(x->name, y->name);
}

void wfs_model_files_free(struct wfs_model_file *files, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(files[i].name);
	free(files);
}

int wfs_scan_directory(struct wfs_store *s, uint64_t dir, const char *variant, struct wfs_scan *ret)
{
	struct wfs_scan scan = {.store = s, .dir = dir, .variant = variant};
	int err;

	do {
		scan.seen = 0;
		err = wfs_name_readdir(s, dir, scan.last, ENTRIES_AT_ONCE, true, scan_entry, &scan);
	} while (err == 0 && scan.seen == ENTRIES_AT_ONCE);
	if (err) {
		wfs_model_files_free(scan.files, scan.n);
		return err;
	}
	if (scan.n)
		qsort(scan.files, scan.n, sizeof(*scan.files), compare_files);
	*ret = scan;
	return 0;
}

static bool has_base(const struct wfs_scan *scan, const char *base)
{
	for (size_t i = 0; i < scan->n; i++)
		if (strcmp(scan->files[i].parsed.base, base) == 0)
			return true;
	return false;
}

/* NULL: there are several, and none of them is usual. */
const char *wfs_scan_base(const struct wfs_scan *scan)
{
	static const char *const usual[] = {"model", "diffusion_pytorch_model", "adapter_model"};

	for (size_t i = 0; i < WFS_ARRAY_SIZE(usual); i++)
		if (has_base(scan, usual[i]))
			return usual[i];
	for (size_t i = 1; i < scan->n; i++)
		if (strcmp(scan->files[i].parsed.base, scan->files[0].parsed.base) != 0)
			return NULL;
	return scan->n ? scan->files[0].parsed.base : "model";
}

/* Those of other bases go. */
void wfs_scan_keep_base(struct wfs_scan *scan, const char *base)
{
	size_t kept = 0;

	for (size_t i = 0; i < scan->n; i++) {
		if (base && strcmp(scan->files[i].parsed.base, base) == 0)
			scan->files[kept++] = scan->files[i];
		else
			free(scan->files[i].name);
	}
	scan->n = kept;
}

/* ---- variants ---- */

/* The smallest behind `after`. */
struct variants {
	const char *after;
	char *found; /* owned */
	uint64_t last;
	size_t seen;
};

static int look_at_variant(void *ctx, const struct wfs_dirent *entry)
{
	struct variants *v = ctx;
	struct wfs_shard_name parsed;

	v->last = entry->id;
	v->seen++;
	if (!wfs_shard_name_parse(entry->name, &parsed) || !parsed.has_variant ||
		(v->after && strcmp(parsed.variant, v->after) <= 0) ||
		(v->found && strcmp(parsed.variant, v->found) >= 0))
		return 0;
	free(v->found);
	v->found = strdup(parsed.variant);
	return v->found ? 0 : -ENOMEM;
}

int wfs_scan_next_variant(struct wfs_store *s, uint64_t dir, const char *after, char **ret)
{
	struct variants v = { .after = after };
	int err;

	do {
		v.seen = 0;
		err = wfs_name_readdir(s, dir, v.last, ENTRIES_AT_ONCE, false, look_at_variant, &v);
	} while (err == 0 && v.seen == ENTRIES_AT_ONCE);
	if (err || !v.found) {
		free(v.found);
		return err;
	}
	*ret = v.found;
	return 1;
}

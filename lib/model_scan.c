/* lib/model_priv.h: the shards and indexes in a directory. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/array.h"
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

	if (WFS_ARRAY_ROOM(scan->files, scan->n, scan->room))
		return -ENOMEM;
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

	scan->last = entry->id;
	scan->seen++;
	return wfs_shard_name_parse(entry->name, &parsed)
		       ? wfs_scan_add(scan, entry->name, &entry->attr, &parsed)
		       : 0;
}

/* The names that a training library gives; a part of them behind a dot is a variant. */
static const char *const usual[] = {"model", "diffusion_pytorch_model", "adapter_model"};

static bool is_usual(const char *base)
{
	for (size_t i = 0; i < WFS_ARRAY_SIZE(usual); i++)
		if (strcmp(base, usual[i]) == 0)
			return true;
	return false;
}

/* A file that shows where this base ends. */
static bool is_base(const struct wfs_scan *scan, const char *base)
{
	for (size_t i = 0; i < scan->n; i++) {
		const struct wfs_shard_name *p = &scan->files[i].parsed;

		if ((!p->has_variant || p->is_index) && strcmp(p->base, base) == 0)
			return true;
	}
	return false;
}

/* "Llama-3.1-8B" is no variant "1-8B" of "Llama-3", unless there is a Llama-3 beside it. */
static void join_dots(struct wfs_scan *scan)
{
	char checked[WFS_SHARD_NAME_SIZE] = "";
	bool joins = false;

	for (size_t i = 0; i < scan->n; i++) {
		struct wfs_shard_name *p = &scan->files[i].parsed;

		if (!p->has_variant || p->is_index)
			continue;
		if (strcmp(checked, p->base) != 0)
			joins = !is_usual(p->base) && !is_base(scan, p->base);
		strcpy(checked, p->base);
		if (joins) {
			strcat(strcat(p->base, "."), p->variant); /* as long as in the name */
			p->variant[0] = '\0';
			p->has_variant = false;
		}
	}
}

static int read_directory(struct wfs_store *s, uint64_t dir, struct wfs_scan *scan)
{
	int err;

	*scan = (struct wfs_scan){.store = s, .dir = dir};
	do {
		scan->seen = 0;
		err = wfs_name_readdir(s, dir, scan->last, ENTRIES_AT_ONCE, true, scan_entry, scan);
	} while (err == 0 && scan->seen == ENTRIES_AT_ONCE);
	if (err)
		wfs_model_files_free(scan->files, scan->n);
	else
		join_dots(scan);
	return err;
}

/* Those of other variants go. A cache of the Hugging Face hub has links to its blobs. */
static void keep_variant(struct wfs_scan *scan, const char *variant)
{
	struct wfs_attr target;
	size_t kept = 0;

	for (size_t i = 0; i < scan->n; i++) {
		struct wfs_model_file *f = &scan->files[i];

		if (!wfs_is_same_text(f->parsed.has_variant ? f->parsed.variant : NULL, variant)) {
			free(f->name);
			continue;
		}
		if (S_ISLNK(f->attr.mode) &&
			wfs_name_follow(scan->store, scan->dir, f->name, &target) == 0)
			f->attr = target;
		scan->files[kept++] = *f;
	}
	scan->n = kept;
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
	int err = read_directory(s, dir, ret);

	if (err)
		return err;
	keep_variant(ret, variant);
	if (ret->n)
		qsort(ret->files, ret->n, sizeof(*ret->files), compare_files);
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

int wfs_scan_next_variant(struct wfs_store *s, uint64_t dir, const char *after, char **ret)
{
	const char *found = NULL;
	struct wfs_scan scan;
	int err = read_directory(s, dir, &scan);

	if (err)
		return err;
	for (size_t i = 0; i < scan.n; i++) {
		const struct wfs_shard_name *p = &scan.files[i].parsed;

		if (p->has_variant && (!after || strcmp(p->variant, after) > 0) &&
			(!found || strcmp(p->variant, found) < 0))
			found = p->variant;
	}
	*ret = found ? strdup(found) : NULL;
	err = !found ? 0 : *ret ? 1 : -ENOMEM;
	wfs_model_files_free(scan.files, scan.n);
	return err;
}

/* The index of a model's shards: read, written, read again and written again. */
#include <errno.h>
#include <string.h>

#include "lib/shard_index.h"
#include "tests/fuzz/fuzz.h"

static void check_entry(const struct wfs_shard_index *index, const struct wfs_index_entry *e)
{
	for (size_t i = 0; i < index->n; i++)
		if (index->entries[i].tensor_len == e->tensor_len &&
			memcmp(index->entries[i].tensor, e->tensor, e->tensor_len) == 0) {
			WFS_FUZZ_CHECK(strcmp(index->entries[i].shard, e->shard) == 0);
			return;
		}
	WFS_FUZZ_CHECK(!"a tensor is lost");
}

static bool is_beside(const char *shard)
{
	size_t len = strlen(shard);

	return len > 0 && len <= 255 && !strchr(shard, '/') && strcmp(shard, ".") && strcmp(shard, "..");
}

#define MANY 200 /* entries: check_entry is linear */

static void write_again(const struct wfs_shard_index *index)
{
	WFS_AUTO_FREE char *text = NULL;
	WFS_AUTO_FREE char *same = NULL;
	struct wfs_shard_index again;
	size_t len = 0, same_len = 0;
	int ret = wfs_shard_index_build(index->entries, index->n, index->metadata, &text, &len, NULL);

	WFS_FUZZ_CHECK(ret == 0);
	WFS_FUZZ_CHECK(wfs_shard_index_parse(text, len, &again, NULL) == 0);
	WFS_FUZZ_CHECK(again.n == index->n);
	for (size_t i = 0; i < index->n && index->n <= MANY; i++)
		check_entry(&again, &index->entries[i]);
	ret = wfs_shard_index_build(again.entries, again.n, again.metadata, &same, &same_len, NULL);
	WFS_FUZZ_CHECK(ret == 0 && same_len == len && memcmp(same, text, len) == 0);
	wfs_shard_index_release(&again);
}

void wfs_fuzz_index(const uint8_t *data, size_t size)
{
	WFS_AUTO_FREE char *copy = malloc(size ? size : 1);
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_shard_index index;
	int ret;

	WFS_FUZZ_CHECK(copy);
	if (size)
		memcpy(copy, data, size);
	ret = wfs_shard_index_parse(copy, size, &index, &err);
	WFS_FUZZ_CHECK(ret == 0 || (ret == -EBADMSG && err.reason));
	if (ret)
		return;
	for (size_t i = 0; i < index.n; i++)
		WFS_FUZZ_CHECK(is_beside(index.entries[i].shard));
	write_again(&index);
	wfs_shard_index_release(&index);
}

/* A file, whole. What is valid is built again and read again; each beginning of it is incomplete. */
#include <errno.h>
#include <string.h>

#include "lib/safetensors.h"
#include "tests/fuzz/fuzz.h"

#define BEGINNINGS 64 /* tried of each valid file */

/* In memory that is exactly as long as the parser asks for, so that a sanitizer sees the byte behind. */
static uint8_t *needed(const uint8_t *data, size_t size)
{
	uint64_t need = wfs_safetensors_need(data, size);
	uint8_t *copy;

	WFS_FUZZ_CHECK(need <= size);
	copy = malloc(need ? need : 1);
	WFS_FUZZ_CHECK(copy);
	if (need)
		memcpy(copy, data, need);
	return copy;
}

static enum wfs_safetensors_verdict verdict_of(const uint8_t *data, size_t size)
{
	WFS_AUTO_FREE uint8_t *copy = needed(data, size);
	struct wfs_safetensors st;
	enum wfs_safetensors_verdict verdict;

	WFS_FUZZ_CHECK(wfs_safetensors_parse(copy, size, &st, NULL) == 0);
	verdict = st.verdict;
	wfs_safetensors_release(&st);
	return verdict;
}

static void check_beginnings(const uint8_t *data, size_t size)
{
	for (size_t i = 0; i < BEGINNINGS; i++) {
		size_t len = size * i / BEGINNINGS;

		if (len < size)
			WFS_FUZZ_CHECK(verdict_of(data, len) == WFS_SAFETENSORS_INCOMPLETE);
	}
}

static uint64_t *shape_of(const struct wfs_safetensors *st, const struct wfs_safetensors_tensor *t)
{
	uint64_t *dims = calloc(t->ndim + 1, sizeof(*dims));

	WFS_FUZZ_CHECK(dims && wfs_safetensors_shape(st, t, dims, t->ndim) == t->ndim);
	return dims;
}

static const struct wfs_safetensors_tensor *find(
	const struct wfs_safetensors *st, const struct wfs_safetensors_entry *e)
{
	for (size_t i = 0; i < st->n_tensors; i++)
		if (st->tensors[i].name_len == e->name_len &&
			memcmp(st->tensors[i].name, e->name, e->name_len) == 0)
			return &st->tensors[i];
	return NULL;
}

static void check_same(const struct wfs_safetensors *st, const struct wfs_safetensors_entry *entries,
	size_t n, const uint8_t *head, uint64_t size)
{
	struct wfs_safetensors again;

	WFS_FUZZ_CHECK(wfs_safetensors_parse(head, size, &again, NULL) == 0);
	WFS_FUZZ_CHECK(again.verdict == WFS_SAFETENSORS_VALID && again.warnings == 0);
	WFS_FUZZ_CHECK(again.n_tensors == n && again.n_meta == st->n_meta);
	for (size_t i = 0; i < n; i++) {
		const struct wfs_safetensors_tensor *t = find(&again, &entries[i]);
		WFS_AUTO_FREE uint64_t *dims = NULL;

		WFS_FUZZ_CHECK(t && t->dtype == entries[i].dtype && t->ndim == entries[i].ndim);
		WFS_FUZZ_CHECK(t->begin == entries[i].begin && t->end == entries[i].end);
		dims = shape_of(&again, t);
		WFS_FUZZ_CHECK(memcmp(dims, entries[i].shape, t->ndim * sizeof(*dims)) == 0);
	}
	wfs_safetensors_release(&again);
}

#define MANY 200 /* tensors: find() is linear */

static void build_again(const struct wfs_safetensors *st)
{
	size_t n = st->n_tensors, len = 0;
	struct wfs_safetensors_entry *entries = calloc(n + 1, sizeof(*entries));
	WFS_AUTO_FREE uint8_t *head = NULL;
	uint64_t data_len = 0;
	int ret;

	WFS_FUZZ_CHECK(entries);
	for (size_t i = 0; i < n; i++) {
		const struct wfs_safetensors_tensor *t = &st->tensors[i];

		entries[i] = (struct wfs_safetensors_entry){ .name = t->name, .name_len = t->name_len,
			.ndim = t->ndim, .dtype = t->dtype, .shape = shape_of(st, t) };
	}
	ret = wfs_safetensors_build(entries, n, st->meta, st->n_meta, &head, &len, &data_len, NULL);
	WFS_FUZZ_CHECK(ret == 0 && data_len == st->data_len);
	check_same(st, entries, n, head, len + data_len);
	for (size_t i = 0; i < n; i++)
		free((void *)entries[i].shape);
	free(entries);
}

void wfs_fuzz_safetensors(const uint8_t *data, size_t size)
{
	WFS_AUTO_FREE uint8_t *copy = needed(data, size);
	struct wfs_safetensors st;
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t end = 0;

	WFS_FUZZ_CHECK(wfs_safetensors_parse(copy, size, &st, &err) == 0);
	WFS_FUZZ_CHECK((st.verdict == WFS_SAFETENSORS_VALID) == !err.reason);
	WFS_FUZZ_CHECK(verdict_of(data, size) == st.verdict);
	if (st.verdict == WFS_SAFETENSORS_VALID) {
		for (size_t i = 0; i < st.n_tensors; i++) {
			WFS_FUZZ_CHECK(st.tensors[i].begin == end && st.tensors[i].end >= end);
			end = st.tensors[i].end;
		}
		WFS_FUZZ_CHECK(WFS_SAFETENSORS_PREFIX + st.header_len + end == size);
		check_beginnings(data, size);
		if (st.n_tensors <= MANY)
			build_again(&st);
	}
	wfs_safetensors_release(&st);
}
